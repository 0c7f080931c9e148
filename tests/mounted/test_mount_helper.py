"""mount(8), umount(8) and /etc/fstab with the helpers that keepfs installs."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.keepstore import (
    TEST_TOKEN,
    ApiControls,
    Authority,
    KeepstoreControls,
    Listening,
    ServiceEntry,
)
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


def test_findmnt_shows_the_api_host_of_a_cluster(unmounted: KeepfsMount) -> None:
    authority = Authority(unmounted.base)
    with (
        KeepstoreControls() as store,
        ApiControls(listening=Listening(tls=authority.certify())) as api,
    ):
        api.list_services([ServiceEntry.of(store.url, 0)])
        (unmounted.base / "token").write_text(TEST_TOKEN)
        unmounted.env = {"SSL_CERT_FILE": str(authority.bundle), "CLUSTER": api.host}
        done = in_namespace(
            unmounted,
            """
            mount -t keepfs -o _netdev,copies=1,token-file="$1/../token" "$CLUSTER" "$mnt"
            echo hello >"$mnt/upload/f"
            findmnt -n -o SOURCE,FSTYPE "$mnt"
            cat "$mnt/upload/f"
            umount "$mnt"
            """,
        )

    assert (done.returncode, done.stderr) == (0, "")
    shown, read = done.stdout.splitlines()
    assert (shown.split(), read) == ([api.host, "fuse.keepfs"], "hello")


#: Serves an automount point as systemd does: a program lists the point, the helper runs in the
#: process group that the kernel admits, and after the mount an ioctl ends the wait.
_ON_AN_AUTOMOUNT_POINT = """
import ctypes, fcntl, os, struct, subprocess, sys
helper, keepfs, store, path = sys.argv[1:]
os.mkdir(path)
reading, writing = os.pipe()
options = f"fd={writing},pgrp={os.getpgrp()},minproto=5,maxproto=5,direct"
libc = ctypes.CDLL(None, use_errno=True)
if libc.mount(b"autofs", os.fsencode(path), b"autofs", 0, options.encode()):
    print("no autofs:", os.strerror(ctypes.get_errno()))
    sys.exit()
point = os.open(path, os.O_RDONLY)
listing = subprocess.Popen(["ls", path], start_new_session=True)
token = struct.unpack_from("II", os.read(reading, 4096), 4)[1]
mounting = subprocess.Popen([helper, store, path, "-o", "rw"])
try:
    code = mounting.wait(60)
except subprocess.TimeoutExpired:
    os.close(reading)  # ends the waits in the kernel
    raise
fcntl.ioctl(point, 0x9360, token)  # AUTOFS_IOC_READY
print(code, listing.wait(), flush=True)
os.close(point)
print(subprocess.run([keepfs, "unmount", path]).returncode)
print([line.split()[2] for line in open("/proc/mounts") if line.split()[1] == path])
"""


def test_an_automount_point_can_be_mounted_on(unmounted: KeepfsMount) -> None:
    done = subprocess.run(
        [
            *("unshare", "--mount", "--propagation", "private", sys.executable, "-c"),
            *(_ON_AN_AUTOMOUNT_POINT, HELPER, HELPER.with_name("keepfs")),
            *(unmounted.store, unmounted.path),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=2 * PATIENCE,
        env={**unmounted.environment, "KEEPFS_STATE_DIR": str(unmounted.base / "state")},
    )
    if done.stdout.startswith("no autofs"):
        pytest.skip(done.stdout)

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        *("README", "by_id", "collections", "upload"),
        *("0 0", "0"),
        "['autofs']",
    ]


def closed_to_others() -> list[Path]:
    """Return directories of root's that lead to this Python and to keepfs, the topmost ones."""
    needed = [Path(sys.base_prefix), Path(sys.prefix), Path(__file__).parents[2]]
    return [
        next(each for each in reversed([path, *path.parents]) if not each.stat().st_mode & 0o001)
        for path in needed
        if any(not each.stat().st_mode & 0o001 for each in [path, *path.parents])
    ]


def test_a_user_mounts_a_line_of_fstab_with_the_option_users(
    unmounted: KeepfsMount, open_device: None
) -> None:
    del open_device
    for parent in (unmounted.base, *list(unmounted.base.parents)[:3]):  # pytest's own
        if not parent.stat().st_mode & stat.S_IXOTH:
            parent.chmod(0o755)
    # Where root's home has the interpreter, another directory in its place has it as well.
    hidden = sorted(set(closed_to_others()))
    needed = [Path(sys.base_prefix), Path(sys.prefix), Path(__file__).parents[2]]
    show = ""
    for number, path in enumerate(it for it in needed if any(map(it.is_relative_to, hidden))):
        show += f'mkdir "$1/shown{number}"; mount --bind "{path}" "$1/shown{number}"\n'
    for path in hidden:
        show += f'mount -t tmpfs -o mode=755 tmpfs "{path}"\n'
    for number, path in enumerate(it for it in needed if any(map(it.is_relative_to, hidden))):
        show += f'mkdir -p "{path}"; mount --bind "$1/shown{number}" "{path}"\n'

    done = in_namespace(
        unmounted,
        show
        + """
        chmod 755 "$1"; mkdir "$1/home" "$blocks"; chown nobody "$1/home" "$blocks" "$mnt"
        echo "$blocks $mnt keepfs noauto,users,state-dir=$1/home/state 0 0" >/etc/fstab
        cat >"$1/as-user" <<'END'
        set -eu
        export HOME="$1/home" XDG_RUNTIME_DIR="$1/home"
        cd /
        unset KEEPFS_STATE_DIR
        # Coverage's own data file is where another user can't write.
        for name in $(env | sed -n 's/^\\(COVERAGE[A-Z_]*\\)=.*/\\1/p'); do unset "$name"; done
        mount "$2"
        echo hello >"$2/upload/f"
        stat -c '%U %a' "$2/upload/f"
        findmnt -n -o SOURCE,FSTYPE "$2"
        umount "$2"
        ! findmnt "$2"
END
        setpriv --reuid nobody --regid nogroup --clear-groups sh "$1/as-user" "$1" "$mnt"
        """,
    )

    assert (done.returncode, done.stderr) == (0, "")
    owner, shown = done.stdout.splitlines()
    source, kind = shown.split()
    assert owner == "nobody 644"
    assert (Path(source).name, kind) == ("blocks", "fuse.keepfs")


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
