"""The test servers answer every recorded request as the real ones did.

Each recording is replayed over a plain socket, against servers set up as they
were then, with their clocks at the recorded time. Status line, headers (with
their order and values), interim answers, body and the fate of the connection
must equal the recording.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING

import pytest

from tests.keepstore.certificates import Authority, Certificate
from tests.keepstore.recordings import Outcome, Recording, Replay, recordings
from tests.keepstore.worlds import world_of

if TYPE_CHECKING:
    from tests.keepstore.recordings import Headers
    from tests.keepstore.states import World

#: Recordings that can't be replayed, and why.
NOT_REPLAYED = {
    "sdk-refresh-signature": "the answer was made up by the listener, for a signature of zeros",
}

#: Recordings of which only the status is compared, and why.
STATUS_ONLY = {
    "sdk-get": "the answer was made up by the listener; it has no headers",
    "sdk-head": "ditto",
    "sdk-put-small": "ditto",
    "sdk-put-2MB": "ditto",
}

#: Recordings whose body is not compared, and why.
BODY_DIFFERS = {
    "metrics": "the figures of a running Go program; only its text's hash is recorded",
    "metrics-json": "ditto",
}

# What is compared differently in all recordings:
# - X-Request-Id, where the server makes it up: its form only. It is random.
# - The order of X-Keep-Storage-Classes-Confirmed: Go's map order is random.
# - Ports, the volume's directory and the machine's name in bodies: what stands
#   for them here is put back. The lengths are right.
# - Signatures of cluster yyyyy: its key isn't recorded, so another is used.
# - How long the server stays silent where it does: a tenth of a second is
#   waited instead of the recorded 4 and 12 seconds.


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return Authority(tmp_path_factory.mktemp("certificates")).certify()


@pytest.mark.parametrize("name", recordings())
def test_answers_as_recorded(name: str, certificate: Certificate) -> None:
    if name in NOT_REPLAYED:
        pytest.skip(NOT_REPLAYED[name])
    recording = recordings()[name]

    with world_of(recording, certificate) as world:
        outcome = Replay(recording, world.server.port, world.replace, world.meanwhile).run()

    assert outcome.status == recording.status
    if name not in STATUS_ONLY:
        compare(recording, outcome, world)


def compare(recording: Recording, outcome: Outcome, world: World) -> None:
    """Hold an answer against the recorded one."""
    assert outcome.interim == recording.interim
    assert recording.silence.startswith(outcome.silence)
    assert outcome.afterwards == recording.afterwards
    if recording.status is None:
        return
    assert outcome.reason == recording.reason
    name = recording.name
    dropped = {"Content-Length"} if name in BODY_DIFFERS else set()
    assert comparable(outcome.headers, dropped) == comparable(recording.headers, dropped)
    if name not in BODY_DIFFERS:
        compare_bodies(recording, outcome, world)


def comparable(headers: Headers, dropped: set[str]) -> Headers:
    """Leave out of the headers what differs from run to run."""
    left = []
    for name, text in headers:
        value = text
        if name == "X-Request-Id" and re.fullmatch(r"req-[0-9a-z]{20}", text):
            value = "req-*"
        if name == "X-Keep-Storage-Classes-Confirmed":
            value = ", ".join(sorted(text.split(", ")))
        if name not in dropped:
            left.append((name, value))
    return left


def compare_bodies(recording: Recording, outcome: Outcome, world: World) -> None:
    """Hold a body against the recorded one, with this run's names put back."""
    body = outcome.body
    for ours, theirs in world.restore:
        body = body.replace(ours.encode(), theirs.encode())
    expected = recording.answer_body
    if "text" in expected:
        assert body.decode() == expected["text"]
    else:
        assert len(body) == expected["size"]
        assert hashlib.md5(body, usedforsecurity=False).hexdigest() == expected["md5"]


def test_exceptions_name_recordings() -> None:
    named = {*NOT_REPLAYED, *STATUS_ONLY, *BODY_DIFFERS}

    assert named <= recordings().keys()
    assert len(recordings()) == 391
