"""What every block store promises its callers, as one test class.

A test module subclasses `BlockStoreContract` and gives it a `store` fixture:
a new, empty store. The promises are those of `KeepClient`'s docstrings.
"""

from __future__ import annotations

import array
import hashlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from keepfs.keep import (
    MAX_BLOCK_SIZE,
    Cause,
    KeepLocator,
    KeepReadError,
    KeepWriteError,
    NotFoundError,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Buffer

    from keepfs.fs.block_store import BlockStore

FOO = KeepLocator("acbd18db4cc2f85cedef654fccc4a4d8+3")
EMPTY = "d41d8cd98f00b204e9800998ecf8427e"
SIGNATURE = f"A{'0' * 40}"
LIVE_HINT, EXPIRED_HINT = f"{SIGNATURE}@ffffffff", f"{SIGNATURE}@00000001"


class BlockStoreContract:
    @pytest.fixture
    def store(self) -> BlockStore:
        """Make a new, empty store."""
        raise NotImplementedError

    # --- what was put can be had ---

    def test_a_block_that_was_put_is_read_back(self, store: BlockStore) -> None:
        locator = store.put_block(b"foo", copies=1).locator

        assert bytes(store.get_block(locator)) == b"foo"

    def test_the_locator_of_a_receipt_names_the_content(self, store: BlockStore) -> None:
        receipt = store.put_block(b"foo", copies=1)

        assert receipt.locator.stripped() == FOO.stripped()

    def test_a_receipt_says_how_many_copies_and_who_confirmed_them(
        self, store: BlockStore
    ) -> None:
        receipt = store.put_block(b"foo", copies=1)

        assert receipt.copies >= 1
        assert receipt.services
        assert all(receipt.services)

    def test_a_block_may_be_put_again(self, store: BlockStore) -> None:
        first = store.put_block(b"foo", copies=1)

        again = store.put_block(b"foo", copies=1)

        assert again.locator.stripped() == first.locator.stripped()
        assert bytes(store.get_block(again.locator)) == b"foo"

    @pytest.mark.parametrize(
        "of",
        [bytes, bytearray, memoryview, lambda content: memoryview(array.array("I", content))],
        ids=["bytes", "bytearray", "memoryview", "memoryview of integers"],
    )
    def test_a_block_may_be_any_buffer(
        self, store: BlockStore, of: Callable[[bytes], Buffer]
    ) -> None:
        content = b"sixteen bytes do"

        locator = store.put_block(of(content), copies=1).locator

        assert locator.stripped() == f"{hashlib.md5(content).hexdigest()}+16"  # noqa: S324 - Keep
        assert bytes(store.get_block(locator)) == content

    def test_a_block_that_its_owner_changes_after_the_put_stays_what_it_was(
        self, store: BlockStore
    ) -> None:
        block = bytearray(b"foo")
        locator = store.put_block(block, copies=1).locator

        block[:] = b"bar"

        assert bytes(store.get_block(locator)) == b"foo"

    def test_what_is_read_cannot_be_written_to(self, store: BlockStore) -> None:
        locator = store.put_block(b"foo", copies=1).locator

        assert store.get_block(locator).readonly

    def test_a_locator_without_a_size_is_enough_to_read(self, store: BlockStore) -> None:
        store.put_block(b"foo", copies=1)

        assert bytes(store.get_block(KeepLocator(FOO.md5sum))) == b"foo"
        assert store.head_block(KeepLocator(FOO.md5sum)) == 3

    def test_hints_do_not_change_what_is_read(self, store: BlockStore) -> None:
        locator = store.put_block(b"foo", copies=1).locator

        assert bytes(store.get_block(KeepLocator(f"{locator}+Zfoo"))) == b"foo"

    def test_many_threads_may_put_and_get_at_once(self, store: BlockStore) -> None:
        blocks = [b"%d" % (number % 5) * 1000 for number in range(40)]

        with ThreadPoolExecutor(8) as pool:
            locators = [r.locator for r in pool.map(lambda b: store.put_block(b, 1), blocks)]
            read = list(pool.map(lambda it: bytes(store.get_block(it)), locators))

        assert read == blocks

    # --- sizes ---

    def test_head_tells_the_size(self, store: BlockStore) -> None:
        locator = store.put_block(b"foo", copies=1).locator

        assert store.head_block(locator) == 3

    def test_a_wrong_size_hint_is_an_error_and_never_another_blocks_bytes(
        self, store: BlockStore
    ) -> None:
        store.put_block(b"foo", copies=1)
        store.get_block(FOO)  # it may be cached now: then the answer is the same

        for size in (0, 2, 4, MAX_BLOCK_SIZE + 1):
            wrong = KeepLocator(f"{FOO.md5sum}+{size}")
            for call in (store.get_block, store.cached_block, store.head_block):
                with pytest.raises(KeepReadError) as caught:
                    call(wrong)

                assert caught.value.cause is Cause.CORRUPT

    def test_a_block_of_the_largest_size_is_stored_whole(self, store: BlockStore) -> None:
        block = bytes(MAX_BLOCK_SIZE)

        locator = store.put_block(block, copies=1).locator

        assert locator.stripped() == f"7f614da9329cd3aebf59b91aadc30bf0+{MAX_BLOCK_SIZE}"
        assert bytes(store.get_block(locator)) == block

    def test_a_block_one_byte_larger_is_refused(self, store: BlockStore) -> None:
        with pytest.raises(KeepWriteError):
            store.put_block(bytes(MAX_BLOCK_SIZE + 1), copies=1)

    # --- what isn't there ---

    def test_a_block_that_was_never_put_is_not_found(self, store: BlockStore) -> None:
        for call in (store.get_block, store.head_block):
            with pytest.raises(NotFoundError) as caught:
                call(FOO)

            assert caught.value.cause is Cause.NOT_FOUND
            assert FOO.stripped() in str(caught.value)

    def test_a_block_that_was_not_found_is_found_once_it_is_put(self, store: BlockStore) -> None:
        with pytest.raises(NotFoundError):
            store.get_block(FOO)

        store.put_block(b"foo", copies=1)

        assert bytes(store.get_block(FOO)) == b"foo"

    @pytest.mark.parametrize("text", [EMPTY, f"{EMPTY}+0", f"{EMPTY}+0+{EXPIRED_HINT}"])
    def test_the_empty_block_is_there_without_being_put(
        self, store: BlockStore, text: str
    ) -> None:
        empty = KeepLocator(text)

        assert bytes(store.get_block(empty)) == b""
        cached = store.cached_block(empty)
        assert cached is not None
        assert bytes(cached) == b""
        assert store.head_block(empty) == 0

    def test_the_empty_block_may_be_put(self, store: BlockStore) -> None:
        receipt = store.put_block(b"", copies=1)

        assert receipt.locator.stripped() == f"{EMPTY}+0"

    # --- what can be had without waiting ---

    def test_a_block_is_not_cached_before_it_was_read(self, store: BlockStore) -> None:
        assert store.cached_block(FOO) is None

    def test_a_block_that_was_read_is_cached(self, store: BlockStore) -> None:
        locator = store.put_block(b"foo", copies=1).locator
        store.get_block(locator)

        cached = store.cached_block(locator)

        assert cached is not None
        assert bytes(cached) == b"foo"
        assert cached.readonly

    def test_a_live_signature_is_answered_from_the_cache(self, store: BlockStore) -> None:
        store.get_block(store.put_block(b"foo", copies=1).locator)

        assert store.cached_block(KeepLocator(f"{FOO}+{LIVE_HINT}")) is not None

    def test_an_expired_signature_is_never_answered_from_the_cache(
        self, store: BlockStore
    ) -> None:
        store.get_block(store.put_block(b"foo", copies=1).locator)

        assert store.cached_block(KeepLocator(f"{FOO}+{EXPIRED_HINT}")) is None

    def test_who_sent_or_confirmed_a_block_is_known_from_then_on(self, store: BlockStore) -> None:
        assert store.services_of(FOO) == ()
        receipt = store.put_block(b"foo", copies=1)
        confirmed = store.services_of(receipt.locator)
        store.get_block(receipt.locator)

        assert confirmed == receipt.services
        assert store.services_of(FOO)
        assert set(store.services_of(FOO)) <= set(receipt.services)

    # --- room ---

    def test_free_space_is_part_of_all_space(self, store: BlockStore) -> None:
        total, free = store.free_space()

        assert 0 <= free <= total
        assert total > 0
