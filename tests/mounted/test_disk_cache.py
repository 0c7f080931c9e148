"""A mount with a disk cache: a second mount reads what the first one fetched."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import urllib.request
from typing import TYPE_CHECKING

import pytest

from tests.mounted.mounts import keepfs, mounted

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.fuse, pytest.mark.slow]


def test_a_second_mount_reads_from_the_disk_at_random_and_in_order(tmp_path: Path) -> None:
    odds = random.Random(1)  # noqa: S311 - test data
    block = odds.randbytes(3_000_000)
    md5sum = hashlib.md5(block, usedforsecurity=False).hexdigest()
    name = f"{md5sum}+{len(block)}"
    cache = ("--disk-cache", "1GiB", "--disk-cache-dir", str(tmp_path / "cache"))
    options = (*cache, "--metrics", "0")
    kept = tmp_path / "cache" / "blocks-2" / md5sum[:3] / md5sum
    for run in range(2):
        here = tmp_path / str(run)
        here.mkdir()
        with mounted(here, *options) as mount:
            if run == 0:
                (mount.store / md5sum).write_bytes(block)
                assert (mount.path / "by_id" / name).read_bytes() == block
                warm = ("warm", "--local-store", mount.store, "--disk-cache", "1GiB")
                folder = ("--disk-cache-dir", tmp_path / "warmed")
                (mount.upload / "folder").mkdir()
                (mount.upload / "folder" / "file").write_bytes(b"of a file")
                warmed = keepfs(*warm, *folder, mount.upload, env=mount.environment)
                assert warmed.returncode == 0, warmed
                assert len(list((tmp_path / "warmed").rglob("?" * 32))) == 1
                continue
            # The name is known to this mount's store, which has other bytes by now.
            (mount.store / md5sum).write_bytes(bytes(len(block)))
            with (mount.path / "by_id" / name).open("rb", buffering=0) as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
                for _ in range(20):
                    offset = odds.randrange(len(block))
                    assert os.pread(file.fileno(), 4096, offset) == block[offset : offset + 4096]
                assert file.read() == block
            shown = keepfs("status", mount.path, "--json", env=mount.environment).stdout
            figures = json.loads(shown)["mounts"][0]["figures"]
            assert figures["cache"]["disk"]["capacity"] == 2**30
            assert figures["cache"]["disk"]["hits"] >= 1
            assert figures["disk_cache"]["directory"] == str(tmp_path / "cache")
            assert figures["disk_cache"]["read"] >= 20 * 4096
            assert figures["disk_cache"]["damaged"] == figures["disk_cache"]["added"] == 0
            said = keepfs("status", mount.path, env=mount.environment).stdout.decode()
            assert "  cache      disk: " in said
            assert f"  disk cache {tmp_path / 'cache'}: read " in said
            url = mount.log_file.read_text().partition("metrics: ")[2].split()[0]
            with urllib.request.urlopen(url, timeout=20) as answer:  # noqa: S310 - the mount's
                exported = answer.read().decode()
            assert re.search(r"keepfs_disk_cache_read_bytes_total\S* [1-9]", exported)
            assert re.search(r'keepfs_cache_hits_total\S*tier="disk"\S* [1-9]', exported)
    assert kept.stat().st_mode & 0o777 == 0o600
