"""collections/ over a local store: the files of manifests, as programs see them."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import subprocess
from typing import TYPE_CHECKING

import pytest

from keepfs.collections.builder import ManifestBuilder
from keepfs.collections.local_collections import LocalCollections
from keepfs.collections.portable import portable_data_hash
from keepfs.keep import MAX_BLOCK_SIZE
from keepfs.keep.local import LocalStore
from tests.mounted.mounts import KeepfsMount, mounted, wait_until
from tests.mounted.packing import packed

if TYPE_CHECKING:
    from pathlib import Path

MIB = 2**20
NOBODYS = "0123456789abcdef0123456789abcdef+57"


def commit(mount: KeepfsMount, source: Path, block_size: int = MAX_BLOCK_SIZE) -> str:
    """Store a directory in the mount's store as a collection; return its hash."""
    store = LocalStore(mount.store)
    manifest = packed(source, lambda block: str(store.put(block).locator), block_size)
    return LocalCollections(mount.store).put(manifest).portable_data_hash


def folder_of(mount: KeepfsMount, name: str) -> Path:
    return mount.path / "collections" / name


def run(*command: str | Path) -> str:
    """Run a program that succeeds; return what it prints."""
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, b"")
    return os.fsdecode(done.stdout)


def noise(seed: int, size: int) -> bytes:
    """Return bytes that look random, always the same for a seed."""
    return hashlib.shake_128(str(seed).encode()).digest(size)


def found(folder: Path) -> list[str]:
    """Return what `find` finds below a folder: path, type, and size of files."""
    files = run("find", folder, "-type", "f", "-printf", r"%P f %s\0").split("\0")
    return files + run("find", folder, "-type", "d", "-printf", r"%P d\0").split("\0")


def odd_tree(base: Path) -> Path:
    """Make a tree with names that manifests escape, empty files and empty folders."""
    source = base / "source"
    for folder in ("a b/c:d", "empty", "deep/" + "/".join("xyz" * 5), "\\134", "..."):
        (source / folder).mkdir(parents=True)
    names = [
        "empty file",
        "plain",
        "two  blanks",
        "tab\there",
        "new\nline",
        "back\\slash",
        "\\040",
        "0:3:x",
        "ümläut",
    ]
    names += [".hidden", "d41d8cd98f00b204e9800998ecf8427e+0", "-rf", "x" * 255]
    for number, name in enumerate(names):
        for place in (source, source / "a b/c:d", source / "..."):
            (place / name).write_bytes(f"{place}{name}".encode() * number)
    return source


def test_a_tree_with_odd_names_is_read_unchanged(shared: KeepfsMount, tmp_path: Path) -> None:
    source = odd_tree(tmp_path)
    # Blocks of 100 bytes: files over several, and several files in one.
    folder = folder_of(shared, commit(shared, source, 100))

    assert run("diff", "-r", source, folder) == ""
    assert sorted(found(folder)) == sorted(found(source))


def test_folders_and_files_are_read_only(shared: KeepfsMount, tmp_path: Path) -> None:
    name = commit(shared, odd_tree(tmp_path))
    folder = folder_of(shared, name)
    kept = LocalCollections(shared.store).directory / f"{name}.manifest"

    modes = {stat.S_IMODE(os.lstat(each).st_mode) for each in (folder, folder / "empty")}
    assert modes == {0o555}
    assert stat.S_IMODE(os.lstat(folder / "plain").st_mode) == 0o444
    for each in (folder, folder / "empty", folder / "plain"):
        # The time of a collection is one in microseconds.
        assert abs(os.stat(each).st_mtime_ns - kept.stat().st_mtime_ns) < 2000
    for change in (
        (folder / "new").touch,
        (folder / "new").mkdir,
        (folder / "plain").unlink,
        (folder / "empty").rmdir,
        lambda: (folder / "plain").rename(folder / "other"),
        lambda: (folder / "plain").chmod(0o644),
        lambda: os.truncate(folder / "plain", 0),
        lambda: (folder / "plain").open("ab"),
        lambda: os.symlink("x", folder / "new"),
        (shared.path / "collections" / "new").mkdir,
        folder.rmdir,
    ):
        with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno says which
            change()
        assert caught.value.errno == errno.EROFS


def test_a_thousand_small_files_in_a_few_blocks(shared: KeepfsMount, tmp_path: Path) -> None:
    source = tmp_path / "small"
    source.mkdir()
    for number in range(1000):
        (source / f"{number:04}").write_bytes(noise(number, 1000 + number))
    folder = folder_of(shared, commit(shared, source, 700_000))

    together = subprocess.run(["sh", "-c", f"cat {folder}/*"], capture_output=True, check=True)
    assert together.stdout == b"".join(each.read_bytes() for each in sorted(source.iterdir()))


def test_a_file_over_three_blocks(shared: KeepfsMount, tmp_path: Path) -> None:
    source = tmp_path / "large"
    source.mkdir()
    content = noise(130, 130 * MIB)
    (source / "file").write_bytes(content)
    file = folder_of(shared, commit(shared, source)) / "file"

    assert run("cmp", file, source / "file") == ""
    assert os.stat(file).st_size == len(content)
    with file.open("rb") as opened:
        for offset in (0, 64 * MIB - 7, 128 * MIB - 1, 130 * MIB - 5):
            assert os.pread(opened.fileno(), 100, offset) == content[offset : offset + 100]
    assert os.getxattr(file, "user.keep.locator").count(b",") == 2


