"""Locators: which texts are valid, and their parts."""

from __future__ import annotations

import base64
import copy
import datetime as dt
import json
import pickle
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from keepfs.keep.locator import EMPTY_BLOCK, KeepLocator, parse_list

if TYPE_CHECKING:
    from collections.abc import Iterator

MD5 = "acbd18db4cc2f85cedef654fccc4a4d8"
SIGNATURE = "0" * 40
# As documented, but for the size, which the SDK lets be missing, as we do.
GRAMMAR = re.compile(r"[0-9a-f]{32}(\+[0-9]+)?(\+[A-Z][-A-Za-z0-9@_]*)*", re.ASCII)
VECTORS = json.loads((Path(__file__).parent.parent / "data" / "vectors.json").read_text())


class LocatorVector(NamedTuple):
    """One text, and what others say of it."""

    locator: str
    grammar: bool
    sdk: str | None
    keepstore: int | None


class BlockVector(NamedTuple):
    """One block, and its name."""

    content: str
    locator: str
    base64: str
    times: int


LOCATORS = [LocatorVector(**vector) for vector in VECTORS["locators"]]
BLOCKS = [BlockVector(**vector) for vector in VECTORS["blocks"]]

# Where our verdict on a text differs from the SDK's: what we print of it (None
# for ValueError), and why.
DIFFERS: dict[str, tuple[str | None, str]] = {
    f"{MD5}+3+Z": (
        f"{MD5}+3+Z",
        "the grammar allows a hint of one letter, and keepstore takes it; the SDK refuses it",
    ),
    f"{MD5}+3+Zfoo+A{SIGNATURE}@53bed294": (
        f"{MD5}+3+Zfoo+A{SIGNATURE}@53bed294",
        "a name stays as it was written; the SDK moves the permission hint to the front",
    ),
    f"{MD5.upper()}+3": (
        None,
        "a service refuses it, and the MD5 of what came back could never match it",
    ),
    f"{MD5}+-3": (None, "no block has a negative size; keepstore's answers to it disagree"),
    f"{MD5}+ 3": (None, "a blank is no digit; the SDK would print another name than it was given"),
    f"{MD5}+3+Zfoo\n": (None, "the newline would go into a URL, and into a listing of names"),
}


def verdict(text: str) -> str | None:
    """Return what we print of a text, or None if it isn't a locator."""
    try:
        return str(KeepLocator(text))
    except ValueError:
        return None


def locators() -> st.SearchStrategy[str]:
    """Texts that are locators."""
    hint = st.from_regex(re.compile(r"[B-Z][-A-Za-z0-9@_]{0,8}", re.ASCII), fullmatch=True)
    signed = st.from_regex(re.compile(r"A[0-9a-f]{40}@[0-9a-fA-F]{8}", re.ASCII), fullmatch=True)
    return st.builds(
        lambda md5sum, size, before, permission, after: "+".join(
            [md5sum, *size, *before, *permission, *after]
        ),
        st.from_regex(re.compile(r"[0-9a-f]{32}", re.ASCII), fullmatch=True),
        st.lists(st.integers(0, 10**20 - 1).map(str), max_size=1),
        st.lists(hint, max_size=3),
        st.lists(signed, max_size=1),
        st.lists(hint, max_size=3),
    )


def near_locators() -> st.SearchStrategy[str]:
    """Locators with a piece cut out and another put in."""
    return st.builds(
        lambda text, begin, length, piece: text[:begin] + piece + text[begin + length :],
        locators(),
        st.integers(0, 100),
        st.integers(0, 3),
        st.one_of(st.text(max_size=3), st.sampled_from(["+", "++", "+A", "\n", "-", "@", "۳"])),
    )


# --- which texts are locators ---


@pytest.mark.parametrize("vector", LOCATORS, ids=lambda vector: repr(vector.locator))
def test_a_text_has_the_sdks_verdict_unless_there_is_a_reason(vector: LocatorVector) -> None:
    expected = DIFFERS[vector.locator][0] if vector.locator in DIFFERS else vector.sdk

    assert verdict(vector.locator) == expected


def test_differences_from_the_sdk_follow_the_grammar_or_the_servers() -> None:
    differing = [vector for vector in LOCATORS if vector.locator in DIFFERS]

    assert len(differing) == len(DIFFERS)
    for vector in differing:
        ours = DIFFERS[vector.locator][0]
        assert ours != vector.sdk
        assert (ours is not None) == vector.grammar


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(f"{MD5}+3+A{SIGNATURE}@53bed294+A{SIGNATURE}@53bed294", id="two signatures"),
        pytest.param(f"{MD5}+3+A{'A' * 40}@53bed294", id="signature in upper case"),
        pytest.param(f"{MD5}+3+A{SIGNATURE}@53bed29", id="expiry of 7 digits"),
        pytest.param(f"{MD5}+3+A", id="permission hint of one letter"),
        pytest.param(f"{MD5}+1_0", id="size with an underline"),
        pytest.param(f"{MD5}+٣", id="size in Arabic digits"),
        pytest.param(f"{MD5}+3+Zfoö", id="hint outside ASCII"),
        pytest.param(f"{MD5}+3\n", id="newline after the size"),
        pytest.param(f" {MD5}+3", id="blank before"),
        pytest.param(f"{MD5}+{'9' * 21}", id="size of 21 digits"),
        pytest.param(f"{MD5}+{'9' * 100_000}", id="size of 100,000 digits"),
        pytest.param(f"{MD5},{MD5}", id="two locators"),
        pytest.param("\0", id="NUL"),
        pytest.param("\udcff" * 32, id="bytes that aren't UTF-8"),
    ],
)
def test_a_text_that_no_server_accepts_is_refused_without_a_request(text: str) -> None:
    with pytest.raises(ValueError, match=r"^not a locator: "):
        KeepLocator(text)


