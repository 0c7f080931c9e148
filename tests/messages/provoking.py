"""Which messages the tests provoke, and the check that each is shown as the registry says."""

from __future__ import annotations

import functools
import re
from dataclasses import replace
from typing import TYPE_CHECKING, ParamSpec

from keepfs.messages.message import without_ids
from keepfs.messages.registry import MESSAGES

if TYPE_CHECKING:
    from collections.abc import Callable

_P = ParamSpec("_P")

#: The ids that tests provoke.
PROVOKED: set[str] = set()


def provokes(*ids: str) -> Callable[[Callable[_P, str]], Callable[_P, None]]:
    """Make a test of a function that provokes messages and returns what a user then sees.

    The test fails if a message isn't shown with its id and its text.
    """
    PROVOKED.update(ids)

    def decorate(provoke: Callable[_P, str]) -> Callable[_P, None]:
        @functools.wraps(provoke)
        def test(*args: _P.args, **kwargs: _P.kwargs) -> None:
            said = provoke(*args, **kwargs)
            for each in ids:
                assert f"[{each}]" in said, said
                assert re.search(MESSAGES[each].pattern(), without_ids(said)), said

        return test

    return decorate


def assert_shows(text: str, *ids: str) -> None:
    """Check that a text, such as a log, has each message with its id and its text.

    The test of the registry takes each call with ids as literals for a provocation.
    """
    lines = text.splitlines()
    for each in ids:
        first = MESSAGES[each].text.partition("\n")[0]
        pattern = replace(MESSAGES[each], text=first).pattern()
        shown = [line for line in lines if f"[{each}]" in line]
        assert shown, f"no [{each}] in: {text}"
        assert any(pattern.search(without_ids(line)) for line in shown), text