def test_names_that_are_no_collections_are_not_found(shared: KeepfsMount) -> None:
    for name in ("x", "README", "zzzzz-4zz18-000000000000000", NOBODYS, NOBODYS[:-3], "x" * 300):
        with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno says which
            os.stat(folder_of(shared, name))
        assert caught.value.errno in {errno.ENOENT, errno.ENAMETOOLONG}
        assert name not in os.listdir(shared.path / "collections")


def test_a_collection_may_appear_a_second_later(shared: KeepfsMount, tmp_path: Path) -> None:
    source = tmp_path / "later"
    source.mkdir()
    (source / "file").write_bytes(b"later")
    name = commit(shared, source)
    kept = LocalCollections(shared.store).directory / f"{name}.manifest"
    kept.rename(tmp_path / "aside")
    assert not folder_of(shared, name).exists()
    (tmp_path / "aside").rename(kept)

    # The kernel remembers for a second that it isn't there.
    wait_until(folder_of(shared, name).exists)
    assert (folder_of(shared, name) / "file").read_bytes() == b"later"


def test_looked_up_collections_are_listed(mount: KeepfsMount, tmp_path: Path) -> None:
    assert os.listdir(mount.path / "collections") == []
    name = commit(mount, odd_tree(tmp_path))
    assert os.listdir(mount.path / "collections") == []

    os.stat(folder_of(mount, name))

    assert os.listdir(mount.path / "collections") == [name]


def test_attributes_of_files_and_folders(shared: KeepfsMount, tmp_path: Path) -> None:
    name = commit(shared, odd_tree(tmp_path), 100)
    folder = folder_of(shared, name)

    assert os.getxattr(folder / "plain", "user.keep.pdh").decode() == name
    assert os.getxattr(folder / "a b", "user.keep.pdh").decode() == name
    joined = os.getxattr(folder / "ümläut", "user.keep.locator").decode()
    blocks = (shared.by_id / joined).read_bytes()
    assert (folder / "ümläut").read_bytes() in blocks
    assert "user.keep.locator" not in os.listxattr(folder / "empty file")
    assert "user.keep.uuid" not in os.listxattr(folder)


def test_a_list_of_locators_that_is_too_long_is_left_out(
    shared: KeepfsMount, tmp_path: Path
) -> None:
    source = tmp_path / "many"
    source.mkdir()
    (source / "file").write_bytes(noise(1, 2000 * 10))
    file = folder_of(shared, commit(shared, source, 10)) / "file"

    assert "user.keep.locator" not in os.listxattr(file)
    assert os.getxattr(file, "user.keep.state") == b"stored"
    assert run("cmp", file, source / "file") == ""


def test_a_malformed_manifest_is_an_error_that_the_log_explains(shared: KeepfsMount) -> None:
    text = b". d41d8cd98f00b204e9800998ecf8427e+0 0:1:file\n"
    name = portable_data_hash(text)
    directory = LocalCollections(shared.store).directory
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f"{name}.manifest").write_bytes(text)

    with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno says which
        os.stat(folder_of(shared, name))

    assert caught.value.errno == errno.EIO
    (line,) = [each for each in shared.logged() if name in each]
    assert "line 1, column 38" in line


def test_a_damaged_manifest_is_an_error(shared: KeepfsMount, tmp_path: Path) -> None:
    name = commit(shared, odd_tree(tmp_path), 99)
    kept = LocalCollections(shared.store).directory / f"{name}.manifest"
    kept.write_bytes(kept.read_bytes().replace(b"plain", b"plane"))

    with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno says which
        os.listdir(folder_of(shared, name))

    assert caught.value.errno == errno.EIO


def test_a_missing_block_is_an_error_of_the_read(shared: KeepfsMount, tmp_path: Path) -> None:
    source = tmp_path / "gone"
    source.mkdir()
    (source / "file").write_bytes(b"its block goes")
    file = folder_of(shared, commit(shared, source)) / "file"
    assert os.stat(file).st_size == 14
    digest = os.getxattr(file, "user.keep.locator").decode().split("+")[0]
    (shared.store / digest).unlink()

    with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno says which
        file.read_bytes()

    assert caught.value.errno in {errno.ENOENT, errno.EIO}


def test_a_collection_is_the_root_of_a_mount(tmp_path: Path) -> None:
    mount = KeepfsMount(tmp_path)
    source = odd_tree(tmp_path)
    name = commit(mount, source, 100)
    with mounted(tmp_path, "--collection", name) as over:
        assert run("diff", "-r", source, over.path) == ""
        with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno says which
            (over.path / "new").touch()
        assert caught.value.errno == errno.EROFS


def test_a_missing_collection_is_not_mounted(unmounted: KeepfsMount) -> None:
    unmounted.path.mkdir()
    for name, said in ((NOBODYS, b"not found"), ("nonsense", b"neither a collection's uuid")):
        unmounted.options = ("--collection", name)
        done = unmounted.try_mount()

        assert done.returncode != 0
        assert said in done.stderr
        assert b"Traceback" not in done.stderr
        assert not unmounted.is_mounted()


def test_a_folder_of_many_files_is_listed(shared: KeepfsMount) -> None:
    builder = ManifestBuilder()
    wanted = [f"{number:05}" for number in range(20_000)]
    for each in wanted:
        builder.add_file(f"many/{each}")
    name = LocalCollections(shared.store).put(builder.build()).portable_data_hash
    folder = folder_of(shared, name) / "many"

    assert sorted(os.listdir(folder)) == wanted
    assert len(run("find", folder, "-type", "f", "-empty").splitlines()) == len(wanted)
