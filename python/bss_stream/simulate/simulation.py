"""A whole run on MQTT: riders on one connection, ARM on another, against any broker.

One task sends what is due every tick, one takes echoes, one serves ARM's commands. All of them
work in batches: at thousands of messages a second the event loop turns hundreds of times.
"""

import asyncio
import dataclasses
import time
from random import Random
from typing import Final

from msgspec import DecodeError

from bss_stream.client.echo import read_echo
from bss_stream.clock import epoch_ms
from bss_stream.errors import ConfigError
from bss_stream.mqtt.client import MqttClient
from bss_stream.mqtt.messages import Message, MqttSettings, Received, Subscription
from bss_stream.simulate.arm import ArmDecisions
from bss_stream.simulate.arm_client import ArmSimulator
from bss_stream.simulate.config import SimulationConfig, check_config
from bss_stream.simulate.network import Network, read_network
from bss_stream.simulate.publisher import Publisher, first_mqtt_error
from bss_stream.simulate.tally import Latency, Snapshot, StockLevel, Unexpected, summarize
from bss_stream.simulate.traffic import Outgoing, Traffic

ECHOES: Final = (
    "echo/abs/attendant/plan/+/identify_customer",
    "echo/abs/attendant/plan/+/payment_and_service",
    "echo/abs/service/plan/+/customer_binding",
    "echo/abs/service/plan/+/initialize_states_result",
    "echo/odo/subscription/plan/+/sync",
    "echo/abs/bss/payment/+/service_payment",
)
"""Where riders, attendants and Odoo listen."""

DRAIN_S: Final = 5.0
"""How long a run that ends waits for the echoes of what it has sent."""

_BATCH_MAX: Final = 2_000


