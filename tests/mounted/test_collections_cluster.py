"""collections/ of a cluster: by uuid, changed meanwhile, with signatures that end."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from keepfs.collections.remote_collections import CollectionAttributes, Expected, RemoteCollections
from keepfs.keep import KeepClient, KeepLocator
from keepfs.keep.services.api import ApiClient
from tests.keepstore import (
    TEST_TOKEN,
    ApiControls,
    ApiSettings,
    Authority,
    KeepstoreControls,
    Listening,
    ServiceEntry,
    Settings,
)
from tests.mounted.mounts import KeepfsMount, wait_until
from tests.mounted.packing import packed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from keepfs.collections.records import CollectionRecord

NEW_TOKEN = "v2/zzzzz-gj3su-000000000000077/" + "another" * 7  # a user of no cluster
#: Seconds that signatures are good for in some tests.
TTL = 4


@dataclass
class Cluster:
    """A cluster and a mount of it, not made yet."""

    mount: KeepfsMount
    api: ApiControls
    store: KeepstoreControls

    def commit(
        self, source: Path, name: str = "made by a test", block_size: int = 100
    ) -> CollectionRecord:
        """Store a directory as a collection."""
        client = KeepClient(proxy=self.store.url, api_token=TEST_TOKEN, local_store="")
        manifest = packed(source, lambda block: client.put(block, copies=1), block_size).text()
        attributes = CollectionAttributes(name=name, properties={"kind": "test"})
        return self.remote.create(manifest, attributes, with_manifest=True)

    @property
    def remote(self) -> RemoteCollections:
        """What asks the API server on behalf of the test."""
        return RemoteCollections(ApiClient(self.api.url, TEST_TOKEN, insecure=True))

    def folder(self, name: str) -> Path:
        """Return a collection's place in the mount."""
        return self.mount.path / "collections" / name

    def asked(self) -> int:
        """Count the requests for single collections."""
        return sum("/collections/" in each.target for each in self.api.log("GET"))


def a_cluster(mount: KeepfsMount, base: Path, ttl: float) -> Iterator[Cluster]:
    authority = Authority(base)
    settings = ApiSettings(tokens=(TEST_TOKEN, NEW_TOKEN), signature_ttl=ttl)
    with (
        KeepstoreControls(Settings(ttl=ttl)) as store,
        ApiControls(settings, listening=Listening(tls=authority.certify())) as api,
    ):
        api.list_services([ServiceEntry.of(store.url, 0)])
        (base / "token").write_text(TEST_TOKEN)
        mount.is_local = False
        mount.env = {"ARVADOS_API_HOST": api.host, "SSL_CERT_FILE": str(authority.bundle)}
        mount.options = ("--token-file", str(base / "token"))
        yield Cluster(mount, api, store)
        mount.clean_up()


@pytest.fixture
def cluster(unmounted: KeepfsMount, tmp_path: Path) -> Iterator[Cluster]:
    """A cluster whose signatures last."""
    yield from a_cluster(unmounted, tmp_path, 14 * 24 * 3600)


