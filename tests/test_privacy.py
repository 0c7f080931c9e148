"""Files and directories that others could have put there are refused."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from keepfs import privacy
from keepfs.fs.upload.catalog import Catalog, CatalogError
from keepfs.mount import logs

ANOTHER = 12345
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_directory_is_made_for_its_user_alone(tmp_path: Path) -> None:
    path = tmp_path / "state"

    privacy.make_directory(path)

    assert mode_of(path) == 0o700


@root_only
def test_a_directory_of_somebody_else_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path, link = tmp_path / "theirs", tmp_path / "link"
    path.mkdir(mode=0o755)
    os.chown(path, ANOTHER, ANOTHER)
    link.symlink_to(tmp_path)
    os.chown(link, ANOTHER, ANOTHER, follow_symlinks=False)

    for refused in (path, link):
        with pytest.raises(privacy.NotPrivateError, match=f"belongs to user {ANOTHER}"):
            privacy.make_directory(refused)
    assert mode_of(path) == 0o755


def test_a_directory_behind_a_link_of_ones_own_is_taken(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)

    privacy.make_directory(tmp_path / "link")


def test_a_file_is_made_for_its_user_alone_and_an_old_one_is_closed_to_others(
    tmp_path: Path,
) -> None:
    for name in ("new", "old"):
        path = tmp_path / name
        if name == "old":
            path.write_bytes(b"kept")
            path.chmod(0o644)

        os.close(privacy.open_file(path, os.O_RDWR))

        assert mode_of(path) == 0o600
    assert (tmp_path / "old").read_bytes() == b"kept"


def test_a_link_and_what_is_no_file_are_refused_and_nothing_behind_is_changed(
    tmp_path: Path,
) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    victim.chmod(0o644)
    (tmp_path / "link").symlink_to(victim)
    (tmp_path / "dangling").symlink_to(tmp_path / "made")
    os.mkfifo(tmp_path / "fifo")

    for name, why in (
        ("link", "symbolic link"),
        ("dangling", "symbolic link"),
        ("fifo", "not a reg"),
    ):
        with pytest.raises(privacy.NotPrivateError, match=why):
            privacy.open_file(tmp_path / name, os.O_RDWR)
        with pytest.raises(privacy.NotPrivateError):
            privacy.check_file(tmp_path / name)
    assert (victim.read_bytes(), mode_of(victim)) == (b"precious", 0o644)
    assert not (tmp_path / "made").exists()
    privacy.check_file(tmp_path / "not there")


@root_only
def test_a_file_of_somebody_else_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "theirs"
    path.write_bytes(b"")
    path.chmod(0o644)
    os.chown(path, ANOTHER, ANOTHER)

    with pytest.raises(privacy.NotPrivateError, match=f"belongs to user {ANOTHER}"):
        privacy.open_file(path, os.O_RDWR)
    assert mode_of(path) == 0o644


# --- who uses it -------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["", ".lock", "-wal", "-shm", "-journal"])
def test_a_catalog_behind_a_link_is_refused(tmp_path: Path, suffix: str) -> None:
    victim, path = tmp_path / "victim", tmp_path / "state" / "catalog.sqlite"
    victim.write_bytes(b"")
    victim.chmod(0o644)
    path.parent.mkdir()
    Path(f"{path}{suffix}").symlink_to(victim)

    with pytest.raises(CatalogError, match=r"link|regular") as caught:
        Catalog(path)

    assert "\n" not in str(caught.value)
    assert (victim.read_bytes(), mode_of(victim)) == (b"", 0o644)


def test_a_catalog_and_a_log_are_for_their_user_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with closing(Catalog(tmp_path / "catalog")) as catalog, catalog.change():
            pass
        code = (
            "import logging, sys; from pathlib import Path; from keepfs.mount import logs;"
            " logs.start('INFO', Path(sys.argv[1])); logging.error('a line')"
        )
        subprocess.run([sys.executable, "-c", code, tmp_path / "log"], check=True)
    finally:
        os.umask(before)

    assert {mode_of(it) for it in tmp_path.iterdir()} == {0o600}
    assert "a line" in (tmp_path / "log").read_text()


def test_a_log_behind_a_link_is_refused_but_a_device_is_taken(tmp_path: Path) -> None:
    (tmp_path / "log").symlink_to(tmp_path / "made")

    with pytest.raises(privacy.NotPrivateError, match="symbolic link"):
        logs.start("INFO", tmp_path / "log")

    assert not (tmp_path / "made").exists()
    code = (
        "from pathlib import Path; from keepfs.mount import logs;"
        " logs.start('INFO', Path('/dev/null'))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_core_dump_is_written_of_a_process_that_forbids_it() -> None:
    code = (
        "import ctypes, resource; from keepfs import privacy; privacy.forbid_core_dumps();"
        " print(resource.getrlimit(resource.RLIMIT_CORE)[0], ctypes.CDLL(None).prctl(3, 0, 0, 0))"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)

    assert done.stdout == b"0 0\n"  # of the limit, and of PR_GET_DUMPABLE
