"""Requests about collections, over real sockets, to a server that fails in many ways."""

from __future__ import annotations

import datetime as dt
import functools
import hashlib
import re
import threading
import time
from typing import TYPE_CHECKING

import pytest

from keepfs.collections import portable
from keepfs.collections.remote_collections import CollectionAttributes, Expected, RemoteCollections
from keepfs.collections.remote_errors import (
    ApiUnreachableError,
    ChangedMeanwhileError,
    CollectionError,
    CollectionNotFoundError,
    ForbiddenError,
    InvalidRequestError,
    NameTakenError,
    TooLargeError,
    UnauthorizedError,
)
from keepfs.keep import Cause
from keepfs.keep.retry import Backoff
from keepfs.keep.services.api import LEAST_RATE, ApiClient
from tests.keepstore import (
    TEST_TOKEN,
    ApiControls,
    ApiSettings,
    Fault,
    KeepstoreControls,
    Project,
    Stage,
    portable_data_hash,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WRITABLE = "zzzzz-j7d0g-000000000000001"
READABLE = "zzzzz-j7d0g-000000000000002"
MISSING = "zzzzz-j7d0g-000000000000003"
USER = "zzzzz-tpzed-tpzedtpzedtpzed"
OTHER = "zzzzz-tpzed-000000000000005"
UUID = "zzzzz-4zz18-000000000000009"


@pytest.fixture
def server() -> Iterator[ApiControls]:
    settings = ApiSettings(
        projects={WRITABLE: Project(name="ours"), READABLE: Project(writable=False)},
        other_tokens={"other": OTHER},
        read_only_tokens=("reader",),
    )
    with ApiControls(settings) as running:
        yield running


@pytest.fixture
def api(server: ApiControls) -> Iterator[ApiClient]:
    client = ApiClient(server.url, TEST_TOKEN, timeout=5)
    yield client
    client.close()


@pytest.fixture
def remote(api: ApiClient) -> RemoteCollections:
    return RemoteCollections(api, retries=2, backoff=Backoff(0.0, 1.0, 0.0))


@pytest.fixture
def manifest() -> Iterator[str]:
    """Name a block with a valid signature."""
    with KeepstoreControls() as store:
        yield f"./a\\040b {store.store_block(b'block')} 0:5:\\303\\251 0:2:ü\n"


def names(server: ApiControls) -> list[str]:
    return [each["name"] for each in server.collections()]


def test_a_collection_is_created_found_and_read(
    remote: RemoteCollections, server: ApiControls, manifest: str
) -> None:
    at = dt.datetime(2040, 1, 1, tzinfo=dt.UTC)
    attributes = CollectionAttributes(
        name="n",
        owner_uuid=WRITABLE,
        properties={"manifest_text": "mine", "x": {"y": ['"manifest_text":"']}},
        replication_desired=3,
        storage_classes_desired=["hot", "cold"],
        trash_at=at,
    )

    made = remote.create(manifest, attributes, with_manifest=True)

    assert made.manifest is not None
    assert (
        made.portable_data_hash
        == portable_data_hash(manifest)
        == portable.portable_data_hash(manifest)
    )
    [kept] = server.collections()
    assert kept["trash_at"] == "2040-01-01T00:00:00.000000000Z" == made.trash_at
    assert kept["properties"]["x"] == {"y": ['"manifest_text":"']}
    assert (made.replication_desired, made.storage_classes_desired) == (3, ("hot", "cold"))
    for name in (made.uuid, f"{made.portable_data_hash}+Zhint"):
        record = remote.get(name)
        assert record.manifest is not None
        assert portable.portable_data_hash(record.manifest) == made.portable_data_hash
        assert b"+A" in record.manifest
    assert remote.get(made.uuid, with_manifest=False).manifest is None
    for found in (
        remote.find(name="n"),
        remote.find(owner_uuid=WRITABLE),
        remote.find(portable_data_hash=made.portable_data_hash),
    ):
        assert [each.uuid for each in found] == [made.uuid]
    assert remote.find(name="m") == remote.find(owner_uuid=USER) == []
    assert remote.trash(made.uuid).is_trashed
    with pytest.raises(CollectionNotFoundError, match="in the trash"):
        remote.get(made.uuid)


def test_user_project_and_limit_are_requested(remote: RemoteCollections) -> None:
    assert remote.current_user().uuid == USER
    assert (remote.project(WRITABLE).name, remote.project(WRITABLE).can_write) == ("ours", True)
    assert remote.project(READABLE).can_write is False
    with pytest.raises(CollectionNotFoundError, match=MISSING):
        remote.project(MISSING)
    assert remote.max_request_size() == 1 << 27


@pytest.mark.slow
def test_a_manifest_of_odd_names_arrives_as_it_was_sent(
    remote: RemoteCollections, server: ApiControls
) -> None:
    empty = "d41d8cd98f00b204e9800998ecf8427e+0"
    files = " ".join(f'0:0:f{n}\\134\\072"ü😀{"x" * (n % 300)}' for n in range(30_000))
    text = f". {empty} {files}\n" * 2
    assert len(text.encode()) > 3 << 20

    both: tuple[str | bytes, ...] = (text, text.encode())
    for number, given in enumerate(both):
        made = remote.create(given, CollectionAttributes(name=f"odd{number}"), with_manifest=True)
        assert made.manifest is not None
        assert re.sub(rb"\+A[0-9a-f@]*", b"", made.manifest) == text.encode()
        assert made.portable_data_hash == portable_data_hash(text)

    assert [each["manifest_text"] == text for each in server.collections()] == [True, True]


def test_hashes_of_texts_are_right_wherever_they_are_cut() -> None:
    block = f"{'a' * 32}+5"
    text = "".join(f"./{n} {block}+A{'b' * 40}@12345678+Zx 0:5:f\n" for n in range(40_000))
    plain = "".join(f"./{n} {block} 0:5:f\n" for n in range(40_000)).encode()

    digest = hashlib.md5(plain, usedforsecurity=False).hexdigest()

    assert (
        portable.portable_data_hash(text)
        == portable.portable_data_hash(text.encode())
        == f"{digest}+{len(plain)}"
    )
    assert portable.portable_data_hash("") == "d41d8cd98f00b204e9800998ecf8427e+0"


# --- creating is idempotent ---

AMBIGUOUS = {
    "lost": Fault(close=Stage.BEFORE_STATUS),
    "reset": Fault(close=Stage.BEFORE_STATUS, reset=True),
    "cut": Fault(close=Stage.MID_BODY),
    "500": Fault(status=500, carry_out=True, body=b'{"errors":["boom"]}'),
    "502": Fault(status=502, carry_out=True),
    "504": Fault(status=504, carry_out=True, body=b"<html>"),
    "not carried out": Fault(status=503),
}


@pytest.mark.parametrize("fault", AMBIGUOUS.values(), ids=AMBIGUOUS)
@pytest.mark.parametrize("times", [1, 3])
def test_an_unknown_outcome_makes_one_collection(
    remote: RemoteCollections, server: ApiControls, manifest: str, fault: Fault, times: int
) -> None:
    server.script(*[fault] * times, method="POST")
    if fault.replaces and times == 3:
        with pytest.raises(ApiUnreachableError, match="503"):
            remote.create(manifest, CollectionAttributes(name="once"))
        assert names(server) == []
        return

    made = remote.create(
        manifest, CollectionAttributes(name="once"), unique_name=True, with_manifest=True
    )

    assert names(server) == ["once"]
    assert made.uuid == server.collections()[0]["uuid"]
    assert made.manifest is not None


def test_a_request_that_is_still_under_way_makes_no_second_one(
    remote: RemoteCollections, api: ApiClient, server: ApiControls
) -> None:
    api.timeout = 0.3
    # It has waited before it was carried out; the next request overtakes it.
    server.script(Fault(hold=Stage.BEFORE_READ), method="POST")

    made = remote.create("", CollectionAttributes(name="late"))
    server.release()
    while any(each.ended is None for each in server.log("POST")):
        time.sleep(0.01)

    assert len(server.log("POST")) == 2
    assert [each["uuid"] for each in server.collections()] == [made.uuid]


def test_a_kept_connection_that_has_ended_makes_no_second_one(
    remote: RemoteCollections, server: ApiControls
) -> None:
    remote.current_user()
    server.script(Fault(close=Stage.BEFORE_STATUS), method="POST")

    remote.create("", CollectionAttributes(name="kept"))

    assert names(server) == ["kept"]
    assert server.counts()["POST"] == 1


def test_a_collection_of_another_client_is_not_taken_for_the_created_one(
    remote: RemoteCollections, server: ApiControls
) -> None:
    first = remote.create("", CollectionAttributes(name="same", properties={"host": "a"}))

    with pytest.raises(NameTakenError, match="give another") as caught:
        remote.create("", CollectionAttributes(name="same", properties={"host": "b"}))
    assert caught.value.uuid == first.uuid
    second = remote.create("", CollectionAttributes(name="same"), unique_name=True)

    assert second.uuid != first.uuid
    assert second.name.startswith("same (2")
    assert len(names(server)) == 2


def test_a_name_that_is_taken_meanwhile_is_refused_by_the_server(
    remote: RemoteCollections, server: ApiControls
) -> None:
    empty_list = Fault(body=b'{"items":[]}')
    remote.create("", CollectionAttributes(name="race", properties={"host": "a"}))
    server.script(empty_list, method="GET", target="filters")

    with pytest.raises(NameTakenError, match="race") as caught:
        remote.create("", CollectionAttributes(name="race", properties={"host": "b"}))

    assert "duplicate key" in caught.value.reason
    server.script(empty_list, method="GET", target="filters")
    other = remote.create("", CollectionAttributes(name="race"), unique_name=True)
    assert other.name != "race"


def test_many_threads_create_one_each(remote: RemoteCollections, server: ApiControls) -> None:
    made = []

    def create(number: int) -> None:
        made.append(remote.create("", CollectionAttributes(name=f"c{number}")).name)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()

    assert sorted(made) == sorted(names(server)) == [f"c{number}" for number in range(8)]


# --- updates ---


def test_an_update_changes_a_collection_that_is_as_expected(
    remote: RemoteCollections, server: ApiControls, manifest: str
) -> None:
    made = remote.create("", CollectionAttributes(name="a"))

    changed = remote.update(
        made.uuid, CollectionAttributes(name="b"), expected=Expected.of(made), manifest=manifest
    )

    assert names(server) == ["b"]
    assert changed.portable_data_hash == portable_data_hash(manifest)
    assert changed.modified_at > made.modified_at
    again = remote.update(
        made.uuid,
        CollectionAttributes(properties={"k": 1}),
        expected=Expected(),
        with_manifest=True,
    )
    assert again.manifest is not None


def test_an_update_of_a_changed_collection_names_the_change_and_its_user(
    remote: RemoteCollections, server: ApiControls, api: ApiClient, manifest: str
) -> None:
    made = remote.create("", CollectionAttributes(name="a", owner_uuid=WRITABLE))
    api.api_token = "other"  # noqa: S105 - none
    empty = ". d41d8cd98f00b204e9800998ecf8427e+0 0:0:e\n"
    theirs = remote.update(made.uuid, expected=Expected(), manifest=empty)
    api.api_token = TEST_TOKEN

    with pytest.raises(ChangedMeanwhileError, match="its files were changed") as caught:
        remote.update(made.uuid, expected=Expected.of(made), manifest=manifest)

    changes = caught.value.changed["portable_data_hash"]
    assert changes == (made.portable_data_hash, theirs.portable_data_hash)
    assert (caught.value.modified_by, caught.value.modified_at) == (OTHER, theirs.modified_at)
    assert OTHER in str(caught.value)
    assert server.collections()[0]["manifest_text"] == empty
    remote.create("", CollectionAttributes(name="b", owner_uuid=WRITABLE))
    with pytest.raises(NameTakenError):
        remote.update(made.uuid, CollectionAttributes(name="b"), expected=Expected())


@pytest.mark.parametrize("fault", AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_an_update_of_unknown_outcome_is_done_once(
    remote: RemoteCollections, server: ApiControls, manifest: str, fault: Fault
) -> None:
    made = remote.create("", CollectionAttributes(name="a"))
    server.script(fault, method="PATCH")

    changed = remote.update(made.uuid, expected=Expected.of(made), manifest=manifest)

    assert server.collections()[0]["version"] == 2
    assert changed.portable_data_hash == portable_data_hash(manifest)
    assert server.counts()["PATCH"] == (2 if fault.replaces else 1)


# --- what goes wrong ---


def test_refusals_have_a_class_a_cause_and_the_server_s_reason(
    remote: RemoteCollections, server: ApiControls, api: ApiClient, manifest: str
) -> None:
    with pytest.raises(CollectionNotFoundError, match="Path not found") as missing:
        remote.get(UUID)
    with pytest.raises(ForbiddenError, match="without write permission") as denied:
        remote.create("", CollectionAttributes(name="a", owner_uuid=READABLE))
    with pytest.raises(InvalidRequestError, match=f"{MISSING}' not found"):
        remote.create("", CollectionAttributes(name="a", owner_uuid=MISSING))
    with pytest.raises(InvalidRequestError, match="stream name"):
        remote.create("no manifest\n", CollectionAttributes(name="a"))
    with pytest.raises(ForbiddenError, match="signature"):
        remote.create(manifest.replace("+A", "+A0", 1), CollectionAttributes(name="a"))
    server.configure(max_request_size=1000)
    with pytest.raises(TooLargeError, match="MaxRequestSize") as large:
        remote.create("x" * 1001, CollectionAttributes(name="a"))
    api.api_token = "reader"  # noqa: S105 - none
    with pytest.raises(ForbiddenError):
        remote.create("", CollectionAttributes(name="a"))
    api.api_token = "unknown"  # noqa: S105 - none
    with pytest.raises(UnauthorizedError, match="new one") as unknown:
        remote.get(UUID)

    causes = [each.value.cause for each in (missing, denied, large, unknown)]
    assert causes == [Cause.NOT_FOUND, Cause.DENIED, Cause.OTHER, Cause.DENIED]
    assert [each.value.status for each in (missing, denied, large)] == [404, 403, 413]
    assert names(server) == []


def test_refusals_are_not_retried(remote: RemoteCollections, server: ApiControls) -> None:
    for status in (401, 403, 404, 422):
        server.script(Fault(status=status, body=b'{"errors":["no"]}'))
        with pytest.raises(CollectionError, match="no"):
            remote.get(UUID)

    assert len(server.log()) == 4


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        (Fault(status=500, body=b'{"errors":["boom"]}'), Cause.OTHER),
        (Fault(status=503), Cause.OTHER),
        (Fault(close=Stage.BEFORE_STATUS), Cause.UNREACHABLE),
        (Fault(hold=Stage.BEFORE_STATUS), Cause.TIMED_OUT),
    ],
    ids=["500", "503", "closed", "hangs"],
)
def test_failures_are_retried_and_then_reported(
    remote: RemoteCollections, server: ApiControls, api: ApiClient, fault: Fault, cause: Cause
) -> None:
    api.timeout = 0.3
    made = remote.create("", CollectionAttributes(name="a"))
    server.script(fault, fault)
    assert remote.get(made.uuid).name == "a"

    server.always(fault)
    with pytest.raises(ApiUnreachableError) as caught:
        remote.get(made.uuid)

    assert caught.value.cause is cause
    assert TEST_TOKEN not in str(caught.value)


