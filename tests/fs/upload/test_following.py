"""Symbolic links of a stored tree are followed by names alone."""

from __future__ import annotations

import stat

from keepfs.fs.nodes import Metadata
from keepfs.fs.upload import following
from keepfs.fs.upload.snapshot import StoredNode

_KINDS = {"d": stat.S_IFDIR, "f": stat.S_IFREG}


def followed(**tree: str) -> tuple[list[str], dict[str, str]]:
    """Follow the links of a tree, given as path (`_` for a slash) to `d`, `f` or a target."""
    nodes = [
        StoredNode(
            path.replace("_", "/"),
            number,
            Metadata(_KINDS.get(kind, stat.S_IFLNK) | 0o644, 0, 0),
            target=b"" if kind in _KINDS else kind.encode(),
        )
        for number, (path, kind) in enumerate(tree.items())
    ]
    found, refused = following.follow(nodes, "/top")
    assert all(node.kind != stat.S_IFLNK for node in found)
    return sorted(node.path for node in found), dict(refused)


def test_links_are_replaced_by_their_targets() -> None:
    assert followed(a="d", a_file="f", one="a/file", two="./a//../one", three="/top/a") == (
        ["a", "a/file", "one", "three", "three/file", "two"],
        {},
    )


def test_a_link_through_a_linked_directory_is_followed() -> None:
    assert followed(a="d", a_b="d", a_b_file="f", c="a/b", d="c/file")[0] == [
        "a", "a/b", "a/b/file", "c", "c/file", "d",
    ]  # fmt: skip


def test_links_that_lead_nowhere_are_refused_by_name() -> None:
    found, refused = followed(
        a="d", a_up="..", out="../x", far="/topmost", gone="a/none", file="f", through="file/x",
        x="y", y="x", top="/top",
    )  # fmt: skip

    assert found == ["a", "file"]
    assert refused == {
        "a/up": "it points to a directory that it is in: a loop",
        "out": "it points out of the tree",
        "far": "it points out of the tree, to '/topmost'",
        "gone": "it points to 'a/none': not stored in the tree",
        "through": "it points to 'file/x': not stored in the tree",
        "x": "it leads to itself: a loop",
        "y": "it leads to itself: a loop",
        "top": "it points to a directory that it is in: a loop",
    }


def test_directories_linked_into_each_other_are_refused() -> None:
    _, refused = followed(a="d", b="d", a_b="../b", b_a="../a")

    assert set(refused) == {"a/b/a", "b/a/b"}
    assert set(refused.values()) == {"it points to a directory that it is in: a loop"}
