"""Mounts on a cluster that removes within seconds what nobody names."""

from __future__ import annotations

import errno
import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from tests.keepstore import TEST_TOKEN, Fault, Stage
from tests.messages.provoking import assert_shows
from tests.mounted.mounts import PATIENCE, KeepfsMount, keepfs, wait_until
from tests.soak import retention
from tests.soak.retention import NEW_TOKEN, ExpiringCluster, evict, expiring_cluster

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.slow

#: BlobSigningTTL in seconds, of tests that wait for it to pass.
SHORT = 4.0
LONG = 3600.0


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., KeepfsMount]]:
    """Make mounts, which are cleared away."""
    made: list[KeepfsMount] = []

    def one(cluster: ExpiringCluster, name: str, *options: str, mode: str = "") -> KeepfsMount:
        it = cluster.mount(tmp_path / name, *options, mode=mode)
        made.append(it)
        return it

    yield one
    for it in made:
        it.clean_up()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[ExpiringCluster]:
    """A cluster whose blocks live for an hour."""
    with expiring_cluster(tmp_path, LONG) as it:
        yield it


@pytest.fixture
def hasty(tmp_path: Path) -> Iterator[ExpiringCluster]:
    """A cluster whose blocks live for seconds; the collector isn't running yet."""
    with expiring_cluster(tmp_path, SHORT) as it:
        yield it


def xattr(path: Path, name: str) -> str:
    return os.getxattr(path, f"user.keep.{name}").decode()


def in_collections(cluster: ExpiringCluster) -> set[str]:
    """Return the files that untrashed collections name."""
    return {
        word.split(":", 2)[2]
        for each in cluster.api.collections()
        if not each["is_trashed"]
        for word in each["manifest_text"].split()
        if word.count(":") >= 2
    }


@pytest.mark.parametrize("mode", ["collection", "put"])
def test_files_stay_readable_and_a_new_token_changes_nothing(tmp_path: Path, mode: str) -> None:
    assert retention.soak(tmp_path, mode, ttls=5, ttl=SHORT, files=8) > 50


def test_the_collection_has_the_stored_files_and_xattrs_name_it(
    cluster: ExpiringCluster, make: Callable[..., KeepfsMount]
) -> None:
    mount = make(cluster, "m")
    mount.mount()
    assert cluster.api.collections() == []

    (mount.upload / "a").write_bytes(b"a")
    wait_until(lambda: xattr(mount.upload / "a", "retained") != "no")

    [kept] = cluster.api.collections()
    assert xattr(mount.upload / "a", "retained") == kept["uuid"]
    assert kept["name"].endswith(f":{mount.path}")
    assert "A collection of yours" in (mount.path / "README").read_text()
    assert mount.unmount().returncode == 0


def test_the_end_of_a_mount_brings_the_collection_up_to_date(
    cluster: ExpiringCluster, make: Callable[..., KeepfsMount]
) -> None:
    mount = make(cluster, "m")
    mount.mount()
    (mount.upload / "a").write_bytes(b"a")

    assert mount.unmount().returncode == 0

    assert in_collections(cluster) == {"a"}


def test_two_mounts_of_one_user_have_two_collections(
    cluster: ExpiringCluster, make: Callable[..., KeepfsMount]
) -> None:
    for name in ("m", "n"):
        mount = make(cluster, name, "--retain-as", "mine")
        mount.mount()
        (mount.upload / name).write_bytes(b"a")
        assert mount.unmount().returncode == 0

    kept = cluster.api.collections()
    assert sorted(each["name"] for each in kept) == ["mine", "mine (2)"]
    assert in_collections(cluster) == {"m", "n"}


