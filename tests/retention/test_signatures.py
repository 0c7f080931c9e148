"""Newer locators replace older ones."""

from __future__ import annotations

from keepfs.fs.upload.entries import stored_as_text, stored_of
from keepfs.fs.upload.stored import StoredBytes
from keepfs.keep.locator import KeepLocator
from keepfs.keep.store import Receipt
from keepfs.retention.signatures import Signatures, first_expiry, is_expired, locators_of_row

FOO, BAR = "acbd18db4cc2f85cedef654fccc4a4d8+3", "37b51d194a7513e45b56f6524f2d51f2+3"
OLD, NEW = "+A" + "1" * 40 + "@00000010", "+A" + "2" * 40 + "@00000020"
MANIFEST = f"./{FOO} {FOO}{NEW} 0:3:{BAR}+A 0:3:{FOO}{OLD}\n./b {BAR} 0:3:x\n".encode()


def test_a_manifest_gives_the_locators_of_its_blocks_and_nothing_of_its_names() -> None:
    found = Signatures()
    found.take_manifest(MANIFEST)

    assert found.newer(KeepLocator(FOO + OLD)) == KeepLocator(FOO + NEW)
    assert found.newer(KeepLocator(BAR + OLD)) is None  # it has no signature there
    assert found.expiry() == 0x20


def test_rows_have_the_new_locators_and_nothing_else_changes() -> None:
    service = f"http://{FOO}{OLD}/"
    hole = Receipt(KeepLocator(FOO + OLD), 2, (service,))
    old = stored_as_text(
        StoredBytes.of_blocks([hole, hole, Receipt(KeepLocator(BAR + OLD), 1, ())])
    )
    found = Signatures()
    found.take(KeepLocator(FOO + NEW))

    new = stored_of(found.rewritten(old), size=9).ranges

    assert [str(each.locator) for each in new] == [FOO + NEW, FOO + NEW, BAR + OLD]
    assert new[0].receipt.services == (service,)
    assert new[0].receipt.copies == 2
    assert locators_of_row(old) == [(FOO + OLD).encode(), (BAR + OLD).encode()]
    assert first_expiry([old]) == 0x10
    assert first_expiry([b"[]"]) == float("inf")


def test_a_signature_has_ended_when_its_time_has_come() -> None:
    assert is_expired(KeepLocator(FOO + OLD), 0x10)
    assert not is_expired(KeepLocator(FOO + OLD), 0x10 - 1)
    assert not is_expired(KeepLocator(FOO), 2**40)
