"""The API client: its requests over https, and its results and errors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from keepfs.config.arvados import Settings
from keepfs.keep import ArgumentError, Cause, KeepClient
from keepfs.keep.services.api import ApiClient, ApiError, verify_setting
from tests.keepstore import (
    TEST_TOKEN,
    ApiControls,
    Authority,
    Fault,
    KeepstoreControls,
    Listening,
    ServiceEntry,
    Stage,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SECRET = TEST_TOKEN.rpartition("/")[2]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiControls]:
    """Run an API server that this process trusts."""
    authority = Authority(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", authority.bundle)
    with ApiControls(listening=Listening(tls=authority.certify())) as running:
        yield running


@pytest.fixture
def api(server: ApiControls) -> Iterator[ApiClient]:
    """Make a client of it."""
    client = ApiClient.of_settings(Settings(api_host=server.host, api_token=TEST_TOKEN))
    yield client
    client.close()


def test_the_request_for_the_services_follows_the_protocol(
    api: ApiClient, server: ApiControls
) -> None:
    entry = ServiceEntry.of("http://127.0.0.1:25107", 1)
    server.list_services([entry])
    api.request_id = "req-mine"

    answer = api.keep_services().accessible().execute(num_retries=3)

    assert answer["items"][0]["uuid"] == entry.uuid
    [asked] = server.log()
    assert (asked.method, asked.target) == ("GET", "/arvados/v1/keep_services/accessible")
    assert asked.header("Authorization") == f"Bearer {TEST_TOKEN}"
    assert asked.header("X-Request-Id") == "req-mine"


def test_the_configuration_is_public(api: ApiClient, server: ApiControls) -> None:
    api.api_token = ""

    assert api.config()["StorageClasses"] == {"default": {"Default": True, "Priority": 0}}
    assert server.log()[0].header("Authorization") is None


def test_a_valid_token_has_a_user(api: ApiClient) -> None:
    assert "uuid" in api.users().current().execute()


def test_a_bad_token_is_denied(api: ApiClient) -> None:
    api.api_token = "v2/zzzzz-gj3su-000000000000000/nobodys"  # noqa: S105 - none

    with pytest.raises(ApiError) as caught:
        api.users().current().execute()

    assert caught.value.cause is Cause.DENIED
    assert caught.value.status_code in {401, 403}


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        (Fault(status=500), Cause.OTHER),
        (Fault(status=302, headers={"Location": "/"}), Cause.OTHER),
        (Fault(body=b"no json"), Cause.OTHER),
        (Fault(body=b"[]"), Cause.OTHER),
        (Fault(close=Stage.BEFORE_STATUS), Cause.UNREACHABLE),
        (Fault(hold=Stage.BEFORE_STATUS), Cause.TIMED_OUT),
        (Fault(status=403, body=TEST_TOKEN.encode()), Cause.DENIED),
    ],
    ids=["500", "302", "no json", "no object", "closed", "silent", "403"],
)
def test_an_error_has_a_cause_and_no_token(
    api: ApiClient, server: ApiControls, fault: Fault, cause: Cause
) -> None:
    server.always(fault)
    api.timeout = 0.2

    with pytest.raises(ApiError) as caught:
        api.config()

    assert caught.value.cause is cause
    assert server.host in str(caught.value)
    assert SECRET not in f"{caught.value!r} {caught.value} {caught.value.__context__!r}"


def test_a_refused_connection_is_unreachable(api: ApiClient, server: ApiControls) -> None:
    server.go_down()

    with pytest.raises(ApiError, match="refused") as caught:
        api.config()

    assert caught.value.cause is Cause.UNREACHABLE


@pytest.mark.parametrize(
    ("settings", "missing"),
    [
        (Settings(), "ARVADOS_API_HOST and ARVADOS_API_TOKEN not set"),
        (Settings(api_host="api"), "ARVADOS_API_TOKEN not set"),
        (Settings(api_token="x"), "ARVADOS_API_HOST not set"),  # noqa: S106 - none
    ],
)
def test_missing_settings_are_named(settings: Settings, missing: str) -> None:
    with pytest.raises(ArgumentError, match=missing):
        ApiClient.of_settings(settings)


def test_it_can_be_shown(api: ApiClient, server: ApiControls) -> None:
    assert server.host in repr(api)
    assert SECRET not in repr(api)


def test_certificates_are_checked_unless_the_user_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, server: ApiControls
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "/nonexistent")
    settings = Settings(api_host=server.host, api_token=TEST_TOKEN)

    with pytest.raises(ApiError, match="certificate verify failed"):
        ApiClient.of_settings(settings).config()

    unchecked = ApiClient(f"https://{server.host}", TEST_TOKEN, insecure=True)
    assert unchecked.config()
    assert verify_setting(insecure=True) is False


def test_without_any_bundle_requests_own_is_used() -> None:
    assert verify_setting(insecure=False, find_bundle=lambda: None) is True


def test_a_client_from_the_settings_alone_reads_and_writes(
    server: ApiControls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARVADOS_API_HOST", server.host)
    monkeypatch.setenv("ARVADOS_API_TOKEN", TEST_TOKEN)
    with KeepstoreControls() as one, KeepstoreControls() as two:
        server.list_services([ServiceEntry.of(one.url, 1), ServiceEntry.of(two.url, 2)])

        with KeepClient() as client:
            locator = client.put(b"foo")
            assert client.get(locator) == b"foo"

        assert one.counts()["PUT"] == two.counts()["PUT"] == 1
        assert one.log("PUT")[0].header("X-Keep-Storage-Classes") == "default"
    assert server.counts() == {"GET": 2}


def test_a_client_without_a_working_api_server_reports_the_reason(
    server: ApiControls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARVADOS_API_HOST", server.host)
    monkeypatch.setenv("ARVADOS_API_TOKEN", TEST_TOKEN)
    server.always(Fault(status=401))

    with KeepClient() as client, pytest.raises(Exception, match="no Keep services") as caught:
        client.get("acbd18db4cc2f85cedef654fccc4a4d8+3")

    assert getattr(caught.value, "cause", None) is Cause.DENIED
