"""The scripts and units that are shipped work as they say."""

from __future__ import annotations

import ast
import gzip
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.mounted.mounts import why_no_mounts

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent
#: Any user that has no rights.
NOBODY = 65534


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

    mounted = tmp_path / "keep-quickstart"  # not ~/keep: there the tutorial has another store
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
        assert f"Mounting {mounted};" in done.stdout
        locator = re.search("Its locator: ([0-9a-f]{32})[+][0-9]+$", done.stdout, re.MULTILINE)
        assert locator is not None
        stored = tmp_path / ".local" / "share" / "keepfs" / locator[1]
        assert stored.read_bytes() == (ROOT / "README.md").read_bytes()
    assert bytes(mounted) not in Path("/proc/self/mountinfo").read_bytes()


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


@pytest.fixture
def checkout() -> Iterator[Path]:
    """A checkout of another user, with scripts/setup and the programs that it may find in bin/.

    Not in `tmp_path`, which other users can't enter.
    """
    if os.geteuid() != 0:
        pytest.skip("only root can run scripts/setup as another user")
    system = "/usr/bin:/bin"
    if shutil.which("python3", path=system) is None or shutil.which("apt-get") is None:
        pytest.skip("needs Debian's python3 and apt-get")
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        (base / "scripts").mkdir()
        (base / "bin").mkdir()
        shutil.copy(ROOT / "scripts" / "setup", base / "scripts")
        for program in ("sh", "env", "id", "dirname", "tr", "touch", "python3", "apt-get"):
            found = shutil.which(program, path=system)
            assert found is not None
            (base / "bin" / program).symlink_to(found)
        for path in (base, *base.iterdir()):
            os.chown(path, NOBODY, NOBODY)
            path.chmod(0o755)
        yield base


