"""ManifestBuilder: makes a manifest from files and directories, in any order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keepfs.collections.assembly import Assembly, checked_locator
from keepfs.collections.escapes import check_component, encoded
from keepfs.collections.manifest import Manifest
from keepfs.collections.manifest_errors import EntryError
from keepfs.keep.locator import without_signatures

if TYPE_CHECKING:
    from collections.abc import Iterable


class ManifestBuilder:
    """A manifest under construction. For one thread at a time.

    It takes some dozen bytes of memory and the name for each file, and the locator for each
    block. A call that raises for a name, locator or range adds no file.
    """

    def __init__(self) -> None:
        self._assembly: Assembly | None = Assembly()
        self._known: dict[str, tuple[int, int]] = {}  # address and size, by the text as given

    def add_directory(self, path: str) -> None:
        """Add a directory and those above it, unless they are there.

        Args:
            path: Names joined by slashes, as `os.fsdecode` returns them; empty for the root.

        Raises:
            EntryError: No manifest can hold a name: it is empty, `.`, `..`, or has a NUL.
            RuntimeError: The manifest was built.
        """
        self._open().directory(encoded(path))

    def add_file(self, path: str, ranges: Iterable[tuple[str, int, int]] = ()) -> None:
        """Add a file; if the path has one already, append the bytes to it.

        Args:
            path: Names joined by slashes, as `os.fsdecode` returns them.
            ranges: The bytes of the file, in order: a locator with a size, an offset in that
                block, and a number of bytes. `Range` is such a tuple.

        Raises:
            EntryError: No manifest can hold a name, a locator or a range, or all blocks together
                have more than 2**63 - 1 bytes.
            RuntimeError: The manifest was built.
        """
        assembly = self._open()
        whole = encoded(path)
        above, slash, name = whole.rpartition(b"/")
        check_component(name, whole)
        if slash:
            check_component(above, whole)
        segments = [self._segment(*each) for each in ranges]
        assembly.file(assembly.directory(above), name)
        for start, length in segments:
            assembly.segment(start, length)

    def build(self) -> Manifest:
        """Return the manifest. The builder can't be used afterwards.

        Raises:
            EntryError: A file and a directory have the same path.
            RuntimeError: The manifest was built.
        """
        assembly, self._assembly = self._open(), None
        return Manifest(assembly.finish())

    def _open(self) -> Assembly:
        if self._assembly is None:
            raise RuntimeError("the manifest was built: use a new builder")
        return self._assembly

    def _segment(self, locator: str, offset: int, length: int) -> tuple[int, int]:
        known = self._known.get(locator)
        if known is None:
            known = self._known[locator] = self._add_block(locator)
        start, size = known
        if offset < 0 or length < 0 or offset + length > size:
            block = without_signatures(locator)
            raise EntryError(f"{length} bytes from {offset} on of a block of {size}: {block}")
        return start + offset, length

    def _add_block(self, locator: str) -> tuple[int, int]:
        text, size = checked_locator(locator)
        return self._open().lay(text, size), size
