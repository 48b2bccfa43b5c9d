"""Dead letters in both logs: what can be replayed is, once; and what cannot says why."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from bss_stream import topics
from bss_stream._engine import partition_for
from bss_stream.dead_letters import (
    NOW,
    Filter,
    Judgement,
    Rules,
    Standing,
    Verdict,
    judged,
    newest,
    replay,
)
from bss_stream.dead_letters.letters import REPLAYED
from bss_stream.errors import FencedError
from bss_stream.frames import DeadLetter, decode_signal, encode_dead_letter
from bss_stream.log.embedded import EmbeddedLog
from bss_stream.log.protocol import Log
from bss_stream.setup.compile import Limits
from bss_stream.testing import START_MS
from tests.integration.processing import TABLE, Clock, append, arrival, running
from tests.logs import PARTITIONS, Backend, EmbeddedBackend, KafkaBackend, chunk, kafka_options
from tests.undisturbed import LogRecord, read_log

PLAN = "plan-1"
SYNC = f"emit/odo/subscription/plan/{PLAN}/sync"
PAYMENT = f"emit/abs/bss/payment/{PLAN}/service_payment"
COUNTER = f"emit/uxi/attendant/plan/{PLAN}/payment_and_service"
WINDOW_MS, AGE_MS = Limits().dedupe_window_ms, Limits().skew_past_ms
MINUTE_MS = 60_000
_prefixes = itertools.count()


@pytest.fixture(params=["embedded", pytest.param("kafka", marks=pytest.mark.kafka)])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    if request.param == "embedded":
        return EmbeddedBackend(tmp_path / "log", keep_consumed_ms=AGE_MS)
    bootstrap = request.getfixturevalue("kafka")
    return KafkaBackend(kafka_options(bootstrap, f"letters-{next(_prefixes)}"))


@pytest.fixture
async def log(backend: Backend) -> AsyncIterator[Log]:
    log = backend.log()
    await log.open()
    yield log
    await log.close()


def message(correlation_id: str, now_ms: int, **data: Any) -> dict[str, Any]:
    seconds = (now_ms - START_MS) // 1000
    hours, minutes, seconds = 6 + seconds // 3600, seconds // 60 % 60, seconds % 60
    return {
        "timestamp": f"2026-11-24T{hours:02}:{minutes:02}:{seconds:02}Z",
        "plan_id": PLAN,
        "correlation_id": correlation_id,
        "actor": {"type": "system", "id": "test"},
        "data": data,
    }


class Desk:
    """A log, a clock set by hand, and whoever works on what is in there."""

    def __init__(self, log: Log) -> None:
        self.log = log
        self.clock = Clock()

    async def bring(self, topic: str, correlation_id: str, **data: Any) -> None:
        """One message, and all that a processor makes of it."""
        body = message(correlation_id, self.clock.now_ms, **data)
        await append(self.log, [arrival(topic, body, self.clock.now_ms)])
        await self.process()

    async def process(self) -> None:
        async with running(self.log, self.clock, drain=True):
            pass

    async def sync(self, correlation_id: str, **data: Any) -> None:
        await self.bring(
            SYNC,
            correlation_id,
            **{
                "odoo_subscription_id": 1,
                "odoo_payment_state": "paid",
                "odoo_subscription_state": "in_progress",
                "odoo_currency_id": "KES",
                "odoo_amount_total": 8000,
                "template_id": "template-nairobi-basic",
                "customer_id": "cust-1",
                **data,
            },
        )

    async def sign(self) -> None:
        await self.sync("s-1")
        await self.bring(f"emit/uxi/service/plan/{PLAN}/initialize_states", "i-1")

    async def pay(self, correlation_id: str) -> None:
        await self.bring(
            PAYMENT,
            correlation_id,
            service_id="service-swap-count-nairobi",
            payment_reference=f"ref-{correlation_id}",
            payment_amount=100,
            payment_method="MPESA",
            payment_type="TOP_UP",
        )

    def rules(self, again: bool = False) -> Rules:
        return Rules(
            table=TABLE,
            now_ms=self.clock.now_ms,
            age_ms_max=AGE_MS,
            dedupe_window_ms=WINDOW_MS,
            again=again,
        )

    async def judged(self, again: bool = False, **wanted: Any) -> list[Verdict]:
        return (await judged(self.log, Filter(**wanted), self.rules(again))).verdicts

    async def replay(self, again: bool = False, limit: int = 10, **wanted: Any) -> Judgement:
        judgement = await replay(
            self.log,
            "replay",
            Filter(**wanted),
            self.rules(again),
            limit=limit,
            note="the plan is there now",
            clock_ms=self.clock,
        )
        await self.process()
        return judgement

    async def records(self, topic: str) -> list[LogRecord]:
        return (await read_log(self.log))[topic]

    async def entries(self, kind: str) -> list[dict[str, Any]]:
        found = [r for topic in topics.LEDGERS for r in await self.records(topic)]
        entries = [orjson.loads(record.value) for record in found]
        return [entry for entry in entries if entry["kind"] == kind]


@pytest.fixture
def desk(log: Log) -> Desk:
    return Desk(log)


def standings(verdicts: list[Verdict]) -> list[Standing]:
    return [one.standing for one in verdicts]


async def test_a_payment_that_came_before_its_plan_is_replayed_once(desk: Desk) -> None:
    await desk.pay("p-1")
    await desk.sign()
    assert standings(await desk.judged()) == [Standing.KEPT]
    desk.clock.now_ms += MINUTE_MS

    done = await desk.replay()

    assert [(one.standing, one.why) for one in done.verdicts] == [(Standing.REPLAYED, NOW)]
    assert [entry["signal_id"] for entry in await desk.entries("service_payment")] == ["p-1"]
    replayed = decode_signal((await desk.records(topics.SIGNALS_PLAN))[-1].value)
    assert (replayed.received_ms, replayed.source) == (desk.clock.now_ms, f"replay:{PAYMENT}")
    # It is on record, behind the letter, and neither a second run nor force has a second effect.
    (trail,) = (await newest(desk.log, Filter(reasons=frozenset((REPLAYED,))), desk.rules(), 5))[0]
    assert trail.letter.body.detail.endswith(": the plan is there now")
    assert standings((await desk.replay()).verdicts) == [Standing.REPLAYED]
    assert standings((await desk.replay(again=True)).verdicts) == [Standing.APPLIED]
    desk.clock.now_ms += WINDOW_MS + MINUTE_MS
    assert standings((await desk.replay(again=True)).verdicts) == [Standing.APPLIED]
    assert len(await desk.entries("service_payment")) == 1


async def test_what_was_applied_meanwhile_is_not_replayed(desk: Desk) -> None:
    await desk.pay("p-1")
    await desk.sign()
    await desk.pay("p-1")
    (verdict,) = (await desk.replay(again=True)).verdicts
    assert (verdict.standing, verdict.letter.replays) == (Standing.APPLIED, 0)
    assert len(await desk.entries("service_payment")) == 1


async def test_a_signal_that_races_its_replay_is_applied_once(desk: Desk) -> None:
    """A client sends it again after it was judged: the engine's dedupe window has the last word."""
    await desk.pay("p-1")
    await desk.sign()
    payment = next(
        r for r in await desk.records(topics.SIGNALS_PLAN) if b"service_payment" in r.value
    )
    body = orjson.loads(decode_signal(payment.value).payload)
    await replay(desk.log, "replay", Filter(), desk.rules(), limit=1, note="", clock_ms=desk.clock)
    await append(desk.log, [arrival(PAYMENT, body, desk.clock.now_ms)])
    await desk.process()
    assert len(await desk.entries("service_payment")) == 1


