"""Every test here mounts; where nothing can be mounted it is skipped, but never in CI."""

from __future__ import annotations

import fcntl
import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.mounted.mounts import KeepfsMount, mounted, why_no_mounts
from tests.mounted.places import Places

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "/tests/mounted/" in str(item.path):
            item.add_marker(pytest.mark.fuse)


@pytest.fixture(autouse=True, scope="session")
def _mounts_work() -> None:
    reason = why_no_mounts()
    if reason is not None:
        if os.environ.get("CI") == "true":
            pytest.fail(f"tests that mount can't run: {reason}")
        pytest.skip(reason)


@pytest.fixture
def open_device() -> Iterator[None]:
    """Give /dev/fuse the mode that udev gives it, where nothing of the kind runs.

    For one test at a time: another test file, which runs beside, would restore the mode.
    """
    folder = os.open("/dev", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        before = os.stat("/dev/fuse").st_mode & 0o777
        os.chmod("/dev/fuse", 0o666)
        yield
        os.chmod("/dev/fuse", before)
    finally:
        os.close(folder)


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[KeepfsMount]:
    """A mount for one test."""
    with mounted(tmp_path) as it:
        yield it


@pytest.fixture
def unmounted(tmp_path: Path) -> Iterator[KeepfsMount]:
    """A mount that isn't made yet; what the test leaves behind is cleared away."""
    it = KeepfsMount(tmp_path)
    yield it
    it.clean_up()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KeepfsMount]:
    """A mount for all tests of a file, each of which uses names of its own."""
    with mounted(tmp_path_factory.mktemp("shared")) as it:
        yield it


@pytest.fixture
def places(
    shared: KeepfsMount, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Places]:
    """A directory in upload/ and one on a disk, for one test."""
    mounted_here = shared.upload / request.node.name
    mounted_here.mkdir()
    yield Places(mounted_here, tmp_path / "disk")
    subprocess.run(["rm", "-rf", str(mounted_here)], check=True)