@pytest.mark.parametrize(
    ("text", "flaw"),
    [
        (MD5.upper(), "a locator begins with exactly 32 lower-case hex digits"),
        (f"{MD5}0+3", "a locator begins with exactly 32 lower-case hex digits"),
        (f"{MD5}+-3", "the size is a decimal number"),
        (f"{MD5}+", "the size is a decimal number"),
        (f"{MD5}+3+z", "a hint is an upper-case letter"),
        (f"{MD5}+3+3", "a hint is an upper-case letter"),
        (f"{MD5}+Z+3", "a hint is an upper-case letter"),
        (f"{MD5}+3+Afoo", "a permission hint is"),
        (f"{MD5}+{'9' * 21}", "no block is that large"),
        (f"{MD5}+A{SIGNATURE}@53bed294+A{SIGNATURE}@53bed294", "two permission hints"),
    ],
)
def test_a_refusal_names_the_flaw(text: str, flaw: str) -> None:
    with pytest.raises(ValueError, match=re.escape(flaw)):
        KeepLocator(text)


@pytest.mark.parametrize("value", [[MD5], (MD5, MD5), MD5.encode(), None, KeepLocator(MD5)])
def test_what_is_no_text_is_refused_with_the_type_that_is_wanted(value: object) -> None:
    no_text = cast("str", value)
    said = f"joined by commas; not {type(value).__name__}"
    with pytest.raises(TypeError, match=said):
        KeepLocator(no_text)
    with pytest.raises(TypeError, match=said):
        parse_list(no_text)


def test_a_refusal_of_a_long_text_is_short() -> None:
    with pytest.raises(ValueError, match="not a locator") as caught:
        KeepLocator("x" * 1_000_000)

    assert len(str(caught.value)) < 300


@given(st.one_of(st.text(), near_locators(), st.text("0123456789abcdef+AZ@-_\n", max_size=90)))
@example(f"{MD5}+3+Zfoo\n")
def test_any_text_parses_or_raises_value_error_and_nothing_else(text: str) -> None:
    try:
        locator = KeepLocator(text)
    except ValueError:
        return

    assert GRAMMAR.fullmatch(text)
    assert GRAMMAR.fullmatch(str(locator))


@given(locators())
def test_what_is_printed_parses_to_the_same_locator(text: str) -> None:
    locator = KeepLocator(text)

    again = KeepLocator(str(locator))

    assert again == locator
    assert hash(again) == hash(locator)
    assert str(again) == str(locator)


@given(locators())
def test_the_parts_are_the_parts_of_the_text(text: str) -> None:
    locator = KeepLocator(text)

    hints = [part for part in text.split("+")[1:] if not part.isdigit()]
    assert locator.md5sum == text[:32]
    assert str(locator) == "+".join([locator.stripped(), *hints])
    assert list(locator.hints) == [hint for hint in hints if not hint.startswith("A")]
    permission = next((hint for hint in hints if hint.startswith("A")), None)
    assert locator.permission_hint() == permission


# --- what a locator says ---


def test_a_locator_is_taken_apart() -> None:
    locator = KeepLocator(f"{MD5}+03+Kfoo+A{'0f' * 20}@53BED294+Z")

    assert locator.md5sum == MD5
    assert locator.size == 3
    assert locator.hints == ("Kfoo", "Z")
    assert locator.perm_sig == "0f" * 20
    assert locator.perm_expiry == dt.datetime(2014, 7, 10, 17, 51, 16, tzinfo=dt.UTC)
    assert locator.permission_hint() == f"A{'0f' * 20}@53BED294"
    assert locator.stripped() == f"{MD5}+3"
    assert str(locator) == f"{MD5}+3+Kfoo+A{'0f' * 20}@53BED294+Z"
    assert repr(locator) == f"KeepLocator('{locator}')"


def test_a_digest_alone_has_no_other_parts() -> None:
    locator = KeepLocator(MD5)

    assert locator.size is None
    assert locator.hints == ()
    assert locator.perm_sig is None
    assert locator.perm_expiry is None
    assert locator.permission_hint() is None
    assert locator.stripped() == MD5


def test_locators_with_other_hints_are_other_locators() -> None:
    plain, hinted = KeepLocator(f"{MD5}+3"), KeepLocator(f"{MD5}+3+Zfoo")

    assert plain != hinted
    assert len({plain, hinted, KeepLocator(f"{MD5}+3")}) == 2