async def test_a_refusal_that_the_plan_remembers_is_judged_anew(desk: Desk) -> None:
    """Within the dedupe window, where the client itself is told the first outcome."""
    await desk.sync("s-1", odoo_subscription_state="draft", odoo_payment_state="not_paid")
    deposit: dict[str, Any] = {
        "attendant_station": "station-nbi-001",
        "payment_data": {
            "service_id": "service-swap-count-nairobi",
            "payment_type": "DEPOSIT",
            "payment_method": "MPESA",
            "payment_reference": "ref-1",
            "payment_amount": 3500,
        },
    }
    await desk.bring(COUNTER, "c-1", **deposit)
    await desk.bring(COUNTER, "c-1", **deposit)
    letters = await desk.judged()
    assert [(one.letter.body.reason, one.standing) for one in letters] == [
        ("rejected_transition", Standing.KEPT)
    ]
    await desk.sync("s-2", odoo_payment_state="not_paid")
    await desk.bring(COUNTER, "c-1", **deposit)
    assert await desk.entries("deposit") == []

    await desk.replay()

    assert [entry["signal_id"] for entry in await desk.entries("deposit")] == ["c-1"]
    assert standings((await desk.replay(again=True)).verdicts) == [Standing.APPLIED]


async def test_a_replay_that_is_refused_again_can_be_forced(desk: Desk) -> None:
    await desk.pay("p-1")
    await desk.sync("s-1")
    await desk.replay()
    # The plan's services were not initialised: refused, which is no dead letter.
    assert await desk.entries("service_payment") == []
    await desk.sign()
    assert standings((await desk.replay()).verdicts) == [Standing.REPLAYED]
    assert await desk.entries("service_payment") == []
    await desk.replay(again=True)
    assert len(await desk.entries("service_payment")) == 1


