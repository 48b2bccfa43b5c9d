"""One run: the real roles on a simulated log, broker and network, and what befalls them.

Everything is drawn from the seed. First the platform works while things go wrong; then the faults
stop, and it has to come to rest by itself.
"""

import asyncio
import functools
import gc
import random as shared_random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from bss_stream import topic_table
from bss_stream.bridge import Bridge, BridgeSettings
from bss_stream.errors import BssStreamError
from bss_stream.log.protocol import Offsets, TopicPartition
from bss_stream.mqtt.messages import SESSION_WEEK_S, MqttSettings
from bss_stream.processor import Processor, ProcessorSettings
from bss_stream.publisher import Publisher, PublisherSettings
from bss_stream.setup import compile_setup, load_setup
from bss_stream.simulate.network import read_network
from bss_stream.sink.entry import Batch
from bss_stream.sink.loop import LedgerSink, SinkSettings
from bss_stream.sink.sqlite import SqliteLedgerStore
from bss_stream.sink.store import StoreUnavailableError, Written
from tests.simulation.broker import Broker
from tests.simulation.chance import Chance
from tests.simulation.clients import Clients, choose_network, wall_ms
from tests.simulation.invariants import Outcome, Rest
from tests.simulation.log import LogServer, SimulatedLog
from tests.simulation.loop import PROCESS, WORLD, SimulatedLoop, SimulatedProcess
from tests.simulation.network import Network

SETUP: Final = compile_setup(load_setup())
WHOLE_NETWORK: Final = read_network(SETUP)
TABLE: Final = topic_table.load()

GROUPS: Final = {"processor": "processors", "publisher": "publishers", "sink": "sinks"}
REST_TIMEOUT_S: Final = 600.0
"""Simulated time in which a platform must come to rest once the faults have stopped, and each role
to its end once it is told to stop."""

TEMPORARY: Final = "/dev/shm" if Path("/dev/shm").is_dir() else None


async def until(holds: Callable[[], bool], *, every_s: float = 0.05) -> None:
    """Let time pass. Raises TimeoutError."""
    async with asyncio.timeout(REST_TIMEOUT_S):
        while not holds():  # noqa: ASYNC110 (simulated time costs nothing)
            await asyncio.sleep(every_s)


