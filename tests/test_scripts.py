"""The scripts and units that are shipped work as they say."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.mounted.mounts import why_no_mounts

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    "script", sorted([*(ROOT / "scripts").iterdir(), ROOT / ".ci" / "run"]), ids=lambda it: it.name
)
def test_every_script_can_be_run_and_is_a_shell_script_without_errors(script: Path) -> None:
    assert os.access(script, os.X_OK)
    done = subprocess.run(["sh", "-n", script], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.fuse
@pytest.mark.slow
def test_the_quickstart_stores_a_file_and_reads_it_back(tmp_path: Path) -> None:
    if (reason := why_no_mounts()) is not None and os.environ.get("CI") != "true":
        pytest.skip(reason)
    environment = {**os.environ, "HOME": str(tmp_path), "KEEPFS_STATE_DIR": str(tmp_path / "s")}

    for _ in range(2):
        done = subprocess.run(
            [ROOT / "scripts" / "quickstart", "--once"],
            capture_output=True,
            text=True,
            check=False,
            env=environment,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Equal, and every byte verified." in done.stdout
        locator = re.search("Its locator: ([0-9a-f]{32})[+][0-9]+$", done.stdout, re.MULTILINE)
        assert locator is not None
        stored = tmp_path / ".local" / "share" / "keepfs" / locator[1]
        assert stored.read_bytes() == (ROOT / "README.md").read_bytes()
    assert str(tmp_path / "keep") not in Path("/proc/self/mountinfo").read_text()


def test_the_quickstart_knows_its_options() -> None:
    done = subprocess.run(
        [ROOT / "scripts" / "quickstart", "--twice"], capture_output=True, text=True, check=False
    )

    assert done.returncode == 2
    assert "unknown option --twice" in done.stderr


def test_the_unit_is_one_that_systemd_understands(tmp_path: Path) -> None:
    unit = (ROOT / "systemd" / "keepfs@.service").read_text()
    for line in (
        "Type=notify",
        "ExecStart=/usr/bin/env keepfs mount --foreground %f",
        "ExecReload=/bin/kill -HUP $MAINPID",
        "SyslogIdentifier=keepfs",
        "RestartPreventExitStatus=2 127",
    ):
        assert line in unit.splitlines()
    if shutil.which("systemd-analyze") is None:
        return
    (tmp_path / "keepfs@mnt-keep.service").write_text(unit)

    done = subprocess.run(
        ["systemd-analyze", "verify", tmp_path / "keepfs@mnt-keep.service"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert "keepfs@" not in done.stderr


def test_the_systemd_script_knows_its_options() -> None:
    done = subprocess.run(
        [ROOT / "scripts" / "test-systemd", "--twice"], capture_output=True, text=True, check=False
    )

    assert done.returncode == 2
    assert "unknown option --twice" in done.stderr


def test_readmes_steps_for_a_service_are_those_that_the_systemd_script_runs() -> None:
    readme = (ROOT / "README.md").read_text()
    script = (ROOT / "scripts" / "test-systemd").read_text()
    assert "commands_after 'As a service, as root'" in script
    assert re.search(
        r"^System packages \(Debian's names\): `[a-z0-9 -]*\bpipx\b", readme, re.MULTILINE
    )

    section = readme.partition("\nAs a service, as root")[2].partition("\nFrom Python")[0]
    steps = re.findall("^    # (.*)$", section, re.MULTILINE)

    assert any("pipx install ." in step for step in steps)
    assert "cp systemd/keepfs@.service /etc/systemd/system/" in steps
    assert steps.index("systemctl daemon-reload") < next(
        at for at, step in enumerate(steps) if step.startswith("systemctl enable --now keepfs@")
    )
