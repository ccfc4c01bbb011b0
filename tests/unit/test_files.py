"""Files that are there whole or not at all, for the eyes that they are meant for."""

import os
import stat
from contextlib import suppress
from pathlib import Path

import pytest

from ministream.base.errors import UserError
from ministream.base.files import whole_or_absent


def write(path: Path, content: bytes, *mode: int) -> None:
    with whole_or_absent(path, *mode) as aside:
        aside.write_bytes(content)


def test_a_file_is_replaced_whole_and_leaves_no_other(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write(path, b"old")
    with whole_or_absent(path) as aside:
        aside.write_bytes(b"ne")
        assert path.read_bytes() == b"old"
        aside.write_bytes(b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_what_goes_wrong_in_the_block_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write(path, b"old")
    with suppress(KeyboardInterrupt), whole_or_absent(path) as aside:
        aside.write_bytes(b"ne")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written_is_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot write .*missing/file: No such file or directory"):
        write(tmp_path / "missing" / "file", b"")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=r"cannot write .*folder"):
        write(tmp_path / "folder", b"")
    assert list(tmp_path.iterdir()) == [tmp_path / "folder"]


@pytest.mark.parametrize(
    ("umask", "mode", "expected"), [(0, 0o600, 0o600), (0o022, 0o666, 0o644), (0o077, 0o666, 0o600)]
)
def test_a_secret_is_its_owner_s_alone_from_before_the_first_byte(
    tmp_path: Path, umask: int, mode: int, expected: int
) -> None:
    old = os.umask(umask)
    try:
        with whole_or_absent(tmp_path / "key", mode) as aside:
            assert stat.S_IMODE(aside.stat().st_mode) == expected
            aside.write_bytes(b"secret")
        assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == expected
    finally:
        os.umask(old)


def test_two_writers_at_once_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with whole_or_absent(path) as one, whole_or_absent(path) as other:
        one.write_bytes(b"one")
        other.write_bytes(b"other")
    assert path.read_bytes() == b"one"
    assert list(tmp_path.iterdir()) == [path]
