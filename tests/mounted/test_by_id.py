"""by_id/ through the kernel."""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import threading
from typing import TYPE_CHECKING

import pytest

from tests.mounted.mounts import KeepfsMount, keepfs

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

FOO = "acbd18db4cc2f85cedef654fccc4a4d8+3"
EMPTY = "d41d8cd98f00b204e9800998ecf8427e+0"


def put(mount: KeepfsMount, content: bytes) -> str:
    """Store a block behind the mount's back, as another client would."""
    mount.store.mkdir(exist_ok=True)
    md5sum = hashlib.md5(content, usedforsecurity=False).hexdigest()
    (mount.store / md5sum).write_bytes(content)
    return f"{md5sum}+{len(content)}"


def test_a_locator_is_the_name_of_its_block(shared: KeepfsMount) -> None:
    locator = put(shared, b"foo")

    assert (shared.by_id / locator).read_bytes() == b"foo"
    status = (shared.by_id / locator).stat()
    assert (oct(status.st_mode), status.st_size, status.st_nlink) == ("0o100444", 3, 1)
    assert (status.st_blksize, status.st_blocks) == (1 << 20, 1)


def test_hints_are_part_of_the_name(shared: KeepfsMount) -> None:
    locator = put(shared, b"foo")

    assert (shared.by_id / f"{locator}+Zfoo+K@xyzzy").read_bytes() == b"foo"


def test_a_name_without_a_size_is_looked_up(shared: KeepfsMount) -> None:
    locator = put(shared, b"sized")

    assert (shared.by_id / locator.partition("+")[0]).stat().st_size == 5


def test_the_empty_block_is_always_there(shared: KeepfsMount) -> None:
    assert (shared.by_id / EMPTY).read_bytes() == b""


def test_a_list_of_locators_is_their_concatenation(shared: KeepfsMount) -> None:
    names = ",".join(put(shared, part) for part in (b"foo", b"", b"barbar", b"z"))

    with (shared.by_id / names).open("rb") as file:
        assert os.fstat(file.fileno()).st_size == 10
        assert file.read() == b"foobarbarz"
        assert os.pread(file.fileno(), 5, 2) == b"obarb"
        assert os.pread(file.fileno(), 5, 10) == b""


def test_a_whole_block_of_64_mib_is_read_and_mapped(shared: KeepfsMount) -> None:
    block = os.urandom(1 << 20) * 64
    locator = put(shared, block)

    assert (shared.by_id / locator).read_bytes() == block
    with (
        (shared.by_id / locator).open("rb") as file,
        mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped,
    ):
        assert mapped[12345678:12345690] == block[12345678:12345690]


@pytest.mark.parametrize(
    "name",
    [
        b"acbd18db4cc2f85cedef654fccc4a4d+3",
        b"ACBD18DB4CC2F85CEDEF654FCCC4A4D8+3",
        b"acbd18db4cc2f85cedef654fccc4a4d8+3 ",
        b" acbd18db4cc2f85cedef654fccc4a4d8+3",
        b"acbd18db4cc2f85cedef654fccc4a4d8+3\n",
        b"acbd18db4cc2f85cedef654fccc4a4d8++3",
        b"acbd18db4cc2f85cedef654fccc4a4d8+3+",
        b"acbd18db4cc2f85cedef654fccc4a4d8+3,",
        b",",
        b"acbd18db4cc2f85cedef654fccc4a4d8+-3",
        b"acbd18db4cc2f85cedef654fccc4a4d8+67108865",
        b"acbd18db4cc2f85cedef654fccc4a4d8+" + b"9" * 200,
        b"a",
        b"a" * 255,
        "acbd18db4cc2f85cedef654fccc4a4d８+3".encode(),
        "naïve".encode(),
        b"\xff\xfe\x00".rstrip(b"\0"),
        b"\x01\x02\x1b[31m",
        b"README",
        b"*",
    ],
)
def test_any_other_name_does_not_exist_and_is_not_logged(shared: KeepfsMount, name: bytes) -> None:
    path = os.path.join(os.fsencode(shared.by_id), name)

    for ask in (os.stat, os.lstat, lambda it: os.open(it, os.O_RDONLY), os.listdir):
        with pytest.raises(FileNotFoundError):
            ask(path)
    assert [line for line in shared.logged() if "locator" in line] == []


def test_dot_dot_is_the_mount(shared: KeepfsMount) -> None:
    assert sorted(os.listdir(shared.by_id / "..")) == ["README", "by_id", "collections", "upload"]


def test_a_block_that_is_not_there_may_appear_a_second_later(shared: KeepfsMount) -> None:
    name = shared.by_id / f"{hashlib.md5(b'later', usedforsecurity=False).hexdigest()}+5"
    assert not name.exists()
    put(shared, b"later")

    for _ in range(300):
        if name.exists():
            break
        threading.Event().wait(0.01)  # the kernel remembers for a second, and tells nobody

    assert name.read_bytes() == b"later"


