"""What may leave a folder, what is known of it, and what happens when it changes meanwhile."""

import hashlib
import os
import socket
import time
import zlib
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from delivery.database import open_database
from delivery.files.catalogue import Catalogue
from delivery.files.roots import Found, Root
from delivery.files.version import SourceChanged, digest, stamp_of
from ministream.base.errors import UserError


@pytest.fixture
def root(tmp_path: Path) -> Root:
    folder = tmp_path / "root"
    folder.mkdir()
    return Root(folder, settle=0)


def paths(root: Root) -> list[str]:
    return [found.path for found in root.scan().files]


def reasons(root: Root) -> dict[str, str]:
    return dict(root.scan().refused)


def test_files_are_found_in_all_folders_with_their_stamps(root):
    (root.folder / "scan 1" / "größe").mkdir(parents=True)
    file = root.folder / "scan 1" / "größe" / "recon_β.h5"
    file.write_bytes(b"abc")
    assert root.scan().files == [Found("scan 1/größe/recon_β.h5", stamp_of(file.stat()))]
    assert root.scan("scan 1") == root.scan()
    assert root.find(["scan 1/größe/recon_β.h5"]) == root.scan()


@pytest.mark.parametrize(
    "path",
    [
        "../outside",
        "a/../../outside",
        "/etc/passwd",
        "",
        ".",
        "a//b",
        "a/./b",
        ".hidden",
        "a/.git/config",
        "nul\0",
        "line\nfeed",
        "not-utf8-\udcff",
        "half.part",
        "x" * 300,
    ],
)
def test_a_path_that_leads_elsewhere_is_refused_in_words(root, path):
    (root.folder / "a").mkdir()
    (root.folder.parent / "outside").write_bytes(b"secret")
    listing = root.find([path])
    assert listing.files == []
    assert listing.refused[0].path.isprintable()
    with pytest.raises(UserError), root.open(path):
        pass


def test_no_link_is_followed(root):
    outside = root.folder.parent / "outside"
    outside.mkdir()
    (outside / "secret.h5").write_bytes(b"secret")
    (root.folder / "folder").symlink_to(outside)
    (root.folder / "file.h5").symlink_to(outside / "secret.h5")
    (root.folder / "loop").symlink_to(".")
    (root.folder / "self").symlink_to("self")
    assert paths(root) == []
    assert set(reasons(root)) == {"folder", "file.h5", "loop", "self"}
    for path in ("folder/secret.h5", "file.h5", "loop/loop/file.h5", "self"):
        with pytest.raises(UserError), root.open(path):
            pass


def test_the_root_itself_may_be_a_link_but_not_a_file(root):
    (root.folder / "a.h5").write_bytes(b"a")
    link = root.folder.parent / "link"
    link.symlink_to(root.folder)
    assert paths(Root(link, settle=0)) == ["a.h5"]
    with pytest.raises(UserError, match="no folder"):
        Root(root.folder / "a.h5")


def test_names_that_are_no_text_or_clash_are_listed_as_refused(root):
    (root.folder / "Ünit.h5").write_bytes(b"composed")
    (root.folder / "U\u0308nit.h5").write_bytes(b"decomposed")
    (root.folder / "Recon.h5").write_bytes(b"1")
    (root.folder / "recon.H5").write_bytes(b"2")
    (root.folder / "good.h5").write_bytes(b"3")
    Path(os.fsdecode(os.fsencode(root.folder) + b"/latin-\xe9.h5")).write_bytes(b"4")
    assert paths(root) == ["good.h5"]
    refused = reasons(root)
    assert len(refused) == 5
    assert "UTF-8" in refused["latin-\\udce9.h5"]
    assert "case" in refused["Recon.h5"]
    assert "case" in refused["recon.H5"]


def test_what_is_no_regular_file_is_refused_without_waiting_for_it(root):
    os.mkfifo(root.folder / "fifo.h5")
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(root.folder / "socket.h5"))
        assert set(reasons(root)) == {"fifo.h5", "socket.h5"}
        for path in ("fifo.h5", "socket.h5"):
            with pytest.raises(UserError), root.open(path):
                pass


