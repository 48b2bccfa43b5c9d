"""Runs the simulator's pure part against the engine on a clock of its own: no MQTT, no waiting."""

import hashlib
from collections import deque
from collections.abc import Callable
from random import Random

import msgspec

from bss_stream.client.echo import read_echo
from bss_stream.setup import compile_setup, load_setup
from bss_stream.simulate import bodies
from bss_stream.simulate.arm import AllocateCommand, ArmDecisions
from bss_stream.simulate.config import SimulationConfig
from bss_stream.simulate.network import Network, read_network
from bss_stream.simulate.traffic import Outgoing, Traffic
from tests.engine_platform import EnginePlatform, Sabotage, Sent

SETUP = compile_setup(load_setup())
NETWORK: Network = read_network(SETUP)
NOON_MS = 1_795_521_600_000
"""2026-11-24T12:00:00Z: far from any market's midnight."""
TICK_US = 10_000

_COMMAND = msgspec.json.Decoder(AllocateCommand)


class SimulatedDay:
    """One run: `traffic`, `arm` and `platform` can be looked at afterwards."""

    def __init__(
        self,
        config: SimulationConfig,
        *,
        sabotage: Sabotage | None = None,
        starts_ms: int = NOON_MS,
    ) -> None:
        self.config = config
        dry = NETWORK.busiest() if config.faults.empty_stock else frozenset()
        self.arm = ArmDecisions(NETWORK.shelves, config.arm, Random("arm"), run=config.run, dry=dry)
        self.traffic = Traffic(NETWORK, self.arm, config, Random(config.seed))
        self.platform = EnginePlatform(SETUP, sabotage)
        self.sent = 0
        self._digest = hashlib.sha256()
        self._now_us = 0
        self._starts_ms = starts_ms
        self._stamp = bodies.Stamp()
        self._delayed: list[tuple[int, Sent]] = []
        self.arm.recount_all()
        self._report_stock()

    @property
    def digest(self) -> str:
        """Of every message sent so far, in order."""
        return self._digest.hexdigest()

    @property
    def wall_ms(self) -> int:
        return self._starts_ms + self._now_us // 1_000

    def run(self, seconds: float, until: Callable[[], bool] = lambda: False) -> None:
        """Let that many seconds pass, or fewer if `until` comes true; then let all answers in."""
        end_us = self._now_us + int(seconds * 1_000_000)
        while self._now_us < end_us and not until():
            self._tick()

    def drain(self) -> None:
        """Stop arrivals and wait for what is under way."""
        self.traffic.stop()
        self.run(200, until=lambda: not self.traffic.under_way)

    def _tick(self) -> None:
        self._now_us += TICK_US
        self._take(self.platform.advance(self.wall_ms))
        due = [sent for at_ms, sent in self._delayed if at_ms <= self.wall_ms]
        self._delayed = [entry for entry in self._delayed if entry[0] > self.wall_ms]
        for sent in due:
            self._take(self.platform.handle(*sent, self.wall_ms))
        # Each message is answered before the next is sent; answers may call for more of them.
        waiting = deque(self.traffic.due(self._now_us, self.wall_ms))
        while waiting:
            self._send(waiting.popleft())
            waiting.extend(self.traffic.follow_ups())

    def _send(self, message: Outgoing) -> None:
        self.sent += 1
        self._digest.update(message.topic.encode() + b"\0" + message.payload + b"\n")
        self._take(self.platform.handle(*message, self.wall_ms))
        self._report_stock()

    def _take(self, published: list[Sent]) -> None:
        for sent in published:
            if sent.topic.endswith("/allocate"):
                self._allocate(sent)
            elif sent.topic.startswith("echo/abs/service/") and "identify" in sent.topic:
                continue  # the older clients' topic
            elif sent.topic.startswith("echo/"):
                self.traffic.answer(read_echo(sent.payload), self._now_us, self.wall_ms)

    def _allocate(self, sent: Sent) -> None:
        command = _COMMAND.decode(sent.payload)
        delivery = self.arm.allocate(command, self.wall_ms)
        if delivery.delay_ms is None:
            return
        answer = Sent(
            f"echo/ABS/EPS/{command.location_id}/allocate",
            bodies.answer(self._stamp(self.wall_ms), delivery.answer),
            b"",
        )
        self._delayed.append((self.wall_ms + delivery.delay_ms, answer))

    def _report_stock(self) -> None:
        for report in self.arm.take_reports():
            topic = f"emit/arm/station/{report.location_id}/stock"
            payload = bodies.stock(self._stamp(self.wall_ms), "stock", report)
            self.platform.handle(topic, payload, b"", self.wall_ms)
