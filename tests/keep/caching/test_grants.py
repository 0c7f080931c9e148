"""Locators that the services would refuse are not answered from memory."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from keepfs.keep import Cause, KeepClient, KeepLocator, KeepReadError
from keepfs.keep.caching.grants import Grants
from tests.keep.clusters import Cluster
from tests.keepstore import Fault, Settings, Stage

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SIGNED = KeepLocator(f"acbd18db4cc2f85cedef654fccc4a4d8+3+A{'0' * 40}@7fffffff")
FORGED = KeepLocator(f"acbd18db4cc2f85cedef654fccc4a4d8+3+A{'1' * 40}@7fffffff")
BARE = KeepLocator("acbd18db4cc2f85cedef654fccc4a4d8+3")
OTHER = KeepLocator("37b51d194a7513e45b56f6524f2d51f2+3")


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with Cluster() as it:
        yield it


def causes(client: KeepClient, locator: KeepLocator) -> list[Cause]:
    """Return why a get and a probe of a name fail."""
    found = []
    for ask in (client.get_block, lambda it: client.probe_block(it, 20)):
        with pytest.raises(KeepReadError) as caught:
            ask(locator)
        found.append(caught.value.cause)
    return found


# --- the rule ---


def test_a_name_is_allowed_once_a_service_answered_or_a_put_gave_it() -> None:
    grants = Grants(10)
    assert not grants.allows(SIGNED)

    grants.answered(SIGNED)
    grants.received(OTHER)

    assert [grants.allows(it) for it in (SIGNED, OTHER, FORGED, BARE)] == [
        True,
        True,
        False,
        False,
    ]


def test_the_size_is_no_part_of_what_is_signed() -> None:
    grants = Grants(10)
    grants.answered(SIGNED)

    assert grants.allows(KeepLocator(str(SIGNED).replace("+3+", "+")))


def test_an_expired_name_is_never_allowed() -> None:
    expired = KeepLocator(str(SIGNED).replace("7fffffff", "00000001"))
    for grants in (Grants(10), Grants(10, are_needed=False)):
        grants.answered(expired)

        assert not grants.allows(expired)


def test_services_that_answer_to_an_unsigned_name_do_not_sign() -> None:
    grants = Grants(10)
    grants.received(OTHER)
    before = grants.allows(BARE)
    grants.answered(OTHER)

    assert (before, grants.allows(BARE), grants.allows(FORGED)) == (False, True, True)
    grants.refused(FORGED)
    assert (grants.allows(OTHER), grants.allows(BARE)) == (True, False)


@pytest.mark.parametrize("hint", ["Kzzzzz", f"Rzzzzz-{'0' * 40}@7fffffff"])
def test_an_answer_for_a_remote_name_does_not_show_that_services_do_not_sign(hint: str) -> None:
    grants = Grants(10)
    grants.answered(KeepLocator(f"{BARE}+{hint}"))

    assert not grants.allows(BARE)


def test_a_refusal_and_another_token_revoke_grants() -> None:
    grants = Grants(10)
    grants.answered(SIGNED)
    grants.answered(FORGED)
    grants.refused(FORGED)
    left = grants.allows(SIGNED), grants.allows(FORGED)
    grants.clear()

    assert left == (True, False)
    assert not grants.allows(SIGNED)


def test_another_token_may_be_for_services_that_sign() -> None:
    grants = Grants(10)
    grants.answered(BARE)
    before = grants.allows(FORGED)

    grants.clear()

    assert before
    assert not grants.allows(FORGED)


@pytest.mark.parametrize("cause", Cause)
def test_only_a_refusal_revokes_a_grant(cause: Cause) -> None:
    grants = Grants(10)
    grants.answered(SIGNED)

    grants.failed(SIGNED, KeepReadError("no", cause=cause))

    assert grants.allows(SIGNED) == (cause is not Cause.DENIED)


def test_a_name_that_is_used_again_is_dropped_later() -> None:
    grants = Grants(2)
    for name in (SIGNED, FORGED, SIGNED, OTHER):
        grants.received(name)

    assert [grants.allows(it) for it in (SIGNED, FORGED, OTHER)] == [True, False, True]


def test_the_number_of_recorded_names_is_limited() -> None:
    grants = Grants(2)
    for name in (SIGNED, FORGED):
        grants.answered(name)
    grants.allows(SIGNED)  # used again
    grants.received(OTHER)

    assert [grants.allows(it) for it in (SIGNED, FORGED, OTHER)] == [True, False, True]


def test_a_local_store_allows_every_name(tmp_path: Path) -> None:
    with KeepClient(local_store=tmp_path) as client:
        client.put(b"foo")
        client.get_block(BARE)

        assert client.cached_block(FORGED) is not None


# --- over services ---


def test_a_bare_or_forged_name_is_refused_though_a_signed_one_is_in_memory(
    cluster: Cluster,
) -> None:
    client = cluster.client()
    signed = cluster.store(b"foo")
    client.get_block(signed)

    assert client.cached_block(signed) is not None
    for name in (BARE, FORGED):
        assert client.cached_block(name) is None
        assert causes(client, name) == [Cause.DENIED, Cause.DENIED]
        assert client.cached_block(name) is None
    assert client.cached_block(signed) is not None
    assert sum(cluster.counts("GET")) == 1


def test_another_valid_signature_costs_one_head_and_no_fetch(cluster: Cluster) -> None:
    client = cluster.client()
    first = cluster.store(b"foo")
    client.get_block(first)
    cluster.stores[0].set_clock(time.time_ns() + 10**12)
    second = KeepLocator(cluster.stores[0].sign("acbd18db4cc2f85cedef654fccc4a4d8+3"))
    assert second != first

    assert bytes(client.get_block(second)) == b"foo"
    assert client.cached_block(second) is not None
    assert client.probe_block(second, 20) == 3
    assert (sum(cluster.counts("GET")), sum(cluster.counts("HEAD"))) == (1, 1)


def test_a_forged_name_that_joins_the_fetch_of_a_good_one_is_refused(cluster: Cluster) -> None:
    client = cluster.client()
    signed = cluster.store(b"foo" * 30_000)
    cluster.stores[0].script(Fault(hold=Stage.MID_BODY), method="GET")
    client.prefetch_block(signed)
    cluster.stores[0].wait_held(1)
    bare = KeepLocator(signed.stripped())

    with pytest.raises(KeepReadError) as caught:
        client.probe_block(bare, 20)
    cluster.stores[0].release()

    assert caught.value.cause is Cause.DENIED
    assert causes(client, bare) == [Cause.DENIED, Cause.DENIED]


def test_the_name_in_a_receipt_is_allowed(cluster: Cluster) -> None:
    client = cluster.client()
    client.get_block(cluster.store(b"foo"))
    cluster.stores[0].set_clock(time.time_ns() + 10**12)

    locator = client.put_block(b"foo", 1).locator

    assert client.cached_block(locator) is not None


def test_a_name_signed_for_another_token_is_requested_again(cluster: Cluster) -> None:
    client = cluster.client()
    signed = cluster.store(b"foo")
    client.get_block(signed)

    client.api_token = "another"  # noqa: S105 - it opens nothing

    assert client.cached_block(signed) is None
    assert causes(client, signed) == [Cause.DENIED, Cause.DENIED]


def test_where_nothing_is_signed_every_name_is_answered_from_memory() -> None:
    with Cluster(settings=Settings(signing=False)) as cluster:
        client = cluster.client()
        cluster.store(b"foo")
        client.get_block(BARE)

        assert client.cached_block(FORGED) is not None
        assert sum(cluster.counts("HEAD")) == 0
