"""Makes the reports of tests fit to be sent to the process that collects them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator


def encodable(value: Any) -> Any:  # noqa: ANN401 - any JSON
    """Return a value of JSON in which strings have no lone surrogates.

    Names of files that are not UTF-8 have some. They are in the captured logs of tests, and
    pytest-xdist ends with an internal error if it has to send one.
    """
    match value:
        case str():
            return value.encode(errors="backslashreplace").decode()
        case dict():
            return {encodable(name): encodable(each) for name, each in value.items()}
        case list() | tuple():
            return type(value)(encodable(each) for each in value)
        case _:
            return value


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[None, Any, Any]:
    """Replace lone surrogates in a report before it is sent."""
    return encodable((yield))
