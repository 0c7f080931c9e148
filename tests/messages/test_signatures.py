"""No message and no line of the log has the signature of a locator."""

from __future__ import annotations

import itertools
import logging
import re
from typing import TYPE_CHECKING

import pytest

from keepfs import renewing_store, stores
from keepfs.collections.builder import ManifestBuilder
from keepfs.collections.parsing import parse
from keepfs.config.options import StoreOptions
from keepfs.keep.errors import KeepRequestError
from keepfs.keep.locator import KeepLocator, without_signatures
from tests.keepstore import TEST_TOKEN, Fault, KeepstoreControls

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.cli.test_cli import Shell
    from tests.mounted.mounts import KeepfsMount

pytestmark = pytest.mark.slow

#: The beginning of a signature, whole or not.
SIGNATURE = re.compile(r"\+[AR][0-9A-Za-z-]*[0-9a-f]{8}")
OF_ANOTHER = "v2/zzzzz-gj3su-000000000000000/another"


def unreadable(keepstore: KeepstoreControls) -> list[str]:
    """Return signed locators whose reads fail: foreign, expired, missing."""
    foreign = keepstore.store_block(b"foo").partition("+A")[0]
    expired = f"{foreign}+A{'a' * 40}@5fffffff"
    return [
        keepstore.sign(foreign, OF_ANOTHER),
        expired,
        keepstore.sign(f"{'0' * 32}+3"),
        f"{'0' * 32}+3+Rzzzzz-{'b' * 40}@ffffffff",
    ]


@pytest.mark.parametrize("command", ["get", "stat"])
def test_a_command_prints_no_signature_to_standard_error(
    command: str, over: Shell, keepstore: KeepstoreControls
) -> None:
    for locator in unreadable(keepstore):
        error = over.error(command, locator)
        assert locator[:34] in error
        assert not SIGNATURE.search(error)
    hint = f"+A{'a' * 40}@ffffffff"
    for flawed in (f"{'0' * 32}+3{hint}{hint}", f"x{hint}"):
        assert not SIGNATURE.search(over.error(command, flawed, code=2))


def test_verify_reports_missing_copies_without_the_signature(
    over: Shell, keepstore: KeepstoreControls
) -> None:
    locator = keepstore.store_block(b"foo")

    error = over.error("verify", "--copies", "2", locator)

    assert locator[:34] in error
    assert not SIGNATURE.search(error)


@pytest.mark.parametrize("status", [None, 403, 404, 500, 503])
def test_a_failed_request_logs_no_signature(
    status: int | None,
    over: Shell,
    keepstore: KeepstoreControls,
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert over is not None
    locators = unreadable(keepstore)
    if status is not None:
        keepstore.always(Fault(status=status))
    options = StoreOptions(retries=0)
    said = []
    with stores.open_client(options) as client, caplog.at_level(logging.DEBUG):
        store = renewing_store.RenewingStore(client, options)

        def put(locator: KeepLocator) -> object:
            return store.put_block(b"foo", 9, locator=locator)

        asked: tuple[Callable[[KeepLocator], object], ...] = (
            store.get_block,
            store.head_block,
            lambda it: store.probe_block(it, 60),
            put,
        )
        for ask, text in itertools.product(asked, locators):
            locator = KeepLocator(text)
            if ask is put and locator.md5sum.startswith("000"):
                continue
            with pytest.raises(KeepRequestError) as caught:
                ask(locator)
            said.append(str(caught.value))

    assert said
    assert not SIGNATURE.search("\n".join(said))
    assert caplog.text
    assert not SIGNATURE.search(caplog.text)


@pytest.mark.fuse
def test_a_mount_logs_no_signature(unmounted: KeepfsMount, keepstore: KeepstoreControls) -> None:
    unmounted.is_local = False
    unmounted.env = {
        "ARVADOS_KEEP_SERVICES": keepstore.url,
        "ARVADOS_API_TOKEN": TEST_TOKEN,
        "KEEPFS_RETRIES": "0",
    }
    unmounted.mount()

    for locator in unreadable(keepstore):
        with pytest.raises(OSError, match="Errno"):
            (unmounted.by_id / locator).read_bytes()
    unmounted.unmount()

    log = unmounted.log_file.read_text()
    assert "failed to read" in log
    assert not SIGNATURE.search(log)


def test_a_flaw_of_a_manifest_has_no_signature() -> None:
    signed = f"{'0' * 32}+3+A{'a' * 40}@ffffffff"
    flawed = [
        f". {'0' * 32}+A{'a' * 40}@ffffffff 0:0:a\n",
        f". {signed}+A{'a' * 40}@ffffffff 0:0:a\n",
        f". {signed} 0:3:a {signed} 0:3:b\n",
    ]
    said = []
    for text in flawed:
        with pytest.raises(ValueError, match="0" * 32) as caught:
            parse(text)
        said.append(str(caught.value))
    for locator in (signed, f"{'0' * 32}+A{'a' * 40}@ffffffff"):
        with pytest.raises(ValueError, match="0" * 32) as caught:
            ManifestBuilder().add_file("a", [(locator, 0, 9)])
        said.append(str(caught.value))

    assert not SIGNATURE.search("\n".join(said))


def test_signatures_of_any_cluster_are_removed_from_a_text() -> None:
    text = f"GET /{'0' * 32}+3+A{'a' * 40}@ffffffff,1+Rzzzzz-{'b' * 40}@ffffffff+Kxyz"

    assert without_signatures(text) == f"GET /{'0' * 32}+3+A...,1+Rzzzzz-...+Kxyz"
