"""Zip archives that exist as plans: whole, in ranges, opened by other people's programs, and when files change."""

import io
import itertools
import json
import os
import subprocess
import tracemalloc
import zipfile
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from delivery.archive.headers import (
    DEFLATED,
    STORED,
    Member,
    central_length,
    central_record,
    local_length,
    local_record,
)
from delivery.archive.layout import MANIFEST, Entry, Layout
from delivery.archive.stream import Archive
from delivery.files.roots import Root
from delivery.files.version import FileVersion, SourceChanged, digest
from ministream.base.errors import UserError

GIB = 1 << 30
READERS = {
    "unzip": ["unzip", "-tqq"],
    "7zz": ["7zz", "t", "-bso0"],
    "jar": ["jar", "tf"],
}
FILES = {
    "recon/scan_β 1.h5": os.urandom(70_000),
    "recon/scan_2.h5": b"\0" * 1000,
    "notes.txt": b"angle, offset\n" * 500,
    "random.txt": os.urandom(90),
    "empty.h5": b"",
}


def entries_of(root: Root) -> list[Entry]:
    entries = []
    for found in root.scan().files:
        with root.open(*found) as descriptor:
            entries.append(Entry(found.path, digest(descriptor, found.path)))
    return entries


def read(layout: Layout, start: int = 0, stop: int | None = None) -> bytes:
    return b"".join(Archive(layout).read(start, layout.length if stop is None else stop))


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Root:
    folder = tmp_path_factory.mktemp("root")
    for name, content in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    return Root(folder, settle=0)


@pytest.fixture(scope="module")
def layout(root) -> Layout:
    return Layout(root, entries_of(root))


def test_an_archive_holds_the_files_and_a_manifest_of_their_digests(root, layout):
    with zipfile.ZipFile(io.BytesIO(read(layout))) as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in archive.namelist() if name != MANIFEST} == FILES
        listed = json.loads(archive.read(archive.namelist()[-1]))["files"]
        infos = {info.filename: info for info in archive.infolist()}
    assert listed == [
        {"name": e.name, "size": v.size, "mtime_ns": v.mtime_ns, "sha256": v.sha256, "blake3": v.blake3}
        for e in entries_of(root)
        for v in [e.version]
    ]
    assert infos["notes.txt"].compress_type == DEFLATED
    assert infos["random.txt"].compress_type == infos["recon/scan_2.h5"].compress_type == STORED
    written = datetime.fromtimestamp((root.folder / "notes.txt").stat().st_mtime, UTC)
    assert abs((datetime(*infos["notes.txt"].date_time, tzinfo=UTC) - written).total_seconds()) <= 2


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_any_range_is_that_slice_of_the_whole(layout, data):
    whole = read(layout)
    assert len(whole) == layout.length
    start = data.draw(st.integers(0, layout.length))
    stop = data.draw(st.integers(start, layout.length))
    assert read(layout, start, stop) == whole[start:stop]


def test_each_boundary_can_be_resumed_at(layout):
    whole = read(layout)
    edges = itertools.accumulate(piece.stop for piece in layout.pieces(0, layout.length))
    for edge in [at + step for at in edges for step in (-1, 0, 1) if at + step <= layout.length]:
        assert read(layout, edge) == whole[edge:]


