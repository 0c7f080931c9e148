"""Steps of a check: each has a time limit, a verdict, and advice."""

from __future__ import annotations

import dataclasses
import enum
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from keepfs.cli import reporting

if TYPE_CHECKING:
    from collections.abc import Callable


class CheckResult(enum.StrEnum):
    """The result of a step."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "FAILED"
    UNKNOWN = "unknown"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Step:
    """The outcome of a step, as `--json` prints it.

    Attributes:
        name: The subject of the check.
        verdict: Its result.
        found: What was found.
        advice: What to do; empty if nothing needs to be done.
        seconds: Its duration.
        details: Values for programs.
    """

    name: str
    verdict: CheckResult
    found: str = ""
    advice: str = ""
    seconds: float = 0.0
    details: dict[str, Any] = dataclasses.field(default_factory=dict)


def run_step(name: str, work: Callable[[], Step], limit: float) -> Step:
    """Run a step in a thread of its own; after `limit` seconds the result is unknown.

    A thread that hangs is abandoned; it is a daemon, so that the process can end.
    """
    return run_steps({name: work}, limit)[0]


def run_steps(works: dict[str, Callable[[], Step]], limit: float) -> list[Step]:
    """Run steps concurrently, within `limit` seconds; return their outcomes in order."""
    found: dict[str, Step] = {}
    begin = time.monotonic()

    def run(name: str, work: Callable[[], Step]) -> None:
        try:
            step = work()
        except click.ClickException as error:
            step = Step(name, CheckResult.FAILED, error.format_message())
        except Exception as error:  # noqa: BLE001 - one step must not end the others
            text = reporting.text_of(error) or type(error).__name__
            step = Step(name, CheckResult.FAILED, text)
        found[name] = dataclasses.replace(
            step, name=name, seconds=round(time.monotonic() - begin, 3)
        )

    threads = [
        threading.Thread(target=run, args=each, daemon=True, name=f"check {each[0]}")
        for each in works.items()
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, begin + limit - time.monotonic()))
    late = f"no answer within {limit:g} s"
    advice = "look for a name server, service or disk that hangs; --timeout waits longer"
    return [
        found.get(name)
        or Step(name, CheckResult.UNKNOWN, late, advice, round(time.monotonic() - begin, 3))
        for name in works
    ]


def exit_code(steps: list[Step]) -> int:
    """Return 1 if a step failed, 3 if the result of one is unknown, else 0."""
    verdicts = {step.verdict for step in steps}
    if CheckResult.FAILED in verdicts:
        return 1
    return 3 if CheckResult.UNKNOWN in verdicts else 0


def as_text(steps: list[Step]) -> str:
    """Return the steps as a table for people."""
    lines = []
    for step in steps:
        lines.append(f"{step.verdict:8} {step.name:22} {step.found}")
        lines += [f"{'':31} {key} = {value}" for key, value in step.details.items()]
        if step.advice:
            lines.append(f"{'':31} -> {step.advice}")
    return "\n".join(lines)
