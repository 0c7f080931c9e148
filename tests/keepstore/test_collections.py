"""The test API server's collections follow the real one's rules."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest

from tests.keepstore import (
    ROOT_TOKEN,
    TEST_TOKEN,
    ApiControls,
    ApiSettings,
    Collector,
    Fault,
    KeepstoreControls,
    Project,
    Settings,
    Stage,
    portable_data_hash,
    start_process,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    import requests

WRITABLE = "zzzzz-j7d0g-000000000000001"
READABLE = "zzzzz-j7d0g-000000000000002"
MISSING = "zzzzz-j7d0g-000000000000003"
OTHER = "zzzzz-tpzed-000000000000005"
DAY = 86_400_000_000_000


@pytest.fixture
def store() -> Iterator[KeepstoreControls]:
    with KeepstoreControls() as running:
        yield running


@pytest.fixture
def api() -> Iterator[ApiControls]:
    settings = ApiSettings(
        projects={WRITABLE: Project(), READABLE: Project(writable=False)},
        other_tokens={"other": OTHER},
        read_only_tokens=("reader",),
        scoped_tokens=("scoped",),
    )
    with ApiControls(settings) as running:
        yield running


class Asked:
    """Sends requests for collections."""

    def __init__(self, api: ApiControls, session: requests.Session) -> None:
        self._root = f"{api.url}/arvados/v1/collections"
        self._session = session

    def __call__(
        self,
        method: str,
        path: str = "",
        token: str = TEST_TOKEN,
        **arguments: Any,  # noqa: ANN401
    ) -> tuple[int, Any]:
        headers = {"Authorization": f"Bearer {token}"}
        answer = self._session.request(
            method, self._root + path, headers=headers, timeout=10, **arguments
        )
        return answer.status_code, answer.json()

    def create(
        self,
        manifest: str,
        token: str = TEST_TOKEN,
        **given: Any,  # noqa: ANN401
    ) -> tuple[int, Any]:
        unique = given.pop("ensure_unique_name", False)
        body = {
            "collection": {"manifest_text": manifest, **given},
            "ensure_unique_name": unique,
        }
        return self("POST", token=token, json=body)


@pytest.fixture
def asked(api: ApiControls, session: requests.Session) -> Asked:
    return Asked(api, session)


def manifest_of(store: KeepstoreControls, *blocks: bytes, token: str = TEST_TOKEN) -> str:
    """Store blocks and name them in a manifest, a file each."""
    names = [store.store_block(block, token=token) for block in blocks]
    start, files = 0, []
    for number, block in enumerate(blocks):
        files.append(f"{start}:{len(block)}:file{number}")
        start += len(block)
    return f". {' '.join(names)} {' '.join(files)}\n"


def unsigned(manifest: str) -> str:
    return re.sub(r"\+A[^ +]*", "", manifest)


def test_a_created_collection_is_shown_signed_by_both_names(
    asked: Asked, store: KeepstoreControls, session: requests.Session
) -> None:
    manifest = manifest_of(store, b"one", b"three")

    status, made = asked.create(
        manifest,
        name="n",
        properties={"a": "b"},
        replication_desired=3,
        storage_classes_desired=["hot"],
    )

    assert status == 200
    assert made["portable_data_hash"] == portable_data_hash(manifest)
    assert (made["file_count"], made["file_size_total"]) == (2, 8)
    assert made["unsigned_manifest_text"] == unsigned(manifest)
    assert (made["replication_desired"], made["storage_classes_desired"]) == (3, ["hot"])
    for name in (made["uuid"], made["portable_data_hash"]):
        status, shown = asked("GET", f"/{name}")
        assert status == 200
        signed = shown["manifest_text"].split(" ")[1]
        assert session.get(f"{store.url}/{signed}", timeout=10).content == b"one"
    status, shown = asked("GET", f"/{made['uuid']}", params={"select": '["name","version"]'})
    assert shown == {"kind": "arvados#collection", "name": "n", "version": 1}


@pytest.mark.parametrize("wrapped", [True, False])
def test_parameters_come_as_a_form_as_well(
    asked: Asked, store: KeepstoreControls, *, wrapped: bool
) -> None:
    attributes = {"manifest_text": manifest_of(store, b"x"), "name": "form"}
    if wrapped:
        status, made = asked("POST", data={"collection": json.dumps(attributes)})
    else:
        status, made = asked("POST", "?ensure_unique_name=true", json=attributes)

    assert (status, made["name"]) == (200, "form")


def test_a_name_is_unique_in_its_project(asked: Asked) -> None:
    assert asked.create("", name="same")[0] == 200
    status, refused = asked.create("", name="same")
    assert status == 422
    assert "duplicate key value violates unique constraint" in refused["errors"][0]
    assert "index_collections_on_owner_uuid_and_name" in refused["errors"][0]

    status, other = asked.create("", name="same", ensure_unique_name=True)
    assert status == 200
    assert re.fullmatch(r"same \(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z\)", other["name"])
    assert asked.create("", name="same", owner_uuid=WRITABLE)[0] == 200
    assert asked("PUT", f"/{other['uuid']}", json={"collection": {"name": "same"}})[0] == 422


@pytest.mark.parametrize(
    ("manifest", "text"),
    [
        (". d41d8cd98f00b204e9800998ecf8427e+0 0:0:a", "does not end with newline"),
        ("x d41d8cd98f00b204e9800998ecf8427e+0 0:0:a\n", 'stream name "x"'),
        (". 0:0:a\n", 'locator "0:0:a"'),
        (". d41d8cd98f00b204e9800998ecf8427e+0\n", "no file tokens"),
        (". d41d8cd98f00b204e9800998ecf8427e+0 0:0:a/../b\n", "invalid file token"),
        (". d41d8cd98f00b204e9800998ecf8427e+0 0:1:a\n", "beyond the end"),
        ("./a//b d41d8cd98f00b204e9800998ecf8427e+0 0:0:a\n", "stream name"),
    ],
)
def test_a_malformed_manifest_is_refused(asked: Asked, manifest: str, text: str) -> None:
    status, refused = asked.create(manifest)

    assert status == 422
    assert text in refused["errors"][0]


def test_locators_must_be_signed_for_the_token(asked: Asked, store: KeepstoreControls) -> None:
    manifest = manifest_of(store, b"secret")

    for bad in (
        unsigned(manifest),
        manifest_of(store, b"secret", token="other"),  # noqa: S106 - none
        re.sub(r"@[0-9a-f]{8}", "@00000001", manifest),
    ):
        status, refused = asked.create(bad)
        assert status == 403
        assert "PermissionDeniedError" in refused["errors"][0]
    assert asked.create(". d41d8cd98f00b204e9800998ecf8427e+0 0:0:empty\n")[0] == 200
    _, made = asked.create(manifest)
    same = {"collection": {"manifest_text": unsigned(manifest)}}
    assert asked("PATCH", f"/{made['uuid']}", json=same)[0] == 200
    more = {"collection": {"manifest_text": unsigned(manifest_of(store, b"secret", b"s"))}}
    assert asked("PATCH", f"/{made['uuid']}", json=more)[0] == 403


def test_signatures_end_with_the_ttl_or_when_the_collection_is_trashed(
    asked: Asked, api: ApiControls, session: requests.Session
) -> None:
    with KeepstoreControls(Settings(ttl=10), time_ns=DAY) as store:
        api.set_clock(DAY)
        api.configure(signature_ttl=10)
        _, made = asked.create(manifest_of(store, b"x"))
        signed = made["manifest_text"].split(" ")[1]
        assert session.get(f"{store.url}/{signed}", timeout=10).status_code == 200
        assert signed.endswith(f"@{86400 + 10:08x}")
        store.set_clock(DAY + 11 * 1_000_000_000)
        assert session.get(f"{store.url}/{signed}", timeout=10).status_code == 401

        at = {"collection": {"trash_at": "1970-01-02T00:00:03Z"}}
        _, soon = asked("PATCH", f"/{made['uuid']}", json=at)
        assert soon["manifest_text"].split(" ")[1].endswith(f"@{86400 + 3:08x}")
        api.set_clock(DAY + 4 * 1_000_000_000)
        assert asked("GET", f"/{made['uuid']}")[0] == 404


def test_an_update_changes_etag_version_and_time(asked: Asked, api: ApiControls) -> None:
    api.set_clock(10 * DAY)
    _, made = asked.create("", name="a")
    api.set_clock(11 * DAY)

    status, changed = asked("PUT", f"/{made['uuid']}", json={"collection": {"name": "b"}})

    assert (status, changed["name"], changed["version"]) == (200, "b", 2)
    assert changed["etag"] != made["etag"]
    assert (made["modified_at"][:10], changed["modified_at"][:10]) == ("1970-01-11", "1970-01-12")


def test_tokens_and_projects_decide(asked: Asked, api: ApiControls) -> None:
    _, mine = asked.create("")
    assert asked.create("", "unknown")[0] == 401
    assert asked.create("", "scoped")[0] == 403
    assert asked.create("", "reader")[0] == 403
    assert asked("GET", f"/{mine['uuid']}", "reader")[0] == 200
    assert asked("GET", f"/{mine['uuid']}", "other")[0] == 404
    assert asked("GET", f"/{mine['uuid']}", ROOT_TOKEN)[0] == 200
    assert asked.create("", owner_uuid=READABLE)[0] == 403
    status, refused = asked.create("", owner_uuid=MISSING)
    assert (status, f"'{MISSING}' not found" in refused["errors"][0]) == (422, True)
    _, shared = asked.create("", ROOT_TOKEN, owner_uuid=READABLE)
    assert asked("DELETE", f"/{shared['uuid']}")[0] == 403
    api.configure(most_collections=2)
    assert asked.create("")[0] == 403


def test_a_list_is_filtered_ordered_and_paged(asked: Asked) -> None:
    for number in range(5):
        owner = WRITABLE if number % 2 else None
        asked.create("", name=f"c{number}", properties={"n": number}, owner_uuid=owner)

    def listed(*filters: list[Any], **given: Any) -> list[str]:  # noqa: ANN401
        given["filters"] = json.dumps(filters)
        return [each["name"] for each in asked("GET", params=given)[1]["items"]]

    assert listed(["name", "=", "c3"]) == ["c3"]
    assert listed(["owner_uuid", "=", WRITABLE], order="name desc") == ["c3", "c1"]
    assert listed(["properties.n", "=", 2]) == ["c2"]
    assert listed(["name", "like", "c%"], order="name", limit=2, offset=1) == ["c1", "c2"]
    assert listed(["name", "in", ["c4", "c9"]]) == ["c4"]
    _, found = asked("GET", params={"limit": 1})
    assert found["items_available"] == 5
    assert "manifest_text" not in found["items"][0]
    _, found = asked("GET", params={"count": "none", "select": '["manifest_text"]'})
    assert "items_available" not in found
    assert found["items"][0]["manifest_text"] == ""
    assert asked("GET", params={"filters": '[["name"]]'})[0] == 422


def test_trashed_collections_come_back(asked: Asked, api: ApiControls) -> None:
    _, made = asked.create("", name="t")
    name = f"/{made['uuid']}"
    assert asked("POST", f"{name}/untrash")[0] == 422

    status, trashed = asked("DELETE", name)

    assert (status, trashed["is_trashed"]) == (200, True)
    assert trashed["delete_at"] > trashed["trash_at"]
    assert asked("GET", name)[0] == 404
    assert asked("GET", f"{name}?include_trash=true")[0] == 200
    assert asked.create("", name="t")[0] == 200  # the name is free
    assert asked("POST", f"{name}/untrash")[0] == 422
    assert asked("POST", f"{name}/untrash?ensure_unique_name=true")[0] == 200
    later = {"collection": {"trash_at": "2000-01-01T00:00:00Z"}}
    assert asked("PATCH", name, json=later)[1]["is_trashed"] is True
    assert {each["is_trashed"] for each in api.collections()} == {True, False}


def test_a_request_may_be_too_large_or_not_readable(asked: Asked, api: ApiControls) -> None:
    api.configure(max_request_size=100)

    assert asked.create(" " * 101)[0] == 413
    assert asked("POST", json=[])[0] == 400
    assert asked("POST", data={"collection": "{"})[0] == 400


def test_an_answer_is_lost_after_the_work_is_done(asked: Asked, api: ApiControls) -> None:
    api.script(Fault(close=Stage.BEFORE_STATUS), method="POST")

    with pytest.raises(OSError, match="aborted"):
        asked.create("", name="done")

    assert [each["name"] for each in api.collections()] == ["done"]


def test_it_keeps_collections_in_a_process_too(session: requests.Session) -> None:
    with start_process(ApiControls) as api:
        assert Asked(api, session).create("", name="p")[0] == 200
        assert [each["name"] for each in api.collections()] == ["p"]


# --- the collector ---


def test_the_collector_trashes_what_is_old_and_unnamed(asked: Asked, api: ApiControls) -> None:
    ttl = 100.0
    with KeepstoreControls(Settings(ttl=ttl)) as one, KeepstoreControls(Settings(ttl=ttl)) as two:
        api.configure(signature_ttl=ttl)
        manifest = manifest_of(one, b"named", b"twice")
        two.store_block(b"twice")
        _, made = asked.create(manifest, replication_desired=2)
        for block in (b"bare", b"touched"):
            one.store_block(block)
        collector = Collector(api, [one, two], ttl)
        assert collector.collect() == []
        assert len(one.blocks()) == 4
        assert len(two.blocks()) == 2  # the second copy was made

        old = 1_000_000_000
        for store in (one, two):
            for block in (b"named", b"twice", b"bare"):
                if store is one or block != b"bare":
                    store.store_block(block, mtime=old)
        collected = collector.collect()

        assert collected == [one.store_block(b"bare")[:32]]
        asked("DELETE", f"/{made['uuid']}")
        assert len(collector.collect()) == 2
        assert two.blocks() == []


def test_the_collector_keeps_as_many_copies_as_are_wanted(asked: Asked, api: ApiControls) -> None:
    with KeepstoreControls() as one, KeepstoreControls() as two:
        manifest = manifest_of(one, b"block")
        asked.create(manifest, replication_desired=1)
        for store in (one, two):
            store.store_block(b"block", mtime=DAY if store is one else 2 * DAY)

        assert Collector(api, [one, two], 1209600).collect() == []

        assert (len(one.blocks()), len(two.blocks())) == (0, 1)  # the newest stays


def test_the_collector_runs_by_itself(api: ApiControls) -> None:
    with KeepstoreControls() as store:
        store.store_block(b"old", mtime=DAY)
        with Collector(api, [store], 1209600).running(0.01):
            while store.blocks():
                pass