def test_half_written_files_are_never_offered(root):
    now = time.time()
    patient = Root(root.folder, settle=2, clock=lambda: now)
    for name, age in (("done.h5", 3), ("fresh.h5", 1), (".done.h5.a1b2", 9), ("upload.part", 9), ("future.h5", -60)):
        file = root.folder / name
        file.write_bytes(b"x")
        os.utime(file, (now - age, now - age))
    assert paths(patient) == ["done.h5"]
    assert "moment ago" in reasons(patient)["fresh.h5"]


def test_a_file_replaced_between_look_and_opening_is_not_taken_for_the_one_seen(root):
    file = root.folder / "a.h5"
    file.write_bytes(b"first")
    [found] = root.scan().files
    with root.open(*found):
        pass
    (root.folder / "b").write_bytes(b"other")
    (root.folder / "b").replace(file)
    with pytest.raises(SourceChanged), root.open(*found):
        pass
    file.unlink()
    file.symlink_to("/etc/passwd")
    with pytest.raises(SourceChanged), root.open(*found):
        pass
    file.unlink()
    with pytest.raises(SourceChanged), root.open(*found):
        pass


@settings(deadline=None, max_examples=50)
@given(
    st.lists(
        st.text(st.characters(exclude_characters="\0/"), min_size=1, max_size=40).filter(
            lambda name: name not in (".", "..") and len(os.fsencode(name)) < 200
        )
        if os.name == "posix"
        else st.nothing(),
        max_size=8,
    )
)
def test_whatever_the_names_every_file_is_either_found_or_refused(tmp_path_factory, names):
    folder = tmp_path_factory.mktemp("names")
    for name in names:
        (folder / name).write_bytes(b"x")
    root = Root(folder, settle=0)
    listing = root.scan()
    assert len(listing.files) + len(listing.refused) == len(set(names))
    assert root.find(found.path for found in listing.files).files == listing.files


def test_a_digest_is_that_of_the_bytes(root):
    content = os.urandom(9 << 20)
    (root.folder / "a.h5").write_bytes(content)
    with root.open("a.h5") as descriptor:
        version = digest(descriptor, "a.h5")
    assert version.crc32 == zlib.crc32(content)
    assert version.sha256 == hashlib.sha256(content).hexdigest()
    assert version.blake3 == blake3(content).hexdigest()


def test_a_file_that_changes_while_it_is_read_has_no_digest(root, monkeypatch):
    file = root.folder / "a.h5"
    file.write_bytes(bytes(64 << 20))
    pread = os.pread

    def read_from_what_changes(*where: int) -> bytes:
        os.utime(file, ns=(1, 1))
        return pread(*where)

    monkeypatch.setattr(os, "pread", read_from_what_changes)
    with root.open("a.h5") as descriptor, pytest.raises(SourceChanged, match=r"a\.h5 has changed"):
        digest(descriptor, "a.h5")


def test_the_catalogue_reads_only_what_changed(root, database_url):
    for name in ("a", "b", "c"):
        (root.folder / f"{name}.h5").write_bytes(name.encode())
    engine = open_database(database_url)
    read: list[str] = []
    catalogue = Catalogue(engine)
    first = catalogue.look(root, root.scan().files, lambda version: read.append(version.path))
    assert read == ["a.h5", "b.h5", "c.h5"]
    (root.folder / "b.h5").write_bytes(b"new content")
    again = Catalogue(engine).look(root, root.scan().files, lambda version: read.append(version.path))
    assert read[3:] == ["b.h5"]
    assert again[0] == first[0]
    assert again[1].sha256 == hashlib.sha256(b"new content").hexdigest()
    catalogue.forget(root, ["a.h5"])
    assert catalogue.look(root, root.scan().files, lambda version: read.append(version.path)) == again
    assert read[4:] == ["a.h5"]
    engine.dispose()


def test_a_file_gone_since_the_look_is_a_change(root, tmp_path):
    (root.folder / "a.h5").write_bytes(b"a")
    listing = root.scan()
    (root.folder / "a.h5").unlink()
    engine = open_database(f"sqlite:///{tmp_path}/catalogue.db")
    with pytest.raises(SourceChanged):
        Catalogue(engine).look(root, listing.files)
    engine.dispose()
