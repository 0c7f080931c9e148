"""Manifests: ours and the Python SDK's reading of one large text, time and memory side by side.

    scripts/bench-manifest [FILES]

Each reading runs in a process of its own. Memory is what it holds, and its peak, beyond the text.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FILES = 1_000_000
_FILES_PER_DIRECTORY = 1000
_MIB = 1 << 20


def lines(files: int, *, packed: bool) -> Iterator[str]:
    """Yield the lines of a signed manifest in normal form.

    Args:
        files: How many files there are, in directories of 1000.
        packed: Whether the files of a directory are in one block; else each has its own.
    """
    draw = random.Random(files)  # noqa: S311 - not a secret
    for directory in range(-(-files // _FILES_PER_DIRECTORY)):
        blocks, segments, position = [], [], 0
        for number in range(min(_FILES_PER_DIRECTORY, files - directory * _FILES_PER_DIRECTORY)):
            size = draw.randrange(1, 60_000)
            segments.append(
                f"{position}:{size}:reads_{number:06}_of_sample_{directory:05}_{'x' * 100}"
                f"_L001_R1_{draw.getrandbits(64):016x}.fastq.gz"
            )
            position += size
            if not packed:
                blocks.append(_block(draw, size))
        if packed:
            blocks.append(_block(draw, position))
        name = f"./project-{directory // 100:03}/sample-{directory:05}-of-the-sequencing-run"
        yield " ".join([name, *blocks, *segments]) + "\n"


def _block(draw: random.Random, size: int) -> str:
    return (
        f"{draw.getrandbits(128):032x}+{size}+A{draw.getrandbits(160):040x}"
        f"@{draw.getrandbits(32):08x}"
    )


def memory(field: str) -> float:
    """Return a memory figure of this process, in MiB."""
    status = Path("/proc/self/status").read_text()
    found = next(line for line in status.splitlines() if line.startswith(field))
    return int(found.split()[1]) / 1024


def measure(path: Path, reader: Callable[[str], Any], find: Callable[[Any, str], int]) -> None:
    """Read a manifest, find files in it, hash its normal form; print what it took, as JSON.

    Args:
        path: The file that has the text.
        reader: Parses it.
        find: Returns the size of a file by its path.
    """
    text = path.read_text()
    Path("/proc/self/clear_refs").write_text("5")  # begins a new peak
    before, start = memory("VmRSS"), time.perf_counter()
    manifest = reader(text)
    took = time.perf_counter() - start
    held, peak = memory("VmRSS") - before, memory("VmHWM") - before
    paths = _some_paths(text)
    start = time.perf_counter()
    sizes = [find(manifest, each) for each in paths]
    lookup = (time.perf_counter() - start) / len(paths)
    start = time.perf_counter()
    found = manifest.portable_data_hash()
    figures = {
        "parse, s": took,
        "held, MiB": held,
        "peak, MiB": peak,
        "lookup, us": lookup * 1e6,
        "hash, s": time.perf_counter() - start,
    }
    click.echo(json.dumps({"figures": figures, "found": [found, sizes]}))


def _some_paths(text: str) -> list[str]:
    """Return the path of the last file of each line."""
    return [
        f"{line.partition(' ')[0]}/{line.rpartition(':')[2]}".removeprefix("./")
        for line in text.splitlines()
    ]


def ours(path: Path) -> None:
    """Measure ours."""
    from keepfs.collections.parsing import parse  # noqa: PLC0415 - not in the other process

    measure(path, parse, lambda manifest, name: manifest.lookup(name).size)


def sdk(path: Path) -> None:
    """Measure the SDK's `Collection`."""
    from tests.collections.sdk import open_in_sdk  # noqa: PLC0415 - not in the other process

    measure(path, open_in_sdk, lambda collection, name: collection.find(name).size())


def compare(path: Path) -> None:
    """Run both and print the figures and their ratios."""
    results = {}
    for side in ("ours", "sdk"):
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "bench.manifests", side, path],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        results[side] = json.loads(done.stdout)
    for what, mine in results["ours"]["figures"].items():
        theirs = results["sdk"]["figures"][what]
        click.echo(
            f"  {what:12} ours {mine:8.2f}   SDK {theirs:8.2f}   {theirs / mine:6.1f} times"
        )
    if results["ours"]["found"] != results["sdk"]["found"]:
        raise SystemExit("ours and the SDK's sizes or hashes differ")


def main() -> None:
    """Run as a script."""
    if len(sys.argv) > 2:  # noqa: PLR2004 - the child's arguments
        {"ours": ours, "sdk": sdk}[sys.argv[1]](Path(sys.argv[2]))
        return
    files = int(sys.argv[1]) if sys.argv[1:] else FILES
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "manifest"
        for packed in (False, True):
            with path.open("w") as file:
                file.writelines(lines(files, packed=packed))
            blocks = "one block for 1000 files" if packed else "a block for each file"
            click.echo(f"{files:,} files, {blocks}, {path.stat().st_size / _MIB:.0f} MiB of text")
            compare(path)


if __name__ == "__main__":
    main()
