"""The mount's root: README, by_id/, collections/ and upload/."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from keepfs.fs.errnos import RefusedError
from keepfs.fs.nodes import (
    ROOT_INODE,
    DirectoryNode,
    FileNode,
    Metadata,
    Node,
    directory_mode,
    file_mode,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_README = """\
This is Arvados Keep, mounted by keepfs {version}.

by_id/<locator>      is the content of a block. Several locators joined by
                     commas are a name too. Every byte is verified.
{collections}upload/              stores the files that are copied here. When cp (or close)
                     succeeds, {copies} confirmed.

To print the locator of a file in upload/:
    keepfs locate FILE            (or: getfattr -n user.keep.locator FILE)
To read it back:
    cat by_id/<locator>

The names in upload/ are kept on this machine; the next mount has them again.
{kept}

This mount's settings:
{settings}"""


_COLLECTIONS = """\
collections/<name>/  the files of a collection, read-only; <name> is its
                     portable data hash{or_uuid}.
"""


def readme_text(
    version: str,
    copies: int,
    settings: Mapping[str, str],
    kept: str,
    *,
    is_local: bool = False,
    has_collections: bool = True,
) -> str:
    """Compose the README.

    Args:
        version: The version of keepfs.
        copies: The confirmed copies of each block.
        settings: The settings of the mount, without a token.
        kept: How long the blocks are kept: a few lines.
        is_local: Whether the blocks are in a local store, whose collections have no uuids.
        has_collections: Whether there is collections/.
    """
    or_uuid = "" if is_local else " or its uuid"
    width = max(map(len, settings), default=0)
    return _README.format(
        version=version,
        copies="the copy is" if copies == 1 else f"{copies} copies are",
        collections=_COLLECTIONS.format(or_uuid=or_uuid) if has_collections else "",
        kept=kept,
        settings="".join(f"    {name:{width}}  {value}\n" for name, value in settings.items()),
    )


class TextFile(FileNode):
    """A file with a fixed text.

    Args:
        text: Its content.
        owner: Its user, group and times are used.
    """

    def __init__(self, text: str, owner: Metadata) -> None:
        super().__init__(Metadata(file_mode(0o444), owner.uid, owner.gid, owner.mtime_ns))
        self._content = memoryview(os.fsencode(text))

    @property
    def mount_path(self) -> str:
        """The path from the mount's root."""
        return "README"

    @property
    def size(self) -> int:
        """The size of the text, in bytes."""
        return len(self._content)

    def read_nowait(self, offset: int, size: int) -> memoryview:
        """Return the bytes from `offset` on, `size` at most."""
        return self._content[offset : offset + size]

    async def read(self, offset: int, size: int) -> memoryview:
        """Return the bytes from `offset` on, `size` at most."""
        return self.read_nowait(offset, size)


class RootDirectory(DirectoryNode):
    """The root; its entries are fixed.

    Args:
        entries: The entries by name.
        owner: Its user, group and times are used.
        permissions: The permission bits of the root.
    """

    def __init__(
        self, entries: Mapping[str, Node], owner: Metadata, permissions: int = 0o555
    ) -> None:
        metadata = Metadata(directory_mode(permissions), owner.uid, owner.gid, owner.mtime_ns)
        super().__init__(metadata, ROOT_INODE)
        self._entries = dict(entries)

    def lookup_nowait(self, name: str) -> Node:
        """Find one of the entries.

        Raises:
            RefusedError: ENOENT, no entry has this name.
        """
        node = self._entries.get(name)
        if node is None:
            raise RefusedError(errno.ENOENT)
        return node

    async def lookup(self, name: str) -> Node:
        """Find one of the entries, as `lookup_nowait`."""
        return self.lookup_nowait(name)

    def names(self) -> Iterable[str]:
        """Return the names of the entries."""
        return self._entries

    def entry_nowait(self, name: str) -> Node | None:
        """Return an entry, or None."""
        return self._entries.get(name)
