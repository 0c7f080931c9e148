"""keepfs service: units, the example configuration, and what an operator does next."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from keepfs.cli.fstab_words import split_words
from keepfs.mount.units import (
    WATCHDOG_SECONDS,
    ServicePlan,
    escaped_for_systemd,
    example_configuration,
    token_of_service,
)

ROOT = Path(__file__).parent.parent.parent
PATHS = ["/mnt/keep", "/", "/mnt/a-b/.c", "/.d", "/mnt/ü x", "/a\\b", "/a_b:c.d"]


def keepfs(home: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the command line without root's own places."""
    return subprocess.run(
        [sys.executable, "-m", "keepfs", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={"HOME": str(home), "PATH": os.environ["PATH"], **variables},
    )


@pytest.mark.parametrize("path", PATHS)
def test_a_mount_point_is_escaped_as_systemd_does(path: str) -> None:
    if shutil.which("systemd-escape") is None:
        pytest.skip("there is no systemd-escape")
    done = subprocess.run(
        ["systemd-escape", "--path", path], capture_output=True, text=True, check=True
    )

    assert escaped_for_systemd(Path(path)) == done.stdout.rstrip("\n")


def test_the_units_that_are_shipped_are_those_of_the_command() -> None:
    for name, text in ServicePlan(("/usr/bin/env", "keepfs")).files().items():
        assert (ROOT / "systemd" / name).read_text() == text


@pytest.mark.parametrize("is_user", [False, True])
def test_systemd_accepts_the_units(tmp_path: Path, *, is_user: bool) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("there is no systemd-analyze")
    program = tmp_path / "a b%c" / "keepfs"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    plan = ServicePlan((str(program),), Path("/mnt/keep"), Path("/etc/x y.toml"), is_user=is_user)
    for name, text in plan.files().items():
        (tmp_path / name).write_text(text)

    for name in plan.files():
        done = subprocess.run(
            ["systemd-analyze", "verify", *(["--user"] if is_user else []), tmp_path / name],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)},
        )
        assert str(tmp_path) not in done.stderr, done.stderr
        assert "keepfs" not in done.stderr, done.stderr


def test_the_service_is_restricted_as_far_as_a_mount_can_be(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("there is no systemd-analyze")
    path = tmp_path / "keepfs@mnt-keep.service"
    path.write_text(ServicePlan(("/usr/bin/env", "keepfs")).service())

    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=60", path],
        capture_output=True,
        text=True,
        check=False,
    )

    score = re.search(r"exposure level for .*: ([0-9.]+)", done.stdout)
    assert score is not None, done.stderr
    assert float(score[1]) < 6
    # In a mount namespace of its own the mount would be invisible.
    text = path.read_text()
    for directive in ("ProtectSystem", "ProtectHome", "Private", "ProtectKernel", "DynamicUser"):
        assert not re.search(f"^{directive}.*=", text, re.MULTILINE)
    assert f"WatchdogSec={WATCHDOG_SECONDS}\n" in text


def test_the_example_configuration_is_valid_with_each_of_its_settings(tmp_path: Path) -> None:
    text = example_configuration(Path('/mnt/a "b"\\'), "the file")
    assert tomllib.loads(text) == {'/mnt/a "b"\\': {}}
    used = re.sub("^#(?=[a-z-]+ = )", "", text, flags=re.MULTILINE)
    (table,) = tomllib.loads(used).values()
    assert {"local-store", "allow-other", "umask", "cache-size"} == set(table)
    file = tmp_path / "config.toml"
    file.write_text(used)

    done = keepfs(
        tmp_path, "put", "--config", str(file), "--local-store", str(tmp_path / "s"), "-"
    )

    assert (done.returncode, done.stderr) == (0, "")


def test_a_users_service_is_written_and_the_next_commands_printed(tmp_path: Path) -> None:
    mnt = tmp_path / "keep"
    done = keepfs(tmp_path, "service", "install", "--user", str(mnt))

    unit = tmp_path / ".config/systemd/user" / f"keepfs@{escaped_for_systemd(mnt)}.service"
    assert (done.returncode, done.stderr) == (0, "")
    program = Path(sys.executable).with_name("keepfs")
    text = unit.read_text()
    assert f"ExecStart={program} mount --foreground %f\n" in text
    assert "NoNewPrivileges=" not in re.sub("^#.*$", "", text, flags=re.MULTILINE)
    config = tmp_path / ".config/keepfs/config.toml"
    assert tomllib.loads(config.read_text()) == {str(mnt): {}}
    assert mnt.is_dir()
    commands = re.findall("^    (.*)$", done.stdout, re.MULTILINE)
    assert len(commands) == 2
    assert str(config) in commands[0]
    assert commands[1] == f"systemctl --user enable --now '{unit.name}'"

    config.write_text("# mine\n")
    again = keepfs(tmp_path, "service", "install", "--user", str(mnt))
    assert again.returncode == 0
    assert again.stdout.count("unchanged") == 3
    assert config.read_text() == "# mine\n"

    unit.write_text(text.replace("WatchdogSec", "# WatchdogSec"))  # of another version
    upgraded = keepfs(tmp_path, "service", "install", "--user", str(mnt))
    assert f"replaced {unit}" in upgraded.stdout
    commands = re.findall("^    (.*)$", upgraded.stdout, re.MULTILINE)
    assert commands == [
        "systemctl --user daemon-reload",
        f"systemctl --user restart '{unit.name}'",
    ]


