"""Live: throughput, outcomes, lag and the last events, pushed to the browser once a second."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from bss_stream.console import render
from bss_stream.console.context import Context
from bss_stream.errors import SinkError

PUSH_S: Final = 1.0
RETRY_MS: Final = 2_000
"""After which a browser that has lost the stream asks for it again."""
STREAMS_MAX: Final = 64


class Live:
    """The page and its stream."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._streams = 0
        self._stopping = asyncio.Event()
        self._told: tuple[float, dict[str, Any]] = (0.0, {})
        self._asking = asyncio.Lock()

    @property
    def routes(self) -> list[Route]:
        return [Route("/", self.page), Route("/live/events", self.events)]

    def stop(self) -> None:
        """End all streams: a server that stops would wait for them."""
        self._stopping.set()

    async def page(self, request: Request) -> Response:
        told = await self._snapshot()
        return self._context.renderer.page("live.html", request.scope, told=told)

    async def events(self, request: Request) -> Response:
        if self._streams >= STREAMS_MAX:
            raise HTTPException(503, f"{STREAMS_MAX} browsers are watching already.")
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(self._stream(), 200, headers, "text/event-stream")

    async def _stream(self) -> AsyncIterator[bytes]:
        self._streams += 1
        try:
            yield b"retry: %d\n\n" % RETRY_MS
            while not self._stopping.is_set():
                yield b"data: %s\n\n" % orjson.dumps(await self._snapshot())
                try:
                    async with asyncio.timeout(PUSH_S):
                        await self._stopping.wait()
                except TimeoutError:
                    continue
        finally:
            self._streams -= 1

    async def _snapshot(self) -> dict[str, Any]:
        """One for all who watch: it is made anew when it is almost PUSH_S old."""
        async with self._asking:
            now_s = asyncio.get_running_loop().time()
            at_s, told = self._told
            if not told or now_s - at_s > 0.9 * PUSH_S:
                told = await self._look()
                self._told = (now_s, told)
            return told

    async def _look(self) -> dict[str, Any]:
        context = self._context
        figures = context.watch.figures
        told = figures.snapshot()
        for event in told["events"]:
            event["at"] = render.clock(event["at_ms"])
            event["what"] = render.words(event["what"])
            if event["type"] == "entry":
                event["detail"] = self._detail(event.pop("parts"), event.pop("where"))
        told["log_fault"] = context.watch.fault
        told["database_fault"], behind_ms = await self._database(figures.newest_recorded_ms)
        told["database_behind_ms"] = behind_ms
        told["now"] = render.stamp(context.clock_ms())
        return told

    def _detail(self, parts: Sequence[tuple[int, str, int, str]], where: str) -> str:
        units = self._context.units
        told = [units.money(minor, currency) for _, _, minor, currency in parts if minor]
        told += [units.quota(count, service_id) for count, service_id, _, _ in parts if count]
        if where:
            told.append(self._context.markets.catalogue.station_name(where) or where)
        elif parts[0][1]:
            told.append(units.service(parts[0][1]))
        return " · ".join(told)

    async def _database(self, newest_ms: int | None) -> tuple[str, int | None]:
        """What is wrong with the ledger database, and how far it is behind the log."""
        try:
            recorded_ms = await self._context.database.ask(lambda view: view.recorded_at_ms())
        except SinkError as error:
            return str(error), None
        if newest_ms is None or recorded_ms is None:
            return "", None
        return "", max(newest_ms - recorded_ms, 0)
