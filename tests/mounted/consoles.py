"""The shell sessions of a page of the documents, and what they print when they are run."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

#: What stands for the home directory on the pages.
HOME = "/home/ann"
_BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_MARK = "\n@@@ end of step"


@dataclass(frozen=True)
class Step:
    """A command of a page.

    Attributes:
        command: Its lines, without prompts.
        output: What the page says it prints; `...` stands for any text.
    """

    command: str
    output: str


@dataclass(frozen=True)
class Outcome:
    """What a command did: its exit code, and its output and errors in their order."""

    code: int
    output: str


def steps_of(page: str) -> list[Step]:
    """Return the commands of the blocks of a page that are marked `console`."""
    steps = []
    for block in _BLOCK.findall(page):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, *rest = part.splitlines()
            while rest and rest[0].startswith("> "):
                command += f"\n{rest.pop(0)[2:]}"
            steps.append(Step(command, "\n".join(rest)))
    return steps


def run(
    steps: Sequence[Step], home: Path, env: Mapping[str, str], patience: float = 60
) -> list[Outcome]:
    """Run commands in one shell, in a home directory of their own; return what each did."""
    script = home / ".steps"
    script.write_text(
        "".join(f"{each.command}\nprintf '{_MARK} %d\\n' $?\n" for each in steps), "utf-8"
    )
    printed = home / ".printed"
    with printed.open("wb") as file:  # a mount's process may keep a pipe open
        subprocess.run(
            ["bash", script],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=home,
            env={**env, "HOME": str(home), "LC_ALL": "C.UTF-8"},
            timeout=patience,
            check=False,
        )
    script.unlink()
    parts = re.split(rf"{_MARK} (\d+)\n", printed.read_text("utf-8"))
    printed.unlink()
    return [
        Outcome(int(code), output.replace(str(home), HOME))
        for output, code in zip(parts[::2], parts[1::2], strict=False)
    ]


def is_as_said(step: Step, outcome: Outcome) -> bool:
    """Tell whether a command succeeded and printed what its page says."""
    pattern = re.escape(step.output.strip("\n")).replace(re.escape("..."), "(?s:.*)")
    return outcome.code == 0 and re.fullmatch(pattern, outcome.output.strip("\n")) is not None
