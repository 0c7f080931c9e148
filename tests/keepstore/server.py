"""A server on 127.0.0.1: listens, reads requests, asks its service, answers.

What is served is the service's affair; when and how it goes wrong is the
faults'. One thread accepts, and each connection has a thread of its own, so a
service must be safe to call from many.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import ssl
import threading
import traceback
from typing import TYPE_CHECKING, Protocol, Self

from tests.keepstore.clock import Clock
from tests.keepstore.faults import Fault, Faults, Stage
from tests.keepstore.journal import Journal
from tests.keepstore.rendering import render
from tests.keepstore.wire import (
    Answer,
    BadRequestError,
    Connection,
    HangUpError,
    Request,
    TruncatedError,
    parse_request,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

#: Where every test server listens; never another address.
HOST = "127.0.0.1"

# Head and body go in one segment up to this many bytes.
_MOST_AT_ONCE = 65536
# More bytes than any body has.
_ALL = 1 << 40
# Pieces in which a body is sent at a limited rate, a second.
_PIECES = 20
# Go waits that long (seconds) before it closes on a client that still sends.
_LINGER = 0.5
# Seconds; only a client that doesn't speak TLS takes longer.
_HANDSHAKE_TIMEOUT = 10.0


class Service(Protocol):
    """What answers requests. Called from many threads at once."""

    def answer(self, request: Request) -> Answer:
        """Carry out a request.

        Raises:
            HangUpError: The connection is to be closed without an answer.
        """
        ...

    def stop(self) -> None:
        """Let no request wait any longer: the server ends."""
        ...


class Server:
    """A running server. Use it as a context manager, or call `stop`.

    Args:
        service: Answers the requests.
        clock: Tells the `Date` of the answers.
        port: Where to listen; 0 takes a free one.
        tls: Files of a certificate and its key, which make the server speak https.
        receive_buffer: Bytes the system keeps of what isn't read yet; a small
            number lets a slow reader be felt.
        send_buffer: The same for what isn't sent yet.
        linger: Seconds between the answer and the end of a connection whose
            client still sends.

    Attributes:
        faults: What goes wrong.
        journal: What was asked.
        crashes: Tracebacks of errors in the service; a test expects none.
    """

    def __init__(
        self,
        service: Service,
        *,
        clock: Clock | None = None,
        port: int = 0,
        tls: tuple[str, str] | None = None,
        receive_buffer: int | None = None,
        send_buffer: int | None = None,
        linger: float = _LINGER,
    ) -> None:
        self.service = service
        self.faults = Faults()
        self.journal = Journal()
        self.crashes: list[str] = []
        self._clock = clock or Clock()
        self._tls = None if tls is None else _server_context(*tls)
        self._buffers = {socket.SO_RCVBUF: receive_buffer, socket.SO_SNDBUF: send_buffer}
        self._linger = linger
        self._stopping = threading.Event()
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._connections: dict[int, Connection] = {}
        self._threads: list[threading.Thread] = []
        self._listener: socket.socket | None = None
        self.port = port
        self.open()

    @property
    def url(self) -> str:
        """The root URL, without a slash at its end."""
        return f"{'https' if self._tls else 'http'}://{HOST}:{self.port}"

    def open(self) -> None:
        """Listen, on the same port as before if there was one."""
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        for option, size in self._buffers.items():
            if size is not None:
                listener.setsockopt(socket.SOL_SOCKET, option, size)
        listener.bind((HOST, self.port))
        listener.listen(256)
        self.port = listener.getsockname()[1]
        self._listener = listener
        self._start(self._accept, listener)

    def close(self) -> None:
        """Refuse new connections and end those there are, until `open` is called."""
        with self._lock:
            listener, self._listener = self._listener, None
        if listener is not None:
            # Closing alone doesn't wake the thread that accepts.
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        self.cut_connections()

    def cut_connections(self) -> None:
        """End all connections there are; new ones are welcome."""
        with self._lock:
            connections = list(self._connections.values())
        for connection in connections:
            connection.abort()

    def stop(self) -> None:
        """End everything, and wait for all threads.

        Raises:
            AssertionError: The service failed in some request.
        """
        self._stopping.set()
        self.faults.stop()
        self.service.stop()
        self.close()
        while True:
            with self._lock:
                threads = [thread for thread in self._threads if thread.is_alive()]
            if not threads:
                break
            for thread in threads:
                thread.join()
        if self.crashes:
            raise AssertionError("the test server failed:\n" + "\n".join(self.crashes))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _start(self, task: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=task, args=arguments, daemon=True)
        with self._lock:
            self._threads = [each for each in self._threads if each.is_alive()]
            self._threads.append(thread)
            thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                stream, _ = listener.accept()
            except OSError:
                return  # closed
            self._start(self._welcome, stream, next(self._numbers))

    def _welcome(self, stream: socket.socket, number: int) -> None:
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        stream.settimeout(_HANDSHAKE_TIMEOUT)
        try:
            secured = self._tls.wrap_socket(stream, server_side=True) if self._tls else stream
            secured.settimeout(None)
        except OSError:
            stream.close()
            return  # a client that doesn't trust us, for one
        connection = Connection(secured, number, self.faults.pause)
        with self._lock:
            self._connections[number] = connection
            is_late = self._listener is None
        reset = False
        try:
            if not is_late:
                self._converse(connection)
        except HangUpError as hang_up:
            reset = hang_up.reset
        except (OSError, TruncatedError):
            pass  # the client went away
        finally:
            with self._lock:
                del self._connections[number]
            connection.close(reset=reset)

    def _converse(self, connection: Connection) -> None:
        while not self._stopping.is_set():
            try:
                lines = connection.read_head()
                if lines is None:
                    return
                request = parse_request(lines, connection)
            except BadRequestError:
                connection.send(
                    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\n"
                    b"Connection: close\r\n\r\n400 Bad Request"
                )
                return
            number = self.journal.begin(request)

            def finish(status: int | None, number: int = number, of: Request = request) -> None:
                # Before the last byte: the client's next request finds the
                # places free that this one had, and its test a full journal.
                of.releases.close()
                self.journal.end(number, of, status)

            try:
                fault = self.faults.take(request.method, request.target)
                connection.receive_rate = fault.receive_rate
                request.body.no_continue = fault.no_continue
                answer = self._carry_out(request, fault)
                keeps = self._send(answer, request, connection, fault, finish)
            finally:
                finish(None)
            if not keeps:
                self._part(request, connection)
                return

    def _carry_out(self, request: Request, fault: Fault) -> Answer:
        self._pass(Stage.BEFORE_READ, fault)
        expected = request.header("Expect")
        if expected and expected.lower() != "100-continue":
            return Answer(417, headers={"Connection": "close"}, cut=True)
        if fault.replaces:
            if not fault.unread:
                request.body.skip(_ALL)
            answer = Answer(200)
        else:
            try:
                answer = self.service.answer(request)
            except (HangUpError, OSError, TruncatedError):
                raise
            except Exception as error:
                self.crashes.append("".join(traceback.format_exception(error)))
                raise HangUpError from error
        answer = fault.alter(answer)
        self._pass(Stage.BEFORE_STATUS, fault)
        return answer

    def _send(
        self,
        answer: Answer,
        request: Request,
        connection: Connection,
        fault: Fault,
        finish: Callable[[int], None],
    ) -> bool:
        if not answer.cut:
            request.body.drain()
        rendered = render(answer, request, self._clock)
        body = rendered.body
        if fault.is_prompt and len(body) <= _MOST_AT_ONCE:
            finish(answer.status)
            connection.send(rendered.head + bytes(body))
            return not rendered.closes
        end = len(body) if fault.close_after is None else min(fault.close_after, len(body))
        if end == 0:
            finish(answer.status)
        connection.send(rendered.head)
        self._pass(Stage.BEFORE_BODY, fault)
        middle = end // 2
        self._send_paced(body[:middle], connection, fault)
        self._pass(Stage.MID_BODY, fault)
        if end:
            self._send_paced(body[middle : end - 1], connection, fault)
            finish(answer.status)
            connection.send(body[end - 1 : end])
        if fault.close_after is not None:
            raise HangUpError(reset=fault.reset)
        return not rendered.closes

    def _send_paced(self, body: memoryview, connection: Connection, fault: Fault) -> None:
        if fault.send_rate is None:
            connection.send(body)
            return
        size = max(1, int(fault.send_rate / _PIECES))
        for start in range(0, len(body), size):
            connection.send(body[start : start + size])
            if self.faults.pause(size / fault.send_rate):
                connection.send(body[start + size :])
                return

    def _pass(self, stage: Stage, fault: Fault) -> None:
        if stage in fault.pause:
            self.faults.pause(fault.pause[stage])
        if fault.hold is stage:
            self.faults.hold()
        if fault.close is stage:
            raise HangUpError(reset=fault.reset)
        if self._stopping.is_set():
            raise HangUpError

    def _part(self, request: Request, connection: Connection) -> None:
        body = request.body
        if body.finished:
            return
        if body.is_awaited and body.is_small:
            # Go waits for the rest of a small body although it said it closes.
            body.no_continue = True
            body.skip(1 << 20)
            return
        connection.end_sending()
        self._stopping.wait(self._linger)


def _server_context(certificate: str, key: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context
