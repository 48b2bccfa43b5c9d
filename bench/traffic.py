"""Traffic: a seeded city whose riders, attendants, Odoo and ARM send raw signal records.

A city is played against the engine once, record by record, and what arrives at the log is written
down in order: requests from outside, ARM's answers a few seconds later, and the records that plans,
stations and assets send each other (`Arrival.external` tells them apart). The recording is then
replayed in batches to whatever is to be measured; what a replay emits is not fed back, because the
recording holds it already.

Time passes as it does for a real network: three requests a plan and day.
"""

import heapq
import json
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from itertools import islice
from random import Random
from typing import Any, Final, NamedTuple

from bench import messages
from bench.messages import Message
from bss_stream import _engine, frames, topics
from bss_stream.frames import OutboxKind

START_MS: Final = 1_795_500_000_000
"""2026-11-24T06:00:00Z: when the first plan is synchronised."""

REQUESTS_PER_PLAN_DAY: Final = 3
DAY_MS: Final = 86_400_000

TEMPLATES: Final = {
    "template-nairobi-swap-freedom": 60,
    "template-nairobi-basic": 8,
    "template-nairobi-premium": 4,
    "template-nairobi-roaming": 2,
    "template-togo-lome-7day-basic": 18,
    "template-togo-lome-7day-premium": 6,
    "template-togo-lome-30day-roaming": 2,
}
"""Shares of the plans, in percent."""


class Kind(StrEnum):
    """What comes in, and what is wrong with it if something is."""

    SWAP = "swap"
    TOP_UP_SWAP = "top_up_swap"
    IDENTIFY = "identify"
    BINDING = "binding"
    SERVICE_PAYMENT = "service_payment"
    RENEWAL = "renewal"
    STOCK = "stock"
    SAME_AGAIN = "same_again"
    SAME_SWAP_NEW_ID = "same_swap_new_id"
    WRONG_STATION = "wrong_station"
    WRONG_BATTERY = "wrong_battery"
    GARBAGE = "garbage"


MIX: Final = {
    Kind.SWAP: 630,
    Kind.TOP_UP_SWAP: 60,
    Kind.IDENTIFY: 140,
    Kind.BINDING: 50,
    Kind.SERVICE_PAYMENT: 10,
    Kind.RENEWAL: 15,
    Kind.STOCK: 15,
    Kind.SAME_AGAIN: 30,
    Kind.SAME_SWAP_NEW_ID: 5,
    Kind.WRONG_STATION: 15,
    Kind.WRONG_BATTERY: 15,
    Kind.GARBAGE: 15,
}
"""Parts in a thousand requests. Quota and rate refusals come on top, from swaps that meet them."""


class Arrival(NamedTuple):
    """One record as the log has it."""

    topic: str
    partition: int
    offset: int
    key: bytes
    value: bytes
    received_ms: int
    external: bool
    """Whether it came from outside; else an entity sent it."""


class Batch(NamedTuple):
    """What one call processes."""

    arrivals: list[Arrival]
    inputs: list[tuple[str, int, list[int], bytes]]
    """For the engine: topic, partition, offsets, packed records."""
    now_ms: int


class Rider:
    """What a rider and the attendants know of a plan."""

    __slots__ = ("battery", "invoices", "must_top_up", "number", "plan_id", "template")

    def __init__(self, number: int, template: "Template") -> None:
        self.number = number
        self.plan_id = f"plan-{number:07d}"
        self.template = template
        self.battery = ""
        self.invoices = 1
        self.must_top_up = False


class Template:
    """What riders of a template do: where they go, what they pay, how near they are to the end."""

    def __init__(self, market: dict[str, Any], document: dict[str, Any]) -> None:
        services = {s["service_id"]: s for s in market["services"]}
        own = [services[s["service_id"]] for s in document["services"]]
        locations = {location["location_id"]: location["stock"] for location in market["locations"]}
        allowed = set(document["allowed_locations"])
        self.template_id: str = document["template_id"]
        self.currency: str = market["currency"]
        self.fleet: str = next(s["fleet_id"] for s in own if s["fleet_id"])
        reachable = [at for at in locations if "*" in allowed or at in allowed]
        self.stations = [at for at in reachable if self.fleet in locations[at]]
        self.elsewhere = [at for at in locations if at not in reachable] or ["station-far-away"]
        self.energy_id: str = next(s["service_id"] for s in own if s["consumes"] == "energy")
        energy = next(s for s in document["services"] if s["service_id"] == self.energy_id)
        self.energy_wh: int = energy["initial_quota"]["units"]
        self.deposit = self.money(document["deposit_minor"], market["currency_digits"])
        self.fee = self.money(document["fee_minor"], market["currency_digits"])
        self.top_ups = ("50", "100", "300") if self.currency == "XOF" else ("50.00", "120.5", "300")

    @staticmethod
    def money(minor: int, digits: int) -> str:
        """Minor units as currency units, the way Odoo writes them."""
        return f"{minor / 10**digits:.{digits}f}"


