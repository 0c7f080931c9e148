"""Settings of hypothesis for the client's tests: the same examples each time, no time limit."""

from __future__ import annotations

from hypothesis import settings

# A deadline would fail a test for the machine's load, and random examples would
# fail one that nobody changed.
settings.register_profile("keepfs", deadline=None, derandomize=True)
settings.load_profile("keepfs")