def test_a_server_that_is_down_is_unreachable(
    remote: RemoteCollections, server: ApiControls
) -> None:
    server.go_down()

    calls: tuple[Callable[[], object], ...] = (
        lambda: remote.get(UUID),
        lambda: remote.create("", CollectionAttributes(name="a", owner_uuid=USER)),
        lambda: remote.update(UUID, CollectionAttributes(name="b"), expected=Expected()),
    )
    for call in calls:
        with pytest.raises(ApiUnreachableError) as caught:
            call()
        assert caught.value.cause is Cause.UNREACHABLE


def test_a_call_ends_at_its_time(server: ApiControls, api: ApiClient) -> None:
    api.timeout = 60
    remote = RemoteCollections(api, retries=100, backoff=Backoff(0.0, 1.0, 0.0), total=0.3)
    server.always(Fault(hold=Stage.BEFORE_STATUS))

    with pytest.raises(ApiUnreachableError) as caught:
        remote.get(UUID)

    assert caught.value.cause is Cause.TIMED_OUT


@pytest.mark.parametrize("body", [b"[]", b"no json", b'{"manifest_text":"x', b'{"items":[1]}'])
def test_answers_that_cannot_be_read_are_errors(
    remote: RemoteCollections, server: ApiControls, body: bytes
) -> None:
    server.always(Fault(body=body))

    call = remote.find if b"items" in body else functools.partial(remote.get, UUID)
    with pytest.raises(CollectionError):
        call()