def test_a_locator_is_not_its_text() -> None:
    assert KeepLocator(MD5) != MD5


@pytest.mark.parametrize("name", ["md5sum", "size", "hints", "perm_sig", "perm_expiry", "other"])
def test_a_locator_cannot_be_changed(name: str) -> None:
    locator = KeepLocator(f"{MD5}+3")

    with pytest.raises(AttributeError):
        setattr(locator, name, "x")
    with pytest.raises(AttributeError):
        delattr(locator, name)

    assert repr(locator) == f"KeepLocator('{MD5}+3')"
    assert locator.size == 3


def test_a_locator_survives_copying_and_pickling() -> None:
    locator = KeepLocator(f"{MD5}+3+A{SIGNATURE}@53bed294+Z")

    for twin in (
        copy.copy(locator),
        copy.deepcopy(locator),
        pickle.loads(pickle.dumps(locator)),  # noqa: S301 - just made
    ):
        assert twin == locator
        assert twin.perm_expiry == locator.perm_expiry


# --- the blocks they name ---


@pytest.mark.parametrize("vector", BLOCKS, ids=lambda vector: vector.content)
def test_a_block_is_named_by_its_bytes(vector: BlockVector) -> None:
    block = base64.b64decode(vector.base64) * vector.times

    locator = KeepLocator.of_block(block)

    assert str(locator) == vector.locator
    assert locator.size == len(block)
    assert locator.perm_sig is None


def test_the_empty_blocks_name_is_that_of_no_bytes() -> None:
    assert KeepLocator.of_block(b"") == EMPTY_BLOCK


def test_a_buffer_of_wider_items_is_measured_in_bytes() -> None:
    assert KeepLocator.of_block(memoryview(bytes(8)).cast("I")).size == 8


# --- when a permission ends ---


@pytest.fixture(params=["UTC0", "EST5EDT,M3.2.0,M11.1.0", "JST-9", "<+14>-14", "<-12>12"])
def time_zone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Move the process to another time zone."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", request.param)
        time.tzset()
        yield request.param
    time.tzset()


def expiring(at: dt.datetime) -> KeepLocator:
    """Make a locator whose permission ends then."""
    return KeepLocator(f"{MD5}+3+A{SIGNATURE}@{int(at.timestamp()):08x}")


@pytest.mark.usefixtures("time_zone")
def test_a_permission_ends_at_the_same_moment_in_every_time_zone() -> None:
    now = dt.datetime.now(dt.UTC)

    ended, live = expiring(now - dt.timedelta(hours=1)), expiring(now + dt.timedelta(hours=1))

    assert ended.permission_expired()
    assert not live.permission_expired()


@pytest.mark.usefixtures("time_zone")
def test_a_moment_without_a_zone_is_taken_as_utc() -> None:
    locator = KeepLocator(f"{MD5}+3+A{SIGNATURE}@53bed294")
    end = dt.datetime(2014, 7, 10, 17, 51, 16)  # noqa: DTZ001 - the subject of the test

    assert not locator.permission_expired(end - dt.timedelta(seconds=1))
    assert locator.permission_expired(end)


@pytest.mark.usefixtures("time_zone")
def test_a_moment_may_be_given_in_any_zone() -> None:
    locator = KeepLocator(f"{MD5}+3+A{SIGNATURE}@53bed294")
    tokyo = dt.timezone(dt.timedelta(hours=9))

    assert not locator.permission_expired(dt.datetime(2014, 7, 11, 2, 51, 15, tzinfo=tokyo))
    assert locator.permission_expired(dt.datetime(2014, 7, 11, 2, 51, 16, tzinfo=tokyo))


@pytest.mark.parametrize(
    ("digits", "end"),
    [
        ("00000000", dt.datetime(1970, 1, 1, tzinfo=dt.UTC)),
        ("7fffffff", dt.datetime(2038, 1, 19, 3, 14, 7, tzinfo=dt.UTC)),
        ("ffffffff", dt.datetime(2106, 2, 7, 6, 28, 15, tzinfo=dt.UTC)),
    ],
)
def test_an_expiry_may_be_any_of_eight_digits(digits: str, end: dt.datetime) -> None:
    assert KeepLocator(f"{MD5}+3+A{SIGNATURE}@{digits}").perm_expiry == end


def test_a_locator_without_a_permission_hint_never_expires() -> None:
    locator = KeepLocator(f"{MD5}+3+Ryyyyy-{SIGNATURE}@00000001")

    assert not locator.permission_expired()


# --- lists ---


def test_a_list_is_parsed_in_its_order() -> None:
    texts = [f"{MD5}+3+Zfoo", str(EMPTY_BLOCK), MD5]

    assert [str(locator) for locator in parse_list(",".join(texts))] == texts


def test_a_locator_is_a_list_of_one() -> None:
    assert parse_list(MD5) == (KeepLocator(MD5),)


@pytest.mark.parametrize("text", ["", ",", f"{MD5},", f",{MD5}", f"{MD5},,{MD5}", f"{MD5}, {MD5}"])
def test_a_list_with_a_part_that_is_no_locator_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a locator"):
        parse_list(text)
