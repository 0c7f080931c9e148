"""What a soak is told on its command line: numbers, the last of which is the seed."""

from __future__ import annotations

import random
import sys

import click


def numbers(*defaults: int) -> list[int]:
    """Return the numbers given, and the defaults of those that aren't.

    Raises:
        SystemExit: Something else is given.
    """
    try:
        given = [int(word) for word in sys.argv[1:]]
    except ValueError:
        given = [0] * (len(defaults) + 1)
    if len(given) > len(defaults) or min(given, default=1) < 0:
        click.echo(f"{len(defaults)} numbers at most; see the head of the script", err=True)
        raise SystemExit(2)
    return [*given, *defaults[len(given) :]]


def numbers_and_seed(*defaults: int) -> list[int]:
    """Do the same with a seed as the last, drawn if it isn't given; print it."""
    found = numbers(*defaults, random.SystemRandom().getrandbits(32))
    click.echo(f"seed {found[-1]}")
    return found