@pytest.mark.parametrize("status", [422, 503])
def test_a_failing_server_is_retried_until_all_files_are_kept(
    cluster: ExpiringCluster, make: Callable[..., KeepfsMount], status: int
) -> None:
    mount = make(cluster, "m")
    mount.mount()
    cluster.api.always(Fault(status=status), target="collections")
    (mount.upload / "a").write_bytes(b"a")
    wait_until(lambda: "keeping upload/ failed, and is retried" in mount.log_file.read_text())
    assert xattr(mount.upload / "a", "retained") == "no"
    cluster.api.clear_faults()

    wait_until(lambda: xattr(mount.upload / "a", "retained") != "no")

    assert in_collections(cluster) == {"a"}
    said = [line for line in mount.logged() if "keeping upload/ failed" in line]
    assert len(said) == 1
    wait_until(lambda: "upload/ is kept again" in mount.log_file.read_text())
    assert_shows(mount.log_file.read_text(), "retention-failed", "retention-works-again")
    assert mount.unmount().returncode == 0


def test_a_mount_ends_without_the_api_server_and_the_next_catches_up(
    cluster: ExpiringCluster, make: Callable[..., KeepfsMount]
) -> None:
    mount = make(cluster, "m")
    mount.mount()
    cluster.api.always(Fault(status=503), target="collections")
    (mount.upload / "a").write_bytes(b"a")
    assert mount.unmount().returncode == 0
    assert_shows(mount.log_file.read_text(), "retention-behind")
    cluster.api.clear_faults()

    mount.mount()
    wait_until(lambda: in_collections(cluster) == {"a"})

    assert mount.unmount().returncode == 0


def test_a_token_that_may_not_create_collections_keeps_blocks_by_put(
    cluster: ExpiringCluster, make: Callable[..., KeepfsMount]
) -> None:
    cluster.api.configure(tokens=(), read_only_tokens=(TEST_TOKEN,))
    mount = make(cluster, "m")
    mount.mount()
    (mount.upload / "a").write_bytes(b"a")

    wait_until(lambda: xattr(mount.upload / "a", "retained") == "put")

    assert_shows(mount.log_file.read_text(), "retained-by-put")
    assert mount.unmount().returncode == 0


def test_a_read_that_is_refused_with_a_new_token_succeeds(
    cluster: ExpiringCluster, make: Callable[..., KeepfsMount]
) -> None:
    mount = make(cluster, "m")
    mount.mount()
    (mount.upload / "a").write_bytes(b"abc")
    wait_until(lambda: xattr(mount.upload / "a", "retained") != "no")
    assert mount.unmount().returncode == 0
    (mount.base / "token").write_text(NEW_TOKEN)
    cluster.api.configure(tokens=(NEW_TOKEN,))
    cluster.api.always(Fault(hold=Stage.BEFORE_STATUS), target="collections")
    mount.mount()

    with ThreadPoolExecutor() as pool:
        reading = pool.submit((mount.upload / "a").read_bytes)
        wait_until(lambda: "GET of 900150983cd24fb0d6963f7d28e17f72" in mount.log_file.read_text())
        cluster.api.clear_faults()
        cluster.api.release()
        assert reading.result(PATIENCE) == b"abc"

    with (mount.upload / "a").open("r+b") as file:  # a write into a stored block reads it
        file.write(b"A")
    assert (mount.upload / "a").read_bytes() == b"Abc"
    assert mount.unmount().returncode == 0


def test_a_refused_read_does_not_wait_for_an_update_that_hangs(
    cluster: ExpiringCluster, make: Callable[..., KeepfsMount]
) -> None:
    mount = make(cluster, "m")
    mount.mount()
    for name in ("a", "b"):
        (mount.upload / name).write_bytes(name.encode())
    wait_until(lambda: xattr(mount.upload / "b", "retained") != "no")
    cluster.api.always(Fault(hold=Stage.BEFORE_STATUS), method="PATCH")
    (mount.upload / "c").write_bytes(b"c")
    cluster.api.wait_held(1, PATIENCE)
    (mount.base / "token").write_text(NEW_TOKEN)
    cluster.api.configure(tokens=(NEW_TOKEN,))
    os.kill(mount.pid(), signal.SIGHUP)
    wait_until(lambda: any("the token was reloaded" in it for it in mount.logged()))
    for name in ("a", "b"):
        evict(mount.upload / name)

        assert (mount.upload / name).read_bytes() == name.encode()

    assert xattr(mount.upload / "c", "retained") == "no"  # the update still hangs
    cluster.api.clear_faults()
    cluster.api.release()
    assert mount.unmount().returncode == 0