def test_invalid_arguments_are_refused_without_a_request(
    remote: RemoteCollections, server: ApiControls
) -> None:
    for bad in (b". d41d8cd98f00b204e9800998ecf8427e+0 0:0:\xff\n", "./\udcff"):
        with pytest.raises(InvalidRequestError, match="not UTF-8"):
            remote.create(bad, CollectionAttributes(name="a"))
    with pytest.raises(InvalidRequestError, match="without a name"):
        remote.create("", CollectionAttributes())
    with pytest.raises(InvalidRequestError, match="neither"):
        remote.get("../../users/current")

    assert names(server) == []


@pytest.mark.slow
def test_a_long_answer_may_take_longer_than_the_time_limit(
    remote: RemoteCollections, server: ApiControls, api: ApiClient
) -> None:
    files = " ".join(f"0:0:file{number}" for number in range(20_000))
    manifest = f". d41d8cd98f00b204e9800998ecf8427e+0 {files}\n"
    made = remote.create(manifest, CollectionAttributes(name="long"))
    api.timeout = 0.5
    # The whole takes twice the limit; it moves faster than the least rate.
    server.always(Fault(send_rate=LEAST_RATE * 1.1))

    record = remote.get(made.uuid)

    assert record.manifest is not None
    assert len(record.manifest) > 240_000
    server.heal()
    server.always(Fault(send_rate=LEAST_RATE / 16))
    with pytest.raises(ApiUnreachableError) as caught:
        remote.get(made.uuid)
    assert caught.value.cause is Cause.TIMED_OUT
