"""Take the Keep services away in the middle of a copy, and bring them back.

cp's errors are reported, and in the end every byte is in Keep, without
anybody's help.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from tests.keepstore import TEST_TOKEN, KeepstoreControls
from tests.mounted.mounts import KeepfsMount, wait_until


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of the copy.

    Attributes:
        files: Copied.
        failed: Of those, the ones whose close reported an error.
        recovery: Seconds from the services' return until all was stored.
    """

    files: int
    failed: int
    recovery: float


def soak(base: Path, seconds: float, files: int) -> Outcome:
    """Copy files while the services are away for a while.

    Raises:
        AssertionError: Something isn't stored in the end, or differs.
    """
    with KeepstoreControls() as one, KeepstoreControls() as two:
        mount = KeepfsMount(base, is_local=False)
        mount.env = {
            "ARVADOS_KEEP_SERVICES": f"{one.url} {two.url}",
            "ARVADOS_API_TOKEN": TEST_TOKEN,
        }
        mount.options = ("--retries", "0")
        try:
            mount.mount()
            return _copy(mount, (one, two), seconds, files)
        finally:
            mount.clean_up()


def _copy(
    mount: KeepfsMount, services: tuple[KeepstoreControls, ...], seconds: float, files: int
) -> Outcome:
    contents = [os.urandom(1000 + number) for number in range(files)]
    returned: list[float] = []

    def bring_back() -> None:
        for service in services:
            service.come_back()
        returned.append(time.monotonic())

    failed = 0
    timer = threading.Timer(seconds, bring_back)
    for number, content in enumerate(contents):
        if number == files // 3:
            for service in services:
                service.go_down()
            timer.start()
        if number == 2 * files // 3:
            timer.join()
        try:
            (mount.upload / str(number)).write_bytes(content)
        except OSError:
            failed += 1
    paths = [mount.upload / str(number) for number in range(files)]
    wait_until(lambda: all(_is_stored(path) for path in paths), patience=300)
    recovery = time.monotonic() - returned[0]
    for path, content in zip(paths, contents, strict=True):
        assert (mount.by_id / mount.locator(path)).read_bytes() == content
    return Outcome(files, failed, recovery)


def _is_stored(path: Path) -> bool:
    return os.getxattr(path, "user.keep.state") == b"stored"


def main() -> int:
    """Run as a script."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 60.0
    with tempfile.TemporaryDirectory() as base:
        outcome = soak(Path(base), seconds, files=300)
    print(
        f"{outcome.files} files copied, services away for {seconds:.0f} s in the middle:"
        f" {outcome.failed} closes reported an error, all files stored and read back"
        f" {outcome.recovery:.1f} s after the services' return"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
