"""What the tests of the test servers share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import requests

from tests.keepstore import TEST_TOKEN

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def session() -> Iterator[requests.Session]:
    """Keep connections open between requests, with the user's token."""
    with requests.Session() as opened:
        opened.trust_env = False
        opened.headers["Authorization"] = f"Bearer {TEST_TOKEN}"
        yield opened
