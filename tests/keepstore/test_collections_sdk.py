"""The SDK of PyPI and its commands work against the test API server and keepstores."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.keepstore import (
    TEST_TOKEN,
    ApiControls,
    ApiSettings,
    Authority,
    KeepstoreControls,
    Listening,
    ServiceEntry,
    portable_data_hash,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what the SDK's own imports say is not about us
    arvados = pytest.importorskip("arvados")
    sdk = pytest.importorskip("arvados.collection")

pytestmark = pytest.mark.filterwarnings("ignore")  # the SDK's own libraries warn of themselves

BIN = Path(sys.executable).parent


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiControls]:
    """Run an API server and two keepstores, and let the SDK's settings name them."""
    authority = Authority(tmp_path)
    with KeepstoreControls() as one, KeepstoreControls() as two:
        services = [ServiceEntry.of(each.url, n) for n, each in enumerate((one, two))]
        settings = ApiSettings(services=services)
        with ApiControls(settings, listening=Listening(tls=authority.certify())) as api:
            monkeypatch.setenv("ARVADOS_API_HOST", api.host)
            monkeypatch.setenv("ARVADOS_API_TOKEN", TEST_TOKEN)
            monkeypatch.setenv("SSL_CERT_FILE", authority.bundle)
            monkeypatch.setenv("HOME", str(tmp_path))
            monkeypatch.delenv("ARVADOS_API_HOST_INSECURE", raising=False)
            yield api


def run(command: str, *arguments: str) -> str:
    """Run one of the SDK's commands and return its standard output."""
    done = subprocess.run(
        [BIN / command, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | {"PYTHONWARNINGS": "ignore"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def sdk_client(api: ApiControls) -> Any:  # noqa: ANN401 - the SDK has no types
    return arvados.api("v1", host=api.host, token=TEST_TOKEN, cache=False)


def test_the_sdk_saves_changes_and_reads_collections(cluster: ApiControls) -> None:
    client = sdk_client(cluster)
    written = sdk.Collection(api_client=client)
    for name, content in (("one", b"one"), ("d e/two: 2", b"two" * 1000), ("empty", b"")):
        with written.open(name, "wb") as file:
            file.write(content)
    written.save_new(name="saved", properties={"a": 1}, storage_classes=["default"])
    uuid, name = written.manifest_locator(), written.portable_data_hash()
    for locator in (uuid, name):
        reader = sdk.CollectionReader(locator, api_client=client)
        assert sorted(reader) == ["d e", "empty", "one"]
        with reader.open("d e/two: 2", "rb") as file:
            assert file.read() == b"two" * 1000
        reader.stop_threads()
    with written.open("more", "wb") as file:
        file.write(b"more")
    written.save()
    written.stop_threads()
    client.close_connections()

    [kept] = cluster.collections()
    assert (kept["uuid"], kept["version"], kept["file_count"]) == (uuid, 2, 4)
    assert kept["portable_data_hash"] == portable_data_hash(kept["manifest_text"]) != name


def test_the_commands_put_list_and_get(cluster: ApiControls, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "a b").write_bytes(b"first")
    (source / "sub" / "c").write_bytes(b"second" * 1000)

    uuid = run("arv-put", "--no-progress", "--no-cache", "--name", "put", f"{source}/")
    shown = run("arv-ls", "-s", uuid)
    (tmp_path / "back").mkdir()
    run("arv-get", "-r", f"{uuid}/", str(tmp_path / "back"))

    assert [each["name"] for each in cluster.collections()] == ["put"]
    assert sorted(line.split(None, 1)[1] for line in shown.splitlines()) == ["./a b", "./sub/c"]
    assert (tmp_path / "back" / "a b").read_bytes() == b"first"
    assert (tmp_path / "back" / "sub" / "c").read_bytes() == b"second" * 1000
