"""Provokes the messages about files of upload/ and collections."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from keepfs.collections.portable import portable_data_hash
from keepfs.mount import runtime
from tests.messages.provoking import provokes
from tests.messages.test_commands import said
from tests.mounted.mounts import keepfs

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.test_cli import Shell
    from tests.keepstore import ApiControls
    from tests.mounted.mounts import KeepfsMount

pytestmark = [pytest.mark.slow, pytest.mark.fuse]

UUID = "zzzzz-4zz18-000000000000000"


def fails(mount: KeepfsMount, *arguments: str | Path) -> str:
    """Run a command that fails; return what it says."""
    done = keepfs(*arguments, env=mount.environment)
    assert done.returncode in {1, 2}, done
    return done.stderr.decode()


@provokes("not-in-mount", "no-block-file", "refused-names")
def test_paths(shared: KeepfsMount, tmp_path: Path) -> str:
    (tmp_path / "file").touch()
    (shared.upload / "folder").mkdir()
    (shared.upload / "folder" / "link").symlink_to("nowhere")
    return "\n".join(
        [
            fails(shared, "locate", tmp_path / "file"),
            fails(shared, "locate", shared.path / "README"),
            fails(shared, "manifest", shared.upload / "folder"),
        ]
    )


@provokes("list-too-long")
def test_list_too_long(shared: KeepfsMount) -> str:
    with (shared.upload / "long").open("wb") as file:
        file.truncate(110 * 2**30)
    text = fails(shared, "locate", shared.upload / "long")
    (shared.upload / "long").unlink()
    return text


@provokes("not-served")
def test_not_served(shared: KeepfsMount, tmp_path: Path) -> str:
    if os.geteuid() != 0:
        pytest.skip("only root hides the run files")
    (shared.upload / "file").touch()
    command = f"mount --bind {tmp_path} {runtime.runtime_directory()} && "
    command += f"{sys.executable} -m keepfs manifest {shared.upload / 'file'}"
    return subprocess.run(
        ["unshare", "-m", "sh", "-c", command],
        stderr=subprocess.PIPE,
        check=False,
        env=shared.environment,
    ).stderr.decode()


@provokes(
    *("no-state-directory", "no-unsaved-file", "unsaved-damaged", "unsaved-not-mounted"),
    "unsaved-is-mounted",
)
def test_unsaved_files(shell: Shell, shared: KeepfsMount, tmp_path: Path) -> str:
    state = ("--state-dir", tmp_path / "state")
    texts = [said(shell, "unsaved", "list", *state, tmp_path)]
    (tmp_path / "state" / "unsaved" / "broken").mkdir(parents=True, mode=0o700)
    (tmp_path / "state" / "unsaved" / "broken" / "about.json").write_text("no JSON")
    texts += [
        said(shell, "unsaved", "list", *state, tmp_path),
        said(shell, "unsaved", "drop", *state, tmp_path, "nosuch"),
        said(shell, "unsaved", "retry", tmp_path),
        fails(shared, "unsaved", "drop", shared.path, "x"),
    ]
    return "\n".join(texts)


@provokes("name-taken", "no-expectation", "manifest-too-large")
def test_commits_that_are_refused(on_cluster: KeepfsMount, api: ApiControls) -> str:
    (on_cluster.upload / "file").write_bytes(b"x")
    commit = ("commit", on_cluster.upload, "--name", "taken")
    assert keepfs(*commit, env=on_cluster.environment).returncode == 0
    texts = [
        fails(on_cluster, *commit),
        fails(on_cluster, "commit", on_cluster.upload, "--update", UUID),
    ]
    api.configure(max_request_size=100)
    texts.append(fails(on_cluster, "commit", on_cluster.upload, "--name", "big"))
    return "\n".join(texts)


@provokes("not-in-local-store", "bad-manifest", "folder-exists", "import-incomplete")
def test_imports_that_are_refused(unmounted: KeepfsMount) -> str:
    mount = unmounted
    mount.mount()
    (mount.upload / "file").write_bytes(b"x")
    done = keepfs("commit", mount.upload, env=mount.environment)
    name = done.stdout.decode().split("\t")[1].strip()
    text = b"no manifest\n"
    bad = portable_data_hash(text)
    (mount.store / "collections" / f"{bad}.manifest").write_bytes(text)
    (mount.upload / "full").mkdir()
    (mount.upload / "full" / "x").touch()
    texts = [
        fails(mount, "import", UUID, mount.upload / "new"),
        fails(mount, "import", bad, mount.upload / "new"),
        fails(mount, "import", name, mount.upload / "full"),
    ]
    runtime.control_socket(mount.path).unlink()
    texts.append(fails(mount, "import", name, mount.upload / "new"))
    assert re.search("is incomplete", texts[-1])
    return "\n".join(texts)
