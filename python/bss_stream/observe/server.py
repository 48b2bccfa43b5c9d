"""A small HTTP server for machines that ask: GET only, one answer a connection.

Nothing is read but a request's first line and the end of its head, and all of that is bounded, so
whoever can reach the port can do no more than ask.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Final, NamedTuple

import orjson
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4

from bss_stream.config import Http
from bss_stream.errors import BssStreamError
from bss_stream.observe.exporter import Exporter
from bss_stream.roles import Platform

logger = logging.getLogger(__name__)

HEAD_BYTES_MAX: Final = 8 * 1024
PATIENCE_S: Final = 5.0
"""How long a client may take over its request, and over taking the answer."""
CONNECTIONS_MAX: Final = 32
JSON: Final = "application/json"


class Answer(NamedTuple):
    """What a path has to say."""

    status: HTTPStatus
    content_type: str
    body: bytes


Path = Callable[[], Awaitable[Answer]]


class HttpServer:
    """Answers paths until it is closed."""

    def __init__(self, paths: Mapping[str, Path]) -> None:
        self._paths = paths
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.Task[None]] = set()

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the port. Raises BssStreamError when that is not possible."""
        try:
            self._server = await asyncio.start_server(
                self._connected, host, port, limit=HEAD_BYTES_MAX
            )
        except OSError as error:
            reason = error.strerror or error
            raise BssStreamError(f"$.http: cannot listen on {host}:{port}: {reason}") from error
        found: int = self._server.sockets[0].getsockname()[1]
        return found

    async def close(self) -> None:
        """Listen no more, and hang up."""
        if self._server is not None:
            self._server.close()
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._open) >= CONNECTIONS_MAX:
            writer.close()
            return
        task = asyncio.create_task(self._serve(reader, writer), name="http")
        self._open.add(task)
        task.add_done_callback(self._open.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(PATIENCE_S):
                head = await reader.readuntil(b"\r\n\r\n")
            answer = await self._answer(head)
            async with asyncio.timeout(PATIENCE_S):
                writer.write(_written(answer, with_body=not head.startswith(b"HEAD ")))
                await writer.drain()
        except (TimeoutError, OSError, EOFError, asyncio.LimitOverrunError):
            pass  # Who does not ask properly, or does not wait, gets no answer.
        finally:
            writer.close()

    async def _answer(self, head: bytes) -> Answer:
        method, _, rest = head.partition(b" ")
        if method not in (b"GET", b"HEAD"):
            return _text(HTTPStatus.METHOD_NOT_ALLOWED, "GET and HEAD only\n")
        target = rest.partition(b" ")[0].partition(b"?")[0]
        path = self._paths.get(target.decode("latin-1"))
        if path is None:
            return _text(HTTPStatus.NOT_FOUND, f"here are: {', '.join(self._paths)}\n")
        return await path()


def _text(status: HTTPStatus, text: str) -> Answer:
    return Answer(status, "text/plain; charset=utf-8", text.encode())


def _written(answer: Answer, *, with_body: bool) -> bytes:
    head = (
        f"HTTP/1.1 {answer.status.value} {answer.status.phrase}\r\n"
        f"Content-Type: {answer.content_type}\r\n"
        f"Content-Length: {len(answer.body)}\r\n"
        "Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n"
    )
    return head.encode("latin-1") + (answer.body if with_body else b"")


def paths(platform: Platform) -> dict[str, Path]:
    """What a platform answers."""
    exporter = Exporter(platform)

    async def metrics() -> Answer:
        return Answer(HTTPStatus.OK, CONTENT_TYPE_PLAIN_0_0_4, await exporter.render())

    async def health() -> Answer:
        # That there is an answer says that the event loop turns.
        ended = platform.ended()
        return _json(not ended, {"alive": not ended, "ended": ended})

    async def readiness() -> Answer:
        missing = platform.missing()
        return _json(not missing, {"ready": not missing, "missing": missing})

    return {"/metrics": metrics, "/healthz": health, "/readyz": readiness}


def _json(is_well: bool, body: Mapping[str, object]) -> Answer:
    status = HTTPStatus.OK if is_well else HTTPStatus.SERVICE_UNAVAILABLE
    return Answer(status, JSON, orjson.dumps(body, option=orjson.OPT_APPEND_NEWLINE))


@contextlib.asynccontextmanager
async def observed(settings: Http, platform: Platform) -> AsyncIterator[int | None]:
    """Answer for a platform, from before it starts until it has ended; gives the port, or None if
    no port is set."""
    if settings.port is None:
        yield None
        return
    server = HttpServer(paths(platform))
    port = await server.start(settings.host, settings.port)
    logger.warning("metrics and health on http://%s:%d", settings.host, port)
    try:
        yield port
    finally:
        await server.close()
