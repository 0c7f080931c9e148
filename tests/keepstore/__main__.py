"""Run a test keepstore by hand: `python -m tests.keepstore [--port N] [--no-signing]`.

It prints its URL and serves until its standard input ends. Tests start it
through `tests.keepstore.start_process` instead, which names a socket with
`--control`.
"""

from __future__ import annotations

import argparse
import sys

from tests.keepstore.controls import KeepstoreControls, Listening
from tests.keepstore.keepstore import Settings
from tests.keepstore.processes import serve_controls


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.keepstore", description=__doc__)
    parser.add_argument("--control", type=int, metavar="DESCRIPTOR", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--no-signing", action="store_true", help="let blocks be read unsigned")
    options = parser.parse_args()
    if options.control is not None:
        serve_controls(options.control)
        return
    settings = Settings(signing=not options.no_signing)
    with KeepstoreControls(settings, listening=Listening(port=options.port)) as store:
        sys.stdout.write(f"{store.url}\n")
        sys.stdout.flush()
        sys.stdin.read()


main()
