"""The receiver's parts by themselves: its access files, its state machine, its roster, and what it makes of events."""

import math
import threading
from pathlib import Path

import pytest

from aps_mini_apps.report.progress import Progress
from ministream.base.errors import UserError
from ministream.base.lifecycle import StopFlag, Stopped
from receiver.access import Access, prepare
from receiver.desk import BusyError, Desk, Order, State
from receiver.roster import Post, Roster

ORDER = Order(listeners=["127.0.0.1:5074"], options={}, tunnel={})


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_access_files_are_made_once_and_closed_to_others(tmp_path: Path) -> None:
    access, private = Access(tmp_path / "access"), tmp_path / "private"
    key = prepare(access, private)
    assert (mode(access.token_file), mode(key), mode(private)) == (0o640, 0o600, 0o700)
    assert len(access.token()) >= 32
    before = [path.read_bytes() for path in (key, access.token_file, access.certificate)]
    assert prepare(access, private) == key
    assert [path.read_bytes() for path in (key, access.token_file, access.certificate)] == before


def test_a_lost_key_is_replaced_together_with_its_certificate_and_the_token_stays(tmp_path: Path) -> None:
    access = Access(tmp_path)
    prepare(access, tmp_path / "private").unlink()
    token, certificate = access.token(), access.certificate.read_bytes()
    prepare(access, tmp_path / "private")
    assert access.token() == token
    assert access.certificate.read_bytes() != certificate


def test_files_that_are_not_there_or_broken_are_named(tmp_path: Path) -> None:
    access = Access(tmp_path)
    for read in (access.token, access.tls):
        with pytest.raises(UserError, match=r"the receiver writes it when it starts"):
            read()
    prepare(access, tmp_path)
    (tmp_path / "receiver.key").write_text("rubbish")
    with pytest.raises(UserError, match="access files"):
        prepare(access, tmp_path)
    access.token_file.write_text("\n")
    with pytest.raises(UserError, match="empty"):
        access.token()


def test_one_run_at_a_time_and_the_next_when_it_has_ended() -> None:
    desk = Desk(100, StopFlag())
    assert desk.status()["state"] == "idle"
    assert desk.take(0) is None
    run = desk.submit(ORDER)
    assert desk.take(0) is run
    assert desk.take(0) is None
    assert desk.status()["state"] == "waiting"
    with pytest.raises(BusyError, match="under way"):
        desk.submit(ORDER)
    run.record({"event": "projector ready", "service": "sirt"})
    assert desk.status()["state"] == "running"
    with pytest.raises(BusyError):
        desk.submit(ORDER)
    run.end({"event": "run ended", "state": "failed", "reason": "why"})
    assert (desk.status()["state"], desk.status()["reason"]) == ("failed", "why")
    assert desk.submit(ORDER).id != run.id
    with pytest.raises(KeyError):
        desk.find(run.id)


def test_a_desk_that_closes_hands_back_the_run_that_nobody_took() -> None:
    desk = Desk(100, StopFlag())
    run = desk.submit(ORDER)
    assert desk.close("SIGTERM") is run
    run.end({"event": "run ended", "state": "failed", "reason": ""})
    with pytest.raises(BusyError, match="SIGTERM"):
        desk.submit(ORDER)


def test_a_run_stops_alone_or_with_its_service() -> None:
    service = StopFlag()
    desk = Desk(100, service)
    first = desk.submit(ORDER)
    first.stop.request("one")
    assert not service
    first.end({"event": "run ended", "state": State.FAILED, "reason": ""})
    second = desk.submit(ORDER)
    service.request("all")
    with pytest.raises(Stopped, match="all"):
        second.stop.raise_if_set()


def test_events_are_numbered_and_the_oldest_go_first() -> None:
    run = Desk(3, StopFlag()).submit(ORDER)
    for number in range(5):
        run.record({"event": "e", "i": number})
    events, over = run.after(0)
    assert ([e["n"] for e in events], over) == ([3, 4, 5], False)
    assert run.after(5) == ([], False)
    run.end({"event": "run ended", "state": "complete", "reason": ""})
    events, over = run.after(5)
    assert ([e["event"] for e in events], over) == (["run ended"], True)


def test_followers_miss_nothing_while_events_come() -> None:
    run = Desk(10_000, StopFlag()).submit(ORDER)
    writer = threading.Thread(target=lambda: [run.record({"event": "e"}) for _ in range(2000)])
    writer.start()
    seen: list[int] = []
    while len(seen) < 2000:
        seen += [e["n"] for e in run.after(seen[-1] if seen else 0)[0]]
    writer.join()
    assert seen == list(range(1, 2001))


def test_a_worker_keeps_its_post_until_it_leaves_it() -> None:
    roster = Roster(vanished=60)
    assert roster.join("a-1", "a") is None
    (member,) = roster.free()
    post = Post("run", "sirt", {})
    roster.engage([member], [post])
    assert roster.free() == []
    assert roster.join("a-1", "a") is post
    assert roster.join("a-1", "a") is post  # the answer may have been lost
    post.stop = "enough"
    assert roster.hear("a-1", "run", [{"event": "e"}], None) == "enough"
    assert roster.said.get_nowait() == (member, [{"event": "e"}])
    with pytest.raises(KeyError):
        roster.hear("a-1", "another run", [], None)
    with pytest.raises(KeyError):
        roster.hear("b-1", "run", [], None)
    assert roster.join("a-1", "a") is None
    assert post.ended == "it has left its post"


def test_a_worker_that_stopped_asking_is_forgotten() -> None:
    roster = Roster(vanished=0)
    roster.join("a-1", "a")
    assert roster.free() == []


def test_progress_counts_the_slowest_worker_and_survives_what_is_no_number() -> None:
    progress = Progress()
    for event in (
        {"service": "daq", "event": "scan started", "projections": "many", "repeats": None},
        {"service": "daq", "event": "progress", "projections": [1]},
        {"service": "dist", "event": "progress", "sent": math.inf, "lost": 2},
        {"service": "sirt0", "event": "progress", "received": 7, "lost": 1, "misfit": 0.5, "windows": 7},
        {"service": "sirt1", "event": "progress", "received": 5, "lost": 2, "misfit": 0.25, "windows": 5},
        {"event": "file written"},
    ):
        progress.take(event)
    figures = progress.figures()
    assert (figures["sent"], figures["received"], figures["total"], figures["lag"]) == (0, 0, 0, 0)
    assert (figures["reconstructed"], figures["residual"]) == (5, 0.5)
    assert (progress.windows, progress.lost) == (5, 2)
