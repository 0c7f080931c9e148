"""Following: the symbolic links of a stored tree are replaced by what they point to.

Links are resolved within the tree alone, without a file system. A link may point to any
node of the tree.
"""

from __future__ import annotations

import dataclasses
import os
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from keepfs.fs.upload.snapshot import StoredNode

#: Most links in the resolution of one path; Linux has the same limit.
_MOST_LINKS = 40
#: Most nodes of the result. Guessed: nested links to directories multiply the nodes below
#: them.
MOST_NODES = 2_000_000


def follow(
    nodes: Iterable[StoredNode], root: str
) -> tuple[list[StoredNode], list[tuple[str, str]]]:
    """Replace each symbolic link by what it points to. All nodes are kept in memory.

    Args:
        nodes: The nodes of one tree, with paths below its top. A directory comes before
            its entries.
        root: The absolute path of the top, for absolute targets.

    Returns:
        The nodes, and (path, reason) of each link that can't be followed: it points out of the
        tree, to nothing, or to a directory that it is in; or the result has more than
        `MOST_NODES`.
    """
    return _Tree(nodes, root).expanded()


class _NotFollowedError(Exception):
    """A link that can't be followed; the message has the reason."""


class _Tree:
    """The nodes of a tree, by their paths."""

    def __init__(self, nodes: Iterable[StoredNode], root: str) -> None:
        self._root = root.rstrip("/")
        self._by_path: dict[str, StoredNode] = {}
        self._children: dict[str, list[StoredNode]] = {}
        for node in nodes:
            self._by_path[node.path] = node
            above, _, _ = node.path.rpartition("/")
            self._children.setdefault(above, []).append(node)

    def expanded(self) -> tuple[list[StoredNode], list[tuple[str, str]]]:
        found: list[StoredNode] = []
        refused: list[tuple[str, str]] = []
        # (prefix of paths in the result, directory in the tree, the directories it is in)
        work: list[tuple[str, str, frozenset[str]]] = [("", "", frozenset(("",)))]
        while work:
            above, directory, ancestors = work.pop()
            for child in self._children.get(directory, ()):
                path = above + child.path.rpartition("/")[2]
                try:
                    target = self._target(child, ancestors)
                except _NotFollowedError as error:
                    refused.append((path, str(error)))
                    continue
                if len(found) >= MOST_NODES:
                    refused.append((path, f"links lead to more than {MOST_NODES} nodes"))
                    return found, refused
                node = self._by_path[target]
                found.append(dataclasses.replace(node, path=path))
                if node.kind == stat.S_IFDIR:
                    work.append((f"{path}/", target, ancestors | {target}))
        return found, refused

    def _target(self, node: StoredNode, ancestors: frozenset[str]) -> str:
        """Return the path in the tree of a node, or of the node that a link points to.

        Args:
            node: The node.
            ancestors: The directories that contain it in the result, by their paths in the tree.

        Raises:
            _NotFollowedError: The link points to no node, or to one of the ancestors.
        """
        target = self._resolved(node)
        if target in ancestors:
            raise _NotFollowedError("it points to a directory that it is in: a loop")
        return target

    def _resolved(self, node: StoredNode) -> str:
        if node.kind != stat.S_IFLNK:
            return node.path
        names = node.path.split("/")
        at, ahead, links = names[:-1], [names[-1]], 0
        while ahead:
            name = ahead.pop()
            if name in {"", "."}:
                continue
            if name == "..":
                if not at:
                    raise _NotFollowedError("it points out of the tree")
                at.pop()
                continue
            found = self._by_path.get("/".join((*at, name)))
            if found is None or (ahead and found.kind == stat.S_IFREG):
                raise _NotFollowedError(
                    f"it points to {os.fsdecode(node.target)!r}: not stored in the tree"
                )
            if found.kind != stat.S_IFLNK:
                at.append(name)
                continue
            links += 1
            if links > _MOST_LINKS:
                raise _NotFollowedError("it leads to itself: a loop")
            at, target = self._start(at, os.fsdecode(found.target))
            ahead += reversed(target.split("/"))
        return "/".join(at)

    def _start(self, at: list[str], target: str) -> tuple[list[str], str]:
        """Return the directory that a target is relative to, and the target relative to it."""
        if not target.startswith("/"):
            return at, target
        if not f"{target}/".startswith(f"{self._root}/"):
            raise _NotFollowedError(f"it points out of the tree, to {target!r}")
        return [], target[len(self._root) :]
