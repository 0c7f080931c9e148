"""A keepstore in memory: answers as the recordings show the real one does.

Blocks are read, checked and written here; administration is in `admin`, blocks
of other clusters in `remote`. Any thread may call, and a test may change
settings and volumes while requests are under way.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.keepstore import admin, remote
from tests.keepstore.answers import CORS, http_error, refused, request_id
from tests.keepstore.clock import Clock
from tests.keepstore.locators import (
    EMPTY_DIGEST,
    MAX_BLOCK_SIZE,
    Locator,
    RefusalError,
    Signer,
    scan,
    tokens,
    weight,
)
from tests.keepstore.slots import BusyError, DeadlineError, Slots
from tests.keepstore.streaming import PIECE, Stream
from tests.keepstore.volumes import Volume
from tests.keepstore.wire import Answer, HangUpError, Request, TruncatedError
from tests.keepstore.writing import Placement, Written

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.keepstore.wire import Content

#: A key, and tokens, that tests use unless they name others. They open nothing.
TEST_KEY = (
    "zfhgfenhffzltr9dixws36j1yhksjoll2grmku38mi7yxd66h5"
    "j4q9w4jzanezacp8s6q0ro3hxakfye02152hncy6zml2ed0uc"
)
TEST_TOKEN = "v2/zzzzz-gj3su-077z32aux8dg2s1/3kg6k6lzmp9kj5cpkcoxie963cmvjahbt2fod9zru30k1jqdmi"  # noqa: S105 - it opens nothing
ROOT_TOKEN = "systemroottoken000000000000000000000000000000000000"  # noqa: S105 - it opens nothing
MANAGEMENT_TOKEN = "mgmttoken0000000000000000000000000000000"  # noqa: S105 - it opens nothing

#: Seconds of two weeks, the usual time to live of a signature.
TWO_WEEKS = 1209600.0


@dataclass(slots=True, kw_only=True)
class Settings:
    """What an administrator would have configured; may be changed at any time.

    Attributes:
        signing: `BlobSigning`: whether reading needs a signature.
        key: `BlobSigningKey`; empty: nothing is signed.
        ttl: `BlobSigningTTL` in seconds.
        root_token: `SystemRootToken`, for administration.
        management_token: For health and metrics.
        trash: `BlobTrash`.
        trash_lifetime: `BlobTrashLifetime` in seconds.
        class_priorities: `Priority` of each storage class; 0 for others.
        max_requests: `MaxConcurrentRequests`; None for any number.
        max_queued: `MaxQueuedRequests`.
        buffers: `MaxKeepBlobBuffers`.
        request_timeout: `RequestTimeout` in seconds.
        remotes: Base URL of the API server of each remote cluster, by its id.
    """

    signing: bool = True
    key: str = TEST_KEY
    ttl: float = TWO_WEEKS
    root_token: str = ROOT_TOKEN
    management_token: str = MANAGEMENT_TOKEN
    trash: bool = True
    trash_lifetime: float = TWO_WEEKS
    class_priorities: dict[str, int] = field(default_factory=dict)
    max_requests: int | None = 64
    max_queued: int | None = 128
    buffers: int | None = 128
    request_timeout: float = 300.0
    remotes: dict[str, str] = field(default_factory=dict)


class Keepstore:
    """The service of a keepstore.

    Attributes:
        settings: Limits of slots and buffers count when the keepstore is made.
        volumes: At least one for anything to be stored.
        slots: Places for requests.
        buffers: Places for blocks in memory.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        volumes: Sequence[Volume] | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.settings = settings or Settings()
        self.volumes = [Volume()] if volumes is None else list(volumes)
        self.clock = clock or Clock()
        self.slots = Slots(self.settings.max_requests, self.settings.max_queued)
        self.buffers = Slots(self.settings.buffers)

    @property
    def signer(self) -> Signer:
        """The key, as it is configured now."""
        return Signer(self.settings.key, self.settings.ttl)

    def stop(self) -> None:
        """Let no request wait any longer: the server ends."""
        self.slots.stop()
        self.buffers.stop()

    def sign(self, locator: str, token: str = TEST_TOKEN) -> str:
        """Sign a locator for a token, from now on for the time to live."""
        return self.signer.sign(locator, token, self.clock.time_ns())

    def has_intact(self, digest: str) -> bool:
        """Tell whether any volume holds the right bytes of a block."""
        for volume in self.volumes:
            with contextlib.suppress(RefusalError):
                block = volume.block(digest)
                # Not `md5sum`: a block that was written has the hash it was sent with.
                if block is not None and md5_of(block.content) == digest:
                    return True
        return False

    def answer(self, request: Request) -> Answer:
        """Carry out a request."""
        management = self.settings.management_token
        answer = admin.metrics(management, request)
        if answer is not None:
            return answer
        answer = admin.health(management, request) or self._limited(request)
        answer.headers["X-Request-Id"] = request.header("X-Request-Id") or request_id()
        return answer

    def ordered(self, digest: str, volumes: Sequence[Volume] | None = None) -> list[Volume]:
        """Order volumes as they are tried for a block."""
        priorities = self.settings.class_priorities

        def rank(volume: Volume) -> tuple[int, str]:
            priority = max((priorities.get(name, 0) for name in volume.classes), default=0)
            return -priority, weight(digest, volume.uuid)

        return sorted(self.volumes if volumes is None else volumes, key=rank)

    def take_buffer(self, request: Request) -> None:
        """Wait for room for a block; the request has it until it is answered.

        Raises:
            RefusalError: There was none in time.
        """
        try:
            self.buffers.take(self.settings.request_timeout)
        except DeadlineError:
            raise RefusalError(499, None) from None
        request.releases.callback(self.buffers.give_back)

    def _limited(self, request: Request) -> Answer:
        try:
            self.slots.take(self.settings.request_timeout)
        except (BusyError, DeadlineError):
            return Answer(503)
        request.releases.callback(self.slots.give_back)
        answer = self._routed(request)
        answer.headers.update(CORS)
        return answer

    def _routed(self, request: Request) -> Answer:
        path = request.path
        if request.method == "OPTIONS":
            return Answer(200)
        if request.method in {"GET", "HEAD"} and re.match(r"//?[0-9a-f]{32}", path):
            return self._read(request, path.lstrip("/"))
        if request.method == "PUT" and re.match(r"/[0-9a-f]{32}", path):
            return self._put(request, path[1:])
        return admin.answer(self, request) or http_error(400, "Bad Request")

    # --- reading ----------------------------------------------------------

    def _read(self, request: Request, text: str) -> Answer:
        try:
            answer = self._checked_read(request, scan(text))
        except RefusalError as refusal:
            answer = refused(refusal)
        answer.headers["Vary"] = "X-Keep-Signature"
        return answer

    def _checked_read(self, request: Request, locator: Locator) -> Answer:
        if request.method == "GET" and not locator.size and locator.digest != EMPTY_DIGEST:
            raise RefusalError(405, "method not allowed")
        if locator.is_remote and not locator.is_signed:
            return remote.read(self, request, locator)
        if self.settings.signing:
            token = next(iter(tokens(request)), "")
            self.signer.check(locator.text, token, self.clock.time_ns())
        self.take_buffer(request)
        return self._block_answer(request, locator)

    def _block_answer(self, request: Request, locator: Locator) -> Answer:
        failed: Answer | None = None
        for volume in self.ordered(locator.digest):
            try:
                block = volume.block(locator.digest)
            except RefusalError as refusal:
                failed = failed or refused(refusal)
                continue
            if block is None:
                continue
            stream = Stream(block.content, block.md5sum(), locator)
            answer = stream.head() if request.method == "HEAD" else stream.get()
            if answer.status == 200 and (answer.body or answer.length is not None):
                return answer
            failed = failed or answer
        if failed is None:
            raise RefusalError(404, "file does not exist")
        return failed

    # --- writing ----------------------------------------------------------

    def _put(self, request: Request, path: str) -> Answer:
        try:
            self.take_buffer(request)
            content = read_block(request)
            digest = request.body.md5sum()
            check_path(path, digest)
            wanted = request.header("X-Keep-Storage-Classes").split(",")
            classes = {name.strip() for name in wanted} - {""}
            written = self.write(digest, content, classes)
        except RefusalError as refusal:
            return refused(refusal)
        locator = f"{digest}+{len(content)}"
        token = next(iter(tokens(request)), "")
        if token and self.settings.key:
            locator = self.sign(locator, token)
        confirmed = ", ".join(f"{name}={count}" for name, count in written.classes.items())
        headers = {
            "X-Keep-Replicas-Stored": str(written.replicas),
            "X-Keep-Storage-Classes-Confirmed": confirmed,
        }
        return Answer(200, f"{locator}\n".encode(), headers)

    def write(self, digest: str, content: Content, classes: set[str]) -> Written:
        """Store a block so that the wanted classes are covered as far as possible.

        Raises:
            RefusalError: It isn't stored anywhere.
        """
        writable = [volume for volume in self.volumes if not volume.read_only]
        placement = Placement(digest, content, classes, self.clock.time_ns())
        return placement.write(self.ordered(digest, writable))


def md5_of(content: Content) -> str:
    """Return the hash of what is stored."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def read_block(request: Request) -> Content:
    """Read a request's body as a block.

    Raises:
        RefusalError: It is one byte too long, or ends before it should.
        HangUpError: It is longer; keepstore has no answer to that.
    """
    try:
        content = request.body.read(MAX_BLOCK_SIZE)
        extra = 0 if len(content) < MAX_BLOCK_SIZE else request.body.skip(PIECE)
    except TruncatedError:
        raise RefusalError(499, None) from None
    if extra == 1 and request.body.finished:
        raise RefusalError(413, "EOF")
    if extra:
        raise HangUpError(reset=not request.body.finished)
    return content


def check_path(path: str, digest: str) -> None:
    """Compare a PUT's path with its body; only the first 32 characters count.

    Raises:
        RefusalError: They differ.
    """
    if not path.startswith(digest):
        raise RefusalError(400, f"content hash {digest} did not match specified locator {path}")
