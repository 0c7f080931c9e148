"""collections/: any collection's uuid or portable data hash is a folder in it.

Any other name fails with ENOENT, without a request. A listing shows a user the collections
that the user has looked up and that are still loaded.

For the trio thread only.
"""

from __future__ import annotations

import errno
from collections import OrderedDict
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from keepfs.collections.names import is_hash, is_uuid
from keepfs.fs.collection_tree.live import DEFAULT_REFRESH, LiveCollection
from keepfs.fs.collection_tree.tree import CollectionRoot
from keepfs.fs.errnos import RefusedError
from keepfs.fs.nodes import DirectoryNode

if TYPE_CHECKING:
    from collections.abc import Iterable

    from keepfs.fs.bridge import AsyncBlocks
    from keepfs.fs.collection_tree.loaded import CollectionSource
    from keepfs.fs.nodes import Metadata, Node

#: Seconds for which the kernel caches that a collection wasn't found: it may be created at any
#: time.
NOT_FOUND_TIMEOUT = 1.0
#: Default of `budget`, in bytes. A mount derives the budget from `--cache-size`.
DEFAULT_BUDGET = 64 * 1024 * 1024


class CollectionsDirectory(DirectoryNode):
    """The directory of all collections.

    Args:
        metadata: The attributes of the directory; its user and group are those of all files.
        source: The source of collections.
        blocks: The block store.
        refresh: Seconds after which an access by uuid checks for a new version.
        budget: Most bytes, estimated, of collections that stay loaded after the kernel has
            forgotten their nodes. The one looked up last stays loaded, whatever its size.
            Collections with nodes that the kernel has not forgotten count, and are not unloaded.
    """

    def __init__(
        self,
        metadata: Metadata,
        source: CollectionSource,
        blocks: AsyncBlocks,
        refresh: float = DEFAULT_REFRESH,
        budget: int = DEFAULT_BUDGET,
    ) -> None:
        super().__init__(metadata)
        self._source = source
        self._blocks = blocks
        self._refresh = refresh
        self._loading: dict[str, LiveCollection] = {}
        # Weak: a node is kept alive by the inode table and by `_kept`.
        self._roots: WeakValueDictionary[str, CollectionRoot] = WeakValueDictionary()
        self._budget = budget
        # The collections looked up last, the latest at the end.
        self._kept: OrderedDict[str, CollectionRoot] = OrderedDict()
        # Their sizes, in bytes, at their last lookups; and the sum.
        self._sizes: dict[str, int] = {}
        self._taken = 0

    @property
    def mount_path(self) -> str:
        """The path from the mount's root."""
        return "collections"

    @property
    def not_found_timeout(self) -> float:
        """Seconds for which the kernel may cache that a name wasn't found."""
        return NOT_FOUND_TIMEOUT

    async def lookup(self, name: str) -> Node:
        """Find a collection, and fetch its manifest unless it is known.

        Raises:
            RefusedError: ENOENT, the name is neither a uuid nor a portable data hash.
            KeepRequestError: There is no such collection, or it couldn't be read.
        """
        if not (is_uuid(name) or is_hash(name)):
            raise RefusedError(errno.ENOENT)
        root = self._roots.get(name)
        if root is None:
            live = await self._loaded(name)
            # A concurrent lookup may have made the folder: a name must have one inode.
            root = self._roots.get(name) or CollectionRoot(live)
            self._roots[name] = root
        else:
            await root.live.check()
        self._keep(name, root)
        return root

    def names(self) -> Iterable[str]:
        """Return the names that were looked up, without a request."""
        return list(self._roots)

    def entry_nowait(self, name: str) -> Node | None:
        """Return a collection that was looked up, or None."""
        return self._roots.get(name)

    def _keep(self, name: str, root: CollectionRoot) -> None:
        """Keep a collection loaded; drop the least recently used while the budget is exceeded.

        A dropped collection is freed when the kernel has forgotten its nodes.
        """
        self._kept[name] = root
        self._kept.move_to_end(name)
        size = _size_of(root)
        self._taken += size - self._sizes.get(name, 0)
        self._sizes[name] = size
        while self._taken > self._budget and len(self._kept) > 1:
            dropped, _ = self._kept.popitem(last=False)
            self._taken -= self._sizes.pop(dropped)

    async def _loaded(self, name: str) -> LiveCollection:
        """Load a collection, or join a lookup that loads it."""
        live = self._loading.get(name)
        if live is None:
            live = LiveCollection(name, self._source, self._blocks, self.metadata, self._refresh)
            self._loading[name] = live
        try:
            await live.check()
        finally:
            if not live.is_loading:  # still loading after a cancellation: the next lookup joins
                self._loading.pop(name, None)
        return live


def _size_of(root: CollectionRoot) -> int:
    content = root.live.content
    return 0 if content is None else content.memory_size
