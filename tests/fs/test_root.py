"""The mount's root: what is in it, and what the README says."""

from __future__ import annotations

import errno

import pyfuse3
import pytest

from keepfs.fs.errnos import RefusedError
from keepfs.fs.nodes import Metadata, directory_mode
from keepfs.fs.root import RootDirectory, TextFile, readme_text

OWNER = Metadata(directory_mode(0), 5, 6, 7)


async def test_the_entries_are_fixed() -> None:
    readme = TextFile("text", OWNER)
    root = RootDirectory({"README": readme}, OWNER)

    assert root.inode == pyfuse3.ROOT_INODE
    assert await root.lookup("README") is readme
    assert root.entry_nowait("README") is readme
    assert root.entry_nowait("other") is None
    assert list(root.names()) == ["README"]
    with pytest.raises(RefusedError) as looking:
        await root.lookup("other")
    with pytest.raises(RefusedError) as removing:
        root.unlink("README")
    assert looking.value.errno == errno.ENOENT
    assert removing.value.errno == errno.EROFS


def test_the_root_belongs_to_the_owner_and_is_not_writable() -> None:
    said = RootDirectory({}, OWNER).attributes().metadata

    assert (said.uid, said.gid, said.mtime_ns) == (5, 6, 7)
    assert said.mode == directory_mode(0o555)


async def test_a_text_is_counted_in_bytes() -> None:
    file = TextFile("zähler", OWNER)

    assert file.size == 7
    assert bytes(await file.read(0, 100)) == "zähler".encode()
    assert bytes(await file.read(6, 100)) == b"r"
    assert bytes(await file.read(7, 100)) == b""


@pytest.mark.parametrize(("copies", "said"), [(1, "the copy is"), (3, "3 copies are")])
def test_the_readme_has_version_copies_and_settings(copies: int, said: str) -> None:
    text = readme_text("1.2", copies, {"local-store": "/a/b", "copies": str(copies)}, "K")

    assert "mounted by keepfs 1.2." in text
    assert f"{said} confirmed" in " ".join(text.split())
    assert f"    local-store  /a/b\n    copies       {copies}\n" in text


def test_the_readme_needs_no_settings() -> None:
    assert readme_text("1.2", 1, {}, "K").endswith("settings:\n")


def test_the_readme_says_how_long_blocks_are_kept() -> None:
    text = readme_text("1.2", 1, {}, "They are kept for ever.")

    assert "They are kept for ever.\n" in text
