"""The user client's commands, in SciStream's words and lines."""

import re
import resource
import time
from concurrent import futures

from s2cs import user
from s2cs.client import Gateway
from s2cs.proto import scistream_pb2 as pb
from tests.integration.s2uc.servers import OldServer, connect_arguments
from tests.sites import running


def test_inbound_request_prints_what_scripts_read(serve, ca, capsys):
    server, address = serve(OldServer())
    code = user.main(
        ["inbound_request", "--s2cs", address, "--server_cert", str(ca), "--remote_ip", "10.0.1.5",
         "--receiver_ports=5001,5002", "--num_conn", "3", "--mock", "True"]
    )  # fmt: skip
    out = capsys.readouterr().out
    listeners = server.entries[user.MOCK_UID]["listeners"]
    assert code == 0
    assert out.splitlines()[:2] == ["uid; s2cs; access_token; role", f"{user.MOCK_UID} {address} - PROD"]
    assert "Hello message sent successfully" in out
    assert re.findall(r'(?m)^listeners:\s*"([^"]+)"', out) == listeners
    assert re.findall(r'(?m)^prod_listeners:\s*"([^"]+)"', out) == ["10.0.1.5:5001", "10.0.1.5:5002"]
    assert out.splitlines()[-1] == f"Listeners: {listeners}"
    assert list(server.named("update")[0].remote_listeners) == ["10.0.1.5:5001", "10.0.1.5:5002"]
    assert server.named("update")[0].role == "PROD"


def test_hello_is_repeated_until_the_request_has_arrived(serve, ca):
    server, address = serve(OldServer())
    server.held.clear()
    with Gateway(address, ca=[ca]) as gateway, futures.ThreadPoolExecutor(1) as pool:
        answer = pool.submit(gateway.req, "u", "PROD", connections=1, targets=["10.0.0.1:80"])
        while "hello" not in server.missed:  # the first one comes too early, and is failed
            time.sleep(0.01)
        server.held.set()
        assert list(answer.result(30).prod_listeners) == ["10.0.0.1:80"]
    assert len(server.named("hello")) > 1


def test_outbound_request_leads_to_the_listeners_given(serve, ca, capsys):
    server, address = serve(OldServer())
    code = user.main(
        ["outbound-request", "--remote_ip", "10.0.0.2", "--s2cs", address, "my-uid", "--receiver_ports=5100",
         "10.0.0.1:5100,10.0.0.1:5101,", "--server_cert", str(ca), "--num_conn=1", "--show-token"]
    )  # fmt: skip
    out = capsys.readouterr().out
    assert code == 0
    assert out.splitlines()[1] == f"my-uid {address} INVALID_TOKEN CONS"
    assert out.splitlines()[-1] == f"Listeners: {server.entries['my-uid']['listeners']}"
    (update,) = server.named("update")
    assert (update.role, list(update.remote_listeners)) == ("CONS", ["10.0.0.1:5100", "10.0.0.1:5101"])


def test_prod_req_waits_for_the_application(serve, ca, capsys):
    server, address = serve(OldServer())
    with Gateway(address, ca=[ca]) as application, futures.ThreadPoolExecutor(1) as pool:

        def greet():
            while user.MOCK_UID not in server.entries:
                time.sleep(0.01)
            return application.hello(user.MOCK_UID, "PROD", ["10.0.0.7:7000"])

        greeting = pool.submit(greet)
        assert user.main(["prod-req", "--s2cs", address, "--server-cert", str(ca), "--mock", "--num-conn", "1"]) == 0
        assert greeting.result(30).message
    assert list(server.named("update")[0].remote_listeners) == ["10.0.0.7:7000"]
    assert "Listeners: ['127.0.0.1:" in capsys.readouterr().out


def test_release(serve, ca, capsys):
    server, address = serve(OldServer())
    server.listen(pb.Request(uid="u", num_conn=1))
    command = ["release", "u", "--s2cs", address, "--server_cert", str(ca)]
    assert user.main(command) == 0
    assert server.entries == {}
    assert "Release completed" in capsys.readouterr().out
    assert user.main(command) == user.EXIT_REFUSED
    assert f"gateway {address} refused release" in capsys.readouterr().err


def test_update_that_is_refused_releases_the_request(serve, ca, capsys):
    server, address = serve(OldServer())
    server.refuse["update"] = "no such target"
    assert user.main(["inbound-request", "--s2cs", address, "--ca", str(ca)]) == user.EXIT_REFUSED
    assert server.entries == {}
    assert f"s2uc: error: gateway {address} refused update: no such target\n" in capsys.readouterr().err


def test_status_and_ls(pair, serve, ca, capsys):
    _, a, consumer, b = pair
    assert user.main(connect_arguments(a, b, ca, "--detach", "--uid", "mine")) == 0
    capsys.readouterr()
    assert user.main(["ls", "--s2cs", a, "--s2cs", b, "--ca", str(ca)]) == 0
    rows = [row.split() for row in capsys.readouterr().out.splitlines()]
    assert rows[0][:4] == ["gateway", "uid", "role", "state"]
    assert [row[:4] for row in rows[1:]] == [[a, "mine", "PROD", "streaming"], [b, "mine", "CONS", "streaming"]]
    assert user.main(["status", "mine", "--s2cs", b, "--ca", str(ca)]) == 0
    facts = dict(re.split(r":\s*", line, maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert facts["listeners"] == ",".join(consumer.entries["mine"]["listeners"])
    assert facts["traffic"] == "0 connections, 42 B in, 0 B out"
    assert user.main(["status", "other", "--s2cs", a, "--ca", str(ca)]) == user.EXIT_REFUSED
    assert "no session other" in capsys.readouterr().err
    _, old = serve(OldServer())
    assert user.main(["ls", "--s2cs", old, "--ca", str(ca)]) == user.EXIT_REFUSED
    assert f"gateway {old} has no call list: it is an existing SciStream server" in capsys.readouterr().err


def test_connect_starts_quickly(pair, ca):
    _, a, _, b = pair
    took = []
    for _ in range(3):
        before = work_of_children()
        with running(connect_arguments(a, b, ca, "--detach")) as process:
            process.communicate(timeout=60)
        took.append(work_of_children() - before)
        assert process.returncode == 0
    assert min(took) < 1.0  # 0.2 s; what it guards against is a heavy import


def work_of_children() -> float:
    """Return the seconds that a processor has worked for children that have ended: waiting for one is not counted."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
