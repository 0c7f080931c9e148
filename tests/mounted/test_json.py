"""docs/json.md describes what --json prints: each command's real output has these fields."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import pytest

from keepfs.cli import keepfs as group
from tests.mounted.mounts import KeepfsMount, keepfs, mounted

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.fuse, pytest.mark.slow]

PAGE = Path(__file__).parents[2] / "docs" / "json.md"
TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "number": (int, float),
    "object": (dict,),
    "null": (type(None),),
    "array of strings": (list,),
    "array of objects": (list,),
}


def tables(command: str) -> list[dict[str, str]]:
    """Return the tables of a command's section: the type of each field."""
    text = PAGE.read_text().partition(f"\n## {command}\n")[2].partition("\n## ")[0]
    found: list[dict[str, str]] = []
    for line in text.splitlines():
        if line.startswith("| Field"):
            found.append({})
        elif row := re.match(r"\| `(\w+)` \| ([^|]+) \|", line):
            found[-1][row[1]] = row[2]
    return found


def check(command: str, text: bytes) -> list[dict[str, Any]]:
    """Check each line of output against the tables of the command; return the objects."""
    first, *further = tables(command)
    objects = [json.loads(line) for line in text.splitlines()]
    assert objects, command
    for each in objects:
        check_object(each, first)
        for fields in further:
            ((name, inner),) = [(n, v) for n, v in each.items() if is_objects(first[n])]
            assert inner or name == "failed", name
            for item in inner:
                check_object(item, fields)
    return objects


def is_objects(kind: str) -> bool:
    return kind == "array of objects"


def check_object(found: dict[str, Any], fields: dict[str, str]) -> None:
    assert set(found) == set(fields)
    for name, kinds in fields.items():
        allowed = [each for kind in kinds.split(" or ") for each in TYPES[kind]]
        assert isinstance(found[name], tuple(allowed)), (name, found[name])
        if kinds == "array of strings":
            assert all(isinstance(it, str) for it in found[name])


@pytest.fixture(scope="module")
def mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KeepfsMount]:
    with mounted(tmp_path_factory.mktemp("json")) as it:
        (it.upload / "folder").mkdir()
        (it.upload / "folder" / "file").write_bytes(b"hello")
        yield it


def run(mount: KeepfsMount, *words: str | Path, expect: int = 0) -> bytes:
    done = keepfs(*words, "--json", env=mount.environment)
    assert done.returncode == expect, done
    return done.stdout


def commands(command: click.Command = group, name: str = "") -> Iterator[str]:
    """Yield the commands that have --json."""
    if isinstance(command, click.Group):
        context = click.Context(command)
        for each in command.list_commands(context):
            below = command.get_command(context, each)
            assert below is not None
            yield from commands(below, f"{name} {each}".strip())
    if any("--json" in each.opts for each in command.params):
        yield name


def test_the_page_has_a_section_for_each_command_and_no_other() -> None:
    sections = set(re.findall(r"^## (.*)$", PAGE.read_text(), re.MULTILINE))

    assert sections == set(commands())


def test_commands_on_files(mount: KeepfsMount) -> None:
    file = mount.upload / "folder" / "file"

    [located] = check("locate", run(mount, "locate", file))
    [uploaded] = check("uploads", run(mount, "uploads", mount.path))
    [manifest] = check("manifest", run(mount, "manifest", mount.upload / "folder"))
    [committed] = check("commit", run(mount, "commit", mount.upload / "folder"))
    name = committed["portable_data_hash"]
    [imported] = check("import", run(mount, "import", name, mount.upload / "again"))

    assert located == {
        "file": str(file),
        "size": 5,
        "locators": ["5d41402abc4b2a76b9719d911017c592+5"],
    }
    assert (uploaded["path"], uploaded["copies"]) == ("folder/file", 1)
    assert (manifest["files"], manifest["size"]) == (1, 5)
    assert manifest["manifest_text"] == ". 5d41402abc4b2a76b9719d911017c592+5 0:5:file\n"
    assert (committed["uuid"], committed["files"]) == (None, 1)
    assert name == manifest["portable_data_hash"]
    assert (imported["files"], imported["stored_anew"]) == (1, 0)
    assert imported["folder"] == str(mount.upload / "again")


def test_commands_on_blocks(mount: KeepfsMount, tmp_path: Path) -> None:
    store = ("--local-store", mount.store)
    (tmp_path / "file").write_bytes(b"bytes")
    cache = ("--disk-cache-dir", tmp_path / "cache")

    [stored] = check("put", run(mount, "put", *store, tmp_path / "file"))
    (name,) = stored["locators"]
    [looked] = check("stat", run(mount, "stat", *store, name))
    [verified] = check("verify", run(mount, "verify", *store, name))
    check("where", run(mount, "where", *store, name))
    [warmed] = check("warm", run(mount, "warm", *store, "--disk-cache", "1MiB", *cache, name))
    (block,) = (it for it in (tmp_path / "cache").rglob("?" * 32) if it.is_file())
    [shown] = check("cache", run(mount, "cache", *cache))
    block.write_bytes(b"x" + block.read_bytes()[1:])
    [damaged] = check("cache", run(mount, "cache", "verify", *cache, expect=1))

    assert looked["size"] == warmed["size"] == 5
    assert verified["services"][0]["state"] == "ok"
    assert (warmed["blocks"], warmed["missing"]) == (1, 0)
    assert (shown["action"], shown["blocks"]) == ("stat", 1)
    assert (damaged["blocks"], damaged["damaged"]) == (0, [block.name])


def test_commands_on_mounts(mount: KeepfsMount) -> None:
    [status] = check("status", run(mount, "status", mount.path))
    words = ("check", "--local-store", mount.store)
    found = keepfs(*words, "--json", env=mount.environment)
    [checked] = check("check", found.stdout)

    assert status["mounts"][0]["state"] == "serving"
    assert checked["exit"] == found.returncode
    assert {each["verdict"] for each in checked["steps"]} <= {
        *("ok", "warning", "FAILED", "unknown", "skipped")
    }


def test_unsaved_files(tmp_path: Path) -> None:
    mount = KeepfsMount(tmp_path, ("--retries", "0", "--drain-timeout", "0.2"))
    try:
        mount.mount()
        subprocess.run(["rm", "-rf", mount.store], check=True)
        mount.store.touch()
        with pytest.raises(OSError, match="Input/output error"):
            (mount.upload / "file").write_bytes(b"bytes")
        [waiting] = check("unsaved list", run(mount, "unsaved", "list", mount.path))
        assert mount.unmount().returncode == 1
        words = ("unsaved", "list", "--state-dir", mount.base / "state")
        [spilled] = check("unsaved list", run(mount, *words, mount.path))
    finally:
        mount.clean_up()

    assert (waiting["name"], waiting["path"], waiting["size"]) == (None, "file", 5)
    assert spilled["name"] is not None
    assert spilled["error"]


def test_messages(mount: KeepfsMount) -> None:
    messages = check("explain", run(mount, "explain"))
    [one] = check("explain", run(mount, "explain", "busy"))

    assert one in messages
    assert one["id"] == "busy"