@pytest.mark.parametrize("damage", ["flipped", "cut", "lengthened"])
def test_a_corrupt_block_is_an_error_without_bytes(shared: KeepfsMount, damage: str) -> None:
    block = f"to be {damage}".encode() * 50_000
    locator = put(shared, block)
    path = shared.store / locator.partition("+")[0]
    # Known before it is damaged, as an operator would meet it.
    assert (shared.by_id / locator).stat().st_size == len(block)
    damaged = {"flipped": b"x" + block[1:], "cut": block[:-1], "lengthened": block + b"x"}
    path.write_bytes(damaged[damage])

    with pytest.raises(OSError, match="Input/output") as caught:
        (shared.by_id / locator).read_bytes()

    assert caught.value.errno == errno.EIO
    assert any(str(path) in line and "corrupt" in line for line in shared.logged())


def test_nothing_can_be_changed(shared: KeepfsMount) -> None:
    block = shared.by_id / put(shared, b"foo")
    fresh = shared.by_id / "x"
    attempts: list[Callable[[], object]] = [
        lambda: os.open(block, os.O_WRONLY),
        lambda: os.open(block, os.O_RDWR),
        lambda: os.open(block, os.O_RDONLY | os.O_TRUNC),
        lambda: os.truncate(block, 0),
        block.unlink,
        lambda: block.rename(fresh),
        lambda: block.rename(shared.upload / "stolen"),
        lambda: (shared.path / "README").rename(shared.upload / "README"),
        lambda: block.chmod(0o600),
        lambda: os.utime(block),
        lambda: os.chown(block, 12345, -1),
        fresh.touch,
        fresh.mkdir,
        shared.by_id.rmdir,
        lambda: fresh.symlink_to("README"),
        lambda: os.link(block, fresh),
        (shared.path / "new").mkdir,
    ]

    for attempt in attempts:
        with pytest.raises(OSError, match=r"Errno") as caught:
            attempt()
        assert caught.value.errno == errno.EROFS


def test_the_listing_shows_found_and_uploaded_blocks(shared: KeepfsMount) -> None:
    found = put(shared, b"found")
    (shared.by_id / found).stat()
    (shared.upload / "listed").write_bytes(b"uploaded")
    uploaded = shared.locator(shared.upload / "listed")

    assert {found, uploaded} <= set(os.listdir(shared.by_id))
    assert FOO.replace("acbd", "0000") not in os.listdir(shared.by_id)


def test_the_attributes_name_locator_and_expiry(shared: KeepfsMount) -> None:
    signed = put(shared, b"signed") + f"+A{'0' * 40}@6b1501b0"
    path = shared.by_id / signed

    assert os.getxattr(path, "user.keep.locator").decode() == signed
    assert os.getxattr(path, "user.keep.expires") == b"2026-12-06T06:33:20+00:00"
    assert min(os.listxattr(path)) == "user.keep.expires"
    with pytest.raises(OSError, match="No data"):
        os.getxattr(path, "user.keep.services")
    path.read_bytes()
    assert os.getxattr(path, "user.keep.services").decode() == f"local:{shared.store}"
    with pytest.raises(OSError, match="No data"):
        os.getxattr(path, "user.keep.error")
    with pytest.raises(OSError, match="not supported"):
        os.setxattr(path, "user.keep.state", b"x")


def test_many_readers_read_one_block(shared: KeepfsMount) -> None:
    block = os.urandom(1 << 20) * 8
    path = shared.by_id / put(shared, block)
    answers: list[bool] = []
    readers = [
        threading.Thread(target=lambda: answers.append(path.read_bytes() == block))
        for _ in range(20)
    ]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()

    assert answers == [True] * 20


def test_a_second_read_is_served_by_the_page_cache(shared: KeepfsMount) -> None:
    path = shared.by_id / put(shared, b"kept by the kernel" * 1000)
    first = path.read_bytes()
    # Without its file the block can come only from pages the kernel kept.
    (shared.store / path.name.partition("+")[0]).unlink()
    before = path.stat()

    assert path.read_bytes() == first
    assert path.stat() == before


def test_the_readme_describes_the_mount(shared: KeepfsMount) -> None:
    text = (shared.path / "README").read_text()

    assert str(shared.store) in text
    assert "keepfs locate" in text
    assert (shared.path / "README").stat().st_size == len(text.encode())


def test_statfs_reports_the_space(shared: KeepfsMount) -> None:
    there = os.statvfs(shared.path)

    assert there.f_blocks * there.f_frsize > there.f_bavail * there.f_frsize > 0
    assert there.f_namemax == 255


def test_get_reads_blocks_of_the_mount_and_the_mount_those_of_put(
    shared: KeepfsMount, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"by the command line")
    put_done = keepfs("put", "--local-store", shared.store, tmp_path / "file")
    locator = put_done.stdout.decode().partition("\t")[0]
    (shared.upload / "by-mount").write_bytes(b"by the mount")

    got = keepfs("get", "--local-store", shared.store, shared.locator(shared.upload / "by-mount"))

    assert (shared.by_id / locator).read_bytes() == b"by the command line"
    assert got.stdout == b"by the mount"


def test_a_read_returns_what_comes_before_a_block_that_cannot_be_read(
    mount: KeepfsMount,
) -> None:
    block = bytes(1 << 20)
    first, second = put(mount, block), put(mount, b"x" * (1 << 20))
    descriptor = os.open(mount.by_id / f"{first},{second}", os.O_RDONLY)
    try:
        (mount.store / second[:32]).unlink()

        assert os.pread(descriptor, 3 << 20, 0) == block
        with pytest.raises(FileNotFoundError):
            os.pread(descriptor, 1 << 20, 1 << 20)
    finally:
        os.close(descriptor)
