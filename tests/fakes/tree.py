"""A mount's tree and its handlers, over any store and without a kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keepfs.fs.by_id import ByIdDirectory
from keepfs.fs.nodes import Metadata, Ownership, directory_mode
from keepfs.fs.operations import Operations
from keepfs.fs.requests import Requests
from keepfs.fs.root import RootDirectory, TextFile
from keepfs.fs.upload.catalog import Catalog
from keepfs.fs.upload.directory import UploadDirectory
from keepfs.fs.upload.staging import DEFAULT_STAGING_SIZE, Staging
from keepfs.keep import MAX_BLOCK_SIZE

if TYPE_CHECKING:
    from keepfs.fs.bridge import AsyncBlocks

#: What the README says here.
README = "This is a test."


class Tree:
    """README, by_id/ and upload/, as `keepfs.mount.serve` puts them together.

    Args:
        blocks: Where the blocks are.
        staging_size: Bytes that may be staged.
        block_size: Bytes after which files in upload/ are cut.
        ownership: Who owns what is made.
        read_only: Refuse to change anything.

    Attributes:
        operations: The handlers.
        upload: The inode of upload/.
        by_id: The inode of by_id/.
        staging: What all files have staged.
    """

    def __init__(
        self,
        blocks: AsyncBlocks,
        *,
        staging_size: int = DEFAULT_STAGING_SIZE,
        block_size: int = MAX_BLOCK_SIZE,
        ownership: Ownership | None = None,
        read_only: bool = False,
    ) -> None:
        owner = Metadata(directory_mode(0), 0, 0)
        by_id = ByIdDirectory(Metadata(directory_mode(0o555), 0, 0), blocks)
        self.staging = Staging(blocks, staging_size, block_size)
        upload = UploadDirectory.mounted(
            Metadata(directory_mode(0o777), 0, 0), self.staging, by_id.stored, Catalog()
        )
        entries = {"README": TextFile(README, owner), "by_id": by_id, "upload": upload}
        self.operations = Operations(
            RootDirectory(entries, owner),
            blocks,
            Requests(60.0),
            Ownership() if ownership is None else ownership,
            read_only=read_only,
        )
        self.upload = upload.inode
        self.by_id = by_id.inode