@pytest.mark.needs("unzip", "7zz", "jar")
@pytest.mark.parametrize("program", READERS)
def test_other_programs_read_it(layout, program, tmp_path):
    file = tmp_path / "some.zip"
    file.write_bytes(read(layout))
    done = subprocess.run([*READERS[program], file], capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.needs("unzip", "7zz", "jar")
def test_more_files_than_16_bits_count(tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "a.h5").write_bytes(b"a")
    root = Root(tmp_path / "root", settle=0)
    [entry] = entries_of(root)
    many = [Entry(f"{number}.h5", entry.version) for number in range(65_536)]
    file = tmp_path / "many.zip"
    file.write_bytes(read(Layout(root, many)))
    with zipfile.ZipFile(file) as archive:
        assert len(archive.namelist()) == 65_537
    for program in READERS.values():
        done = subprocess.run([*program, file], capture_output=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def huge(tmp_path_factory) -> Layout:
    """50 GiB of holes; their CRC-32 is not worth computing here, but for that of the first."""
    folder = tmp_path_factory.mktemp("huge")
    for number, size in enumerate((5 * GIB, 100, 45 * GIB)):
        with (folder / f"{number}.h5").open("wb") as file:
            file.truncate(size)
    root = Root(folder, settle=0)
    versions = [FileVersion(f.path, *f.stamp, 0, "0" * 64, "0" * 64) for f in root.scan().files]
    return Layout(root, [Entry(version.path, version) for version in versions])


def test_files_and_offsets_beyond_32_bits_are_found_where_the_records_say(huge):
    class Virtual(io.RawIOBase):
        """The archive as a file that can be sought in."""

        at = 0

        def seekable(self):
            return True

        def readable(self):
            return True

        def tell(self):
            return self.at

        def seek(self, offset, whence=0):
            self.at = offset + (0, self.at, huge.length)[whence]
            return self.at

        def readinto(self, buffer):
            block = read(huge, self.at, min(self.at + len(buffer), huge.length))
            buffer[: len(block)] = block
            self.at += len(block)
            return len(block)

    with zipfile.ZipFile(Virtual()) as archive:
        sizes = {info.filename: info.file_size for info in archive.infolist()}
        assert archive.getinfo("2.h5").header_offset > 5 * GIB
        with archive.open("2.h5") as member:
            assert member.read(10) == bytes(10)
    assert sizes["0.h5"] == 5 * GIB
    assert sizes["2.h5"] == 45 * GIB


@pytest.mark.needs("unzip", "7zz", "jar")
def test_other_programs_find_what_lies_beyond_32_bits(tmp_path):
    folder = tmp_path / "root"
    folder.mkdir()
    with (folder / "0.h5").open("wb") as file:
        file.truncate(5 * GIB)
    (folder / "1.h5").write_bytes(b"behind it all")
    root = Root(folder, settle=0)
    [large, small] = root.scan().files
    with root.open(small.path) as descriptor:
        entries = [FileVersion(large.path, *large.stamp, 0, "", ""), digest(descriptor, small.path)]
    layout = Layout(root, [Entry(version.path, version) for version in entries])
    archive, at = tmp_path / "huge.zip", 0
    with archive.open("wb") as file:  # with a hole where the holes are
        for piece in layout.pieces(0, layout.length):
            if piece.source != entries[0]:
                file.seek(at)
                file.write(read(layout, at, at + piece.stop))
            at += piece.stop
    listings = (["unzip", "-Z1", archive], ["jar", "tf", archive], ["7zz", "l", "-ba", archive])
    for command in listings:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        assert [line.split()[-1] for line in done.stdout.splitlines()] == ["0.h5", "1.h5", MANIFEST]
    for command in (["unzip", "-p", archive, "1.h5"], ["7zz", "e", "-so", archive, "1.h5"]):
        done = subprocess.run(command, capture_output=True, timeout=120, check=True)
        assert done.stdout == b"behind it all"


@settings(deadline=None, max_examples=50)
@given(
    st.builds(
        Member,
        name=st.text(max_size=20).map(str.encode),
        method=st.sampled_from([STORED, DEFLATED]),
        crc32=st.integers(0, (1 << 32) - 1),
        packed=st.integers(0, 1 << 40) | st.sampled_from([(1 << 32) - 2, (1 << 32) - 1, 1 << 32]),
        size=st.integers(0, 1 << 40) | st.sampled_from([(1 << 32) - 2, (1 << 32) - 1, 1 << 32]),
        mtime_ns=st.integers(-(1 << 62), 1 << 62),
    ),
    st.integers(0, 1 << 40) | st.sampled_from([(1 << 32) - 2, (1 << 32) - 1, 1 << 32]),
)
def test_the_length_of_a_record_is_known_without_making_it(member, offset):
    assert local_length(member) == len(local_record(member))
    assert central_length(member, offset) == len(central_record(member, offset))


def test_memory_does_not_grow_with_the_archive(huge):
    tracemalloc.start()
    try:
        for number, _ in enumerate(Archive(huge).read(0, huge.length)):
            if number == 500:
                break
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
    finally:
        tracemalloc.stop()


def test_the_tag_is_that_of_the_bytes(root, layout):
    entries = entries_of(root)
    assert Layout(root, entries).etag == layout.etag
    others = [
        Layout(root, entries[::-1]),
        Layout(root, entries[1:]),
        Layout(root, entries, manifest=False),
        Layout(root, [Entry("other.h5", entries[0].version), *entries[1:]]),
        Layout(root, [entries[0]._replace(version=entries[0].version._replace(mtime_ns=1)), *entries[1:]]),
    ]
    assert len({layout.etag, *(other.etag for other in others)}) == 6


@pytest.mark.parametrize("names", [("a", "a"), ("",), ("/a",), ("x" * 70_000,), (MANIFEST,)])
def test_names_that_are_not_fit_are_refused(root, names):
    [first, *_] = entries_of(root)
    with pytest.raises(UserError):
        Layout(root, [Entry(name, first.version) for name in names])


@pytest.mark.parametrize("name", ["recon.h5", "notes.txt"])
def test_a_source_that_changes_under_way_is_never_sent_to_its_end(tmp_path: Path, name):
    file = tmp_path / name
    file.write_bytes(bytes(3 << 20))
    root = Root(tmp_path, settle=0)
    layout = Layout(root, entries_of(root))
    blocks = Archive(layout).read(0, layout.length)
    received = [next(blocks)]
    with file.open("r+b") as writer:
        writer.write(b"changed")
    os.utime(file, ns=(1, 1))  # a coarse clock may not have moved on
    with pytest.raises(SourceChanged, match=name):
        received.extend(blocks)
    assert sum(map(len, received)) < file.stat().st_size
    with pytest.raises(SourceChanged):
        read(layout)


def test_a_source_cut_short_under_way_is_told(tmp_path: Path):
    (tmp_path / "a.h5").write_bytes(bytes(3 << 20))
    root = Root(tmp_path, settle=0)
    blocks = Archive(Layout(root, entries_of(root))).read(0, 3 << 20)
    next(blocks)
    os.truncate(tmp_path / "a.h5", 100)
    with pytest.raises(SourceChanged):
        list(blocks)
