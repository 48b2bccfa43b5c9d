"""Riders, attendants, Odoo and ARM as clients of the simulated broker: the simulator's pure parts.

They live outside: they are never killed, and what they have once published the broker has. What
they are told may get lost on the way to them, and ARM is slow, silent or says things twice.
"""

import asyncio
from random import Random
from typing import Final

import msgspec

from bss_stream.client.echo import read_echo
from bss_stream.simulate import bodies
from bss_stream.simulate.arm import AllocateCommand, ArmDecisions
from bss_stream.simulate.config import ArmConfig, FaultShares, SimulationConfig
from bss_stream.simulate.network import Network
from bss_stream.simulate.traffic import Outgoing, Traffic
from tests.simulation.broker import Broker
from tests.simulation.chance import Chance
from tests.simulation.loop import WORLD

START_MS: Final = 1_795_521_600_000
"""2026-11-24T12:00:00Z: far from any market's midnight."""

TICK_S: Final = 0.05
TEMPLATES_MAX: Final = 3

_COMMAND: Final = msgspec.json.Decoder(AllocateCommand)

RIDERS: Final = SimulationConfig(
    run_id="s",
    joining_rate=20,
    answer_timeout_ms=12_000,
    renew_share=0.5,
    cancel_share=0.05,
    swaps_per_plan=6,
    arm=ArmConfig(
        shelf_batteries=4,
        recharge_ms=60_000,
        slow_share=0.15,
        slow_ms_min=500,
        slow_ms_max=50_000,
        lost_share=0.1,
    ),
    faults=FaultShares(
        wrong_station=0.03,
        exhausted_quota=0.03,
        empty_stock=0.02,
        over_rate_limit=0.02,
        duplicate=0.08,
        garbage=0.05,
    ),
)


def wall_ms() -> int:
    """The one clock of the simulated world."""
    return START_MS + int(asyncio.get_running_loop().time() * 1000)


def choose_network(whole: Network, random: Random) -> Network:
    """A few templates and the shelves that they need."""
    terms = tuple(random.sample(whole.terms, min(TEMPLATES_MAX, len(whole.terms))))
    places = {(place, fleet) for t in terms for fleet in t.places for place in t.places[fleet]}
    shelves = tuple(s for s in whole.shelves if (s.location_id, s.fleet_id) in places)
    return Network(whole.markets, shelves, terms)


class Clients:
    """Everybody who speaks MQTT and is not the platform."""

    def __init__(
        self, network: Network, broker: Broker, chance: Chance, *, plans: int, rate: float
    ) -> None:
        random = chance.random
        config = msgspec.structs.replace(
            RIDERS, seed=random.getrandbits(32), plans=plans, rate=rate
        )
        self.accepted: list[Outgoing] = []
        """Every message that the broker has taken."""
        dry = network.busiest() if random.random() < 0.3 else frozenset()
        arm_random = Random(random.getrandbits(32))
        self._arm = ArmDecisions(network.shelves, config.arm, arm_random, run=config.run, dry=dry)
        self.traffic = Traffic(network, self._arm, config, Random(random.getrandbits(32)))
        self._broker = broker
        self._chance = chance
        self._stamp = bodies.Stamp()
        self._reports = 0
        self.on_their_way = 0
        """Messages that have yet to reach the broker."""
        broker.listener = self._hear

    async def live(self) -> None:
        """Send what is due until cancelled."""
        self._arm.recount_all()
        self._report()
        while True:
            self._send_all(self.traffic.due(_now_us(), wall_ms()))
            self._report()
            await asyncio.sleep(TICK_S)

    def _send_all(self, messages: list[Outgoing]) -> None:
        for message in messages:
            self._send(message)
            if self._chance.strikes("client publishes twice", 0.03):
                self._send(message)

    def _send(self, message: Outgoing, delay_s: float = 0.0) -> None:
        self.on_their_way += 1

        def arrive() -> None:
            self.on_their_way -= 1
            self.accepted.append(message)
            self._chance.note(loop.time(), f"accepted {message.topic}", message.payload)
            self._broker.accept(*message)

        loop = asyncio.get_running_loop()
        loop.call_later(delay_s + self._chance.delay_s(0.003), arrive, context=WORLD)

    def _hear(self, topic: str, payload: bytes, correlation: bytes) -> None:
        if topic.startswith("cmd/ABS/EPS/") and topic.endswith("/allocate"):
            self._allocate(payload)
        elif _is_for_riders(topic) and not self._chance.strikes("echo lost on its way", 0.03):
            self.traffic.answer(read_echo(payload), _now_us(), wall_ms())
            self._send_all(self.traffic.follow_ups())

    def _allocate(self, payload: bytes) -> None:
        if self._chance.strikes("ARM does not hear a command", 0.05):
            return
        command = _COMMAND.decode(payload)
        delivery = self._arm.allocate(command, wall_ms())
        if delivery.delay_ms is None:
            self._chance.faults["ARM's answer lost"] += 1
            return
        self._chance.faults["ARM's answer slow"] += delivery.delay_ms > 0
        answer = Outgoing(
            f"echo/ABS/EPS/{command.location_id}/allocate",
            bodies.answer(self._stamp(wall_ms()), delivery.answer),
            command.correlation_id.encode(),
        )
        self._send(answer, delivery.delay_ms / 1000)
        if self._chance.strikes("ARM answers twice", 0.05):
            self._send(answer, self._chance.random.uniform(0, 20))

    def _report(self) -> None:
        for report in self._arm.take_reports():
            self._reports += 1
            correlation = f"stock-{self._reports}"
            payload = bodies.stock(self._stamp(wall_ms()), correlation, report)
            topic = f"emit/arm/station/{report.location_id}/stock"
            self._send(Outgoing(topic, payload, correlation.encode()))


def _is_for_riders(topic: str) -> bool:
    """Whether it is an echo, and not its copy for older clients."""
    older = topic.startswith("echo/abs/service/") and "identify" in topic
    return topic.startswith("echo/") and not older


def _now_us() -> int:
    return int(asyncio.get_running_loop().time() * 1_000_000)