async def test_the_latest_report_counts(desk: Desk) -> None:
    await desk.sync("s-1", template_id="template-that-is-to-come")
    await desk.sync("s-2", template_id="template-that-is-to-come")
    assert standings(await desk.judged()) == [Standing.SUPERSEDED, Standing.KEPT]
    await desk.sync("s-3")
    assert standings(await desk.judged()) == [Standing.SUPERSEDED, Standing.SUPERSEDED]


async def test_a_signal_refused_twice_is_replayed_from_its_last_letter(desk: Desk) -> None:
    await desk.pay("p-1")
    desk.clock.now_ms += MINUTE_MS
    await desk.pay("p-1")
    await desk.sign()
    assert standings(await desk.judged()) == [Standing.CAME_AGAIN, Standing.KEPT]
    await desk.replay()
    assert len(await desk.entries("service_payment")) == 1


async def test_nobody_waits_for_a_door_any_more_and_old_signals_stay(desk: Desk) -> None:
    await desk.bring(f"emit/uxi/service/plan/{PLAN}/customer_binding", "b-1", location_id="x")
    await desk.pay("p-1")
    assert standings(await desk.judged()) == [Standing.EXPIRED, Standing.KEPT]
    desk.clock.now_ms += AGE_MS + 1
    assert standings(await desk.judged()) == [Standing.EXPIRED, Standing.OLD]


async def test_letters_of_the_bridge(desk: Desk) -> None:
    payload = orjson.dumps(message("p-1", START_MS))
    kept = {
        "emit/nobody/knows": ("unknown_topic", payload),
        "emit/abs/bss/payment/plan 1/service_payment": ("bad_key", payload),
        "emit/abs/bss/payment/plan-2/service_payment": ("payload_too_large", payload),
        # As if the topic table had got its row since.
        PAYMENT: ("unknown_topic", payload),
    }
    appender = await desk.log.appender()
    for at, (topic, (reason, raw)) in enumerate(kept.items()):
        letter = DeadLetter(reason, topic, -1, -1, START_MS + at, "", raw)
        record = (topic.encode(), encode_dead_letter(letter))
        await appender.append(
            [chunk(topics.DEAD_LETTER, partition_for(record[0], PARTITIONS), record)]
        )
    await appender.close()
    assert standings(await desk.judged()) == [
        Standing.UNROUTABLE,
        Standing.UNROUTABLE,
        Standing.CUT,
        Standing.KEPT,
    ]
    assert [one.letter.mqtt_topic for one in await desk.judged(entity=PLAN)] == [PAYMENT]
    await desk.replay(topic=PAYMENT)
    # It came in, and was refused for what it is.
    (again,) = await desk.judged(reasons=frozenset(("unknown_plan",)))
    assert (again.letter.entity, again.letter.correlation_id) == (PLAN, "p-1")


async def test_only_one_of_two_replays_at_once_has_its_way(desk: Desk) -> None:
    for number in range(8):
        await desk.pay(f"p-{number}")
    await desk.sign()
    done = await asyncio.gather(desk.replay(), desk.replay(), return_exceptions=True)
    fenced = [one for one in done if isinstance(one, BaseException)]
    assert all(isinstance(one, FencedError) for one in fenced)
    await desk.replay()
    await desk.process()
    entries = await desk.entries("service_payment")
    assert sorted(entry["signal_id"] for entry in entries) == [f"p-{n}" for n in range(8)]
    trail = await desk.judged(reasons=frozenset((REPLAYED,)))
    assert len({one.letter.body.offset for one in trail}) == len(trail) == 8


async def test_a_limit_takes_the_oldest(desk: Desk) -> None:
    for number in range(3):
        desk.clock.now_ms += MINUTE_MS
        await desk.pay(f"p-{number}")
    await desk.sign()
    done = await desk.replay(limit=2)
    assert standings(done.verdicts) == [Standing.REPLAYED, Standing.REPLAYED, Standing.KEPT]
    listing = await newest(desk.log, Filter(), desk.rules(), 2)
    assert [one.letter.correlation_id for one in listing.verdicts] == ["p-1", "p-2"]
    assert listing.reasons == {"unknown_plan": 3}


async def test_a_log_that_has_forgotten_says_so(tmp_path: Path) -> None:
    backend = EmbeddedBackend(tmp_path / "log")
    log = backend.log()
    assert isinstance(log, EmbeddedLog)
    await log.open()
    try:
        desk = Desk(log)
        await desk.pay("p-1")
        await desk.sign()
        await log.tidy()
        assert standings((await desk.replay()).verdicts) == [Standing.FORGOTTEN]
    finally:
        await log.close()
