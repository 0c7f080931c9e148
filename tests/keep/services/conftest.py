"""Fixtures of the tests of hedging."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from tests.fakes.threads import wait_until
from tests.keep.clusters import Cluster

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def no_thread_is_left() -> Iterator[None]:
    """Check that the threads of this test have ended, those that are cancelled too."""
    before = set(threading.enumerate())
    yield
    wait_until(lambda: not set(threading.enumerate()) - before)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """Run three keepstores."""
    with Cluster(3) as running:
        yield running
