"""The test API server tells clients what the test wants them to be told."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import requests

from tests.keepstore import (
    ROOT_TOKEN,
    ApiControls,
    ApiSettings,
    Authority,
    Fault,
    Listening,
    ServiceEntry,
    portable_data_hash,
    start_process,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

ACCESSIBLE = "/arvados/v1/keep_services/accessible"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def api(authority: Authority, session: requests.Session) -> Iterator[ApiControls]:
    session.verify = authority.bundle
    settings = ApiSettings(scoped_tokens=("scoped",))
    with ApiControls(settings, listening=Listening(tls=authority.certify())) as started:
        yield started


def test_the_service_list_changes_between_calls(
    api: ApiControls, session: requests.Session
) -> None:
    one = ServiceEntry.of("http://127.0.0.1:25107/", 1)
    two = ServiceEntry(
        uuid="zzzzz-bi6l4-0123456789abcdef",
        service_host="::1",
        service_port=25107,
        service_ssl_flag=True,
        service_type="gateway:test",
        read_only=True,
    )
    api.list_services([one], [], [one, two])

    lists = [session.get(api.url + ACCESSIBLE, timeout=10).json() for _ in range(4)]

    assert [len(each["items"]) for each in lists] == [1, 0, 2, 2]
    assert [each["items_available"] for each in lists] == [1, 0, 2, 2]
    shown = lists[3]["items"][1]
    assert shown["service_host"] == "::1"
    assert shown["service_ssl_flag"] is True
    assert shown["service_type"] == "gateway:test"
    assert shown["read_only"] is True
    assert len(shown["uuid"]) == 28


def test_the_service_list_fails_when_told(api: ApiControls, session: requests.Session) -> None:
    api.script(Fault(status=502), target="accessible")

    assert session.get(api.url + ACCESSIBLE, timeout=10).status_code == 502
    assert session.get(api.url + ACCESSIBLE, timeout=10).status_code == 200
    assert api.log()[0].target == ACCESSIBLE


def test_the_configuration_shows_storage_classes(
    api: ApiControls, session: requests.Session
) -> None:
    url = f"{api.url}/arvados/v1/config"

    assert session.get(url, timeout=10).json()["StorageClasses"] == {
        "default": {"Default": True, "Priority": 0}
    }
    api.configure(storage_classes=None)
    assert "StorageClasses" not in session.get(url, timeout=10).json()


def test_the_discovery_document_shows_the_cluster(
    api: ApiControls, session: requests.Session
) -> None:
    shown = session.get(f"{api.url}/discovery/v1/apis/arvados/v1/rest", timeout=10).json()

    assert shown["uuidPrefix"] == "zzzzz"
    assert shown["defaultCollectionReplication"] == 2
    assert shown["blobSignatureTtl"] == 1209600


@pytest.mark.parametrize(
    ("token", "status"), [(ROOT_TOKEN, 200), ("scoped", 403), ("unknown", 401)]
)
def test_tokens_are_known_or_not(
    api: ApiControls, session: requests.Session, token: str, status: int
) -> None:
    session.headers["Authorization"] = f"Bearer {token}"

    answer = session.get(f"{api.url}/arvados/v1/users/current", timeout=10)

    assert answer.status_code == status
    assert session.get(api.url + ACCESSIBLE, timeout=10).status_code == 200


def test_collections_are_shown_by_their_portable_data_hash(
    api: ApiControls, session: requests.Session
) -> None:
    manifest = ". 3858f62230ac3c915f300c664312c63f+6+A5d@67 0:3:bar 3:3:foo\n"
    name = "cd93b930926e31c3a579349870364b5d+53"
    assert portable_data_hash(manifest) == name

    api.configure(collections={name: manifest})

    shown = session.get(f"{api.url}/arvados/v1/collections/{name}", timeout=10).json()
    assert (shown["portable_data_hash"], shown["manifest_text"]) == (name, manifest)
    other = f"{api.url}/arvados/v1/collections/{name[:-1]}4"
    assert session.get(other, timeout=10).status_code == 404


def test_it_runs_in_a_process_too(authority: Authority, session: requests.Session) -> None:
    listening = Listening(tls=authority.certify())
    session.verify = authority.bundle
    with start_process(ApiControls, listening=listening) as api:
        assert session.get(api.url + ACCESSIBLE, timeout=10).status_code == 200
        assert api.counts() == {"GET": 1}


@pytest.mark.parametrize(("names", "days"), [(["example.com"], 1), (["127.0.0.1"], -1)])
def test_a_bad_certificate_is_refused(
    authority: Authority, session: requests.Session, names: list[str], days: int
) -> None:
    session.verify = authority.bundle
    listening = Listening(tls=authority.certify(names, days=days))
    with ApiControls(listening=listening) as api, pytest.raises(requests.exceptions.SSLError):
        session.get(api.url, timeout=10)


def test_a_stranger_s_certificate_is_refused(api: ApiControls) -> None:
    with pytest.raises(requests.exceptions.SSLError):
        requests.get(api.url, timeout=10)
