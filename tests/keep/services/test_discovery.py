"""The list of services, their kinds, and the probe order."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keepfs.keep import ArgumentError, KeepLocator
from keepfs.keep.services.discovery import (
    Access,
    Hint,
    Kind,
    ServiceRecord,
    Services,
    probe_order,
    weight,
)
from tests.keep.vectors import VECTORS
from tests.messages.provoking import assert_shows

FOO = KeepLocator("acbd18db4cc2f85cedef654fccc4a4d8+3")
RENDEZVOUS = VECTORS["rendezvous"]


def uuid(number: int) -> str:
    """Name a service."""
    return f"zzzzz-bi6l4-{number:015x}"


def disk(number: int, **fields: Any) -> ServiceRecord:  # noqa: ANN401 - of ServiceRecord
    """Make a keepstore's record."""
    return ServiceRecord(uuid(number), f"http://keep{number}:25107/", **fields)


def announced(**fields: Any) -> dict[str, Any]:  # noqa: ANN401 - of a record
    """Make a record as the API server has it."""
    return {
        "uuid": uuid(1),
        "service_host": "keep1",
        "service_port": 25107,
        "service_ssl_flag": False,
        "service_type": "disk",
        "read_only": False,
        **fields,
    }


# --- probe order ---


@pytest.mark.parametrize("vector", RENDEZVOUS["reference_16"]["orders"], ids=lambda v: v["order"])
def test_the_probe_order_is_that_of_the_reference_vectors(vector: dict[str, str]) -> None:
    services = [disk(number) for number in range(16)]

    order = probe_order(KeepLocator(vector["hash"]), services)

    assert "".join(service.uuid[-1] for service in order) == vector["order"]


@pytest.mark.parametrize("table", RENDEZVOUS["small_tables"], ids=lambda table: table["hash"])
def test_the_weights_are_those_of_the_small_tables(table: dict[str, Any]) -> None:
    services = [ServiceRecord(name, f"http://{name}/") for name in table["services"]]

    order = probe_order(KeepLocator(table["hash"]), services)

    assert [service.uuid for service in order] == table["order"]
    assert {name: weight(table["hash"], name) for name in table["services"]} == table["weights"]


@pytest.mark.parametrize(
    "case", RENDEZVOUS["uuid_28_characters"]["cases"], ids=lambda case: case["hash"]
)
def test_of_a_uuid_with_28_characters_the_last_15_count(case: dict[str, Any]) -> None:
    names = RENDEZVOUS["uuid_28_characters"]["services"]
    services = [ServiceRecord(name, f"http://{name}/") for name in names]

    order = probe_order(KeepLocator(case["hash"]), services)

    assert [service.uuid for service in order] == case["python_order"]


@given(st.permutations(range(8)))
def test_the_probe_order_does_not_depend_on_the_lists_order(numbers: list[int]) -> None:
    expected = probe_order(FOO, [disk(n) for n in range(8)])

    assert probe_order(FOO, [disk(n) for n in numbers]) == expected


@given(st.integers(0, 7), st.text("0123456789abcdef", min_size=32, max_size=32))
def test_a_removed_service_does_not_change_the_order_of_others(leaver: int, md5sum: str) -> None:
    services = [disk(number) for number in range(8)]
    locator = KeepLocator(md5sum)

    before = probe_order(locator, services)
    after = probe_order(locator, [s for s in services if s.uuid != uuid(leaver)])

    assert after == [service for service in before if service.uuid != uuid(leaver)]


def test_a_read_only_service_is_probed_for_reads_only() -> None:
    services = Services((disk(0, read_only=True), disk(1)))

    assert services.allowing(Access.READ) == services.records
    assert services.allowing(Access.WRITE) == (disk(1),)


# --- records ---


@pytest.mark.parametrize(
    ("fields", "root"),
    [
        ({}, "http://keep1:25107/"),
        ({"service_ssl_flag": True, "service_port": 443}, "https://keep1:443/"),
        ({"service_host": "::1"}, "http://[::1]:25107/"),
        ({"service_host": "[2001:db8::1]"}, "http://[2001:db8::1]:25107/"),
        ({"service_host": "127.0.0.1", "service_port": "80"}, "http://127.0.0.1:80/"),
    ],
)
def test_a_services_root_is_made_of_its_record(fields: dict[str, Any], root: str) -> None:
    assert ServiceRecord.of_record(announced(**fields)).root == root


@pytest.mark.parametrize(
    ("service_type", "kind"),
    [
        ("disk", Kind.DISK),
        ("", Kind.DISK),
        (None, Kind.DISK),
        ("proxy", Kind.PROXY),
        ("blob", Kind.PROXY),
        ("nobody knows", Kind.PROXY),
        ("gateway:test", Kind.GATEWAY),
    ],
)
def test_the_kind_of_a_service_follows_from_its_type(service_type: str | None, kind: Kind) -> None:
    assert ServiceRecord.of_record(announced(service_type=service_type)).kind is kind


def test_a_record_without_a_type_is_a_keepstore() -> None:
    record = {"uuid": uuid(1), "service_host": "keep1", "service_port": 25107}

    assert ServiceRecord.of_record(record) == disk(1)


