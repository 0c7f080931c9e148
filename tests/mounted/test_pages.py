"""The commands of the documents are run, and print what the documents say."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from keepfs.cli.settings import default_state_dir
from tests.keepstore import (
    TEST_TOKEN,
    ApiControls,
    Authority,
    KeepproxyControls,
    KeepstoreControls,
    Listening,
    ProxySettings,
    ServiceEntry,
    Store,
)
from tests.mounted.consoles import Outcome, Step, is_as_said, run, steps_of

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"
#: Pages whose commands need nothing but a home directory.
ALONE = ("tutorial-local.md", "moving-state.md", "upgrading.md")
#: Pages whose commands are for a cluster.
ON_A_CLUSTER = ("tutorial-cluster.md", "batch-jobs.md", "proxies.md", "backup.md")


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A home directory; mounts in it, and their state directories, are removed at the end."""
    made = tmp_path / "ann"
    made.mkdir()
    yield made
    mountpoints = [
        Path(os.fsdecode(line.split()[4]))
        for line in Path("/proc/self/mountinfo").read_bytes().splitlines()
        if line.split()[4].startswith(b"%b/" % bytes(made))
    ]
    for path in mountpoints:
        subprocess.run(
            [sys.executable, "-m", "keepfs", "unmount", "--force", path],
            check=False,
            capture_output=True,
        )
    if os.geteuid() == 0:
        for path in made.iterdir():
            shutil.rmtree(default_state_dir(path), ignore_errors=True)


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """The environment without the user's own settings, with this keepfs in PATH."""
    programs = tmp_path / "bin"
    programs.mkdir()
    program = programs / "keepfs"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m keepfs "$@"\n')
    program.chmod(0o755)
    (programs / "python3").symlink_to(sys.executable)
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("KEEP", "ARVADOS", "XDG_", "NOTIFY_", "WATCHDOG_"))
    }
    return {**kept, "PATH": f"{programs}:{kept['PATH']}", "PYTHONPATH": str(ROOT)}


@pytest.fixture
def cluster(tmp_path: Path, env: dict[str, str]) -> Iterator[dict[str, str]]:
    """Variables for a cluster: an API server, two keepstores and a proxy."""
    authority = Authority(tmp_path)
    with contextlib.ExitStack() as exits:
        stores = [exits.enter_context(KeepstoreControls()) for _ in range(2)]
        behind = [
            Store(f"zzzzz-bi6l4-{number:015}", each.url) for number, each in enumerate(stores)
        ]
        proxy = exits.enter_context(KeepproxyControls(ProxySettings(stores=behind)))
        api = exits.enter_context(ApiControls(listening=Listening(tls=authority.certify())))
        api.list_services([ServiceEntry.of(each.url, n) for n, each in enumerate(stores)])
        yield {
            **env,
            "ARVADOS_API_HOST": api.host,
            "ARVADOS_API_TOKEN": TEST_TOKEN,
            "SSL_CERT_FILE": str(authority.bundle),
            "PROXY": proxy.url,
        }


def check(page: str, home: Path, env: dict[str, str]) -> None:
    """Run the commands of a page, and report the first that does not do what the page says."""
    steps = steps_of((DOCS / page).read_text())
    assert steps
    outcomes = run(steps, home, env)
    for step, outcome in zip(steps, outcomes, strict=True):
        assert is_as_said(step, outcome), f"{page}: $ {step.command}\n{outcome.output}"


@pytest.mark.parametrize("page", ALONE)
def test_the_commands_of_a_page_print_the_shown_output(
    page: str, home: Path, env: dict[str, str]
) -> None:
    check(page, home, env)


@pytest.mark.parametrize("page", ON_A_CLUSTER)
def test_the_commands_of_a_page_about_a_cluster_print_the_shown_output(
    page: str, home: Path, cluster: dict[str, str]
) -> None:
    check(page, home, cluster)


def test_every_page_with_sessions_is_run() -> None:
    with_sessions = {path.name for path in DOCS.glob("*.md") if steps_of(path.read_text())}

    assert with_sessions == {*ALONE, *ON_A_CLUSTER}


def test_a_command_with_other_output_is_detected(tmp_path: Path) -> None:
    page = "```console\n$ echo one\n> echo two\none\n...o\n$ echo three\nthree\n$ false\n```\n"
    steps = steps_of(page)
    assert steps[0] == Step("echo one\necho two", "one\n...o")

    one, three, failed = run(steps, tmp_path, dict(os.environ))

    assert one == Outcome(0, "one\ntwo\n")
    assert is_as_said(steps[0], one)
    assert is_as_said(steps[1], three)
    assert not is_as_said(steps[0], three)
    assert not is_as_said(steps[2], failed)
