"""collections/: any collection's uuid or portable data hash is a folder in it.

Any other name fails with ENOENT, without a request. The listing shows to each user the
collections that the user looked up, as long as the kernel remembers them.

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

#: Seconds for which the kernel remembers that a collection wasn't found: it may be made
#: any moment.
NOT_FOUND_TIMEOUT = 1.0
#: Bytes of manifests kept though the kernel has forgotten their nodes, by default. A mount
#: derives it from `--cache-size`.
DEFAULT_BUDGET = 64 * 1024 * 1024


class CollectionsDirectory(DirectoryNode):
    """The directory of all collections.

    Args:
        metadata: The attributes of the directory; its user and group are those of all files.
        source: Where collections come from.
        blocks: Where the blocks are.
        refresh: Seconds after which an access by uuid checks for a new version.
        budget: Most bytes, estimated, of collections that stay loaded though the kernel has
            forgotten their nodes. The one looked up last stays, whatever its size. Collections
            with nodes that the kernel remembers count, but are not unloaded.
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
        # The kernel's hold on a node is what keeps it here.
        self._roots: WeakValueDictionary[str, CollectionRoot] = WeakValueDictionary()
        self._budget = budget
        # Those looked up last, the latest at the end.
        self._kept: OrderedDict[str, CollectionRoot] = OrderedDict()

    @property
    def mount_path(self) -> str:
        """The path from the mount's root."""
        return "collections"

    @property
    def not_found_timeout(self) -> float:
        """Seconds for which the kernel may remember that a name wasn't found."""
        return NOT_FOUND_TIMEOUT

    async def lookup(self, name: str) -> Node:
        """Find a collection, and fetch its manifest unless it is known.

        Raises:
            RefusedError: ENOENT, the name is neither a uuid nor a portable data hash.
            KeepRequestError: There is none, or it couldn't be had.
        """
        if not (is_uuid(name) or is_hash(name)):
            raise RefusedError(errno.ENOENT)
        root = self._roots.get(name)
        if root is None:
            live = await self._loaded(name)
            # Another lookup of the name may have come first: the kernel is to see one folder.
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
        """Keep a collection loaded; let the least recently used go while the budget is exceeded.

        What is let go is freed when the kernel has forgotten its nodes.
        """
        self._kept[name] = root
        self._kept.move_to_end(name)
        taken = sum(map(_size_of, self._kept.values()))
        while taken > self._budget and len(self._kept) > 1:
            taken -= _size_of(self._kept.popitem(last=False)[1])

    async def _loaded(self, name: str) -> LiveCollection:
        """Load a collection, or join a lookup that does."""
        live = self._loading.get(name)
        if live is None:
            live = LiveCollection(name, self._source, self._blocks, self.metadata, self._refresh)
            self._loading[name] = live
        try:
            await live.check()
        finally:
            if not live.is_loading:  # a lookup that was given up leaves it to the next
                self._loading.pop(name, None)
        return live


def _size_of(root: CollectionRoot) -> int:
    content = root.live.content
    return 0 if content is None else content.memory_size
