"""Whether a token counts as refused: by what services and API server say of it."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING

import pytest

from keepfs import stores
from keepfs.collection_sources import collections_of
from keepfs.collections.remote_errors import CollectionError, CollectionNotFoundError
from keepfs.config.options import StoreOptions
from keepfs.keep.errors import KeepRequestError
from keepfs.keep.locator import KeepLocator
from keepfs.renewing_store import RenewingStore
from tests.keepstore import (
    TEST_TOKEN,
    ApiControls,
    Authority,
    Fault,
    KeepstoreControls,
    Listening,
    ServiceEntry,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

OF_ANOTHER = "v2/zzzzz-gj3su-000000000000000/another"
UUID = "zzzzz-4zz18-000000000000000"


@pytest.fixture
def keepstore() -> Iterator[KeepstoreControls]:
    """A Keep service."""
    with KeepstoreControls() as it:
        yield it


@pytest.fixture
def token_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of the token; no settings but those of the test."""
    for name in ("ARVADOS_API_HOST", "ARVADOS_KEEP_SERVICES", "ARVADOS_KEEP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / "token"
    path.write_text(TEST_TOKEN)
    return path


@pytest.fixture
def api(
    keepstore: KeepstoreControls, token_file: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ApiControls]:
    """An API server, which the settings name."""
    authority = Authority(token_file.parent)
    with ApiControls(listening=Listening(tls=authority.certify())) as running:
        running.list_services([ServiceEntry.of(keepstore.url, 0)])
        monkeypatch.setenv("ARVADOS_API_HOST", running.host)
        monkeypatch.setenv("SSL_CERT_FILE", str(authority.bundle))
        yield running


@contextlib.contextmanager
def opened(options: StoreOptions) -> Iterator[RenewingStore]:
    """Open a store as a mount does."""
    with stores.open_client(options) as client:
        yield RenewingStore(client, options)


@pytest.fixture
def on_cluster(api: ApiControls, token_file: Path) -> Iterator[RenewingStore]:
    """A store of a cluster with an API server."""
    assert api.host
    with opened(StoreOptions(token_file=token_file, retries=0)) as it:
        yield it


@pytest.fixture
def alone(keepstore: KeepstoreControls, token_file: Path) -> Iterator[RenewingStore]:
    """A store of a service, without an API server."""
    options = StoreOptions(token_file=token_file, retries=0, keep_services=keepstore.url)
    with opened(options) as it:
        yield it


def is_refused(store: RenewingStore) -> bool:
    state = store.statistics()
    assert state is not None
    return state.refused_at is not None


def fail_to_read(store: RenewingStore, locator: str) -> None:
    for ask in (store.get_block, store.head_block, lambda it: store.probe_block(it, 60)):
        with pytest.raises(KeepRequestError):
            ask(KeepLocator(locator))


def foreign(keepstore: KeepstoreControls) -> str:
    """Store a block; return its locator, signed for another token."""
    return keepstore.store_block(b"foreign", token=OF_ANOTHER)


def test_a_missing_or_expired_signature_is_no_refused_token(
    alone: RenewingStore, keepstore: KeepstoreControls, caplog: pytest.LogCaptureFixture
) -> None:
    plain = keepstore.store_block(b"foo").partition("+A")[0]
    with caplog.at_level(logging.WARNING):
        fail_to_read(alone, plain)
        fail_to_read(alone, f"{plain}+A{'a' * 40}@5fffffff")
        fail_to_read(alone, f"{plain}+Rzzzzz-{'a' * 40}@ffffffff")

    assert not is_refused(alone)
    assert caplog.text == ""


def test_a_signature_of_another_token_is_no_refused_token_on_a_cluster(
    on_cluster: RenewingStore,
    keepstore: KeepstoreControls,
    api: ApiControls,
    caplog: pytest.LogCaptureFixture,
) -> None:
    locator = foreign(keepstore)
    api.clear_log()
    with caplog.at_level(logging.WARNING):
        fail_to_read(on_cluster, locator)

    assert not is_refused(on_cluster)
    assert caplog.text == ""
    asked = [entry for entry in api.log() if "users/current" in entry.target]
    assert len(asked) == 1  # however many reads are refused


@pytest.mark.parametrize(("status", "expected"), [(401, True), (403, False), (500, False)])
def test_the_api_server_judges_the_token_of_a_refused_read(
    status: int,
    expected: bool,  # noqa: FBT001 - a parameter
    on_cluster: RenewingStore,
    keepstore: KeepstoreControls,
    api: ApiControls,
) -> None:
    api.always(Fault(status=status), target="users/current")

    fail_to_read(on_cluster, foreign(keepstore))

    assert is_refused(on_cluster) == expected


@pytest.mark.parametrize("proof", ["read", "store"])
def test_a_request_that_a_service_accepts_ends_the_refusal(
    proof: str, alone: RenewingStore, keepstore: KeepstoreControls
) -> None:
    fail_to_read(alone, foreign(keepstore))
    assert is_refused(alone)

    if proof == "read":
        alone.get_block(KeepLocator(keepstore.store_block(b"ours")))
    else:
        alone.put_block(b"ours", 1)

    assert not is_refused(alone)


def test_a_block_from_the_cache_does_not_end_the_refusal(
    alone: RenewingStore, keepstore: KeepstoreControls
) -> None:
    ours = KeepLocator(keepstore.store_block(b"ours"))
    alone.get_block(ours)
    fail_to_read(alone, foreign(keepstore))

    alone.get_block(ours)

    assert is_refused(alone)


def test_a_refused_store_is_a_refused_token(
    on_cluster: RenewingStore, keepstore: KeepstoreControls
) -> None:
    keepstore.always(Fault(status=403), method="PUT")

    with pytest.raises(KeepRequestError):
        on_cluster.put_block(b"foo", 1)

    assert is_refused(on_cluster)


def test_a_request_that_the_api_server_accepts_ends_the_refusal(
    api: ApiControls, keepstore: KeepstoreControls, token_file: Path
) -> None:
    options = StoreOptions(token_file=token_file, retries=0)
    with stores.open_client(options) as client:
        store = RenewingStore(client, options)
        keepstore.always(Fault(status=403), method="PUT")
        with pytest.raises(KeepRequestError):
            store.put_block(b"foo", 1)
        with collections_of(options, client, store) as collections:
            assert collections is not None
            api.always(Fault(status=401), target="collections")
            with pytest.raises(CollectionError):
                collections.get(UUID)
            assert is_refused(store)
            api.heal()
            with pytest.raises(CollectionNotFoundError):
                collections.get(UUID)
            assert not is_refused(store)


def test_a_new_token_is_read_after_a_refusal_and_ends_it(
    alone: RenewingStore, keepstore: KeepstoreControls, token_file: Path
) -> None:
    locator = foreign(keepstore)
    fail_to_read(alone, locator)
    assert is_refused(alone)
    token_file.write_text(OF_ANOTHER)

    assert bytes(alone.get_block(KeepLocator(locator))) == b"foreign"

    assert not is_refused(alone)
