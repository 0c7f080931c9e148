"""What the provocations need: a shell, services, and a mount."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.cli.test_cli import Shell
from tests.keepstore import (
    TEST_TOKEN,
    ApiControls,
    Authority,
    KeepstoreControls,
    Listening,
    ServiceEntry,
)
from tests.mounted.mounts import KeepfsMount, mounted, why_no_mounts

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """Commands with a local store."""
    (tmp_path / "shell").mkdir()
    return Shell(tmp_path / "shell")


@pytest.fixture
def keepstore() -> Iterator[KeepstoreControls]:
    """A Keep service."""
    with KeepstoreControls() as it:
        yield it
        it.release()


@pytest.fixture
def over(
    shell: Shell, keepstore: KeepstoreControls, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Shell:
    """A shell, and this process, whose settings name the Keep service."""
    del shell.environment["KEEP_LOCAL_STORE"]
    settings = {
        "ARVADOS_KEEP_SERVICES": keepstore.url,
        "ARVADOS_API_TOKEN": TEST_TOKEN,
        "KEEPFS_RETRIES": "0",
    }
    shell.environment |= settings
    for name, value in {**settings, "HOME": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    return shell


@pytest.fixture
def api(
    shell: Shell, keepstore: KeepstoreControls, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[ApiControls]:
    """An API server that lists the Keep service; the settings name it."""
    authority = Authority(tmp_path)
    del shell.environment["KEEP_LOCAL_STORE"]
    with ApiControls(listening=Listening(tls=authority.certify())) as running:
        running.list_services([ServiceEntry.of(keepstore.url, 0)])
        settings = {
            "ARVADOS_API_HOST": running.host,
            "ARVADOS_API_TOKEN": TEST_TOKEN,
            "SSL_CERT_FILE": str(authority.bundle),
            "KEEPFS_RETRIES": "0",
        }
        shell.environment |= settings
        for name, value in {**settings, "HOME": str(tmp_path)}.items():
            monkeypatch.setenv(name, value)
        yield running


@pytest.fixture
def unmounted(tmp_path: Path) -> Iterator[KeepfsMount]:
    """A mount that isn't made yet."""
    reason = why_no_mounts()
    if reason is not None:
        pytest.skip(reason)
    it = KeepfsMount(tmp_path)
    it.path.mkdir()
    yield it
    it.clean_up()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KeepfsMount]:
    """A mount for all tests of a file."""
    reason = why_no_mounts()
    if reason is not None:
        pytest.skip(reason)
    with mounted(tmp_path_factory.mktemp("shared")) as it:
        yield it


@pytest.fixture
def on_cluster(unmounted: KeepfsMount, api: ApiControls, shell: Shell) -> KeepfsMount:
    """A mount of the cluster."""
    assert api.host
    unmounted.is_local = False
    unmounted.env = {
        name: value
        for name, value in shell.environment.items()
        if name.startswith(("ARVADOS", "SSL"))
    }
    unmounted.options = ("--retain", "off", "--copies", "1")
    unmounted.mount()
    return unmounted