def set_up(checkout: Path, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run scripts/setup as a user without rights, with the programs of bin/ alone."""
    return subprocess.run(
        ["/bin/sh", checkout / "scripts" / "setup", *options],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={"PATH": str(checkout / "bin"), "HOME": "/nonexistent", **variables},
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
    )


@pytest.mark.parametrize("options", [(), ("--user",), ("--bench",)])
def test_setup_without_root_names_the_missing_packages_once(
    checkout: Path, options: tuple[str, ...]
) -> None:
    done = set_up(checkout, *options)

    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    said, _, packages = line.partition("apt-get install --no-install-recommends ")
    assert said == (
        "scripts/setup: system packages are missing; as root, run this, then scripts/setup again: "
    )
    names = packages.split()
    assert len(names) == len(set(names))
    assert {"fuse3", "gcc", "pkg-config", "libfuse3-dev"} <= set(names)
    assert ("fio" in names) == (options != ("--user",))
    assert ("curl" in names) == (options == ("--bench",))
    assert not (checkout / ".venv").exists()


def test_setup_with_a_sudo_that_refuses_names_the_missing_packages(checkout: Path) -> None:
    sudo = checkout / "bin" / "sudo"
    sudo.write_text("#!/bin/sh\necho 'nobody is not in the sudoers file.' >&2\nexit 1\n")
    sudo.chmod(0o755)

    done = set_up(checkout)

    assert done.returncode == 1
    assert done.stdout == "+ sudo apt-get update -q\n"
    refusal, line = done.stderr.splitlines()
    assert refusal == "nobody is not in the sudoers file."
    assert "as root, run this, then scripts/setup again: apt-get install " in line
    assert not (checkout / ".venv").exists()


def test_setup_names_a_python_that_cannot_be_run(checkout: Path) -> None:
    done = set_up(checkout, PYTHON="/nonexistent/python3")

    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "PYTHON=/nonexistent/python3 can't be run, or is older than 3.11" in line


def test_the_systemd_script_knows_its_options() -> None:
    done = subprocess.run(
        [ROOT / "scripts" / "test-systemd", "--twice"], capture_output=True, text=True, check=False
    )

    assert done.returncode == 2
    assert "unknown option --twice" in done.stderr


@pytest.mark.parametrize("script", ["build-deb", "test-deb", "test-docker"])
def test_the_scripts_of_packages_know_their_options(script: str) -> None:
    done = subprocess.run(
        [ROOT / "scripts" / script, "--twice"], capture_output=True, text=True, check=False
    )

    assert done.returncode == 2
    assert "unknown option --twice" in done.stderr


@pytest.mark.slow
def test_the_debian_package_has_programs_helpers_and_units(tmp_path: Path) -> None:
    if any(shutil.which(it) is None for it in ("dpkg-deb", "dpkg", "objdump")):
        pytest.skip("there is no dpkg-deb or objdump")
    done = subprocess.run(
        [ROOT / "scripts" / "build-deb", tmp_path],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHON": sys.executable},
    )
    assert done.returncode == 0, done.stderr
    package, tree = done.stdout.strip(), tmp_path / "tree"
    subprocess.run(["dpkg-deb", "-x", package, tree], check=True)
    depends = subprocess.run(
        ["dpkg-deb", "-f", package, "Depends"], capture_output=True, text=True, check=True
    ).stdout

    minor = sys.version_info.minor
    assert f"python3 (>= 3.{minor}), python3 (<< 3.{minor + 1}), libfuse3-" in depends
    unit = (tree / "usr/lib/systemd/system/keepfs@.service").read_text()
    assert "\nExecStart=/usr/bin/keepfs mount --foreground %f\n" in unit
    for name in ("mount.keepfs", "mount.fuse.keepfs", "umount.fuse.keepfs"):
        assert (tree / "usr/sbin" / name).exists()
    page = gzip.decompress((tree / "usr/share/man/man1/keepfs-mount.1.gz").read_bytes())
    assert page == (ROOT / "man" / "keepfs-mount.1").read_bytes()
    rules = (tree / "usr/share/keepfs/keepfs.rules.yml").read_bytes()
    assert rules == (ROOT / "monitoring" / "keepfs.rules.yml").read_bytes()
    assert not (tree / "usr/lib/keepfs/share").exists()
    # The launcher finds its modules where the package puts them.
    program = (tree / "usr/bin/keepfs").read_text()
    moved = program.replace("/usr/lib/keepfs", str(tree / "usr/lib/keepfs"))
    version = subprocess.run(
        [sys.executable, "-I", "-S", "-c", moved, "--version"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (version.stderr, version.stdout[:7]) == ("", "keepfs ")


def test_documents_and_dockerfile_name_the_packages_of_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    debian = re.search(r"\(Debian's names\): `([^`]*)`", readme)
    fedora = re.search(r"Fedora's: `([^`]*)`", readme)
    assert debian is not None
    assert fedora is not None
    install = (ROOT / "docs" / "install.md").read_text()
    assert f"apt-get install {debian[1]} " in install
    assert set(re.findall(r"dnf install (.*?) +#", install)[0].split()) == set(fedora[1].split())
    stages = (ROOT / "Dockerfile").read_text().split("\nFROM ")
    for package in ("gcc", "libfuse3-dev", "pkg-config", "python3-dev"):
        assert package in stages[1].split()
        assert package in debian[1].split()
    assert "fuse3" in stages[2].split()


def test_the_systemd_script_runs_the_steps_of_the_service_document() -> None:
    readme = (ROOT / "README.md").read_text()
    script = (ROOT / "scripts" / "test-systemd").read_text()
    assert "commands_after 'As a service, as root'" in script
    assert re.search(
        r"^System packages \(Debian's names\): `[a-z0-9 -]*\bpipx\b", readme, re.MULTILINE
    )

    document = (ROOT / "docs" / "service.md").read_text()
    section = document.partition("\nAs a service, as root")[2]
    steps = re.findall("^    # (.*)$", section, re.MULTILINE)

    assert any("pipx install ." in step for step in steps)
    assert steps.index("keepfs service install /mnt/keep") < next(
        at for at, step in enumerate(steps) if step.startswith("systemctl enable --now keepfs@")
    )


def names_of_mounting(path: Path) -> set[str]:
    """Return the names that a file has from the modules that mount."""
    return {
        alias.asname or alias.name
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tests.mounted")
        for alias in node.names
    }


def functions_with(path: Path, names: set[str]) -> set[str]:
    """Return the functions of a file that use one of these names, or have it as a parameter."""
    return {
        function.name
        for function in ast.walk(ast.parse(path.read_text()))
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
        if (isinstance(node, ast.Name) and node.id in names)
        or (isinstance(node, ast.arg) and node.arg in names)
    }


@pytest.mark.slow
def test_fast_tests_are_most_of_them_and_none_mounts() -> None:
    done = subprocess.run(
        [ROOT / "scripts" / "test", "--fast", "--collect-only"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    chosen = re.findall(r"^(tests/.+?\.py)::(?:\w+::)?(\w+)", done.stdout, re.MULTILINE)

    assert len(chosen) > 1000
    assert [file for file, _ in chosen if file.startswith("tests/mounted/")] == []
    for file in {file for file, _ in chosen}:
        names = names_of_mounting(ROOT / file)
        # A fixture that mounts is a parameter of the tests that use it.
        mounting = functions_with(ROOT / file, names)
        mounting |= functions_with(ROOT / file, mounting)
        assert mounting & {name for other, name in chosen if other == file} == set()


def test_that_a_test_mounts_is_found_where_its_fixture_does(tmp_path: Path) -> None:
    path = tmp_path / "test_it.py"
    path.write_text(
        "from tests.mounted.mounts import mounted\n"
        "def place(tmp_path):\n    with mounted(tmp_path) as it:\n        yield it\n"
        "def test_one(place):\n    pass\n"
        "def test_two():\n    pass\n"
    )

    assert names_of_mounting(path) == {"mounted"}
    assert functions_with(path, {"mounted"}) == {"place"}
    assert functions_with(path, {"place"}) == {"test_one"}


def test_the_commit_hook_runs_the_lint_of_the_whole_tree() -> None:
    text = (ROOT / ".pre-commit-config.yaml").read_text()

    assert "entry: scripts/lint\n" in text
    assert "pass_filenames: false\n" in text


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_mutate_counts_what_the_tests_notice_and_shows_what_they_do_not() -> None:
    if (
        shutil.which("mutmut", path=ROOT / ".venv" / "bin") is None
        and os.environ.get("CI") != "true"
    ):
        pytest.skip("scripts/mutate would install mutmut")

    done = subprocess.run(
        [ROOT / "scripts" / "mutate", "--seconds", "180", "keepfs/keep/caching/thrash.py"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    said = re.search(r"^total: (\d+) killed, (\d+) survived, ", done.stdout, re.MULTILINE)
    assert said is not None
    assert int(said[1]) > 0
    assert done.stdout.count("--- keepfs/keep/caching/thrash.py") == int(said[2])


@pytest.mark.parametrize("module", ["keepfs/mount", "keepfs/fs/upload/nothing.py", "tests"])
def test_mutate_refuses_what_is_in_none_of_its_parts(module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.soak.mutants", module],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )

    assert done.returncode == 2
    assert f"{module} is in none of the parts" in done.stderr