def test_a_new_token_renews_all_signatures_and_keeps_what_no_collection_had_yet(
    cluster: ExpiringCluster, make: Callable[..., KeepfsMount]
) -> None:
    mount = make(cluster, "m")
    mount.mount()
    (mount.upload / "a").write_bytes(b"a")
    wait_until(lambda: in_collections(cluster) == {"a"})
    cluster.api.always(Fault(status=503), method="PATCH")
    (mount.upload / "b").write_bytes(b"b")
    before = {name: mount.locator(mount.upload / name) for name in "ab"}
    cluster.api.clear_faults()
    (mount.base / "token").write_text(NEW_TOKEN)
    cluster.api.configure(tokens=(NEW_TOKEN,))
    os.kill(mount.pid(), signal.SIGHUP)

    wait_until(lambda: in_collections(cluster) == {"a", "b"})

    for name, old in before.items():
        assert mount.locator(mount.upload / name) != old
        evict(mount.upload / name)
        assert (mount.upload / name).read_bytes() == name.encode()
    assert mount.unmount().returncode == 0


def test_files_in_a_collection_survive_any_time_without_a_mount(
    hasty: ExpiringCluster, make: Callable[..., KeepfsMount]
) -> None:
    mount = make(hasty, "m")
    with hasty.collector.running(0.5):
        mount.mount()
        (mount.upload / "a").write_bytes(b"a")
        assert mount.unmount().returncode == 0
        time.sleep(2 * SHORT)
        mount.mount()

        assert (mount.upload / "a").read_bytes() == b"a"

        assert xattr(mount.upload / "a", "state") == "stored"
        assert mount.unmount().returncode == 0


@pytest.mark.parametrize("mode", ["put", "off"])
def test_a_mount_that_was_down_too_long_lists_the_lost_files(
    hasty: ExpiringCluster, make: Callable[..., KeepfsMount], mode: str
) -> None:
    mount = make(hasty, "m", mode=mode)
    with hasty.collector.running(0.5):
        mount.mount()
        (mount.upload / "old").write_bytes(b"old")
        assert mount.unmount().returncode == 0
        time.sleep(2 * SHORT)
        mount.mount()
        (mount.upload / "new").write_bytes(b"new")
        wait_until(lambda: xattr(mount.upload / "old", "state") == "lost")

        assert xattr(mount.upload / "new", "state") == "stored"
        assert "nothing renewed it" in xattr(mount.upload / "old", "error")
        said = [line for line in mount.logged() if "LOST: upload/old: " in line]
        assert len(said) == 1
        (mount.upload / "old").write_bytes(b"again")
        assert xattr(mount.upload / "old", "state") == "stored"
        assert mount.unmount().returncode == 0


def test_a_block_in_no_service_makes_its_file_lost_and_it_stays_listed(
    cluster: ExpiringCluster, make: Callable[..., KeepfsMount]
) -> None:
    mount = make(cluster, "m", "--retries", "0")
    mount.mount()
    (mount.upload / "a").write_bytes(b"abc")
    for store in cluster.stores:
        store.remove_block(mount.locator(mount.upload / "a")[:32])
    evict(mount.upload / "a")

    with pytest.raises(OSError, match="Input/output error") as caught:
        (mount.upload / "a").read_bytes()

    assert caught.value.errno == errno.EIO
    assert xattr(mount.upload / "a", "state") == "lost"
    assert "LOST: upload/a: " in mount.log_file.read_text()
    assert_shows(mount.log_file.read_text(), "file-lost")
    plain = keepfs("uploads", mount.path, env=mount.environment)
    assert plain.stdout.decode().split("\t")[1] == "lost"
    words = ("--lost", "--json", "--token-file", mount.base / "token")
    lost = keepfs("uploads", *words, mount.path, env=mount.environment)
    assert (lost.returncode, json.loads(lost.stdout)["path"]) == (1, "a")
    assert mount.unmount().returncode == 0
    mount.mount()
    assert os.listdir(mount.upload) == ["a"]
    assert xattr(mount.upload / "a", "state") == "lost"
    assert mount.unmount().returncode == 0