def test_printing_writes_nothing(tmp_path: Path) -> None:
    done = keepfs(tmp_path, "service", "install", "--print", "/mnt/keep", "--config", "my.toml")

    assert (done.returncode, done.stderr) == (0, "")
    assert "# /etc/systemd/system/keepfs@mnt-keep.service\n" in done.stdout
    assert f"mount --config {Path.cwd()}/my.toml --foreground %f\n" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_service_finds_its_configuration_without_a_home(tmp_path: Path) -> None:
    """With the variables that systemd sets."""
    (tmp_path / "config.toml").write_text('colour = "blue"\n')
    command = [sys.executable, "-m", "keepfs", "mount", "-f", str(tmp_path / "mnt")]
    environment = {"PATH": os.environ["PATH"], "CONFIGURATION_DIRECTORY": str(tmp_path)}

    for text, code, message in (
        ('colour = "blue"', 2, "unknown key 'colour'"),
        (f'["{tmp_path}/mnt"]\ncopies = "many"', 2, "many"),
        (f'["{tmp_path}/other"]\ncolour = 1', 2, "unknown key 'colour'"),
        (f'["{tmp_path}/mnt"]\nlocal-store = "s"\nstate-dir = "state"', 1, "doesn't exist"),
    ):
        (tmp_path / "config.toml").write_text(text + "\n")
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env=environment
        )
        assert done.returncode == code, done.stderr
        assert message in done.stderr


def test_words_of_fstab_are_split_at_commas_but_not_in_values() -> None:
    assert split_words('ro,storage-classes="a,b",,x=c\\,d\\\\') == [
        "ro",
        "storage-classes=a,b",
        "x=c,d\\",
    ]


@pytest.mark.parametrize("name", ["mnt-keep.mount", "mnt-keep.automount"])
def test_systemd_accepts_the_units_of_the_fstab_document(tmp_path: Path, name: str) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("there is no systemd-analyze")
    document = (ROOT / "docs" / "fstab.md").read_text()
    for found in re.finditer(
        r"^    # (mnt-keep\.\w+)\n((?:    .*\n|\n(?=    ))+)", document, re.MULTILINE
    ):
        (tmp_path / found[1]).write_text(found[2].replace("    ", ""))

    done = subprocess.run(
        ["systemd-analyze", "verify", tmp_path / name], capture_output=True, text=True, check=False
    )

    assert "[Install]" in (tmp_path / name).read_text()
    assert "mnt-keep" not in done.stderr, done.stderr


def test_the_token_of_a_service_is_found_by_its_mount_point(tmp_path: Path) -> None:
    path, token = Path("/mnt/a-b"), tmp_path / "mnt-a\\x2db.token"
    assert token_of_service(path, tmp_path) is None
    token.write_text("\n")
    assert token_of_service(path, tmp_path) is None
    token.write_text("v2/x/y\n")

    assert token_of_service(path, tmp_path) == token
    assert token_of_service(Path("/mnt/a"), tmp_path) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root installs a service for all users")
def test_a_service_of_the_machine_is_written_with_an_empty_token_file(tmp_path: Path) -> None:
    subprocess.run(["cp", "-a", "/etc", tmp_path / "etc"], check=True)
    shutil.rmtree(tmp_path / "etc" / "keepfs", ignore_errors=True)
    install = (
        f"mount --bind {tmp_path}/etc /etc && exec {sys.executable} -m keepfs service install"
    )
    former = os.umask(0o077)
    try:
        for number in range(2):  # the second time nothing is lost
            done = subprocess.run(
                ["unshare", "--mount", "sh", "-c", f'{install} "$0"', tmp_path / "mnt"],
                capture_output=True,
                text=True,
                check=True,
            )
            token = next((tmp_path / "etc" / "keepfs").glob("*.token"))
            assert token.stat().st_mode & 0o777 == 0o600
            assert token.parent.stat().st_mode & 0o777 == 0o755
            assert ("empty: the token belongs there" in done.stdout) == (number == 0)
            assert token.read_text() == ("v2/x/y" if number else "")
            token.write_text("v2/x/y")
    finally:
        os.umask(former)

    [unit] = (tmp_path / "etc" / "systemd" / "system").glob("keepfs@*.service")
    assert unit.stat().st_mode & 0o777 == 0o644
    assert "\nLoadCredential=token:/etc/keepfs/" in unit.read_text()
    assert not list(Path("/etc").glob("keepfs/*pytest*"))
