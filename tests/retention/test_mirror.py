"""The collections of a mount, over real sockets, at a server with faults."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import re
import sqlite3
import time
from typing import TYPE_CHECKING

import pytest

from keepfs.collections.remote_collections import CollectionAttributes, Expected, RemoteCollections
from keepfs.collections.remote_errors import (
    ApiUnreachableError,
    ForbiddenError,
    InvalidRequestError,
    TooLargeError,
    UnauthorizedError,
)
from keepfs.fs.nodes import Metadata, directory_mode, file_mode
from keepfs.fs.upload.catalog import ROOT, Catalog
from keepfs.fs.upload.stored import StoredBytes, StoredRange
from keepfs.keep.locator import KeepLocator
from keepfs.keep.retry import Backoff
from keepfs.keep.services.api import ApiClient
from keepfs.keep.store import Receipt
from keepfs.retention.ledger import KEY, Ledger
from keepfs.retention.mirror import PROPERTY, CreationRefusedError, Mirror, Wishes
from tests.keepstore import (
    TEST_TOKEN,
    ApiControls,
    ApiSettings,
    Fault,
    KeepstoreControls,
    Stage,
)
from tests.messages.provoking import assert_shows

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Mounted:
    """A catalog, and what its mount does to it."""

    def __init__(self, directory: Path, store: KeepstoreControls, api: ApiControls) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.path = directory / "catalog.sqlite"
        self.catalog = Catalog(self.path)
        self.catalog.add_root(Metadata(directory_mode(0o755), 0, 0, 0))
        self._store = store
        self.client = ApiClient(api.url, TEST_TOKEN, timeout=5)

    def add(self, name: str, content: bytes = b"foo", token: str = TEST_TOKEN) -> None:
        locator = self._store.store_block(content, token=token)
        receipt = Receipt(KeepLocator(locator), 2, ())
        with self.catalog.change():
            stored = StoredBytes.of_blocks([receipt])
            self.catalog.add_file(ROOT, name, Metadata(file_mode(0o644), 0, 0, 0), stored)

    def add_ranges(self, name: str, ranges: list[tuple[KeepLocator, int, int]]) -> None:
        """Add a file of parts of blocks."""
        stored = StoredBytes(
            StoredRange(Receipt(locator, 0, ()), begin, length)
            for locator, begin, length in ranges
        )
        with self.catalog.change():
            self.catalog.add_file(ROOT, name, Metadata(file_mode(0o644), 0, 0, 0), stored)

    def mirror(self, name: str = "kept", retries: int = 0) -> Mirror:
        """Make one as a mount does at its start."""
        remote = RemoteCollections(self.client, retries=retries, backoff=Backoff(0.0, 1.0, 0.0))
        ledger = Ledger.of(self.catalog.about(KEY))
        self.save(ledger)
        return Mirror(remote, self.path, ledger, self.save, Wishes(name, 3, ("default",)))

    def save(self, ledger: Ledger) -> None:
        self.catalog.set_about(KEY, ledger.as_text())


@pytest.fixture
def store() -> Iterator[KeepstoreControls]:
    with KeepstoreControls() as running:
        yield running


@pytest.fixture
def api() -> Iterator[ApiControls]:
    with ApiControls(
        ApiSettings(other_tokens={"other": "zzzzz-tpzed-000000000000005"})
    ) as running:
        yield running


@pytest.fixture
def mounted(tmp_path: Path, store: KeepstoreControls, api: ApiControls) -> Iterator[Mounted]:
    it = Mounted(tmp_path / "a", store, api)
    yield it
    it.client.close()
    it.catalog.close()


def test_the_first_file_makes_a_collection_and_further_ones_change_it(
    mounted: Mounted, api: ApiControls
) -> None:
    mirror = mounted.mirror()
    assert not mirror.update()
    assert api.collections() == []

    mounted.add("a b")
    assert mirror.update()
    mounted.add("c", b"bar")
    assert mirror.update()
    assert not mirror.update()

    [kept] = api.collections()
    assert kept["name"] == "kept"
    assert kept["properties"] == {PROPERTY: mirror.ledger.mount}
    assert (kept["replication_desired"], kept["storage_classes_desired"]) == (3, ["default"])
    assert kept["file_count"] == 2
    assert "0:3:a\\040b" in kept["manifest_text"]
    assert mirror.uuid_of(2) == kept["uuid"]
    assert Ledger.of(mounted.catalog.about(KEY)) == mirror.ledger


def test_the_next_mount_uses_the_same_collection(mounted: Mounted, api: ApiControls) -> None:
    mounted.add("a")
    mounted.mirror().update()
    mounted.add("b")

    assert mounted.mirror().update()

    [kept] = api.collections()
    assert kept["file_count"] == 2


def test_two_mounts_of_one_name_have_two_collections(
    mounted: Mounted, api: ApiControls, store: KeepstoreControls, tmp_path: Path
) -> None:
    other = Mounted(tmp_path / "b", store, api)
    mounted.add("a")
    other.add("b")

    mounted.mirror().update()
    other.mirror().update()

    assert {each["name"]: each["manifest_text"][-2:] for each in api.collections()} == {
        "kept": "a\n",
        "kept (2)": "b\n",
    }
    other.catalog.close()


@pytest.mark.parametrize("stage", [Stage.BEFORE_READ, Stage.BEFORE_STATUS, Stage.MID_BODY])
@pytest.mark.parametrize("method", ["POST", "PATCH"])
def test_a_request_without_an_answer_makes_no_second_collection(
    mounted: Mounted, api: ApiControls, method: str, stage: Stage
) -> None:
    mirror = mounted.mirror()
    mounted.add("a")
    api.script(Fault(close=stage), method=method)

    with contextlib.suppress(ApiUnreachableError):  # or the collection is found by its name
        mirror.update()
    mounted.add("b", b"bar")
    mounted.mirror().update()  # after a crash, too

    [kept] = api.collections()
    assert kept["file_count"] == 2


def test_a_collection_changed_by_another_client_stays_and_another_is_made(
    mounted: Mounted, api: ApiControls, caplog: pytest.LogCaptureFixture
) -> None:
    mirror = mounted.mirror()
    mounted.add("a")
    mirror.update()
    remote = RemoteCollections(mounted.client)
    remote.update(mirror.uuid_of(2), expected=Expected(), manifest="")
    first = mirror.uuid_of(2)

    mounted.add("b")
    mirror.update()
    mirror.update()

    theirs, ours = api.collections()
    assert (theirs["uuid"], theirs["file_count"], theirs["name"]) == (first, 0, "kept")
    assert (ours["uuid"], ours["file_count"], ours["name"]) == (mirror.uuid_of(2), 2, "kept (2)")
    assert f"{first}, which keeps upload/, was changed at" in caplog.text
    assert_shows(caplog.text, "collection-changed")


def test_a_damaged_entry_is_left_out_and_told(
    mounted: Mounted, api: ApiControls, caplog: pytest.LogCaptureFixture
) -> None:
    mounted.add("a")
    mounted.add("damaged")
    with contextlib.closing(sqlite3.connect(mounted.path)) as database, database:
        name = "CAST('damaged' AS BLOB)"
        database.execute(f"UPDATE entries SET content = x'7b' WHERE name = {name}")  # noqa: S608

    mirror = mounted.mirror()
    mirror.update()
    mounted.add("b")
    mirror.update()

    [kept] = api.collections()
    assert kept["file_count"] == 2
    assert caplog.text.count("not retained: upload/damaged: ") == 1
    assert_shows(caplog.text, "not-retained")


def test_a_collection_that_was_renamed_is_used_on(mounted: Mounted, api: ApiControls) -> None:
    mirror = mounted.mirror()
    mounted.add("a")
    mirror.update()
    RemoteCollections(mounted.client).update(
        mirror.uuid_of(2), CollectionAttributes(name="mine"), expected=Expected()
    )

    mounted.add("b")
    mirror.update()

    [kept] = api.collections()
    assert (kept["name"], kept["file_count"]) == ("mine", 2)


@pytest.mark.parametrize("is_planned", [True, False])
def test_a_trashed_collection_is_replaced(
    mounted: Mounted, api: ApiControls, caplog: pytest.LogCaptureFixture, *, is_planned: bool
) -> None:
    mirror = mounted.mirror()
    mounted.add("a")
    mirror.update()
    first = mirror.uuid_of(2)
    remote = RemoteCollections(mounted.client)
    if is_planned:
        at = dt.datetime(2040, 1, 1, tzinfo=dt.UTC)
        remote.update(first, CollectionAttributes(trash_at=at), expected=Expected())
    else:
        remote.trash(first)

    assert mirror.update()

    assert mirror.uuid_of(2) != first
    assert [each["file_count"] for each in api.collections()] == [1, 1]
    if is_planned:
        assert_shows(caplog.text, "collection-in-trash-soon")
    else:
        assert_shows(caplog.text, "collection-gone")


def test_fresh_signatures_come_in_one_request(
    mounted: Mounted, api: ApiControls, store: KeepstoreControls
) -> None:
    mirror = mounted.mirror()
    for number in range(20):
        mounted.add(str(number), str(number).encode())
    mirror.update()
    api.configure(signature_ttl=77.0)
    api.clear_log()

    found = mirror.fetch()

    assert len(api.log()) == 1
    assert len(found) == 20
    assert mirror.ledger.ttl == pytest.approx(77, abs=1)
    locator = KeepLocator(store.store_block(b"7"))
    newer = found.newer(locator)
    assert newer is not None
    assert newer.perm_sig != locator.perm_sig


def test_a_token_that_may_not_create_raises_a_separate_error(
    mounted: Mounted, api: ApiControls
) -> None:
    api.configure(tokens=(), read_only_tokens=(TEST_TOKEN,))
    mounted.add("a")

    with pytest.raises(CreationRefusedError):
        mounted.mirror().update()


def test_a_signature_of_another_token_is_refused_and_nothing_is_changed(
    mounted: Mounted, api: ApiControls
) -> None:
    mirror = mounted.mirror()
    mounted.add("a")
    mirror.update()
    mounted.add("b", b"bar", token="another")  # noqa: S106

    with pytest.raises(ForbiddenError):
        mirror.update()

    [kept] = api.collections()
    assert kept["file_count"] == 1


def test_files_with_expired_signatures_do_not_exclude_others(
    mounted: Mounted, api: ApiControls, store: KeepstoreControls
) -> None:
    store.set_clock(10**18)  # 2001: what it signs has ended long ago
    mounted.add("old", b"bar")
    store.set_clock(None)
    mounted.add("a")

    mounted.mirror().update()

    [kept] = api.collections()
    assert kept["manifest_text"].endswith(" 0:3:a\n")


@pytest.mark.parametrize(
    ("status", "error"),
    [(401, UnauthorizedError), (422, InvalidRequestError), (503, ApiUnreachableError)],
)
def test_a_refused_update_raises_and_is_made_later(
    mounted: Mounted, api: ApiControls, status: int, error: type[Exception]
) -> None:
    mirror = mounted.mirror()
    mounted.add("a")
    api.always(Fault(status=status), target="collections")
    with pytest.raises(error):
        mirror.update()
    api.clear_faults()

    assert mirror.update()

    [kept] = api.collections()
    assert kept["file_count"] == 1


def test_a_tree_over_the_limit_of_a_request_has_several_collections(
    mounted: Mounted, api: ApiControls
) -> None:
    api.configure(max_request_size=6000)
    mirror = mounted.mirror()
    for number in range(60):
        mounted.add(f"a file {number}", str(number).encode())

    mirror.update()
    before = {each["uuid"]: each["portable_data_hash"] for each in api.collections()}
    mounted.add("one more", b"more")
    mirror.update()

    kept = api.collections()
    assert len(before) > 2
    assert sum(each["file_count"] for each in kept) == 61
    assert sorted(each["name"] for each in kept) == sorted(
        ["kept", *(f"kept ({number})" for number in range(2, len(kept) + 1))]
    )
    changed = [each for each in kept if before.get(each["uuid"]) != each["portable_data_hash"]]
    assert len(changed) == 1  # a new file changes the last one only
    assert len(mirror.fetch()) == 61
    for each in kept:
        assert len(each["manifest_text"]) < 6000


def test_a_tree_over_the_limit_of_a_proxy_has_several_collections(
    mounted: Mounted, api: ApiControls
) -> None:
    mirror = mounted.mirror()
    for number in range(60):
        mounted.add(f"a file {number}", str(number).encode())
    mirror.update()
    api.configure(proxy_request_size=3000)
    mounted.add("one more", b"more")

    assert mirror.update()
    assert not mirror.update()

    kept = api.collections()
    assert len(kept) > 2
    assert sum(each["file_count"] for each in kept) == 61
    assert len(mirror.fetch()) == 61


def test_a_server_that_takes_no_request_is_not_asked_for_ever(
    mounted: Mounted, api: ApiControls
) -> None:
    mirror = mounted.mirror()
    for number in range(60):
        mounted.add(f"a file {number}", str(number).encode())
    api.configure(proxy_request_size=10)

    with pytest.raises(TooLargeError):
        mirror.update()

    api.configure(proxy_request_size=128 * 1024 * 1024)
    assert mirror.update()
    [kept] = api.collections()  # the limit is the server's again
    assert kept["file_count"] == 60


def test_an_empty_collection_can_be_given_and_one_with_files_is_not_overwritten(
    mounted: Mounted, api: ApiControls, store: KeepstoreControls, tmp_path: Path
) -> None:
    remote = RemoteCollections(mounted.client)
    given = remote.create("", CollectionAttributes(name="given", properties={"k": "v"}))
    mounted.add("a")

    mirror = mounted.mirror(given.uuid)
    mirror.update()
    [kept] = api.collections()
    assert (kept["uuid"], kept["name"], kept["file_count"]) == (given.uuid, "given", 1)
    assert kept["properties"] == {"k": "v", PROPERTY: mirror.ledger.mount}

    other = Mounted(tmp_path / "b", store, api)
    other.add("b")
    with pytest.raises(InvalidRequestError, match="not overwritten"):
        other.mirror(given.uuid).update()
    assert api.collections() == [kept]
    other.catalog.close()


def test_a_lost_record_of_a_collection_is_found_by_its_property(
    mounted: Mounted, api: ApiControls
) -> None:
    mirror = mounted.mirror()
    remote = RemoteCollections(mounted.client)
    made = remote.create(
        "", CollectionAttributes(name="kept", properties={PROPERTY: mirror.ledger.mount})
    )
    mounted.add("a")

    mirror.update()

    assert [each["uuid"] for each in api.collections()] == [made.uuid]
    assert dataclasses.replace(mirror.ledger.parts[0], hash="").uuid == made.uuid


def test_files_in_one_block_and_a_block_with_two_signatures_are_kept_as_they_are(
    mounted: Mounted, api: ApiControls, store: KeepstoreControls
) -> None:
    mirror = mounted.mirror()
    locator = KeepLocator(store.store_block(b"one-two"))
    mounted.add_ranges("one", [(locator, 0, 3)])
    mounted.add_ranges("two", [(locator, 4, 3), (locator, 0, 1)])
    mirror.update()
    time.sleep(1.1)  # signatures count seconds
    mounted.add_ranges("all", [(KeepLocator(store.store_block(b"one-two")), 0, 7)])

    assert mirror.update()
    assert not mirror.update()

    [kept] = api.collections()  # it is recognized: its hash is as was expected
    assert re.sub(r"\+A[0-9a-f@]+", "", kept["manifest_text"]) == (
        f". {locator.stripped()} 0:7:all 0:3:one 4:3:two 0:1:two\n"
    )