@pytest.fixture
def hasty(unmounted: KeepfsMount, tmp_path: Path) -> Iterator[Cluster]:
    """A cluster whose signatures end in seconds."""
    yield from a_cluster(unmounted, tmp_path, TTL)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A directory to be committed."""
    made = tmp_path / "source"
    (made / "folder" / "empty").mkdir(parents=True)
    for number in range(5):
        (made / f"file{number}").write_bytes(str(number).encode() * 90)
    (made / "folder" / "a\nb c").write_bytes(b"odd" * 50)
    return made


def errno_of_stat(path: Path) -> int:
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno says which
        os.stat(path)
    return caught.value.errno or 0


def is_same(one: Path, other: Path) -> bool:
    return subprocess.run(["diff", "-r", str(one), str(other)], check=False).returncode == 0


def test_a_collection_by_uuid_and_by_hash(cluster: Cluster, source: Path) -> None:
    made = cluster.commit(source)
    cluster.mount.mount()
    by_uuid, by_hash = cluster.folder(made.uuid), cluster.folder(made.portable_data_hash)

    assert is_same(source, by_uuid)
    assert is_same(source, by_hash)
    said = {
        name: os.getxattr(by_uuid / "file0", name).decode()
        for name in os.listxattr(by_uuid / "file0")
    }
    assert said["user.keep.uuid"] == made.uuid
    assert said["user.keep.pdh"] == made.portable_data_hash
    assert said["user.keep.collection"] == "made by a test"
    assert said["user.keep.properties"] == '{"kind": "test"}'
    located = KeepLocator(said["user.keep.locator"])
    assert located.perm_expiry is not None
    assert (cluster.mount.by_id / str(located)).read_bytes()[:90] == b"0" * 90
    assert sorted(os.listdir(by_uuid / "..")) == sorted([made.uuid, made.portable_data_hash])
    assert cluster.asked() == 2


def test_a_second_mount_with_a_disk_cache_asks_no_service_about_new_signatures(
    cluster: Cluster, source: Path, tmp_path: Path
) -> None:
    cluster.mount.options += ("--disk-cache", "1GiB", "--disk-cache-dir", str(tmp_path / "cache"))
    record = cluster.commit(source)
    wanted = (source / "file1").read_bytes()
    counted = []
    for earlier in (200, 100):  # so the API server makes other signatures
        cluster.api.set_clock(time.time_ns() - earlier * 10**9)
        cluster.mount.mount()
        assert (cluster.folder(record.uuid) / "file1").read_bytes() == wanted
        cluster.mount.unmount()
        counted.append(sum(cluster.store.counts().get(each, 0) for each in ("GET", "HEAD")))

    # A mount looks once whether the service answers, with a block that doesn't exist.
    asked = [it.target for it in cluster.store.log("GET") + cluster.store.log("HEAD")]
    assert sum("/0000000" not in it for it in asked) == counted[0] - 1
    assert counted[1] == counted[0] + 1


def test_unknown_collections_are_not_found_and_trashed_ones_disappear(
    cluster: Cluster, source: Path
) -> None:
    made = cluster.commit(source)
    cluster.mount.options += ("--collection-refresh", "0")
    cluster.mount.mount()
    assert is_same(source, cluster.folder(made.uuid))
    assert errno_of_stat(cluster.folder("zzzzz-4zz18-999999999999999")) == errno.ENOENT
    assert errno_of_stat(cluster.folder("0" * 32 + "+57")) == errno.ENOENT
    before = cluster.asked()
    assert errno_of_stat(cluster.folder("nonsense")) == errno.ENOENT
    assert cluster.asked() == before

    cluster.remote.trash(made.uuid)

    assert errno_of_stat(cluster.folder(made.uuid)) == errno.ENOENT


def test_a_changed_collection_shows_its_new_files_and_open_ones_stay(
    cluster: Cluster, source: Path
) -> None:
    made = cluster.commit(source)
    cluster.mount.options += ("--collection-refresh", "0.2")
    cluster.mount.mount()
    folder = cluster.folder(made.uuid)
    numbers = {each.name: each.stat().st_ino for each in folder.iterdir()}
    with (folder / "file1").open("rb") as one, (folder / "file2").open("rb") as two:
        kept = cluster.remote.get(made.portable_data_hash).manifest or b""
        text = kept.decode().replace(":file1", ":file1.old").replace(":file2", ":file2.old")
        cluster.remote.update(
            made.uuid,
            expected=Expected(portable_data_hash=made.portable_data_hash),
            manifest=text,
        )

        wait_until((folder / "file1.old").exists)
        assert (folder / "file1.old").read_bytes() == b"1" * 90
        assert not (folder / "file1").exists()
        assert (folder / "file0").stat().st_ino == numbers["file0"]
        assert (folder / "folder").stat().st_ino == numbers["folder"]
        assert one.read() == b"1" * 90
        assert two.read() == b"2" * 90


def test_a_read_after_the_signatures_have_ended(hasty: Cluster, source: Path) -> None:
    made = hasty.commit(source)
    hasty.mount.mount()
    folder = hasty.folder(made.portable_data_hash)
    assert (folder / "file0").read_bytes() == b"0" * 90
    expiry = KeepLocator(os.getxattr(folder / "file4", "user.keep.locator").decode().split(",")[0])
    assert expiry.perm_expiry is not None
    ends = expiry.perm_expiry.timestamp()
    wait_until(lambda: time.time_ns() / 1e9 > ends + 1)

    assert (folder / "file4").read_bytes() == b"4" * 90
    assert is_same(source, folder)


def test_a_read_after_the_token_was_replaced(
    cluster: Cluster, source: Path, tmp_path: Path
) -> None:
    made = cluster.commit(source)
    cluster.mount.mount()
    folder = cluster.folder(made.portable_data_hash)
    before = os.getxattr(folder / "file4", "user.keep.locator")
    (tmp_path / "token").write_text(NEW_TOKEN)
    os.kill(cluster.mount.pid(), signal.SIGHUP)
    wait_until(lambda: any("the token was reloaded" in it for it in cluster.mount.logged()))

    assert is_same(source, folder)

    assert os.getxattr(folder / "file4", "user.keep.locator") != before
    assert cluster.asked() == 2


def test_a_mount_without_its_api_server_serves_known_collections(
    cluster: Cluster, source: Path
) -> None:
    made = cluster.commit(source)
    cluster.mount.options += ("--collection-refresh", "0")
    cluster.mount.mount()
    assert len(os.listdir(cluster.folder(made.uuid))) == 6
    cluster.api.go_down()

    assert errno_of_stat(cluster.folder(made.portable_data_hash)) == errno.EHOSTUNREACH
    assert (cluster.folder(made.uuid) / "file3").read_bytes() == b"3" * 90
    assert any("stays as it was known" in it for it in cluster.mount.logged())


def test_files_read_one_after_another_are_fetched_ahead(
    cluster: Cluster, source: Path, tmp_path: Path
) -> None:
    """The files have a block each: without read-ahead each `open` would wait for its own."""
    made = cluster.commit(source, block_size=90)
    cluster.mount.mount()
    folder = cluster.folder(made.portable_data_hash)

    assert (folder / "file0").read_bytes() == b"0" * 90
    assert len(cluster.store.log("GET")) == 1
    assert (folder / "file1").read_bytes() == b"1" * 90
    wait_until(lambda: len(cluster.store.log("GET")) == 3)

    archive = tmp_path / "archive"
    subprocess.run(["tar", "-cf", archive, "-C", folder, "."], check=True)
    (tmp_path / "copy").mkdir()
    subprocess.run(["tar", "-xf", archive, "-C", tmp_path / "copy"], check=True)
    assert is_same(source, tmp_path / "copy")
    blocks = {each.target.split("+")[0] for each in cluster.store.log("GET")}
    assert len(cluster.store.log("GET")) == len(blocks)  # none was fetched twice


def test_a_token_that_is_refused(cluster: Cluster, source: Path) -> None:
    made = cluster.commit(source)
    cluster.mount.mount()
    cluster.api.configure(tokens=())

    assert errno_of_stat(cluster.folder(made.uuid)) == errno.EACCES


def test_a_collection_of_a_cluster_is_the_root_of_a_mount(cluster: Cluster, source: Path) -> None:
    made = cluster.commit(source)
    cluster.mount.options += ("--collection", made.uuid)
    cluster.mount.mount()

    assert is_same(source, cluster.mount.path)
