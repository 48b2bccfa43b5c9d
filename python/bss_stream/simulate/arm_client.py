"""ARM on MQTT: answers allocate commands and reports stock, a batch of messages at a time."""

from types import TracebackType
from typing import Final, Self

from msgspec import DecodeError
from msgspec.json import Decoder

from bss_stream.clock import epoch_ms
from bss_stream.errors import MqttError
from bss_stream.mqtt.client import MqttClient
from bss_stream.mqtt.messages import Message, Received, Subscription
from bss_stream.simulate import bodies
from bss_stream.simulate.arm import AllocateCommand, ArmDecisions, Delivery, StockReport
from bss_stream.simulate.bodies import Stamp
from bss_stream.simulate.publisher import Publisher
from bss_stream.simulate.tally import ArmCounts

COMMANDS: Final = "cmd/ABS/EPS/+/allocate"
_BATCH_MAX: Final = 2_000
_DECODER: Final = Decoder(AllocateCommand)


class ArmSimulator:
    """The Asset Resource Manager and its stations on one MQTT connection of their own.

    An asynchronous context: enter it, `start`, then `serve` in a task.
    """

    def __init__(self, client: MqttClient, decisions: ArmDecisions, *, run: str, qos: int) -> None:
        self._client = client
        self._publisher = Publisher(client)
        self._decisions = decisions
        self._run = run
        self._qos = qos
        self._stamp = Stamp()
        self._reports = 0
        self._commands = 0
        self._issued = 0
        self._denied = 0
        self._repeated = 0
        self._slow = 0
        self._lost = 0
        self._unreadable = 0

    async def __aenter__(self) -> Self:
        await self._publisher.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._publisher.__aexit__(kind, error, traceback)

    async def start(self) -> None:
        """Subscribe to commands and report every shelf. Raises MqttError."""
        await self._client.subscribe(Subscription(COMMANDS, self._qos))
        reports = [self._report(report) for report in self._decisions.stock()]
        refused = await self._client.publish(reports)
        if refused:
            raise MqttError(f"the broker refused a stock report: {refused[0].reason}")

    async def serve(self) -> None:
        """Answer commands until cancelled. Raises MqttError once the connection has failed."""
        async for batch in self._client.batches(_BATCH_MAX):
            self._publisher.soon(self._answers(batch))
            self.report_restocked()
            self._client.ack(batch)

    def report_restocked(self) -> None:
        """Publish the stock of shelves that have been refilled or counted."""
        self._publisher.soon([self._report(report) for report in self._decisions.take_reports()])

    def counts(self) -> ArmCounts:
        """What was done so far."""
        return ArmCounts(
            self._commands,
            self._issued,
            self._denied,
            self._repeated,
            self._slow,
            self._lost,
            self._unreadable,
        )

    def _answers(self, batch: list[Received]) -> list[Message]:
        now_ms = epoch_ms()
        answers = []
        for message in batch:
            self._commands += 1
            try:
                command = _DECODER.decode(message.payload)
            except DecodeError:
                self._unreadable += 1
                continue
            delivery = self._decisions.allocate(command, now_ms)
            self._count(delivery)
            if delivery.delay_ms is None:
                continue
            answer = Message(
                topic=f"echo/ABS/EPS/{command.location_id}/allocate",
                payload=bodies.answer(self._stamp(now_ms), delivery.answer),
                qos=self._qos,
                correlation=command.correlation_id.encode(),
            )
            if delivery.delay_ms:
                self._publisher.soon([answer], delivery.delay_ms)
            else:
                answers.append(answer)
        return answers

    def _count(self, delivery: Delivery) -> None:
        self._repeated += delivery.repeated
        self._issued += delivery.answer.reason is None and not delivery.repeated
        self._denied += delivery.answer.reason is not None and not delivery.repeated
        self._lost += delivery.delay_ms is None
        self._slow += bool(delivery.delay_ms)

    def _report(self, report: StockReport) -> Message:
        self._reports += 1
        correlation = f"{self._run}-stock-{self._reports:010d}"
        stamp = self._stamp(epoch_ms())
        return Message(
            topic=f"emit/arm/station/{report.location_id}/stock",
            payload=bodies.stock(stamp, correlation, report),
            qos=self._qos,
            correlation=correlation.encode(),
        )
