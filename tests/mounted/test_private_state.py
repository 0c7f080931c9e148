"""What a mount keeps on this machine: for its user alone, readable though a part is damaged."""

from __future__ import annotations

import contextlib
import os
import resource
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.mounted.mounts import KeepfsMount


# --- what others could have put there ---------------------------------------------


@pytest.mark.parametrize("name", ["catalog.sqlite", "catalog.sqlite.lock", "catalog.sqlite-wal"])
def test_a_catalog_behind_a_link_refuses_the_mount(unmounted: KeepfsMount, name: str) -> None:
    victim, state = unmounted.base / "victim", unmounted.base / "state"
    victim.write_bytes(b"")
    victim.chmod(0o644)
    state.mkdir()
    (state / name).symlink_to(victim)
    unmounted.path.mkdir()

    done = unmounted.try_mount()

    assert done.returncode == 1
    assert (done.stderr.count(b"\n"), str(state / name).encode() in done.stderr) == (1, True)
    assert (victim.read_bytes(), victim.stat().st_mode & 0o777) == (b"", 0o644)
    assert not unmounted.is_mounted()


def test_a_log_behind_a_link_refuses_the_mount(unmounted: KeepfsMount) -> None:
    unmounted.log_file.symlink_to(unmounted.base / "made")
    unmounted.path.mkdir()

    done = unmounted.try_mount()

    assert (done.returncode, done.stderr.count(b"\n")) == (1, 1)
    assert b"is a symbolic link" in done.stderr
    assert not (unmounted.base / "made").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_state_directory_of_another_user_refuses_the_mount(unmounted: KeepfsMount) -> None:
    state = unmounted.base / "state"
    state.mkdir(mode=0o755)
    os.chown(state, 12345, 12345)
    unmounted.path.mkdir()

    done = unmounted.try_mount()

    assert (done.returncode, done.stderr.count(b"\n")) == (1, 1)
    assert b"belongs to user 12345" in done.stderr
    assert (list(state.iterdir()), state.stat().st_mode & 0o777) == ([], 0o755)


def test_the_files_of_a_mount_are_private(mount: KeepfsMount) -> None:
    (mount.upload / "file").write_bytes(b"x")

    modes = {path.stat().st_mode & 0o777 for path in (mount.base / "state").iterdir()}

    assert modes <= {0o600, 0o700}
    assert mount.log_file.stat().st_mode & 0o777 == 0o600


def test_no_core_dump_is_written_unless_asked_for(unmounted: KeepfsMount) -> None:
    soft = {}
    for options in ((), ("--core-dumps",)):
        unmounted.options = options
        unmounted.mount()
        limits = Path(f"/proc/{unmounted.pid()}/limits").read_text()
        (line,) = [line for line in limits.splitlines() if line.startswith("Max core file size")]
        soft[options] = line.split()[4]
        assert unmounted.unmount().returncode == 0

    assert soft[()] == "0"
    assert soft["--core-dumps",] == _core_limit()


def _core_limit() -> str:
    limit, _ = resource.getrlimit(resource.RLIMIT_CORE)
    return "unlimited" if limit == resource.RLIM_INFINITY else str(limit)


def test_a_damaged_entry_of_the_catalog_is_reported_and_others_work(
    unmounted: KeepfsMount,
) -> None:
    mount = unmounted
    mount.mount()
    for name in ("before", "damaged", "strange", "later"):
        (mount.upload / name).write_bytes(name.encode())
    mount.unmount()
    path = mount.base / "state" / "catalog.sqlite"
    with contextlib.closing(sqlite3.connect(path)) as catalog, catalog:
        change = "UPDATE entries SET {} WHERE name = ?"
        catalog.execute(change.format("content = x'7b'"), (b"damaged",))
        catalog.execute(change.format("mode = 'text'"), (b"strange",))
    mount.mount()

    assert sorted(os.listdir(mount.upload)) == ["before", "damaged", "later", "strange"]
    assert (mount.upload / "later").read_bytes() == b"later"
    for name in ("damaged", "strange"):
        for _ in range(2):
            with pytest.raises(OSError, match="Input/output"):
                (mount.upload / name).read_bytes()
        assert len([it for it in mount.logged() if "ERROR" in it and f"'{name}'" in it]) == 1
        (mount.upload / name).unlink()
    assert sorted(os.listdir(mount.upload)) == ["before", "later"]
    assert mount.unmount().returncode == 0
