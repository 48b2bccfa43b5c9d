"""The queries' loop: requests off MQTT, answers out of the ledger database, echoes onto MQTT.

It touches no log and decides nothing, so as many processes as riders need may share the requests.
A request is acknowledged once its echo is on its way; one that is lost with its process is asked
again by the rider's app, and a database that is away only delays the echoes.
"""

import asyncio
import contextlib
import dataclasses
import functools
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final, TypeVar

from bss_stream.clock import epoch_ms
from bss_stream.counters import (
    Distribution,
    RoleCounters,
    seconds,
    sizes,
    unbalanced,
)
from bss_stream.mqtt.client import MqttClient
from bss_stream.mqtt.messages import Message, MqttSettings, Received, Refusal
from bss_stream.queries import wire
from bss_stream.queries.answers import Answer, answers
from bss_stream.queries.catalogue import Catalogue
from bss_stream.sink.read_model import ReadModel
from bss_stream.sink.store import StoreUnavailableError
from bss_stream.stopping import done_unless_stopped, pause, unless_stopped

logger = logging.getLogger(__name__)

T = TypeVar("T")

BACKOFF_MIN_S: Final = 0.1
BACKOFF_MAX_S: Final = 5.0
STOP_PATIENCE_S: Final = 5.0
"""How long a role that was told to stop goes on with what has come in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueriesSettings:
    """How queries are answered."""

    shared_group: str | None = None
    """Processes of one group share the requests. Not with the embedded broker, which it crashes."""
    batch_requests_max: int = 256
    """Requests that are answered out of one view of the database."""
    connect_patience_s: float = 30.0


@dataclass(slots=True)
class QueriesCounters(RoleCounters):
    """What a role has done since it was made."""

    received: int = 0
    in_hand: int = 0
    """Received, and not answered yet."""
    answers: Counter[str] = field(default_factory=Counter)
    """Requests by outcome: `ok`, the reason of a refusal, or why no echo went out."""
    refused: int = 0
    """Echoes that the broker did not take."""
    unavailable: int = 0
    """Attempts that found the database gone."""
    answer_s: Distribution = field(default_factory=seconds)
    """From a request's receipt until the broker has its echo: the oldest of a batch speaks for
    it."""
    batch_requests: Distribution = field(default_factory=sizes)

    def balance(self) -> list[str]:
        """Received is answered, in one way or another, or in hand."""
        parts = {"answers": self.answers.total(), "in_hand": self.in_hand}
        return unbalanced("received", self.received, parts)


class Queries:
    """A client for requests, one for echoes, and a connection to the database. `run` until `stop`.

    Two clients, because rumqttd sends no PUBACK to one that owes it a hundred of its own: a client
    that waits for the one before it gives the other would wait for ever.
    """

    def __init__(
        self,
        mqtt: MqttSettings,
        model: ReadModel,
        catalogue: Catalogue,
        settings: QueriesSettings,
        *,
        clock_ms: Callable[[], int] = epoch_ms,
    ) -> None:
        """`mqtt` asks for no session expiry: who is away should be sent no requests."""
        self.counters = QueriesCounters()
        self.client = MqttClient(mqtt)
        self._echoes = MqttClient(dataclasses.replace(mqtt, client_id=f"{mqtt.client_id}-echo"))
        self.ready = asyncio.Event()
        """Set once the broker has the subscriptions."""
        self._model = model
        self._catalogue = catalogue
        self._settings = settings
        self._clock_ms = clock_ms
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="queries")
        self._is_database_away = False
        self._stopping = asyncio.Event()

    def missing(self) -> list[str]:
        """What it waits for before it can answer."""
        found = []
        if not (self.client.connected and self._echoes.connected):
            found.append("a connection to the broker")
        elif not self.ready.is_set():
            found.append("subscriptions")
        if self._is_database_away:
            found.append("the database")
        return found

    def stop(self) -> None:
        """Have `run` end once what has come in is answered."""
        self._stopping.set()

    def reload(self, catalogue: Catalogue) -> None:
        """Answer by another set-up from the next batch on."""
        self._catalogue = catalogue

    async def run(self) -> None:
        """Answer until stopped.

        Raises MqttError when the client fails for good, SinkError for a fault of the database that
        waiting does not mend.
        """
        try:
            if await done_unless_stopped(self._connect(), self._stopping):
                await self._work()
        finally:
            try:
                await self.client.close()
                await self._echoes.close()
            finally:
                await self._in_thread(self._model.close)
                self._thread.shutdown(wait=False)

    async def _connect(self) -> None:
        await self._echoes.connect(patience_s=self._settings.connect_patience_s)
        await self.client.connect(patience_s=self._settings.connect_patience_s)
        await self.client.subscribe(*wire.subscriptions(self._settings.shared_group))
        self.ready.set()

    async def _work(self) -> None:
        most = self._settings.batch_requests_max
        while not self._stopping.is_set():
            batch = await unless_stopped(self.client.receive(most), self._stopping)
            if batch and not await self._serve(batch):
                return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_PATIENCE_S):
                while batch := await self.client.receive(most, timeout_s=0.0):
                    await self._serve(batch)

    async def _serve(self, batch: Sequence[Received]) -> bool:
        """Answer a batch; False when stopped before that worked."""
        self.counters.received += len(batch)
        self.counters.in_hand = len(batch)
        found = await self._answers(batch)
        if found is None:
            logger.warning("stopped with requests that the database has not answered")
            return False
        self.counters.in_hand = 0
        self.counters.answers.update(answer.outcome for answer in found)
        echoes = [answer.echo for answer in found if answer.echo is not None]
        refusals = await unless_stopped(
            self._send(echoes, batch), self._stopping, patience_s=STOP_PATIENCE_S
        )
        if refusals is None:
            logger.warning("stopped with echoes that the broker has not taken")
            return False
        for refusal in refusals:
            logger.error("the broker refused an echo: %s", refusal.reason)
        self.counters.refused += len(refusals)
        waited_s = asyncio.get_running_loop().time() - batch[0].received_s
        self.counters.answer_s.observe(waited_s, len(batch))
        self.counters.batch_requests.observe(len(batch))
        return True

    async def _send(self, echoes: Sequence[Message], batch: Sequence[Received]) -> list[Refusal]:
        refusals = await self._echoes.publish(echoes)
        self.client.ack(batch)
        return refusals

    async def _answers(self, batch: Sequence[Received]) -> list[Answer] | None:
        """The answers, after as many attempts as it takes; None when stopped before."""
        pause_s = BACKOFF_MIN_S
        while True:
            now_ms = self._clock_ms()
            call = functools.partial(answers, self._model, self._catalogue, batch, now_ms)
            try:
                found = await self._in_thread(call)
                self._is_database_away = False
                return found
            except StoreUnavailableError as error:
                self._is_database_away = True
                self.counters.unavailable += 1
                logger.warning("%s; trying again in %.1f s", error, pause_s)
            if self._stopping.is_set():
                return None
            await pause(pause_s, self._stopping)
            pause_s = min(pause_s * 2, BACKOFF_MAX_S)

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)
