"""What is mounted where, and who holds it: as the kernel says, without a look into the mount."""

from __future__ import annotations

import contextlib
import mmap
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from keepfs.mount import mountpoint
from keepfs.mount.mountpoint import BusyProcess, MountEntry, MountpointError

if TYPE_CHECKING:
    from collections.abc import Iterator

# Characters that end a line for Python, but not for the kernel; and what the kernel escapes.
ODD_NAME = "odd \t\n\\ # \r \x0b \x0c \x1c \x85 \u2028 - \udcff"


def can_mount() -> bool:
    """Tell whether this process may mount, in a mount namespace of its own."""
    done = subprocess.run(
        ["unshare", "-m", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, check=False
    )
    return done.returncode == 0


needs_mounts = pytest.mark.skipif(not can_mount(), reason="unshare -m mount: not allowed")


def in_mount_namespace(code: str, *arguments: str) -> list[str]:
    """Run code where mounts are its own affair; return the lines it prints."""
    imports = (
        "import os, subprocess, sys\nfrom pathlib import Path\nfrom keepfs.mount import mountpoint"
    )
    done = subprocess.run(
        [
            *("unshare", "-m", sys.executable, "-c"),
            f"{imports}\n{code}",
            *arguments,
        ],
        capture_output=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    return done.stdout.decode().splitlines()


@contextlib.contextmanager
def holding(code: str, *arguments: str) -> Iterator[int]:
    """Run a process that does something and waits; yield its number."""
    script = f"import os, sys\n{code}\nprint('ready', flush=True)\nsys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield process.pid
        finally:
            process.kill()


# --- paths ---------------------------------------------------------------------


def test_a_path_is_made_absolute_and_followed_to_the_mount_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    monkeypatch.chdir(tmp_path)

    assert mountpoint.resolve(Path("link/mnt")) == tmp_path / "real/mnt"
    assert mountpoint.resolve(Path("real/../real/mnt/")) == tmp_path / "real/mnt"
    assert mountpoint.resolve(Path("/")) == Path("/")
    assert mountpoint.resolve(Path("/..")) == Path("/")


def test_a_symlink_to_a_mount_point_leads_to_the_name_the_kernel_uses(tmp_path: Path) -> None:
    (tmp_path / "mnt").mkdir()
    (tmp_path / "relative").symlink_to("mnt")
    (tmp_path / "absolute").symlink_to(tmp_path / "relative")

    assert mountpoint.resolve(tmp_path / "absolute") == tmp_path / "mnt"


def test_a_loop_of_symlinks_is_returned_unresolved(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")

    resolved = mountpoint.resolve(tmp_path / "loop")
    inside = mountpoint.resolve(tmp_path / "loop/mnt")

    assert resolved == tmp_path / "loop"
    assert inside.name == "mnt"
    with pytest.raises(MountpointError, match="Too many levels of symbolic links"):
        mountpoint.check_usable(resolved, nonempty=False)


@needs_mounts
def test_resolving_does_not_access_the_mount(tmp_path: Path) -> None:
    # readlink is the exception: of a mount point the kernel answers it itself.
    calls = in_mount_namespace(
        """
subprocess.run(["mount", "-t", "tmpfs", "none", sys.argv[1]], check=True)
os.symlink("elsewhere", sys.argv[1] + "/entry")
asked = []
for name in ("stat", "lstat", "readlink", "scandir", "open"):
    def asking(path, *args, name=name, call=getattr(os, name), **kwargs):
        asked.append((name, os.fspath(path)))
        return call(path, *args, **kwargs)
    setattr(os, name, asking)
mountpoint.resolve(Path(sys.argv[1]))
print([name for name, path in asked if path == sys.argv[1]])
print([path for _, path in asked if path.startswith(sys.argv[1] + "/")])
""",
        str(tmp_path),
    )

    assert calls == ["['readlink']", "[]"]


# --- mounts --------------------------------------------------------------------


def test_the_root_is_mounted_and_a_plain_directory_is_not(tmp_path: Path) -> None:
    found = mountpoint.mounts()

    assert Path("/") in {entry.mountpoint for entry in found}
    assert Path("/proc") in {entry.mountpoint for entry in found}
    assert all(":" in entry.device and entry.kind for entry in found)
    assert mountpoint.mounted_at(tmp_path) is None


@needs_mounts
def test_a_mount_point_is_found_whatever_its_name(tmp_path: Path) -> None:
    odd = tmp_path / ODD_NAME
    odd.mkdir()

    lines = in_mount_namespace(
        """
path = Path(sys.argv[1])
subprocess.run(["mount", "-t", "tmpfs", "none", sys.argv[1]], check=True)
print(mountpoint.mounted_at(path).kind)
print(mountpoint.mounted_at(mountpoint.resolve(path)).mountpoint == path)
""",
        str(odd),
    )

    assert lines == ["tmpfs", "True"]


@needs_mounts
def test_of_stacked_mounts_the_topmost_is_returned(tmp_path: Path) -> None:
    lines = in_mount_namespace(
        """
for kind in ("tmpfs", "ramfs"):
    subprocess.run(["mount", "-t", kind, "none", sys.argv[1]], check=True)
print(mountpoint.mounted_at(Path(sys.argv[1])).kind)
""",
        str(tmp_path),
    )

    assert lines == ["ramfs"]


def test_places_of_an_unmounted_device_number_are_not_those_of_the_next_mount(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def mounted_at(*paths: str) -> None:
        entries = [MountEntry(Path(it), "0:42", mountpoint.FILE_SYSTEM_TYPE) for it in paths]
        monkeypatch.setattr(mountpoint, "mounts", lambda: entries)

    mounted_at("/mine", "/bound", "/bound")
    places = mountpoint.places_of("0:42")
    mounted_at("/bound", "/bound")
    left = mountpoint.still_mounted(places, "0:42")
    mounted_at("/next")
    later = mountpoint.still_mounted(places, "0:42")

    assert left == [Path("/bound")]
    assert later == []
    assert mountpoint.still_mounted(places, "0:43") == []


@needs_mounts
def test_unmounting_a_busy_mount_fails_unless_it_is_lazy(tmp_path: Path) -> None:
    lines = in_mount_namespace(
        """
path = Path(sys.argv[1])
subprocess.run(["mount", "-t", "tmpfs", "none", sys.argv[1]], check=True)
file = open(path / "file", "w")
try:
    mountpoint.detach(path)
except mountpoint.MountpointError as error:
    print(error)
print([holder.path for holder in mountpoint.holders(mountpoint.mounted_at(path))])
mountpoint.detach(path, lazy=True)
print(mountpoint.mounted_at(path))
""",
        str(tmp_path),
    )

    assert lines[0].startswith(f"can't unmount {tmp_path}: ")
    assert "busy" in lines[0]
    assert lines[1:] == [repr([f"{tmp_path}/file"]), "None"]


def test_unmounting_an_unmounted_path_fails_with_the_tools_message(tmp_path: Path) -> None:
    with pytest.raises(MountpointError, match=r"can't unmount .*: .*not (mounted|found)"):
        mountpoint.detach(tmp_path)


def test_unmounting_without_the_tool_fails_with_a_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(MountpointError, match="No such file or directory"):
        mountpoint.detach(tmp_path)


def test_a_directory_that_answers_is_not_dead(tmp_path: Path) -> None:
    assert not mountpoint.is_dead(tmp_path)
    assert not mountpoint.is_dead(tmp_path / "none")


# --- what can be mounted on --------------------------------------------------------


def test_an_empty_directory_can_be_mounted_on(tmp_path: Path) -> None:
    mountpoint.check_usable(tmp_path, nonempty=False)


def test_a_directory_with_entries_needs_nonempty(tmp_path: Path) -> None:
    (tmp_path / "entry").touch()

    with pytest.raises(MountpointError, match="isn't empty, and its files would be hidden"):
        mountpoint.check_usable(tmp_path, nonempty=False)
    mountpoint.check_usable(tmp_path, nonempty=True)


def test_an_unusable_mount_point_is_reported_with_a_remedy(tmp_path: Path) -> None:
    none, file = tmp_path / "none", tmp_path / "file"
    file.touch()

    with pytest.raises(MountpointError, match=f"{none} doesn't exist: mkdir -p {none}"):
        mountpoint.check_usable(none, nonempty=False)
    with pytest.raises(MountpointError, match=f"{file}: it isn't a directory"):
        mountpoint.check_usable(file, nonempty=True)
    with pytest.raises(MountpointError, match=f"can't use .* {file}/x: Not a directory"):
        mountpoint.check_usable(file / "x", nonempty=False)


# --- who holds it ------------------------------------------------------------------


def entry_of(path: Path) -> MountEntry:
    return MountEntry(path, "0:99", "fuse.keepfs")


def test_the_user_that_mounted_is_known_without_the_kernels_control_files() -> None:
    fuse = [each for each in mountpoint.mounts() if each.kind == "fuseblk" or each.user_id is None]

    assert all(not each.kind.startswith("fuse.") for each in fuse)
    nobodys = MountEntry(Path("/x"), "0:none", "fuse.keepfs", "/", 4294967)
    assert mountpoint.other_owner(nobodys) == "4294967"
    for mine in (os.geteuid(), None):
        entry = MountEntry(Path("/x"), "0:none", "fuse.keepfs", "/", mine)
        assert mountpoint.other_owner(entry) is None


def test_open_files_working_directories_and_mappings_are_holders(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "file").write_bytes(bytes(mmap.PAGESIZE))
    mapping = (
        "import mmap\nfile = open(sys.argv[1])\n"
        "mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)\nfile.close()"
    )
    with (
        holding("file = open(sys.argv[1])", str(tmp_path / "file")) as opener,
        holding("os.chdir(sys.argv[1])", str(tmp_path / "deep")) as visitor,
        holding("os.chdir(sys.argv[1])", str(tmp_path)) as lodger,
        holding(mapping, str(tmp_path / "file")) as mapper,
        holding("pass"),
    ):
        found = mountpoint.holders(entry_of(tmp_path))

    expected = {
        opener: f"{tmp_path}/file",
        visitor: f"{tmp_path}/deep",
        lodger: str(tmp_path),
        mapper: f"{tmp_path}/file",
    }
    assert {holder.pid: holder.path for holder in found} == expected
    assert [holder.pid for holder in found] == sorted(expected)
    assert all(holder.command.startswith("python") for holder in found)


def test_a_directory_with_a_longer_name_is_no_holder(tmp_path: Path) -> None:
    mount = tmp_path / "mnt"
    other = tmp_path / "mnt2"
    other.mkdir()
    with holding("os.chdir(sys.argv[1])", str(other)):
        assert mountpoint.holders(entry_of(mount)) == []


def test_undecodable_names_hide_no_holder(tmp_path: Path) -> None:
    odd = tmp_path / ODD_NAME
    odd.mkdir()
    (odd / "mapped").write_bytes(bytes(mmap.PAGESIZE))
    code = (
        "import mmap\nopen('/proc/self/comm', 'wb').write(b'caf\\xc3')\n"
        "file = open(sys.argv[1])\n"
        "mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)\nfile.close()"
    )
    with holding(code, str(odd / "mapped")) as pid:
        found = mountpoint.holders(entry_of(odd.parent))

    assert [(holder.pid, holder.command) for holder in found] == [(pid, "caf�")]


def test_a_holder_has_pid_command_and_path(tmp_path: Path) -> None:
    with holding("os.chdir(sys.argv[1])", str(tmp_path)) as pid:
        (holder,) = mountpoint.holders(entry_of(tmp_path))

        command = Path(f"/proc/{pid}/comm").read_text().strip()
    assert holder == BusyProcess(pid, command, os.fspath(tmp_path))
