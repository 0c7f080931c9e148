"""Mutated manifests: one error, or the SDK's reading."""

from __future__ import annotations

from tests.collections.blocks import BAR, EMPTY, FOO
from tests.soak.manifests import DIFFERENCES, compare, fuzz


def test_mutated_manifests_are_refused_or_read_as_the_sdk_reads_them() -> None:
    kinds, unexplained = fuzz(3_000, seed=14)

    assert unexplained == []
    assert kinds["refused"] > 500
    assert kinds["accepted"] > 500


def test_each_listed_difference_is_one() -> None:
    texts = {
        "escaped bytes over \\177": f". {FOO} 0:3:\\303\\251\n",
        "two backslashes": f". {FOO} 0:3:a\\\\b\n",
        "blanks beyond ASCII": f". {FOO} 0:3:a\u3000b\n",
        "an empty block beside others": f". {FOO} {EMPTY} {BAR} 0:6:a\n",
        "a size with leading zeros": f". {FOO[:33]}03 0:3:a\n",
        "a hint of one letter": f". {FOO}+Z 0:3:a\n",
    }

    assert texts.keys() == DIFFERENCES.keys()
    for name, text in texts.items():
        assert compare(text.encode(), 7) == name