class Role(Protocol):
    """What every role is."""

    async def run(self) -> None: ...

    def stop(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Scenario:
    """What a seed makes of the platform and of its luck."""

    partitions: int
    bridges: int
    processors: int
    publishers: int
    sinks: int
    plans: int
    rate: float
    duration_s: float
    disorder: float
    lost_share: float
    calamity_every_s: float
    checkpoint_every_s: float

    @classmethod
    def of(cls, chance: Chance) -> "Scenario":
        """Drawn in this order: another order makes every seed another story."""
        random = chance.random
        return cls(
            partitions=random.randint(1, 4),
            bridges=random.randint(1, 2),
            processors=random.randint(1, 3),
            publishers=random.randint(1, 2),
            sinks=random.randint(1, 2),
            plans=random.randint(2, 6),
            rate=random.uniform(0.5, 4.0),
            duration_s=random.uniform(6.0, 20.0),
            disorder=random.choice((0.0, 0.1, 0.5)),
            lost_share=random.choice((0.0, 0.005, 0.02)),
            calamity_every_s=random.choice((0.5, 1.5, 5.0)),
            checkpoint_every_s=random.choice((0.05, 1.0, 1_000.0)),
        )


class Store:
    """The ledger database, which goes away, and whose answers get lost."""

    def __init__(self, path: Path, world: "World") -> None:
        self._store = SqliteLedgerStore(path)
        self._world = world

    def open(self) -> None:
        self._reach()
        self._store.open()

    def offsets(self) -> dict[TopicPartition, int]:
        self._reach()
        return self._store.offsets()

    def write(self, batch: Batch, offsets: Offsets) -> Written:
        self._reach()
        written = self._store.write(batch, offsets)
        if self._world.chance.strikes("database: answer lost", 0.02):
            raise StoreUnavailableError("the database has gone away in mid-commit")
        return written

    def close(self) -> None:
        self._store.close()

    def snapshot(self) -> Any:
        return self._store.snapshot()

    def _reach(self) -> None:
        if self._world.database_down or self._world.chance.strikes("database: refused", 0.02):
            raise StoreUnavailableError("the database is away")


class Slot:
    """A place for one role's process, started again whenever it has ended."""

    def __init__(self, world: "World", name: str, make: Callable[[], Role]) -> None:
        self.name = name
        self.process: SimulatedProcess | None = None
        self.role: Role | None = None
        self._world = world
        self._make = make
        self._task: asyncio.Task[None] | None = None
        self._stopping = False
        self._starts = 0

    def start(self) -> None:
        """Run a new process."""
        self._starts += 1
        self.process = process = SimulatedProcess(f"{self.name}#{self._starts}")
        process.on_killed.append(self._ended)
        context = WORLD.copy()
        context.run(PROCESS.set, process)
        loop = asyncio.get_running_loop()
        self._task = loop.create_task(self._run(), name=process.name, context=context)

    async def _run(self) -> None:
        role = self.role = self._make()
        try:
            await role.run()
        except BssStreamError as error:
            # Who is told to stop while the log does not answer says so, and may.
            if not self._stopping:
                self._world.ends.append(f"{self.name}: {error}")
        except Exception as error:  # noqa: BLE001 (it would end the real process)
            self._world.ends.append(f"{self.name}: {error!r}")
        PROCESS.get().kill()

    def _ended(self) -> None:
        if not self._stopping:
            delay_s = self._world.chance.random.uniform(0.0, 3.0)
            asyncio.get_running_loop().call_later(delay_s, self.start, context=WORLD)

    async def stop(self) -> None:
        """End it as an operator does, and wait for that."""
        self._stopping = True
        if self.role is not None and self.process is not None and self.process.alive:
            self.role.stop()
        await until(lambda: self.process is None or not self.process.alive)


class World:
    """All that one seed has made."""

    def __init__(self, seed: int, folder: Path, *, roles: "Roles | None" = None) -> None:
        self.chance = Chance(seed)
        self.scenario = Scenario.of(self.chance)
        self.broker = Broker(self.chance)
        self.setup = SETUP
        self.loop = SimulatedLoop(  # type: ignore[abstract]
            self.chance.random, disorder=self.scenario.disorder, connect=self.broker.connect
        )
        self.network = Network(self.chance, lost_share=self.scenario.lost_share)
        self.server = LogServer(self.network, partitions=self.scenario.partitions)
        self.server.on_change = lambda what, data: self.chance.note(self.loop.time(), what, data)
        self.database_down = False
        self.ledgers = SqliteLedgerStore(folder / "ledgers.db")
        self.ends: list[str] = []
        """Why roles have ended by themselves."""
        self.folder = folder
        self.database = folder / "ledgers.db"
        self._roles = roles or Roles()
        self._slots: list[Slot] = []
        self._calamities: list[asyncio.Task[None]] = []

    def run(self) -> Outcome:
        """Live through the seed's story and judge what is left. Never raises for a failure."""
        # The client's pauses between attempts to connect come from here.
        shared_random.seed(self.chance.random.getrandbits(32))
        return self.loop.run(self._live())

    async def _live(self) -> Outcome:
        scenario = self.scenario
        network = choose_network(WHOLE_NETWORK, self.chance.random)
        clients = Clients(
            network, self.broker, self.chance, plans=scenario.plans, rate=scenario.rate
        )
        self._slots = self._roles.slots(self)
        for slot in self._slots:
            slot.start()
        await until(lambda: self.broker.heard)
        riding = asyncio.create_task(clients.live())
        await self._go_wrong()
        await self._calm()
        clients.traffic.stop()
        rest = Rest(self, clients)
        try:
            await until(lambda: not rest.unrest(), every_s=0.5)
            riding.cancel()
            for slot in self._slots:
                await slot.stop()
        except TimeoutError:
            alive = [s.name for s in self._slots if s.process is not None and s.process.alive]
            return rest.outcome([f"it does not come to an end: {', '.join(alive)} run"])
        return rest.outcome(rest.faults())

    # What goes wrong.

    async def _go_wrong(self) -> None:
        random, loop = self.chance.random, asyncio.get_running_loop()
        end_s = loop.time() + self.scenario.duration_s
        while True:
            await asyncio.sleep(random.expovariate(1 / self.scenario.calamity_every_s))
            if loop.time() >= end_s:
                return
            kind, calamity = random.choice(
                (
                    ("kill", self._kill),
                    ("kill", self._kill),
                    ("kill", self._kill),
                    ("freeze", self._freeze),
                    ("member thrown out", self._throw_out),
                    ("MQTT connection cut", self._cut),
                    ("broker down", self._broker_down),
                    ("log down", self._log_down),
                    ("database down", self._database_away),
                    ("compaction", self._compact),
                )
            )
            self.chance.note(loop.time(), kind)
            self.chance.faults[kind] += 1
            self._calamities.append(asyncio.create_task(calamity()))

    async def _calm(self) -> None:
        self.chance.calm = True
        for task in self._calamities:
            await task

    def _victim(self) -> SimulatedProcess | None:
        process = self.chance.random.choice(self._slots).process
        return process if process is not None and process.alive and not process.frozen else None

    async def _kill(self) -> None:
        """At any await: after some more callbacks, wherever that is."""
        if (process := self._victim()) is not None:
            process.fuse = int(self.chance.random.expovariate(1 / 60)) + 1

    async def _freeze(self) -> None:
        if (process := self._victim()) is not None:
            process.frozen = True
            self.server.silence(process)
            await asyncio.sleep(self.chance.random.uniform(0.1, 14.0))
            self.loop.thaw(process)

    async def _throw_out(self) -> None:
        groups = [group for group in self.server.groups.values() if group.seats]
        if groups:
            group = self.chance.random.choice(groups)
            seat = self.chance.random.choice(group.seats)
            group.expel(seat, self.chance.random.uniform(0.0, 8.0))

    async def _cut(self) -> None:
        if self.broker.links:
            self.chance.random.choice(self.broker.links).cut()

    async def _broker_down(self) -> None:
        self.broker.crash()
        await asyncio.sleep(self.chance.random.uniform(0.1, 3.0))
        self.broker.down = False

    async def _log_down(self) -> None:
        self.network.down = True
        await asyncio.sleep(self.chance.random.uniform(0.1, 5.0))
        self.network.down = False

    async def _database_away(self) -> None:
        self.database_down = True
        await asyncio.sleep(self.chance.random.uniform(0.1, 5.0))
        self.database_down = False

    async def _compact(self) -> None:
        self.server.compact()


class Roles:
    """Makes the roles of a world; a mutation overrides one of them."""

    def slots(self, world: World) -> list[Slot]:
        """A slot for every role of the scenario."""
        scenario = world.scenario
        counts: list[tuple[str, int, Callable[[World, int], Role]]] = [
            ("bridge", scenario.bridges, self.bridge),
            ("processor", scenario.processors, self.processor),
            ("publisher", scenario.publishers, self.publisher),
            ("sink", scenario.sinks, self.sink),
        ]
        return [
            Slot(world, f"{name}-{i}", lambda make=make, i=i: make(world, i))  # type: ignore[misc]
            for name, count, make in counts
            for i in range(count)
        ]

    def bridge(self, world: World, number: int) -> Role:
        settings = BridgeSettings(
            batch_records_max=20, shared_group="bridges" if world.scenario.bridges > 1 else None
        )
        mqtt = MqttSettings(
            host="broker", client_id=f"bridge-{number}", session_expiry_s=SESSION_WEEK_S
        )
        return Bridge(self.log(world), mqtt, TABLE, settings, clock_ms=wall_ms)

    def processor(self, world: World, number: int) -> Role:
        settings = self.processor_settings(world, number)
        return Processor(self.log(world), SETUP, settings, clock_ms=wall_ms)

    def processor_settings(self, world: World, number: int) -> ProcessorSettings:
        """Small batches; checkpoints lie on the machine: the next process there finds them."""
        return ProcessorSettings(
            group=GROUPS["processor"],
            transactional_id="shard-{}".format,
            batch_records_max=50,
            tick_interval_s=0.5,
            checkpoint_directory=world.folder / f"processor-{number}",
            checkpoint_interval_s=world.scenario.checkpoint_every_s,
        )

    def publisher(self, world: World, number: int) -> Role:
        settings = PublisherSettings(group=GROUPS["publisher"], batch_records_max=20)
        mqtt = MqttSettings(host="broker", client_id=f"publisher-{number}")
        return Publisher(self.log(world), mqtt, settings, clock_ms=wall_ms)

    def sink(self, world: World, number: int) -> Role:
        store = Store(world.database, world)
        return LedgerSink(self.log(world), store, SinkSettings(group=GROUPS["sink"]))

    def log(self, world: World) -> SimulatedLog:
        """A process's handle on the log."""
        return SimulatedLog(world.server)


@functools.cache
def _keep_what_is_loaded() -> None:
    """Spare the collections between runs all that stays anyway."""
    gc.collect()
    gc.freeze()


def simulate(seed: int, roles: Roles | None = None) -> Outcome:
    """The story of a seed."""
    _keep_what_is_loaded()
    with tempfile.TemporaryDirectory(prefix="bss-simulation-", dir=TEMPORARY) as folder:
        world = World(seed, Path(folder), roles=roles)
        try:
            return world.run()
        finally:
            world.loop.dispose()
