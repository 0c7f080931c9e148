"""What /proc shows of client processes; `test_requests` has their signals."""

from __future__ import annotations

import os
import subprocess
import sys

from keepfs.fs.processes import supplementary_groups


def test_the_groups_of_a_process_are_its_own() -> None:
    code = "import os; os.setgroups([17, 4_000_000_000]); print(flush=True); input()"
    if os.getuid() != 0:
        code = "print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        found = supplementary_groups(process.pid)
        process.communicate(b"\n")

    assert found == ({17, 4_000_000_000} if os.getuid() == 0 else set(os.getgroups()))


def test_an_ended_process_has_no_groups() -> None:
    with subprocess.Popen(["true"]) as process:
        process.wait()

    assert supplementary_groups(process.pid) == frozenset()
