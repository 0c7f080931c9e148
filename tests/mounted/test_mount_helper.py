"""mount(8), umount(8) and /etc/fstab with the helpers that keepfs installs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mounted.mounts import PATIENCE, KeepfsMount

HELPER = Path(sys.executable).with_name("mount.keepfs")
pytestmark = [
    pytest.mark.fuse,
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="mount(8) mounts for root"),
    pytest.mark.skipif(not HELPER.exists(), reason="keepfs isn't installed beside Python"),
]

# A mount namespace of its own, in which /usr/sbin has the helpers and /etc/fstab is the test's.
_PRELUDE = """
set -eu
mkdir "$1/upper" "$1/work"
mount -t overlay -o "lowerdir=$(readlink -f /sbin),upperdir=$1/upper,workdir=$1/work" overlay \
    "$(readlink -f /sbin)"
touch "$1/fstab"; mount --bind "$1/fstab" /etc/fstab
"$2" service mount-helper >/dev/null
mnt=$1/mnt blocks=$1/blocks; mkdir -p "$mnt"
"""


def in_namespace(mount: KeepfsMount, script: str) -> subprocess.CompletedProcess[str]:
    """Run a shell script; $mnt is a mount point, and $blocks a local store."""
    base = mount.base / "overlay"
    base.mkdir()
    # An overlay has no overlay below.
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", base], check=True)
    try:
        return subprocess.run(
            [
                *("unshare", "--mount", "--propagation", "private", "sh", "-c"),
                *(_PRELUDE + script, "sh", str(base), str(HELPER.with_name("keepfs"))),
            ],
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
            env={**mount.environment, "KEEPFS_STATE_DIR": str(mount.base / "state")},
        )
    finally:
        subprocess.run(["umount", "-l", base], check=True)


def test_mount_and_umount_use_the_helpers(unmounted: KeepfsMount) -> None:
    done = in_namespace(
        unmounted,
        """
        mount -t keepfs -o cache-size=64M,noexec "$blocks" "$mnt"
        findmnt -n -o SOURCE,FSTYPE,OPTIONS "$mnt"
        cp /etc/hostname "$mnt/upload/f"
        umount "$mnt"            # waits: the state directory can be claimed at once
        mount -t fuse.keepfs -o ro "$blocks" "$mnt"
        cmp /etc/hostname "$mnt/upload/f"; echo same
        umount -l "$mnt"
        """,
    )

    assert (done.returncode, done.stderr) == (0, "")
    shown, same = done.stdout.splitlines()
    source, kind, options = shown.split()
    assert (Path(source).name, kind, same) == ("blocks", "fuse.keepfs", "same")
    assert {"noexec", "nosuid", "nodev", "rw"} <= set(options.split(","))


def test_a_line_of_fstab_mounts(unmounted: KeepfsMount) -> None:
    done = in_namespace(
        unmounted,
        """
        options=rw,_netdev,nofail,noauto,users,x-systemd.automount,allow_other,umask=002
        echo "$blocks $mnt keepfs $options 0 0" >/etc/fstab
        mount "$mnt"
        stat -c %a "$mnt/upload"
        umount "$mnt"
        """,
    )

    assert (done.returncode, done.stderr, done.stdout) == (0, "", "775\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("colour=blue", "unknown option: -o colour"),
        ("remount", "can't be changed"),
        ("suid", "never get their owner's rights"),
        ("copies", "-o copies needs a value"),
    ],
)
def test_an_unknown_option_is_refused_by_name(
    unmounted: KeepfsMount, options: str, message: str
) -> None:
    unmounted.path.mkdir()

    done = subprocess.run(
        [HELPER, unmounted.store, unmounted.path, "-o", f"rw,{options}"],
        capture_output=True,
        text=True,
        check=False,
        env=unmounted.environment,
    )

    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unknown_option_is_ignored_by_a_sloppy_mount(unmounted: KeepfsMount) -> None:
    unmounted.path.mkdir()
    unmounted.env["KEEPFS_STATE_DIR"] = str(unmounted.base / "state")

    done = subprocess.run(
        [HELPER, unmounted.store, unmounted.path, "-s", "-o", "rw,colour=blue,umask=077"],
        capture_output=True,
        text=True,
        check=False,
        env=unmounted.environment,
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert unmounted.upload.stat().st_mode & 0o777 == 0o700
    assert unmounted.unmount().returncode == 0


def test_the_token_of_one_cluster_is_not_sent_to_another(unmounted: KeepfsMount) -> None:
    unmounted.path.mkdir()
    unmounted.env = {"ARVADOS_API_HOST": "one.invalid", "ARVADOS_API_TOKEN": "v2/x/y"}

    done = subprocess.run(
        [HELPER, "two.invalid", unmounted.path],
        capture_output=True,
        text=True,
        check=False,
        env=unmounted.environment,
    )

    assert done.returncode == 1
    assert "the settings have the token of one.invalid" in done.stderr
    assert "token-file=FILE" in done.stderr


def test_a_wrong_call_shows_the_usage(unmounted: KeepfsMount) -> None:
    for arguments in ([], ["one"], ["one", "two", "three"], ["--colour"], ["a", "b", "-N", "1"]):
        done = subprocess.run(
            [HELPER, *arguments],
            capture_output=True,
            text=True,
            check=False,
            env=unmounted.environment,
        )
        assert done.returncode == 1
        assert done.stderr.startswith("mount.keepfs: ")