def test_without_retention_the_mount_shows_when_blocks_are_removed(
    cluster: ExpiringCluster, make: Callable[..., KeepfsMount]
) -> None:
    mount = make(cluster, "m", mode="off")
    mount.mount()
    (mount.upload / "a").write_bytes(b"a")

    assert xattr(mount.upload / "a", "retained") == "no"
    assert "garbage collection removes blocks" in (mount.path / "README").read_text()
    assert_shows(mount.log_file.read_text(), "retention-off")
    assert mount.unmount().returncode == 0
    assert cluster.api.collections() == []


def test_put_with_another_token_than_the_files_gives_advice(
    cluster: ExpiringCluster, make: Callable[..., KeepfsMount]
) -> None:
    mount = make(cluster, "m", mode="put")
    mount.mount()
    (mount.upload / "a").write_bytes(b"abc")
    assert mount.unmount().returncode == 0
    mount.mount()
    wait_until(lambda: xattr(mount.upload / "a", "state") == "stored")
    assert mount.unmount().returncode == 0
    assert "another token signed it" not in mount.log_file.read_text()
    (mount.base / "token").write_text(NEW_TOKEN)

    mount.mount()
    wait_until(lambda: "another token signed it" in mount.log_file.read_text())

    (said,) = [line for line in mount.logged() if "another token signed it" in line]
    assert "the signature of upload/a, which ends at " in said
    assert_shows(said, "signed-by-former-token")
    assert "Mount once with the former token" in said
    with pytest.raises(PermissionError):
        (mount.upload / "a").read_bytes()
    assert mount.unmount().returncode == 0

    (mount.base / "token").write_text(TEST_TOKEN)
    mount.mount()
    (mount.base / "token").write_text(NEW_TOKEN)
    before = mount.locator(mount.upload / "a")
    os.kill(mount.pid(), signal.SIGHUP)
    wait_until(lambda: mount.locator(mount.upload / "a") != before)
    assert mount.unmount().returncode == 0
    mount.mount()
    assert (mount.upload / "a").read_bytes() == b"abc"
    assert mount.unmount().returncode == 0


def test_renew_signals_a_running_mount(
    cluster: ExpiringCluster, make: Callable[..., KeepfsMount]
) -> None:
    mount = make(cluster, "m")
    mount.mount()
    (mount.upload / "a").write_bytes(b"a")
    wait_until(lambda: xattr(mount.upload / "a", "retained") != "no")
    before = mount.locator(mount.upload / "a")
    time.sleep(1.1)  # signatures count seconds

    assert keepfs("renew", mount.path, env=mount.environment).returncode == 0

    wait_until(lambda: mount.locator(mount.upload / "a") != before)
    assert mount.unmount().returncode == 0


@pytest.mark.parametrize("mode", ["collection", "put"])
def test_renew_renews_a_mount_that_is_down(
    cluster: ExpiringCluster, make: Callable[..., KeepfsMount], mode: str
) -> None:
    mount = make(cluster, "m", mode=mode)
    mount.mount()
    (mount.upload / "a").write_bytes(b"a")
    before = mount.locator(mount.upload / "a")
    assert mount.unmount().returncode == 0
    time.sleep(1.1)  # signatures count seconds

    done = keepfs(
        *("renew", "--state-dir", mount.base / "state", "--retain", mode),
        *("--token-file", mount.base / "token", mount.path),
        env=mount.environment,
    )

    assert (done.returncode, done.stderr) == (0, b"")
    mount.mount()
    assert mount.locator(mount.upload / "a") != before
    assert (mount.upload / "a").read_bytes() == b"a"
    assert mount.unmount().returncode == 0
