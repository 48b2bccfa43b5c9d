"""A network that fails on demand: a TCP proxy between a client and a broker."""

import asyncio
import contextlib
from types import TracebackType
from typing import Self

from tests.servers.ports import free_port


class Proxy:
    """Forwards 127.0.0.1:`port` to `target`, until told to hold back, to cut or to refuse."""

    def __init__(self, target: int, port: int | None = None) -> None:
        self.port = free_port() if port is None else port
        self._target = target
        self._server: asyncio.Server | None = None
        self._pumps: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._to_client = asyncio.Event()
        self._to_client.set()
        self._to_broker = asyncio.Event()
        self._to_broker.set()

    async def __aenter__(self) -> Self:
        await self.accept()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.refuse()
        self.cut()
        await asyncio.gather(*self._pumps, return_exceptions=True)

    async def accept(self) -> None:
        """Accept connections."""
        self._server = await asyncio.start_server(self._connect, "127.0.0.1", self.port)

    def refuse(self) -> None:
        """Accept no new connection."""
        if self._server is not None:
            self._server.close()
            self._server = None

    def cut(self) -> None:
        """Reset every connection, what is held back is lost."""
        for writer in self._writers:
            writer.transport.abort()
        for pump in self._pumps:
            pump.cancel()
        self.let_through()

    def hold_answers(self) -> None:
        """Keep what the broker sends."""
        self._to_client.clear()

    def hold_requests(self) -> None:
        """Keep what the client sends."""
        self._to_broker.clear()

    def hang(self) -> None:
        """Keep everything, with connections open, old and new."""
        self.hold_answers()
        self.hold_requests()

    def let_through(self) -> None:
        """Undo these."""
        self._to_client.set()
        self._to_broker.set()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            broker = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, broker[1]}
        pumps = [
            asyncio.ensure_future(self._pump(reader, broker[1], self._to_broker)),
            asyncio.ensure_future(self._pump(broker[0], writer, self._to_client)),
        ]
        self._pumps |= set(pumps)
        await asyncio.wait(pumps)
        self._pumps -= set(pumps)
        self._writers -= {writer, broker[1]}
        writer.transport.abort()
        broker[1].transport.abort()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, gate: asyncio.Event
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                await gate.wait()
                writer.write(data)
                await writer.drain()
            writer.close()
