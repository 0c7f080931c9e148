"""keepfs mount --exec: a program in a mount that is there as long as it runs."""

from __future__ import annotations

import os
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

from keepfs.collections.local_collections import LocalCollections
from keepfs.keep.local import LocalStore
from tests.mounted.mounts import PATIENCE, KeepfsMount, wait_until
from tests.mounted.packing import packed

if TYPE_CHECKING:
    from pathlib import Path


def execute(
    mount: KeepfsMount, *words: str, options: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[bytes]:
    """Run a program in the mount, to its end and that of the mount."""
    mount.path.mkdir(exist_ok=True)
    done = subprocess.run(
        [*mount.mount_command(*options), "--exec", *words],
        capture_output=True,
        check=False,
        timeout=PATIENCE,
        env=mount.environment,
    )
    assert not mount.is_mounted()
    with pytest.raises(LookupError):
        mount.pid()
    return done


def test_a_program_runs_in_the_mount_and_its_output_is_its_own(unmounted: KeepfsMount) -> None:
    done = execute(unmounted, "sh", "-c", "pwd; ls; echo wrong >&2; cp README upload/")

    assert (done.returncode, done.stderr) == (0, b"wrong\n")
    assert done.stdout == f"{unmounted.path}\nREADME\nby_id\ncollections\nupload\n".encode()
    done = execute(unmounted, "--", "cmp", "README", "upload/README")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (("sh", "-c", "exit 7"), 7),
        (("sh", "-c", "kill -TERM $$"), 128 + signal.SIGTERM),
        (("sh", "-c", "kill -KILL $$"), 128 + signal.SIGKILL),
        (("there-is-no-such-program",), 127),
        (("./README",), 126),
        (("ls", "--foreground", "-f"), 2),
    ],
)
def test_the_exit_status_is_the_programs(
    unmounted: KeepfsMount, words: tuple[str, ...], status: int
) -> None:
    done = execute(unmounted, *words)

    assert done.returncode == status
    assert b"Traceback" not in done.stderr


def test_a_signal_is_sent_on_to_the_program(unmounted: KeepfsMount) -> None:
    unmounted.path.mkdir()
    script = (
        "trap 'echo caught; exit 3' TERM; echo ready > upload/ready; while :; do sleep 0.1; done"
    )
    with subprocess.Popen(
        [*unmounted.mount_command(), "--exec", "sh", "-c", script],
        stdout=subprocess.PIPE,
        env=unmounted.environment,
    ) as process:
        wait_until((unmounted.upload / "ready").exists)
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=PATIENCE)

    assert (process.returncode, said) == (3, b"caught\n")
    assert not unmounted.is_mounted()


def test_processes_that_a_program_leaves_do_not_keep_the_mount(unmounted: KeepfsMount) -> None:
    done = execute(
        unmounted, "sh", "-c", "sleep 1000 >/dev/null 2>&1 & echo $! ; cp README upload/left"
    )

    os.kill(int(done.stdout), signal.SIGKILL)
    assert done.returncode == 0
    assert b"is busy" in done.stderr
    assert execute(unmounted, "cat", "upload/left").returncode == 0


def test_a_program_in_a_collection(unmounted: KeepfsMount, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "folder").mkdir(parents=True)
    (source / "folder" / "file").write_bytes(b"content")
    store = LocalStore(unmounted.store)
    manifest = packed(source, lambda block: str(store.put(block).locator))
    name = LocalCollections(unmounted.store).put(manifest).portable_data_hash

    done = execute(unmounted, "cat", "folder/file", options=("--collection", name))

    assert (done.returncode, done.stdout, done.stderr) == (0, b"content", b"")


def test_a_usage_error_is_reported_before_the_mount(unmounted: KeepfsMount) -> None:
    for words, options, said in (
        ((), (), b"--exec needs a program"),
        (("--",), (), b"--exec needs a program"),
        (("true",), ("-f",), b"--foreground"),
        (("true",), ("--collection", "0" * 32 + "+1"), b"not found"),
    ):
        done = execute(unmounted, *words, options=options)
        assert done.returncode != 0
        assert said in done.stderr
