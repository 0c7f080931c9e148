"""Tokens: checked, salted for other clusters, and redacted in texts."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keepfs.keep import ArgumentError
from keepfs.keep.services.tokens import clean_token, redacted, salted_token
from tests.keep.vectors import VECTORS

TOKEN = "v2/zzzzz-gj3su-077z32aux8dg2s1/thesecretpart"  # noqa: S105 - none


@pytest.mark.parametrize("vector", VECTORS["salted_tokens"], ids=lambda vector: vector["remote"])
def test_a_token_is_salted_as_in_the_vectors(vector: dict[str, Any]) -> None:
    if vector["error"] is None:
        assert salted_token(vector["token"], vector["remote"]) == vector["salted"]
    else:
        with pytest.raises(ValueError, match=vector["error"]) as caught:
            salted_token(vector["token"], vector["remote"])

        assert vector["token"] not in str(caught.value)


def test_text_after_the_secret_is_dropped() -> None:
    assert salted_token(f"{TOKEN}/more", "xyzzy") == salted_token(TOKEN, "xyzzy")


def test_blanks_around_a_token_are_dropped() -> None:
    assert clean_token(f" {TOKEN}\n") == TOKEN


@pytest.mark.parametrize("character", ["\n", " ", "\x00", "é", "€"])
def test_a_token_that_fits_in_no_header_is_refused_without_showing_it(character: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        clean_token(f"s3cret{character}s3cret")

    assert "s3cret" not in str(caught.value)


def test_a_token_and_its_secret_part_are_redacted() -> None:
    text = redacted(f"Bearer {TOKEN} or thesecretpart", TOKEN)

    assert text == "Bearer [token] or [token]"


def test_without_a_token_nothing_is_redacted() -> None:
    assert redacted("as it was", "") == "as it was"


@given(st.text("abc/", max_size=12), st.text("abc/v2", min_size=1, max_size=12))
def test_no_text_has_the_token_afterwards(text: str, token: str) -> None:
    assert token not in redacted(text, token).replace("[token]", "\0")
