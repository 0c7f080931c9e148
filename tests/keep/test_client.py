"""The client over a local store: the methods of the SDK, and those that the mount uses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import pytest

from keepfs.keep import (
    MAX_BLOCK_SIZE,
    ArgumentError,
    Cause,
    KeepBlockCache,
    KeepClient,
    KeepLocator,
    KeepReadError,
    KeepWriteError,
    NotFoundError,
)
from tests.fakes.threads import Running

if TYPE_CHECKING:
    from pathlib import Path

    from typing_extensions import Buffer

FOO = "acbd18db4cc2f85cedef654fccc4a4d8+3"
BAR = "37b51d194a7513e45b56f6524f2d51f2+3"
EMPTY = "d41d8cd98f00b204e9800998ecf8427e+0"
LIVE, EXPIRED = f"+A{'0' * 40}@ffffffff", f"+A{'0' * 40}@00000001"


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KEEP_LOCAL_STORE", raising=False)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Name the store's directory."""
    return tmp_path / "blocks"


@pytest.fixture
def client(directory: Path) -> KeepClient:
    """Make a client of an empty store."""
    return KeepClient(local_store=directory)


# --- which store ---


def test_the_local_store_may_be_named_in_the_environment(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEEP_LOCAL_STORE", str(directory))

    client = KeepClient()
    client.put(b"foo")

    assert client.local_store == str(directory)
    assert (directory / FOO[:32]).read_bytes() == b"foo"


def test_the_local_store_argument_overrides_the_environment(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEEP_LOCAL_STORE", "/nonexistent")

    assert KeepClient(local_store=str(directory)).local_store == str(directory)


def test_an_empty_local_store_argument_overrides_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("KEEP_LOCAL_STORE", "/nonexistent")

    with pytest.raises(ArgumentError, match="KEEP_LOCAL_STORE"):
        KeepClient(local_store="")


@pytest.mark.parametrize("value", [None, ""])
def test_without_settings_the_message_says_what_to_set(
    value: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if value is not None:
        monkeypatch.setenv("KEEP_LOCAL_STORE", value)

    with pytest.raises(ArgumentError, match="local_store=DIRECTORY"):
        KeepClient()


def test_an_api_client_and_a_token_together_are_an_error(directory: Path) -> None:
    with pytest.raises(ValueError, match="not both"):
        KeepClient(api_client=object(), api_token="x", local_store=directory)  # noqa: S106 - none


# --- get ---


def test_a_stored_block_is_returned_as_bytes(client: KeepClient) -> None:
    locator = client.put(b"foo")

    block = client.get(locator)

    assert locator == FOO
    assert type(block) is bytes
    assert block == b"foo"


def test_a_list_of_locators_is_the_concatenation_of_its_blocks(client: KeepClient) -> None:
    client.put(b"foo")
    client.put(b"bar")

    assert client.get(f"{FOO},{BAR},{EMPTY},{FOO[:32]}") == b"foobarfoo"


def test_a_list_with_a_block_that_is_missing_is_not_found(client: KeepClient) -> None:
    client.put(b"foo")

    for call in (client.get, client.head):
        with pytest.raises(NotFoundError, match=BAR[:32]):
            call(f"{FOO},{BAR}")


@pytest.mark.parametrize("text", ["", "foo", f"{FOO},", f"{FOO},foo", FOO.upper()])
def test_a_text_that_is_no_locator_is_not_found(client: KeepClient, text: str) -> None:
    client.put(b"foo")

    for call in (client.get, client.head):
        with pytest.raises(NotFoundError, match="not a locator"):
            call(text)


@pytest.mark.parametrize("text", [EMPTY, EMPTY[:32], f"{EMPTY}{EXPIRED}", f"{EMPTY},{EMPTY}"])
def test_the_empty_block_needs_no_store(client: KeepClient, directory: Path, text: str) -> None:
    assert client.get(text) == b""
    assert client.head(text) is True
    assert not directory.exists()


def test_a_wrong_size_is_an_error_cached_or_not(client: KeepClient) -> None:
    client.put(b"foo")
    wrong = f"{FOO[:32]}+99"

    with pytest.raises(KeepReadError) as uncached:
        client.get(wrong)
    client.get(FOO)
    with pytest.raises(KeepReadError) as cached:
        client.get(wrong)

    assert uncached.value.cause is cached.value.cause is Cause.CORRUPT
    assert "99" in str(cached.value)


def test_the_sdks_keyword_arguments_are_taken(client: KeepClient) -> None:
    locator = client.put(b"foo", copies=1, num_retries=3, request_id="req-x", classes=["hot"])

    assert client.get(locator, num_retries=3, request_id="req-x", headers={}) == b"foo"
    assert client.head(locator, num_retries=3, request_id="req-x", headers={}) is True


def test_the_callers_headers_stay_as_they_were(client: KeepClient) -> None:
    headers = {"X-Mine": "1"}

    client.get(client.put(b"foo"), headers=headers)

    assert headers == {"X-Mine": "1"}


@pytest.mark.parametrize("found", [True, FOO])
def test_a_subclass_whose_get_returns_no_bytes_raises(
    directory: Path, found: Literal[True] | str
) -> None:
    class Odd(KeepClient):
        def _get_or_head(
            self,
            loc_s: str,
            method: str = "GET",
            num_retries: int | None = None,
            request_id: str | None = None,
            headers: dict[str, str] | None = None,
        ) -> bytes | Literal[True] | str:
            del loc_s, num_retries, request_id, headers
            return found if method == "GET" else b"foo"

    client = Odd(local_store=directory)

    with pytest.raises(TypeError):
        client.get(FOO)
    with pytest.raises(TypeError):
        client.head(FOO)


# --- head ---


def test_head_returns_true_for_a_stored_block(client: KeepClient) -> None:
    client.put(b"foo")

    assert client.head(FOO) is True


def test_head_fills_no_cache(client: KeepClient) -> None:
    client.put(b"foo")

    client.head(FOO)

    assert not client.is_cached(FOO)


def test_head_asks_the_store_even_for_a_cached_block(client: KeepClient, directory: Path) -> None:
    client.get(client.put(b"foo"))
    (directory / FOO[:32]).unlink()

    with pytest.raises(NotFoundError):
        client.head(FOO)


# --- put ---


@pytest.mark.parametrize("block", [b"foo", bytearray(b"foo"), memoryview(b"foo"), "foo"])
def test_a_buffer_or_a_text_may_be_put(client: KeepClient, block: Buffer | str) -> None:
    assert client.put(block) == FOO
    assert client.get(FOO) == b"foo"


def test_a_text_is_put_as_utf_8(client: KeepClient) -> None:
    assert client.get(client.put("naïve")) == b"na\xc3\xafve"


@pytest.mark.parametrize("copies", [0, -1])
def test_a_put_of_no_copies_names_the_block_and_stores_nothing(
    client: KeepClient, directory: Path, copies: int
) -> None:
    assert client.put(b"foo", copies=copies) == FOO
    assert not directory.exists()


@pytest.mark.parametrize("copies", [0, 1])
def test_a_block_that_is_too_large_is_refused_however_many_copies_are_wanted(
    client: KeepClient, directory: Path, copies: int
) -> None:
    with pytest.raises(KeepWriteError, match=str(MAX_BLOCK_SIZE)):
        client.put(bytes(MAX_BLOCK_SIZE + 1), copies=copies)

    assert not directory.exists()


# --- the cache ---


def test_a_block_is_read_from_the_store_once(client: KeepClient, directory: Path) -> None:
    client.get(client.put(b"foo"))
    (directory / FOO[:32]).unlink()

    assert client.get(FOO) == b"foo"
    assert client.block_cache.statistics().hits == 1


def test_a_put_fills_no_cache(client: KeepClient) -> None:
    client.put(b"foo")

    assert client.get_from_cache(FOO) is None
    assert not client.is_cached(FOO)


def test_a_block_that_was_read_is_returned_from_the_cache(client: KeepClient) -> None:
    client.get(client.put(b"foo"))

    assert client.get_from_cache(FOO) == b"foo"
    assert client.is_cached(FOO)


def test_an_expired_signature_is_never_answered_from_the_cache(
    client: KeepClient, directory: Path
) -> None:
    client.get(client.put(b"foo"))
    (directory / FOO[:32]).write_bytes(b"fox")

    with pytest.raises(KeepReadError) as caught:
        client.get(FOO + EXPIRED)

    assert caught.value.cause is Cause.CORRUPT
    assert not client.is_cached(FOO + EXPIRED)
    assert client.get_from_cache(FOO + EXPIRED) is None
    assert client.get(FOO + LIVE) == b"foo"


def test_an_expired_signature_returns_the_answer_of_the_store(client: KeepClient) -> None:
    client.put(b"foo")

    block = client.get_block(KeepLocator(FOO + EXPIRED))

    assert bytes(block) == b"foo"
    assert block.readonly
    assert not client.is_cached(FOO)


def test_clients_may_share_a_cache(client: KeepClient, tmp_path: Path) -> None:
    other = KeepClient(local_store=tmp_path / "other", block_cache=client.block_cache)

    client.get(client.put(b"foo"))

    assert other.get(FOO) == b"foo"


def test_a_block_that_was_fetched_into_a_larger_buffer_is_got_as_bytes(
    directory: Path,
) -> None:
    cache = KeepBlockCache()
    cache.get_or_fetch(KeepLocator(FOO), lambda: memoryview(bytearray(b"foobar"))[:3])
    cache.get_or_fetch(KeepLocator(BAR), lambda: memoryview(b"foobar")[3:])
    client = KeepClient(local_store=directory, block_cache=cache)

    for locator, content in ((FOO, b"foo"), (BAR, b"bar")):
        assert client.get(locator) == content
        assert type(client.get_from_cache(locator)) is bytes


def test_many_readers_of_a_block_share_one_read(client: KeepClient) -> None:
    client.put(b"foo")

    readers = [Running(lambda: client.get(FOO)) for _ in range(30)]
    blocks = [reader.result() for reader in readers]

    assert blocks == [b"foo"] * 30
    assert client.block_cache.statistics().misses == 1


# --- the SDK's names of the local store's calls ---


def test_the_local_store_methods_do_the_same_as_get_put_and_head(client: KeepClient) -> None:
    locator = client.local_store_put(b"foo")

    assert locator == FOO
    assert client.local_store_get(locator) == b"foo"
    assert client.local_store_head(locator) is True


def test_local_store_put_stores_a_block_for_any_number_of_copies(client: KeepClient) -> None:
    client.local_store_put(b"foo", copies=0)

    assert client.get(FOO) == b"foo"
