"""What the fake stores do beyond the contract: they fail, wait and remember as told."""

from __future__ import annotations

import pytest

from keepfs.keep import Cause, KeepLocator, KeepReadError, KeepWriteError, NotFoundError
from tests.fakes.store import DictStore, FailingStore, GatedStore
from tests.fakes.threads import Running

FOO = KeepLocator("acbd18db4cc2f85cedef654fccc4a4d8+3")


def test_a_dict_store_remembers_every_call() -> None:
    store = DictStore()

    store.put_block(b"foo", copies=2)
    store.get_block(FOO)
    store.cached_block(FOO)
    store.head_block(FOO)

    assert store.calls == [
        ("put_block", FOO.md5sum),
        ("get_block", FOO.md5sum),
        ("head_block", FOO.md5sum),
    ]


def test_a_dict_store_takes_no_more_than_its_capacity() -> None:
    store = DictStore(capacity=5)
    store.put_block(b"foo", copies=1)
    store.put_block(b"foo", copies=1)

    with pytest.raises(KeepWriteError) as caught:
        store.put_block(b"bar", copies=1)

    assert caught.value.cause is Cause.FULL
    assert store.free_space() == (5, 2)


def test_a_dict_store_forgets_what_was_read() -> None:
    store = DictStore()
    store.put_block(b"foo", copies=1)
    store.get_block(FOO)

    store.forget_cached()

    assert store.cached_block(FOO) is None


def test_a_failing_store_fails_the_next_calls_as_told() -> None:
    store = FailingStore(DictStore())
    store.fail_next("put_block", KeepWriteError("one"), KeepWriteError("two"))

    for text in ("one", "two"):
        with pytest.raises(KeepWriteError, match=text):
            store.put_block(b"foo", copies=1)

    assert store.put_block(b"foo", copies=1).locator == FOO


def test_a_failing_store_fails_until_it_is_healed() -> None:
    store = FailingStore(DictStore())
    store.put_block(b"foo", copies=1)
    store.fail_always("get_block", KeepReadError("broken"))
    store.fail_always("head_block", NotFoundError("gone"))

    for _ in range(2):
        with pytest.raises(KeepReadError, match="broken"):
            store.get_block(FOO)
        with pytest.raises(NotFoundError, match="gone"):
            store.head_block(FOO)
    store.heal()

    assert bytes(store.get_block(FOO)) == b"foo"
    assert store.head_block(FOO) == 3


def test_a_gated_store_keeps_callers_waiting_until_the_gate_is_opened() -> None:
    store = GatedStore(DictStore())
    store.put_block(b"foo", copies=1)
    store.shut("get_block")

    readers = [Running(lambda: store.get_block(FOO)) for _ in range(3)]
    store.wait_for_callers("get_block", 3)
    are_over = [reader.is_over() for reader in readers]
    store.open("get_block")

    assert [bytes(reader.result()) for reader in readers] == [b"foo"] * 3
    assert are_over == [False] * 3
    assert store.waiting("get_block") == 0


def test_a_shut_gate_stops_no_other_calls() -> None:
    store = GatedStore(DictStore())
    store.shut("get_block")

    store.put_block(b"foo", copies=1)

    assert store.head_block(FOO) == 3