class Simulation:
    """One run, once. `setup` is the compiled setup that the platform runs with.

    `broker` says how to reach the broker; its client id is the stem of both clients' ids.
    Raises ConfigError for a configuration or a setup that makes no run.
    """

    def __init__(self, setup: bytes, broker: MqttSettings, config: SimulationConfig) -> None:
        network = check_run(setup, config)
        self.config = config
        self._riders = MqttClient(_client(broker, "riders"))
        self._arm_client = MqttClient(_client(broker, "arm"))
        self._decisions = ArmDecisions(
            network.shelves,
            config.arm,
            Random(f"{config.seed}-arm"),
            run=config.run,
            dry=network.busiest() if config.faults.empty_stock else frozenset(),
        )
        self._arm = ArmSimulator(self._arm_client, self._decisions, run=config.run, qos=config.qos)
        self._traffic = Traffic(network, self._decisions, config, Random(config.seed))
        self._publisher = Publisher(self._riders)
        self._own = f"/plan-{config.run}-"
        self._stopping = asyncio.Event()
        self._began_us = 0
        self._last = (0, 0)
        """Time and accepted swaps at the last snapshot."""

    async def run(
        self, duration_s: float | None = None, *, plans_done: int | None = None
    ) -> Snapshot:
        """Join all plans, then swap for `duration_s` or until `plans_done` plans have ended.

        Without either it runs until `stop`. Then it waits for the echoes of what was sent, and
        tells the final state. Raises MqttError once a connection has failed for good.
        """
        try:
            async with self._riders, self._arm_client, self._publisher, self._arm:
                await self._riders.subscribe(*(Subscription(f, self.config.qos) for f in ECHOES))
                await self._arm.start()
                self._began_us = _now_us()
                async with asyncio.TaskGroup() as group:
                    arm = group.create_task(self._arm.serve())
                    echoes = group.create_task(self._take_echoes())
                    await self._send(duration_s, plans_done)
                    final = self.snapshot()
                    echoes.cancel()
                    arm.cancel()
        except BaseExceptionGroup as errors:
            raise first_mqtt_error(errors) from errors
        return final

    def stop(self) -> None:
        """End the run soon; `run` then returns."""
        self._stopping.set()

    async def _send(self, duration_s: float | None, plans_done: int | None) -> None:
        traffic, tick_s = self._traffic, self.config.tick_ms / 1000
        while not self._stopping.is_set() and not self._is_over(duration_s, plans_done):
            self._publish(traffic.due(_now_us(), epoch_ms()))
            await asyncio.sleep(tick_s)
        traffic.stop()
        give_up_us = _now_us() + int(DRAIN_S * 1_000_000)
        while traffic.under_way and _now_us() < give_up_us:
            self._publish(traffic.due(_now_us(), epoch_ms()))
            await asyncio.sleep(tick_s)

    def _is_over(self, duration_s: float | None, plans_done: int | None) -> bool:
        since_us = self._traffic.swapping_since_us
        if duration_s is not None and since_us is not None:
            return _now_us() - since_us >= duration_s * 1_000_000
        return plans_done is not None and self._traffic.done >= plans_done

    async def _take_echoes(self) -> None:
        async for batch in self._riders.batches(_BATCH_MAX):
            self._answer(batch)
            self._riders.ack(batch)

    def _answer(self, batch: list[Received]) -> None:
        traffic, own = self._traffic, self._own
        now_us, wall_ms = _now_us(), epoch_ms()
        for message in batch:
            if own not in message.topic:
                traffic.tally.foreign_echoes += 1
                continue
            try:
                echo = read_echo(message.payload)
            except DecodeError as error:
                traffic.tally.unexpected("echo", "the contract's envelope", "another", str(error))
                continue
            traffic.answer(echo, now_us, wall_ms)
        self._publish(traffic.follow_ups())

    def _publish(self, outgoing: list[Outgoing]) -> None:
        qos = self.config.qos
        self._publisher.soon(
            [
                Message(topic=m.topic, payload=m.payload, qos=qos, correlation=m.correlation)
                for m in outgoing
            ]
        )
        self._arm.report_restocked()

    def snapshot(self) -> Snapshot:
        """The run at this moment; also the end of the interval of `swaps_per_s_now`."""
        now_us, traffic = _now_us(), self._traffic
        tally = traffic.tally
        last_us, last_swaps = self._last
        self._last = (now_us, tally.swaps)
        return Snapshot(
            elapsed_s=(now_us - self._began_us) / 1e6,
            phase=traffic.phase,
            swaps=tally.swaps,
            swaps_per_s=_rate(tally.swaps, now_us - (traffic.swapping_since_us or now_us)),
            swaps_per_s_now=_rate(tally.swaps - last_swaps, now_us - (last_us or now_us)),
            requests=dict(tally.requests),
            outcomes=dict(tally.outcomes),
            swap_latency=summarize(tally.swap_latency),
            latencies=self._latencies(),
            faults=tally.faults(),
            unexpected=tally.unexpected_lines() + self._refused(),
            samples=tuple(tally.samples),
            plans=traffic.plans(),
            arm=self._arm.counts(),
            stock=tuple(StockLevel(*report) for report in self._decisions.stock()),
            timeouts=tally.timeouts,
            repeated_echoes=tally.repeated_echoes,
            foreign_echoes=tally.foreign_echoes,
            unserved=tally.unserved,
            late_ms=traffic.late_us(now_us) / 1000,
        )

    def _latencies(self) -> dict[str, Latency]:
        latencies = self._traffic.tally.latencies
        return {kind: summarize(recorder) for kind, recorder in sorted(latencies.items())}

    def _refused(self) -> tuple[Unexpected, ...]:
        """Messages that never reached the broker's log."""
        refused = self._publisher.refused.items()
        return tuple(Unexpected("publish", "PUBACK", reason, n) for reason, n in refused)


def check_run(setup: bytes, config: SimulationConfig) -> Network:
    """The network of a setup that a configuration can run on. Raises ConfigError."""
    check_config(config)
    network = read_network(setup)
    known = sorted(terms.template_id for terms in network.terms)
    unknown = sorted(config.templates.keys() - set(known))
    if unknown:
        expected = f"expected templates on sale: {', '.join(known)}"
        raise ConfigError([f"simulation: $.templates: {', '.join(unknown)}: {expected}"])
    return network


def _client(broker: MqttSettings, part: str) -> MqttSettings:
    return dataclasses.replace(broker, client_id=f"{broker.client_id}-{part}", clean_start=True)


def _rate(count: int, interval_us: int) -> float:
    return count * 1e6 / interval_us if interval_us > 0 else 0.0


def _now_us() -> int:
    return time.monotonic_ns() // 1_000
