"""A cluster that removes what nobody names, within seconds; a mount keeps its files readable.

The signatures and blocks of the cluster live for `ttl` seconds, and a collector trashes as
keep-balance does. Files are written and read for many times that, with a cache that is too
small to have them. The token is replaced meanwhile, as often as is asked for.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import requests

from keepfs.collections.builder import ManifestBuilder
from tests.keepstore import (
    TEST_TOKEN,
    ApiControls,
    ApiSettings,
    Authority,
    Collector,
    KeepstoreControls,
    Listening,
    ServiceEntry,
    Settings,
)
from tests.mounted.mounts import KeepfsMount, keepfs

if TYPE_CHECKING:
    from collections.abc import Iterator

#: The token that replaces the first one.
NEW_TOKEN = "v2/zzzzz-gj3su-000000000000002/" + "another" * 7


@dataclass
class ExpiringCluster:
    """An API server, keepstores and a collector: blocks live for seconds.

    Attributes:
        api: The API server.
        stores: The keepstores.
        collector: Not running by itself.
        ttl: Seconds.
        bundle: What certificates are checked with.
    """

    api: ApiControls
    stores: list[KeepstoreControls]
    collector: Collector
    ttl: float
    bundle: Path

    def mount(self, base: Path, *options: str, mode: str = "") -> KeepfsMount:
        """Describe a mount of it, whose token is in a file.

        Args:
            base: Where everything of the mount is.
            options: Further ones of `keepfs mount`.
            mode: Of `--retain`; empty for the default.
        """
        base.mkdir(parents=True, exist_ok=True)
        token = base / "token"
        token.write_text(TEST_TOKEN)
        # A cache of one byte: every read asks a service.
        given = ["--token-file", str(token), "--cache-size", "1", *options]
        if mode:
            given += ["--retain", mode]
        mount = KeepfsMount(base, tuple(given), is_local=False)
        mount.env = {"ARVADOS_API_HOST": self.api.host, "SSL_CERT_FILE": str(self.bundle)}
        return mount


@contextlib.contextmanager
def expiring_cluster(base: Path, ttl: float, stores: int = 2) -> Iterator[ExpiringCluster]:
    """Run one."""
    authority = Authority(base)
    settings = ApiSettings(signature_ttl=ttl, tokens=(TEST_TOKEN, NEW_TOKEN))
    with contextlib.ExitStack() as stack:
        services = [
            stack.enter_context(KeepstoreControls(Settings(ttl=ttl))) for _ in range(stores)
        ]
        api = stack.enter_context(
            ApiControls(settings, listening=Listening(tls=authority.certify()))
        )
        api.list_services([ServiceEntry.of(each.url, i) for i, each in enumerate(services)])
        collector = Collector(api, services, ttl)
        yield ExpiringCluster(api, services, collector, ttl, Path(authority.bundle))


def import_packed(cluster: ExpiringCluster, mount: KeepfsMount, count: int) -> dict[str, bytes]:
    """Import a collection of files that share one block, and trash it.

    Returns:
        The bytes of each file, by its path in upload/.
    """
    parts = [os.urandom(1000 + number) for number in range(count)]
    locators = [store.store_block(b"".join(parts)) for store in cluster.stores]
    builder, offset = ManifestBuilder(), 0
    for number, part in enumerate(parts):
        builder.add_file(f"{number}", [(locators[0], offset, len(part))])
        offset += len(part)
    url = f"https://{cluster.api.host}/arvados/v1/collections"
    headers = {"Authorization": f"Bearer {TEST_TOKEN}"}
    body = {"collection": {"name": "packed", "manifest_text": builder.build().text()}}
    with requests.Session() as session:
        session.trust_env, session.verify = False, str(cluster.bundle)
        made = session.post(url, json=body, headers=headers, timeout=60)
        made.raise_for_status()
        uuid = made.json()["uuid"]
        done = keepfs(
            *("import", "--token-file", mount.base / "token", uuid, mount.upload / "packed"),
            env=mount.environment,
        )
        assert done.returncode == 0, done.stderr
        session.delete(f"{url}/{uuid}", headers=headers, timeout=60).raise_for_status()
    return {f"packed/{number}": part for number, part in enumerate(parts)}


def evict(path: Path) -> None:
    """Have the kernel forget the pages of a file, so that a read asks the mount."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def soak(base: Path, mode: str, ttls: float, ttl: float, files: int = 20) -> int:
    """Write and import files, and read all of them until `ttls` times the TTL have passed.

    The token is replaced after half the time, and the old one is refused from then on.

    Returns:
        How many reads were made.

    Raises:
        AssertionError: A file is not what was written.
        OSError: A file can't be read.
    """
    reads = 0
    with expiring_cluster(base, ttl) as cluster, cluster.collector.running(ttl / 10):
        mount = cluster.mount(base / "m", mode=mode)
        try:
            mount.mount()
            contents: dict[str, bytes] = {}
            packed = import_packed(cluster, mount, 3)
            begun = time.monotonic()
            is_replaced = False
            held = None
            while (elapsed := time.monotonic() - begun) < ttls * ttl:
                if len(contents) < files and elapsed > len(contents) * ttls * ttl / 2 / files:
                    name = f"{len(contents)} file"
                    contents[name] = os.urandom(10_000 + len(contents))
                    (mount.upload / name).write_bytes(contents[name])
                    held = held or (mount.upload / name).open("rb", buffering=0)
                if not is_replaced and elapsed > ttls * ttl / 2:
                    (mount.base / "token").write_text(NEW_TOKEN)
                    cluster.api.configure(tokens=(NEW_TOKEN,))
                    if mode == "put":  # nothing asks the API server, which refuses the old one
                        os.kill(mount.pid(), signal.SIGHUP)
                    is_replaced = True
                for name, content in {**contents, **packed}.items():
                    evict(mount.upload / name)
                    assert (mount.upload / name).read_bytes() == content, name
                    reads += 1
                if held is not None:  # a file that stays open has its locators in memory
                    evict(mount.upload / "0 file")
                    assert os.pread(held.fileno(), 100_000, 0) == contents["0 file"]
                time.sleep(ttl / 50)
            if held is not None:
                held.close()
            assert mount.unmount().returncode == 0
        finally:
            mount.clean_up()
    return reads


def main() -> int:
    """Run as a script."""
    ttls = float(sys.argv[1]) if len(sys.argv) > 1 else 20.0
    ttl = float(sys.argv[2]) if len(sys.argv) > 2 else 5.0
    for mode in sys.argv[3:] or ["collection", "put"]:
        with tempfile.TemporaryDirectory() as base:
            reads = soak(Path(base), mode, ttls, ttl)
        print(f"--retain {mode}: {reads} reads in {ttls:.0f} TTLs of {ttl:.0f} s, all as written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
