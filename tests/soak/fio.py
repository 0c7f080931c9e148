"""fio with --verify: jobs write at random places, and every byte is read back and checked."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tests.mounted.mounts import mounted
from tests.soak.arguments import numbers_and_seed

if TYPE_CHECKING:
    from tests.mounted.mounts import KeepfsMount

#: A random read has a whole block fetched and verified, and a random write into a
#: block that is stored already reads it back first; so both want the whole of
#: their files in memory: 1 GiB takes 11 s so, and with the default cache it was
#: not read back after four minutes.
OPTIONS = ("--staging-size", "2GiB", "--cache-size", "2GiB")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What fio did, all jobs together.

    Attributes:
        written: MiB.
        verified: MiB read back.
        seconds: For both.
    """

    written: float
    verified: float
    seconds: float


def why_no_fio() -> str | None:
    """Say why fio can't be run here, or None where it can."""
    return None if shutil.which("fio") else "there is no fio: apt-get install fio"


def soak(mount: KeepfsMount, mebibytes: int, jobs: int, seed: int) -> Outcome:
    """Let jobs write their share each, in pieces of all sizes, and verify it; then remount.

    After the remount everything is verified once more, and by locator.

    Raises:
        AssertionError: fio found bytes that it hasn't written, or another error.
    """
    options = [
        *("--name=fio", f"--directory={mount.upload}", "--rw=randwrite", "--ioengine=psync"),
        *(f"--size={mebibytes // jobs}m", f"--numjobs={jobs}", "--bsrange=4k-256k"),
        *("--verify=md5", "--verify_fatal=1", f"--randseed={seed}", "--create_on_open=1"),
        *("--group_reporting", "--output-format=json"),
    ]
    begin = time.monotonic()
    first = _fio(mount, *options, "--do_verify=1", "--end_fsync=1")
    seconds = time.monotonic() - begin
    done = mount.unmount()
    assert (done.returncode, done.stderr) == (0, b"")
    mount.mount()
    _fio(mount, *options, "--verify_only=1")
    for path in mount.upload.iterdir():
        by_id = mount.by_id / mount.locator(path)
        assert subprocess.run(["cmp", path, by_id], check=False).returncode == 0
    return Outcome(first["write"]["io_kbytes"] / 1024, first["read"]["io_kbytes"] / 1024, seconds)


def _fio(mount: KeepfsMount, *options: str) -> dict[str, dict[str, float]]:
    # It leaves notes of its own where it is started.
    done = subprocess.run(
        ["fio", *options], capture_output=True, text=True, check=False, cwd=mount.base
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr + done.stdout[-2000:]
    (job,) = json.loads(done.stdout)["jobs"]
    assert job["error"] == 0
    found: dict[str, dict[str, float]] = job
    return found


def main() -> int:
    """Run as a script."""
    if (reason := why_no_fio()) is not None:
        click.echo(f"soak-fio: {reason}", err=True)
        return 2
    mebibytes, jobs, seed = numbers_and_seed(1024, 4)
    with (
        tempfile.TemporaryDirectory() as base,
        mounted(Path(base), *OPTIONS) as mount,
    ):
        outcome = soak(mount, mebibytes, jobs, seed)
    click.echo(
        f"{jobs} jobs, {outcome.written:.0f} MiB written at random places and"
        f" {outcome.verified:.0f} MiB verified in {outcome.seconds:.0f} s; after a remount"
        " verified again, and by locator: no difference"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
