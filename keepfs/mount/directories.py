"""Directories: builds the directories of a mount, and the handlers of their requests."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from keepfs import __version__, stores
from keepfs.fs.by_id import ByIdDirectory
from keepfs.fs.collection_tree.collections_directory import CollectionsDirectory
from keepfs.fs.collection_tree.live import LiveCollection
from keepfs.fs.collection_tree.tree import CollectionFolder
from keepfs.fs.known_signatures import KnownSignatures
from keepfs.fs.lookups import Lookup, Lookups
from keepfs.fs.nodes import ROOT_INODE, DirectoryNode, Metadata, Ownership, directory_mode
from keepfs.fs.operations import Operations
from keepfs.fs.root import RootDirectory, TextFile, readme_text
from keepfs.fs.upload.directory import UploadDirectory
from keepfs.messages import of_stores
from keepfs.mount import retaining

if TYPE_CHECKING:
    from keepfs.config.options import MountOptions
    from keepfs.fs.bridge import AsyncBlocks
    from keepfs.fs.collection_tree.loaded import CollectionSource
    from keepfs.fs.nodes import Node
    from keepfs.fs.requests import Requests
    from keepfs.fs.upload.catalog import Catalog
    from keepfs.fs.upload.staging import Staging

#: Manifests of unused collections may take, in addition to `--cache-size`, one part in this
#: many of it: 64 MiB by default, 600,000 small files.
_MANIFESTS_SHARE = 4


async def build(
    options: MountOptions,
    catalog: Catalog,
    collections: CollectionSource | None,
    requests: Requests,
    blocks: AsyncBlocks,
    staging: Staging,
) -> tuple[Operations, UploadDirectory]:
    """Build the directories and the handlers; with --collection, load that collection.

    Args:
        options: The options of the mount.
        catalog: The persistent names in upload/.
        collections: The source of collections; None if only Keep services are configured.
        requests: The requests in progress.
        blocks: The blocks of all files.
        staging: The bytes that are not stored yet.

    Raises:
        StoreError: Collections need an API server, and none is configured.
        KeepRequestError: The collection couldn't be read.
    """
    owner = Metadata(
        directory_mode(0),
        _given(options.uid, os.geteuid()),
        _given(options.gid, os.getegid()),
    )
    by_id = ByIdDirectory(
        _fixed(0o555, owner, options),
        blocks,
        Lookups(blocks, _lookup(options), options.lookup_wait),
        signatures=KnownSignatures() if options.share_signatures else None,
    )
    upload = UploadDirectory.mounted(_fixed(0o777, owner, options), staging, by_id.stored, catalog)
    readme = readme_text(
        __version__,
        blocks.copies,
        options.public_settings(),
        kept=retaining.retention_in_words(options),
        is_local=options.store.local_store is not None,
        has_collections=collections is not None,
    )
    entries: dict[str, Node] = {
        "README": TextFile(readme, owner),
        "by_id": by_id,
        "upload": upload,
    }
    if collections is not None:
        entries["collections"] = CollectionsDirectory(
            _fixed(0o555, owner, options),
            collections,
            blocks,
            options.collection_refresh,
            options.store.cache_size // _MANIFESTS_SHARE,
        )
    root: DirectoryNode = RootDirectory(entries, owner, 0o555 & ~options.umask)
    if options.collection is not None:
        live = _collection(options.collection, options, collections, blocks, owner)
        await live.check()
        root = CollectionFolder(live, inode=ROOT_INODE)
    operations = Operations(
        root,
        blocks,
        requests,
        Ownership(options.uid, options.gid),
        read_only=options.read_only,
        direct_io=options.direct_io,
    )
    return operations, upload


def _collection(
    name: str,
    options: MountOptions,
    collections: CollectionSource | None,
    blocks: AsyncBlocks,
    owner: Metadata,
) -> LiveCollection:
    """Return the collection that is the root of the mount."""
    if collections is None:
        raise stores.StoreError(
            of_stores.NEEDS_API_SERVER(
                what=f"can't mount collection {name}: no API server is known, only Keep services",
                otherwise="",
            )
        )
    return LiveCollection(name, collections, blocks, owner, options.collection_refresh)


def _lookup(options: MountOptions) -> Lookup:
    """Return how names are looked up; by default HEAD for a local store, FETCH otherwise."""
    if options.lookup is not None:
        return Lookup(options.lookup)
    return Lookup.HEAD if options.store.local_store else Lookup.FETCH


def _fixed(permissions: int, owner: Metadata, options: MountOptions) -> Metadata:
    mode = directory_mode(permissions & ~options.umask)
    return Metadata(mode, owner.uid, owner.gid, owner.mtime_ns)


def _given(value: int | None, default: int) -> int:
    return default if value is None else value
