"""Mutates parts of keepfs with mutmut and prints the mutants that no test notices.

Each part is copied to build/mutate with the tests, so the checkout stays as it is, and is
mutated there. A mutant is one small change of one function, such as `<` for `<=`.
It is killed if one of the part's own tests fails, or runs into a timeout.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

_ROOT = Path(__file__).parents[2]
_WORKSPACE = _ROOT / "build" / "mutate"
#: A part, and the tests that should notice every change of it.
_TESTS = {
    "keepfs/keep/caching": "tests/keep/caching",
    "keepfs/keep/services/writer_queue.py": "tests/keep/services/test_writers.py",
    "keepfs/fs/upload": "tests/fs/upload",
}
_MODULES = (
    "keepfs/keep/caching",
    "keepfs/keep/services/writer_queue.py",
    "keepfs/fs/upload/failed.py",
    "keepfs/fs/upload/staging.py",
    "keepfs/fs/upload/file.py",
)
_KILLED = ("killed", "timeout", "segfault", "suspicious")
#: Seconds for mutmut to end after SIGINT.
_GRACE = 10.0
#: A test may take three times as long as without a mutant, and 3 s: then it hangs.
_SETTINGS = """

[tool.mutmut]
source_paths = ["keepfs"]
only_mutate = [{modules}]
pytest_add_cli_args_test_selection = ["{tests}"]
pytest_add_cli_args = ["-p", "no:cacheprovider", "-m", "not fuse"]
also_copy = ["keepfs", "README.md"]
timeout_multiplier = 3.0
timeout_constant = 1.0
"""


def _arguments(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/mutate", description=__doc__.partition("\n")[0] if __doc__ else None
    )
    parser.add_argument(
        "modules",
        metavar="MODULE",
        nargs="*",
        default=_MODULES,
        help="a file or a folder of keepfs/",
    )
    parser.add_argument(
        "--seconds", type=float, default=1800.0, help="the time for all (%(default)s)"
    )
    known = parser.parse_args(words)
    for module in known.modules:
        if _tests_of(module) is None or not (_ROOT / module).exists():
            parser.error(f"{module} is in none of the parts {', '.join(_TESTS)}")
    return known


def _tests_of(module: str) -> str | None:
    """Return the tests of a module's part, or None if it is in no part."""
    for part, tests in _TESTS.items():
        if f"{module.rstrip('/')}/".startswith(f"{part}/"):
            return tests
    return None


def _prepare(workspace: Path, module: str) -> None:
    """Copy what mutmut needs, and write its settings."""
    shutil.rmtree(workspace, ignore_errors=True)
    ignored = shutil.ignore_patterns("__pycache__")
    for folder in ("keepfs", "tests"):
        shutil.copytree(_ROOT / folder, workspace / folder, ignore=ignored)
    shutil.copy(_ROOT / "README.md", workspace)
    pattern = module if module.endswith(".py") else f"{module.rstrip('/')}/*"
    settings = _SETTINGS.format(modules=f'"{pattern}"', tests=_tests_of(module))
    text = (_ROOT / "pyproject.toml").read_text()
    (workspace / "pyproject.toml").write_text(text + settings)


def _mutmut(workspace: Path, *words: str) -> str:
    """Run a command of mutmut that only reads."""
    command = [sys.executable, "-m", "mutmut", *words]
    done = subprocess.run(command, cwd=workspace, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


def _run(workspace: Path, seconds: float) -> int:
    """Run the mutants within a time.

    Returns:
        mutmut's exit code; 0 if the time was up.
    """
    with (workspace / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "mutmut", "run"],
            cwd=workspace,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            return 0
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
                try:
                    process.wait(_GRACE)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()


def _results(workspace: Path) -> dict[str, str]:
    """Return each mutant's name and what became of it, in mutmut's words."""
    found = re.findall(
        r"^ +(\S+): (.+)$", _mutmut(workspace, "results", "--all", "1"), re.MULTILINE
    )
    return dict(found)


def main(words: list[str]) -> int:
    """Mutate the modules that are named, one after the other.

    Returns:
        An exit code: 0 however many survive, 1 if mutmut could not run.
    """
    known = _arguments(words)
    end = time.monotonic() + known.seconds
    total: Counter[str] = Counter()
    for number, module in enumerate(known.modules):
        # What one leaves of its share of the time, the others have.
        share = (end - time.monotonic()) / (len(known.modules) - number)
        workspace = _WORKSPACE / re.sub(r"\W", "-", module)
        _prepare(workspace, module)
        if _run(workspace, max(share, 1.0)) != 0:
            print((workspace / "log").read_text(errors="replace"), file=sys.stderr)
            print(f"scripts/mutate: mutmut failed on {module}", file=sys.stderr)
            return 1
        results = _results(workspace)
        for name, what in results.items():
            if what in {"survived", "no tests"}:
                print(_mutmut(workspace, "show", name), flush=True)
        counts = Counter("killed" if it in _KILLED else it for it in results.values())
        total += counts
        print(f"{module}: {_said(counts)}", flush=True)
    print(f"total: {_said(total)}")
    return 0


def _said(counts: Counter[str]) -> str:
    tried = counts["killed"] + counts["survived"] + counts["no tests"]
    part = f" ({counts['killed'] / tried:.0%} killed)" if tried else ""
    return (
        f"{counts['killed']} killed, {counts['survived']} survived, {counts['no tests']} that no"
        f" test runs, {counts.total() - tried} not tried{part}"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
