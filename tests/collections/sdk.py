"""The results of the Python SDK for a manifest: normal form and portable data hash."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what the SDK's own imports say is not about us
    arvados_collection = pytest.importorskip("arvados.collection")


class SdkReading(NamedTuple):
    """What the SDK computes of a text.

    Attributes:
        normal: The normal form, hints included.
        portable_data_hash: The hash of the normal form.
    """

    normal: str
    portable_data_hash: str


class _NoApi:
    """The one attribute of an API client that printing a manifest reads."""

    _rootDesc: dict[str, Any] = {}  # noqa: N815, RUF012 - the SDK's name


class _NoKeep:
    """The one attribute of a Keep client that is read; no block is."""

    num_prefetch_threads = 0


def open_in_sdk(text: str) -> Any:  # noqa: ANN401 - the SDK has no types
    """Return the SDK's collection of a manifest; it can be printed, not read.

    Raises:
        Exception: What the SDK raises; its classes are many.
    """
    return arvados_collection.Collection(text or None, api_client=_NoApi(), keep_client=_NoKeep())


def read_by_sdk(text: str) -> SdkReading:
    """Have the SDK parse and print a manifest.

    Raises:
        Exception: What the SDK raises; its classes are many.
    """
    collection = open_in_sdk(text)
    return SdkReading(collection.manifest_text(normalize=True), collection.portable_data_hash())