@pytest.mark.parametrize("missing", ["uuid", "service_host", "service_port"])
def test_an_incomplete_record_is_left_out(missing: str, caplog: pytest.LogCaptureFixture) -> None:
    bad = announced()
    del bad[missing]

    services = Services.of_list([bad, announced(uuid=uuid(2), service_host="keep2")])

    assert services.records == (disk(2),)
    assert missing in caplog.text
    assert_shows(caplog.text, "service-ignored")


@pytest.mark.parametrize("host", ["", "user@keep1", "keep1/path", "a b", "keep1\n"])
def test_a_record_with_an_invalid_host_is_left_out(
    host: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert Services.of_list([announced(service_host=host)]).records == ()
    assert "no proper host" in caplog.text


@pytest.mark.parametrize("port", ["x", 0, -1, 65536])
def test_a_record_with_an_invalid_port_is_left_out(port: object) -> None:
    assert Services.of_list([announced(service_port=port)]).records == ()


# --- lists ---


def test_gateways_are_apart_and_never_probed() -> None:
    services = Services.of_list(
        [announced(), announced(uuid=uuid(2), service_type="gateway:test")]
    )

    assert services.records == (disk(1),)
    assert list(services.gateways) == [uuid(2)]
    assert not services.gateways[uuid(2)].allows(Access.WRITE)


def test_keepstores_alone_make_one_copy_each() -> None:
    services = Services((disk(1), disk(2)))

    assert services.copies_per_service() == 1
    assert not services.has_proxies(Access.READ)


@pytest.mark.parametrize("service_type", ["proxy", "blob"])
def test_any_other_writable_service_makes_any_number(service_type: str) -> None:
    other = announced(uuid=uuid(2), service_host="other", service_type=service_type)
    services = Services.of_list([announced(), other])

    assert services.copies_per_service() is None
    assert services.has_proxies(Access.READ)


def test_a_read_only_proxy_does_not_affect_writes() -> None:
    proxy = ServiceRecord(uuid(2), "http://proxy/", Kind.PROXY, read_only=True)
    services = Services((disk(1), proxy))

    assert services.copies_per_service() == 1
    assert services.has_proxies(Access.READ)
    assert not services.has_proxies(Access.WRITE)


def test_a_root_that_is_listed_twice_is_one_service() -> None:
    assert len(Services.of_list([announced(), announced(uuid=uuid(2))]).records) == 1


def test_a_users_list_is_of_proxies_named_by_their_place() -> None:
    services = Services.of_uris("http://a:1  https://b/keep/\nhttp://[::1]:3/")

    assert services.is_fixed
    assert [(each.uuid, each.root, each.kind) for each in services.records] == [
        ("00000-bi6l4-000000000000000", "http://a:1/", Kind.PROXY),
        ("00000-bi6l4-000000000000001", "https://b/keep/", Kind.PROXY),
        ("00000-bi6l4-000000000000002", "http://[::1]:3/", Kind.PROXY),
    ]


def test_a_users_list_is_not_in_probe_order() -> None:
    services = Services.of_uris(" ".join(f"http://p{n}/" for n in range(16)))

    assert probe_order(FOO, services.records) != list(services.records)


@pytest.mark.parametrize(
    "uri",
    ["keep", "//keep", "ftp://keep/", "http://", "http:///x", "http://[::1", "http://a:99999"],
)
def test_an_invalid_uri_is_an_argument_error(uri: str) -> None:
    with pytest.raises(ArgumentError, match="Invalid proxy URI"):
        Services.of_uris(uri)


def test_a_uri_with_a_password_is_refused_without_showing_it() -> None:
    with pytest.raises(ArgumentError, match="Invalid proxy URI") as caught:
        Services.of_uris("http://me:s3cret@keep/")

    assert "s3cret" not in str(caught.value)


# --- hints ---


def test_hints_name_places_in_their_order() -> None:
    gateway = uuid(7)
    services = Services(gateways={gateway: disk(7, kind=Kind.GATEWAY)})
    locator = KeepLocator(f"{FOO}+K@xyzzy+Zother+K@{gateway}+K@{uuid(8)}+K@abc+Kxyzzy")

    assert list(services.hinted(locator)) == [
        Hint("https://keep.xyzzy.arvadosapi.com/", "xyzzy"),
        Hint("http://keep7:25107/"),
    ]


@pytest.mark.parametrize("hint", ["K@XYZZY", "K@a-b-c", "K@-----", "K@x_zzy"])
def test_an_invalid_hint_names_no_service(hint: str) -> None:
    assert list(Services().hinted(KeepLocator(f"{FOO}+{hint}"))) == []


# --- lists that can't be right ---


@pytest.mark.parametrize("bad", ["\ud800", "é", "", "a b", "x" * 101])
def test_an_invalid_uuid_is_left_out_with_a_warning(
    bad: str, caplog: pytest.LogCaptureFixture
) -> None:
    services = Services.of_list([announced(uuid=bad), announced()])

    assert [it.uuid for it in services.records] == [uuid(1)]
    assert "a service has no proper uuid" in caplog.text


def test_a_list_that_is_too_long_is_refused_with_a_reason() -> None:
    with pytest.raises(ValueError, match="more than 1000 services"):
        Services.of_list(announced(uuid=uuid(number)) for number in itertools.count())