def _templates(setup: bytes) -> dict[str, Template]:
    markets = json.loads(setup)["markets"]
    return {
        document["template_id"]: Template(market, document)
        for market in markets
        for document in market["templates"]
    }


class City:
    """All riders, and the engine that answers them while the recording is made."""

    def __init__(self, setup: bytes, plans: int, *, partitions: int = 1, seed: int = 1) -> None:
        self.random = Random(seed)
        self.partitions = partitions
        self.now_ms = START_MS
        self.outcomes: Counter[str] = Counter()
        known = _templates(setup)
        shares = [name for name, share in TEMPLATES.items() for _ in range(share)]
        self.riders = [Rider(n, known[self.random.choice(shares)]) for n in range(plans)]
        self._engine = _engine.Engine(setup, partitions=partitions)
        for partition in range(partitions):
            self._engine.open_shard(partition)
        self._interval_ms = max(DAY_MS // (plans * REQUESTS_PER_PLAN_DAY), 1)
        self._offsets: Counter[tuple[str, int]] = Counter()
        self._batteries: dict[str, deque[str]] = {}
        self._made = 0
        self._recent: deque[Message] = deque(maxlen=50)
        self._answers: list[tuple[int, int, Message]] = []
        self._arrivals: list[Arrival] = []
        self._kinds, self._weights = list(MIX), list(MIX.values())

    def settle(self) -> Iterator[Arrival]:
        """Brings every plan to its first battery: sync, initialize_states, first issue."""
        riders = iter(self.riders)
        while group := list(islice(riders, 250)):
            sent = [message for rider in group for message in self._settle_one(rider)]
            self._process([(m.topic, m.key.encode(), m.record(self.now_ms)) for m in sent], True)
            yield from self._taken()

    def _settle_one(self, rider: Rider) -> list[Message]:
        self.now_ms += self._interval_ms
        template, plan_id, at_ms = rider.template, rider.plan_id, self.now_ms
        rider.battery = self._charged(template.fleet)
        # One rider in fifty has nearly used up the plan, so that refusals and top-ups are met.
        used_wh = template.energy_wh - 1_000 if rider.number % 50 == 7 else 0
        return [
            self._sync(rider, template.deposit),
            messages.initialize(plan_id, at_ms, self._id()),
            messages.service(
                plan_id,
                at_ms,
                self._id(),
                station=self.random.choice(template.stations),
                old=None,
                new=rider.battery,
                kwh=f"{used_wh / 1000:.2f}",
            ),
        ]

    def requests(self, count: int) -> Iterator[Arrival]:
        """`count` requests of the mix, and all that follows from them."""
        for kind in self.random.choices(self._kinds, self._weights, k=count):
            self.now_ms += self._interval_ms
            while self._answers and self._answers[0][0] <= self.now_ms:
                answered_ms, _, message = heapq.heappop(self._answers)
                self._send(message, answered_ms)
            rider = self.random.choice(self.riders)
            sender = getattr(self, f"_{kind}")
            sender(rider)
            yield from self._taken()

    def _taken(self) -> list[Arrival]:
        taken, self._arrivals = self._arrivals, []
        return taken

    # What each kind of request is.

    def _swap(self, rider: Rider, *, pay: bool = False) -> None:
        template, random = rider.template, self.random
        new = self._charged(template.fleet)
        paid = self._top_up(rider) if pay or rider.must_top_up else None
        outcome = self._send(
            messages.service(
                rider.plan_id,
                self._sent_ms(),
                self._id(),
                station=random.choice(template.stations),
                old=rider.battery,
                new=new,
                kwh=f"{random.randrange(60, 260) / 100:.2f}",
                paid=paid,
            )
        )
        rider.must_top_up = outcome == "quota_exhausted"
        if outcome == "ok":
            self._batteries[template.fleet].append(rider.battery)
            rider.battery = new
        else:
            self._batteries[template.fleet].append(new)

    def _top_up_swap(self, rider: Rider) -> None:
        self._swap(rider, pay=True)

    def _identify(self, rider: Rider) -> None:
        station = self.random.choice(rider.template.stations)
        message = messages.identify(rider.plan_id, self._sent_ms(), self._id(), station)
        self._send(message)

    def _binding(self, rider: Rider) -> None:
        template = rider.template
        station = self.random.choice(template.stations)
        self._send(
            messages.binding(
                rider.plan_id,
                self._sent_ms(),
                self._id(),
                station,
                template.fleet,
                rider.battery,
            )
        )

    def _service_payment(self, rider: Rider) -> None:
        paid = self._top_up(rider)
        self._send(messages.service_payment(rider.plan_id, self._sent_ms(), self._id(), paid))

    def _renewal(self, rider: Rider) -> None:
        # Odoo tells of the same invoice more than once.
        rider.invoices += self.random.random() < 0.5
        self._send(self._sync(rider, rider.template.fee))

    def _stock(self, rider: Rider) -> None:
        template, random = rider.template, self.random
        station = random.choice(template.stations)
        available = random.randrange(20)
        self._send(messages.stock(station, self._sent_ms(), self._id(), template.fleet, available))

    def _same_again(self, rider: Rider) -> None:
        if self._recent:
            self._send(self.random.choice(self._recent))
        else:
            self._identify(rider)

    def _same_swap_new_id(self, rider: Rider) -> None:
        self._faulty_swap(rider, new=rider.battery)

    def _wrong_station(self, rider: Rider) -> None:
        self._faulty_swap(rider, station=self.random.choice(rider.template.elsewhere))

    def _wrong_battery(self, rider: Rider) -> None:
        self._faulty_swap(rider, old="B0700000000000")

    def _faulty_swap(self, rider: Rider, **changes: str) -> None:
        swap: dict[str, Any] = {
            "station": self.random.choice(rider.template.stations),
            "old": rider.battery,
            "new": "B0799999999999",
            "kwh": "1.5",
            **changes,
        }
        self._send(messages.service(rider.plan_id, self._sent_ms(), self._id(), **swap))

    def _garbage(self, rider: Rider) -> None:
        station = rider.template.stations[0]
        good = messages.identify(rider.plan_id, self._sent_ms(), self._id(), station)
        self._send(self.random.choice(_spoiled(good)))

    # What requests are made of.

    def _sent_ms(self) -> int:
        # Phones are a little behind and their clocks a little off.
        return self.now_ms - self.random.randrange(-200, 3_000)

    def _id(self) -> str:
        bits = f"{self.random.getrandbits(128):032x}"
        return f"{bits[:8]}-{bits[8:12]}-{bits[12:16]}-{bits[16:20]}-{bits[20:]}"

    def _charged(self, fleet: str) -> str:
        pool = self._batteries.setdefault(fleet, deque())
        if len(pool) < 50:
            self._made += 1
            return f"B07{self._made:011d}"
        return pool.popleft()

    def _top_up(self, rider: Rider) -> str:
        template = rider.template
        reference = f"M{self.random.getrandbits(40):010X}"
        amount = self.random.choice(template.top_ups)
        return messages.payment(template.energy_id, amount, reference)

    def _sync(self, rider: Rider, amount: str) -> Message:
        return messages.sync(
            rider.plan_id,
            self.now_ms,
            self._id(),
            subscription=rider.number,
            invoice=rider.number * 1000 + rider.invoices,
            currency=rider.template.currency,
            amount=amount,
            template=rider.template.template_id,
        )

    # The log, and ARM.

    def _send(self, message: Message, received_ms: int | None = None) -> str:
        """Brings one message in; returns how it ended."""
        at_ms = self.now_ms if received_ms is None else received_ms
        if message.event in ("payment_and_service", "customer_binding"):
            self._recent.append(message)
        record = (message.topic, message.key.encode(), message.record(at_ms))
        return self._process([record], True, at_ms)

    def _process(
        self, records: list[tuple[str, bytes, bytes]], external: bool, now_ms: int | None = None
    ) -> str:
        at_ms = self.now_ms if now_ms is None else now_ms
        arrivals = [self._place(topic, key, value, external) for topic, key, value in records]
        self._arrivals += arrivals
        output = self._engine.process(batch(arrivals, at_ms).inputs, at_ms)
        self.outcomes.update(output.outcomes)
        onward: list[tuple[str, bytes, bytes]] = []
        for chunk in output.chunks:
            if chunk.topic in topics.SIGNALS:
                onward += [(chunk.topic, k, v or b"") for k, v in _engine.unpack(chunk.data)]
            elif chunk.topic == topics.OUTBOX:
                self._orders(chunk.data)
        if onward:
            self._process(onward, False, at_ms)
        return max(output.outcomes, key=lambda reason: output.outcomes[reason])

    def _place(self, topic: str, key: bytes, value: bytes, external: bool) -> Arrival:
        partition = _engine.partition_for(key, self.partitions)
        offset = self._offsets[topic, partition]
        self._offsets[topic, partition] += 1
        received_ms = int(value.split(b"\t", 3)[2]) if value.startswith(b"1\t") else self.now_ms
        return Arrival(topic, partition, offset, key, value, received_ms, external)

    def _orders(self, chunk: memoryview) -> None:
        """ARM hands out a battery within seconds; sometimes it refuses, or says nothing."""
        for key, value in _engine.unpack(chunk):
            message = frames.decode_outbox(value or b"")
            if message.kind is OutboxKind.CMD and message.topic.endswith("/allocate"):
                self._answer(key.decode(), json.loads(message.payload))

    def _answer(self, station: str, order: dict[str, Any]) -> None:
        luck = self.random.random()
        if luck < 0.03:
            return
        due_ms = self.now_ms + self.random.randrange(1_000, 6_000)
        fields = f'"plan_id":"{order["plan_id"]}","fleet_id":"{order["fleet_id"]}",'
        if luck < 0.06:
            fields += '"status":"denied","reason":"door_jammed"'
        else:
            rider = self.riders[int(order["plan_id"][5:])]
            old, rider.battery = rider.battery, self._charged(order["fleet_id"])
            self._batteries[order["fleet_id"]].append(old)
            fields += (
                f'"status":"issued","asset_id":"{rider.battery}","returned_asset_id":"{old}",'
                f'"energy_transferred":{self.random.randrange(60, 260) / 100:.2f}'
            )
        message = messages.answer(station, due_ms, order["correlation_id"], fields)
        heapq.heappush(self._answers, (due_ms, len(self._answers), message))


def _spoiled(good: Message) -> list[Message]:
    """One good request with one fault each."""
    payload = good.payload
    early = payload.replace(b'"timestamp":"2026-', b'"timestamp":"2025-')
    faulty = [
        b"identify me; " + payload,
        payload[: len(payload) // 2],
        payload.replace(b'"actor":{', b'"note":"\xff\xfe","actor":{'),
        payload.replace(b'"actor":{', b'"deep":' + b"[" * 40 + b"]" * 40 + b',"actor":{'),
        payload.replace(b'"type":"attendant"', b'"type":7'),
        payload.replace(b"qr_code_data", b"qr_code_dada"),
        payload.replace(good.key.encode(), b"plan-of-somebody-else"),
        early,
    ]
    messages_ = [good._replace(payload=bad) for bad in faulty]
    stranger = good.key.replace("plan-", "nobody-")
    unknown = good._replace(
        key=stranger, payload=payload.replace(good.key.encode(), stranger.encode())
    )
    return [*messages_, unknown, good._replace(event="swap_please")]


def batch(arrivals: Sequence[Arrival], now_ms: int) -> Batch:
    """The arrivals as one call's inputs, topic by topic."""
    inputs: list[tuple[str, int, list[int], bytes]] = []
    ordered: list[Arrival] = []
    for topic in topics.SIGNALS:
        partitions = sorted({a.partition for a in arrivals if a.topic == topic})
        for partition in partitions:
            own = [a for a in arrivals if a.topic == topic and a.partition == partition]
            data = _engine.pack([(a.key, a.value) for a in own])
            inputs.append((topic, partition, [a.offset for a in own], data))
            ordered += own
    return Batch(ordered, inputs, now_ms)


def batches(arrivals: Iterable[Arrival], size: int) -> Iterator[Batch]:
    """The arrivals in batches; time moves on to the receipt of each one's last record."""
    stream = iter(arrivals)
    now_ms = 0
    while group := list(islice(stream, size)):
        now_ms = max(now_ms, max(a.received_ms for a in group))
        yield batch(group, now_ms)
