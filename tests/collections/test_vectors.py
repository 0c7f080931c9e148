"""Manifests of `tests/data/manifests.json`: parsed, printed and hashed as recorded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from keepfs.collections.escapes import decoded, encoded, escape, unescape
from keepfs.collections.parsing import parse
from keepfs.collections.portable import portable_data_hash, stripped

VECTORS = json.loads((Path(__file__).parent.parent / "data" / "manifests.json").read_text())


def whats(vectors: list[dict[str, Any]]) -> list[Any]:
    """Return the vectors as parameters, named."""
    return [pytest.param(vector, id=vector["what"]) for vector in vectors]


@pytest.mark.parametrize("vector", whats(VECTORS["manifests"]))
def test_the_hash_of_a_text_is_the_api_servers(vector: dict[str, str]) -> None:
    assert b"".join(stripped(vector["manifest"])).decode() == vector["stripped"]
    assert portable_data_hash(vector["manifest"]) == vector["pdh"]


@pytest.mark.parametrize("vector", whats(VECTORS["manifests"]))
def test_the_hash_of_the_normal_form_is_the_sdks(vector: dict[str, str]) -> None:
    assert parse(vector["manifest"]).portable_data_hash() == vector["sdk_portable_data_hash"]


@pytest.mark.parametrize("vector", VECTORS["manifest_path_escapes"], ids=lambda it: it["escaped"])
def test_names_are_escaped_as_recorded(vector: dict[str, str]) -> None:
    name = encoded(vector["name"])

    assert escape(name).decode() == vector["escaped"]
    assert decoded(unescape(vector["escaped"].encode())) == vector["name"]
