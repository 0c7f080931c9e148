"""Signing, salting and reading of locators agree with the test vectors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.keepstore import KeepstoreControls, Settings
from tests.keepstore.locators import RefusalError, Signer, quoted, salted, weight

if TYPE_CHECKING:
    import requests

_FILE = Path(__file__).parents[1] / "data" / "transcripts" / "vectors.json"
VECTORS: dict[str, list[dict[str, Any]]] = json.loads(_FILE.read_text())


@pytest.mark.parametrize("vector", VECTORS["signatures"], ids=lambda vector: vector["note"])
def test_signatures_equal_the_vectors(vector: dict[str, Any]) -> None:
    signer = Signer(vector["key"], vector["ttl_seconds"])

    assert (
        signer.signature(vector["hash"], vector["token"], vector["expiry_hex"])
        == (vector["signature"])
    )


@pytest.mark.parametrize("vector", VECTORS["salted_tokens"], ids=lambda vector: vector["token"])
def test_salted_tokens_equal_the_vectors(vector: dict[str, Any]) -> None:
    if vector["error"] is None:
        assert salted(vector["token"], vector["remote"]) == vector["salted"]
    else:
        with pytest.raises(RefusalError, match=vector["error"]):
            salted(vector["token"], vector["remote"])


def test_locators_are_taken_as_by_the_real_keepstore(session: requests.Session) -> None:
    del session.headers["Authorization"]
    with KeepstoreControls(Settings(signing=False)) as store:
        store.store_block(b"foo")

        statuses = {
            vector["locator"]: session.head(
                f"{store.url}/{quoted(vector['locator'])}", timeout=10
            ).status_code
            for vector in VECTORS["locators"]
            if vector.get("keepstore_HEAD_status_signing_off") is not None
        }

    assert statuses == {
        vector["locator"]: vector["keepstore_HEAD_status_signing_off"]
        for vector in VECTORS["locators"]
        if vector.get("keepstore_HEAD_status_signing_off") is not None
    }


def test_services_are_weighed_by_the_end_of_their_uuid() -> None:
    digest = "acbd18db4cc2f85cedef654fccc4a4d8"

    weights = [weight(digest, f"zzzzz-bi6l4-{number:015d}")[:8] for number in range(3)]

    assert weights == ["7dbe5843", "28a8a441", "3a0bc450"]
