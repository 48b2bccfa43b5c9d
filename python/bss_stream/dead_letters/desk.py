"""Replays asked of the process that has an embedded log, by a socket beside it.

The embedded log has one owner, and a replay is a transaction of it. Whoever may use the socket may
read the log's files: it is for the user alone that the owner runs as.
"""

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

import msgspec

from bss_stream.dead_letters.letters import Filter
from bss_stream.dead_letters.replay import Judgement, Rules, replay
from bss_stream.errors import BssStreamError, LogError
from bss_stream.log.protocol import Log

logger = logging.getLogger(__name__)

SOCKET: Final = "replay.sock"
ORDER_BYTES_MAX: Final = 1024 * 1024
ANSWER_BYTES_MAX: Final = 64 * 1024 * 1024
ANSWER_TIMEOUT_S: Final = 60.0
PATH_BYTES_MAX: Final = 100
"""What every system takes as the path of a socket."""


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be replayed, as `replay` takes it."""

    wanted: Filter
    again: bool
    limit: int
    note: str


class _Answer(msgspec.Struct, frozen=True, kw_only=True):
    judgement: Judgement | None = None
    error: str = ""


class ReplayDesk:
    """Takes orders from other processes of the user while it is open."""

    def __init__(
        self, log: Log, directory: Path, transactional_id: str, clock_ms: Callable[[], int]
    ) -> None:
        """`directory` is the log's own."""
        self._log = log
        self._path = _shortest(directory / SOCKET)
        self._transactional_id = transactional_id
        self._clock_ms = clock_ms
        self._one_at_a_time = asyncio.Lock()
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Listen. A path that no socket can have is logged: nothing else needs this."""
        if len(os.fsencode(self._path)) > PATH_BYTES_MAX:
            logger.warning("no replays by other processes: %s is too long a path", self._path)
            return
        # Whoever has the log has its directory: what is there is left from a process that died.
        self._path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(
            self._serve, sock=_bound(self._path), limit=ORDER_BYTES_MAX
        )

    async def close(self) -> None:
        """Take no more orders, and finish the one under way."""
        if self._server is None:
            return
        self._server.close()
        self._server = None
        async with self._one_at_a_time:
            self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                order = msgspec.msgpack.decode(await _all(reader, ORDER_BYTES_MAX), type=Order)
                writer.write(msgspec.msgpack.encode(await self._answer(order)))
                await writer.drain()
        except (OSError, TimeoutError, msgspec.DecodeError, LogError) as error:
            logger.warning("a replay that another process asked for got no answer: %s", error)
        finally:
            writer.close()

    async def _answer(self, order: Order) -> _Answer:
        async with self._one_at_a_time:
            try:
                judgement = await replay(
                    self._log,
                    self._transactional_id,
                    order.wanted,
                    Rules.present(self._clock_ms(), again=order.again),
                    limit=order.limit,
                    note=order.note,
                    clock_ms=self._clock_ms,
                )
            except BssStreamError as error:
                return _Answer(error=str(error))
        verdicts = [replace(one, letter=one.letter.without_raw()) for one in judgement.verdicts]
        return _Answer(judgement=Judgement(verdicts, judgement.more))


async def ask(directory: Path, order: Order) -> Judgement:
    """Have the process that has the log in `directory` replay. Raises LogError."""
    path = _shortest(directory / SOCKET)
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            reader, writer = await asyncio.open_unix_connection(str(path))
            try:
                writer.write(msgspec.msgpack.encode(order))
                writer.write_eof()
                data = await _all(reader, ANSWER_BYTES_MAX)
            finally:
                writer.close()
    except (OSError, TimeoutError) as error:
        raise LogError(
            f"the process that has the log {directory} took no replay by {path}: "
            f"{error or 'no answer'}; stop it and try again"
        ) from error
    try:
        answer = msgspec.msgpack.decode(data, type=_Answer)
    except msgspec.DecodeError as error:
        raise LogError(f"no whole answer by {path}: look at the letter before you retry") from error
    if answer.judgement is None:
        raise LogError(answer.error)
    return answer.judgement


async def _all(reader: asyncio.StreamReader, bytes_max: int) -> bytes:
    data = bytearray()
    while part := await reader.read(65_536):
        data += part
        if len(data) > bytes_max:
            raise LogError(f"a message of more than {bytes_max} bytes: it is not read")
    return bytes(data)


def _shortest(path: Path) -> Path:
    try:
        relative = Path(os.path.relpath(path))
    except (OSError, ValueError):
        return path
    return min(path.absolute(), relative, key=lambda one: len(str(one)))


def _bound(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        listener.bind(str(path))
    except OSError as error:
        listener.close()
        raise LogError(f"cannot listen on {path}: {error}") from error
    finally:
        os.umask(before)
    return listener
