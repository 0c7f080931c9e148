"""LocalCollections: the manifests in a local store, one file for each collection.

`DIR/collections/<portable data hash>.manifest` is the text in normal form, without hints. A
manifest is written under a temporary name, synced and renamed, so a crash leaves all of it or
nothing. Any thread, and any process, may use it.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import errno
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from keepfs.collections.names import is_hash
from keepfs.collections.parsing import parse
from keepfs.collections.portable import portable_data_hash
from keepfs.collections.records import CollectionRecord
from keepfs.keep.errors import Cause, KeepReadError, KeepWriteError, NotFoundError
from keepfs.privacy import sync_directory

if TYPE_CHECKING:
    from collections.abc import Iterable

    from keepfs.collections.manifest import Manifest

#: The directory in the local store, and what its files end in.
DIRECTORY, SUFFIX = "collections", ".manifest"
_CAUSE_BY_ERRNO = {
    errno.ENOSPC: Cause.FULL,
    errno.EDQUOT: Cause.FULL,
    errno.EACCES: Cause.DENIED,
    errno.EPERM: Cause.DENIED,
}


class LocalCollections:
    """The collections of a local store. They have neither uuids nor names nor properties.

    Args:
        store: The directory of the local store; it need not exist to read.
    """

    def __init__(self, store: str | os.PathLike[str]) -> None:
        self.directory = Path(store).absolute() / DIRECTORY

    def get(self, name: str, *, with_manifest: bool = True) -> CollectionRecord:
        """Return a collection by its portable data hash. Blocks.

        Args:
            name: The portable data hash, without hints; no other name is found.
            with_manifest: Whether the manifest is read, and compared with the hash.

        Raises:
            NotFoundError: There is none.
            KeepReadError: The file can't be read, or its content doesn't match its name
                (cause CORRUPT).
        """
        if not is_hash(name):
            raise NotFoundError(f"no collection {name} in {self.directory}: it has only hashes")
        path = self._path(name)
        try:
            with path.open("rb") as file:
                modified = os.fstat(file.fileno()).st_mtime
                text = file.read() if with_manifest else None
        except FileNotFoundError:
            raise NotFoundError(f"collection {name} not found: there is no {path}") from None
        except OSError as error:
            raise KeepReadError(
                f"can't read collection {name}: {path}: {error.strerror or error}",
                cause=_CAUSE_BY_ERRNO.get(error.errno or 0),
            ) from error
        if text is not None and (found := portable_data_hash(text)) != name:
            raise KeepReadError(
                f"the manifest {path} is corrupt: its portable data hash is {found}; move it"
                " away, and commit the collection again",
                cause=Cause.CORRUPT,
            )
        return CollectionRecord(
            uuid="",
            portable_data_hash=name,
            manifest=text,
            modified_at=dt.datetime.fromtimestamp(modified, dt.UTC).isoformat(),
        )

    def put(self, manifest: Manifest | str | bytes) -> CollectionRecord:
        """Store a manifest, in normal form and without hints. Blocks.

        When this returns, the manifest survives a power cut. The blocks are not read.

        Returns:
            The record, without the manifest.

        Raises:
            ManifestError: The text is not a manifest.
            KeepWriteError: The file couldn't be written; nothing is left behind.
        """
        kept = (parse(manifest) if isinstance(manifest, str | bytes) else manifest).stripped()
        name = portable_data_hash(kept.pieces())
        try:
            self._make_directory()
            self._write(self._path(name), kept.pieces())
        except OSError as error:
            raise KeepWriteError(
                f"can't keep collection {name} in {self.directory}: {error.strerror or error}",
                cause=_CAUSE_BY_ERRNO.get(error.errno or 0),
            ) from error
        return self.get(name, with_manifest=False)

    def names(self) -> list[str]:
        """Return the portable data hashes, sorted; empty if there are none. Blocks.

        Raises:
            KeepReadError: The directory can't be read.
        """
        try:
            found = os.listdir(self.directory)  # noqa: PTH208 - names, not paths
        except FileNotFoundError:
            return []
        except OSError as error:
            raise KeepReadError(
                f"can't list {self.directory}: {error.strerror or error}",
                cause=_CAUSE_BY_ERRNO.get(error.errno or 0),
            ) from error
        names = (each.removesuffix(SUFFIX) for each in found if each.endswith(SUFFIX))
        return sorted(name for name in names if is_hash(name))

    def _path(self, name: str) -> Path:
        return self.directory / (name + SUFFIX)

    def _make_directory(self) -> None:
        missing = [it for it in (self.directory, *self.directory.parents) if not it.exists()]
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for made in missing:
            sync_directory(made.parent)  # makes the new directory durable

    def _write(self, path: Path, pieces: Iterable[bytes]) -> None:
        descriptor, temporary = tempfile.mkstemp(".tmp", "keepfs-", self.directory)
        try:
            with open(descriptor, "wb") as file:  # noqa: PTH123 - a descriptor
                file.writelines(pieces)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).rename(path)
        except BaseException:
            with contextlib.suppress(OSError):
                Path(temporary).unlink(missing_ok=True)
            raise
        sync_directory(self.directory)  # makes the rename durable
