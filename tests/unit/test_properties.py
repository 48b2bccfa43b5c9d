"""What holds over every history of mixed signals: good and bad ones, repeats, late answers, time.

Runs 100 histories a property by default; `HYPOTHESIS_PROFILE=slow` runs thousands.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import datetime
from itertools import groupby, pairwise
from operator import attrgetter
from random import Random
from typing import Any
from zoneinfo import ZoneInfo

import orjson
from hypothesis import given
from hypothesis import strategies as st

from bss_stream import _engine, topics
from bss_stream.frames import OutboxKind, decode_signal
from bss_stream.testing import Consumed, Playground
from tests.unit.histories import PLANS, Action, Player, Sent, histories, replayed, services, setup
from tests.unit.histories import terms as terms_of_template

ZONES = {"KES": ZoneInfo("Africa/Nairobi"), "XOF": ZoneInfo("Africa/Lome")}
ECHO_TOPICS = {
    "identify_customer": (
        "echo/abs/attendant/plan/{}/identify_customer",
        "echo/abs/service/plan/{}/identify_customer",
    ),
    "payment_and_service": ("echo/abs/attendant/plan/{}/payment_and_service",),
    "customer_binding": ("echo/abs/service/plan/{}/customer_binding",),
    "initialize_states": ("echo/abs/service/plan/{}/initialize_states_result",),
    "sync": ("echo/odo/subscription/plan/{}/sync",),
    "service_payment": ("echo/abs/bss/payment/{}/service_payment",),
}
DEDUPE_WINDOW_S = 600


def terms(plan_id: str, service_id: str) -> dict[str, Any]:
    return terms_of_template()[PLANS[plan_id].template][service_id]


def entries_of(play: Playground) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Each plan's ledger entries, in order."""
    for plan_id, entries in groupby(play.entries(), lambda entry: entry["plan_id"]):
        yield plan_id, list(entries)


def swaps(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The entries that count one swap each."""
    return [
        entry
        for entry in entries
        if entry["kind"] in ("quota_used", "late_issue")
        and services()[entry["service_id"]]["consumes"] == "swap"
    ]


@given(histories)
def test_use_and_holds_stay_within_the_quota(history: list[Action]) -> None:
    player = Player()
    for action in history:
        player.act(action)
        for plan_id in player.play.plan_ids:
            for service in player.play.plan(plan_id)["services"]:
                assert min(service["used"], service["held"], service["credit_minor"]) >= 0
                may_pass = terms(plan_id, service["service_id"])["overage_allowed"]
                if service["quota"] != "infinite" and not may_pass:
                    assert service["used"] + service["held"] <= service["quota"], plan_id


@given(histories)
def test_nothing_stays_held_once_arm_s_time_is_up(history: list[Action]) -> None:
    play = Player().perform(history).play
    for plan_id in play.plan_ids:
        plan = play.plan(plan_id)
        assert plan["session"] is None
        assert [service["held"] for service in plan["services"]] == [0] * len(plan["services"])
    for topic, key in play.states:
        if topic == topics.STATE_STATION:
            station = play.station(key.decode())
            assert station["intents"] == sum(stock["promised"] for stock in station["stock"]) == 0


@given(histories)
def test_one_request_swaps_once(history: list[Action]) -> None:
    play = Player().perform(history).play
    for _, entries in entries_of(play):
        times: dict[str, list[datetime]] = defaultdict(list)
        for entry in swaps(entries):
            times[entry["signal_id"]].append(datetime.fromisoformat(entry["recorded_at"]))
        for signal_id, recorded in times.items():
            for one, next_one in pairwise(recorded):
                assert (next_one - one).total_seconds() > DEDUPE_WINDOW_S, signal_id


@given(histories)
def test_no_day_has_more_swaps_than_its_limit(history: list[Action]) -> None:
    play = Player().perform(history).play
    for plan_id, entries in entries_of(play):
        zone = ZONES[PLANS[plan_id].currency]
        # A self-service swap belongs to the day of its request, not of ARM's answer.
        asked = {e["signal_id"]: e["event_at"] for e in entries if e["kind"] == "quota_held"}
        days: Counter[object] = Counter()
        for entry in swaps(entries):
            # What came late had been refused; it is counted, yet it could not be stopped.
            if entry["kind"] != "late_issue":
                at = datetime.fromisoformat(asked.get(entry["signal_id"], entry["event_at"]))
                days[at.astimezone(zone).date()] += 1
            limit = terms(plan_id, entry["service_id"])["rate_limit_per_day"]
            assert limit is None or max(days.values(), default=0) <= limit, (plan_id, days)


@given(histories)
def test_a_battery_is_where_the_records_say(history: list[Action]) -> None:
    play = Player().perform(history).play
    for_an_operator = {
        letter.detail.partition(":")[0]
        for letter in play.dead_letters
        if letter.reason == "asset_held_elsewhere"
    }
    for plan_id in play.plan_ids:
        held = [service["current_asset"] for service in play.plan(plan_id)["services"]]
        held = [asset for asset in held if asset is not None]
        assert len(held) == len(set(held))
        for asset_id in held:
            asset = play.asset(asset_id)
            known = plan_id in (asset["holder"], asset["awaited_from"])
            assert known or asset_id in for_an_operator, (plan_id, asset)


@given(histories)
def test_no_money_is_lost(history: list[Action]) -> None:
    play = Player().perform(history).play
    for plan_id, entries in entries_of(play):
        money: Counter[str] = Counter()
        for entry in entries:
            if entry["kind"] == "service_payment":
                money[entry["service_id"]] += entry["amount_minor"]
            elif entry["kind"] == "topup_applied":
                money[entry["service_id"]] -= entry["amount_minor"]
        for service in play.plan(plan_id)["services"]:
            assert service["credit_minor"] == money[service["service_id"]], service
        receipts = [e["payment_id"] for e in entries if e["kind"] in _PAYMENTS]
        assert len(receipts) == len(set(receipts))


_PAYMENTS = ("deposit", "renewal", "service_payment", "final_payment")


@given(histories)
def test_the_ledgers_tell_the_live_state(history: list[Action]) -> None:
    report = Player().perform(history).play.audit()
    assert report.ok, report.differences


@given(histories)
def test_every_request_is_answered_on_each_of_its_topics(history: list[Action]) -> None:
    player = Player().perform(history)
    wanted: set[tuple[str, str]] = set()
    for line in player.script:
        if isinstance(line, Sent) and line.correlation:
            *_, plan_id, event = line.topic.split("/")
            wanted |= {(topic.format(plan_id), line.correlation) for topic in ECHO_TOPICS[event]}
    found = {
        (message.topic, orjson.loads(message.payload)["correlation_id"])
        for message in player.play.outbox
        if message.kind is OutboxKind.ECHO
    }
    assert not wanted - found


@given(histories, st.data())
def test_a_restart_at_any_point_changes_nothing(history: list[Action], data: st.DataObject) -> None:
    player = Player().perform(history)
    lines = st.integers(0, len(player.script))
    restarts = data.draw(st.sets(lines, max_size=5) | st.just(set(range(len(player.script)))))
    assert replayed(player.script, restarts=restarts).produced == player.play.produced


@given(histories)
def test_every_echo_of_a_request_tells_the_same(history: list[Action]) -> None:
    play = Player().perform(history).play
    told: dict[tuple[str, str], tuple[datetime, bool, str]] = {}
    for message in play.outbox:
        if message.kind is not OutboxKind.ECHO or "identify_customer" in message.topic:
            continue
        body = orjson.loads(message.payload)
        at, data = datetime.fromisoformat(body["timestamp"]), body["data"]
        reason = data["metadata"].get("first_reason", data["metadata"]["reason"])
        if reason in _UNREMEMBERED:
            continue
        key = message.topic, body["correlation_id"]
        before = told.setdefault(key, (at, data["success"], reason))
        if (at - before[0]).total_seconds() <= DEDUPE_WINDOW_S:
            assert before[1:] == (data["success"], reason), key
            assert data["success"] or data["metadata"]["reason"] == reason
        if "first_reason" not in data["metadata"]:
            told[key] = at, data["success"], reason


_UNREMEMBERED = {
    "unknown_plan",
    "malformed_json",
    "missing_field",
    "wrong_type",
    "invalid_utf8",
    "timestamp_skew",
}
"""Told of what has not come as far as a plan, which alone remembers."""


Records = list[tuple[str, bytes, bytes]]


def outcome(records: Records) -> dict[tuple[str, bytes], list[bytes]]:
    """By topic and key: what came out in order. Of states the last one counts; what different
    entities send to one has no order among the senders."""
    found: dict[tuple[str, bytes], list[bytes]] = defaultdict(list)
    for topic, key, value in records:
        if topic in topics.STATES:
            found[topic, key].clear()
        found[topic, key].append(value)
    return {
        (topic, key): sorted(values) if topic in topics.SIGNALS else values
        for (topic, key), values in found.items()
    }


class Recorder(Playground):
    """A playground that notes after how many records timers were looked at."""

    def __init__(self) -> None:
        super().__init__(setup(), partitions=3)
        self.ticks: dict[int, int] = {}

    def advance(self, ms: int) -> None:
        self.ticks[len(self.consumed)] = self.now_ms + ms
        super().advance(ms)


def rebatched(play: Recorder, random: Random) -> Records:
    """What another engine makes of the same records in other batches, with fewer looks at timers.

    A record that an entity has sent comes after the batch that made the entity send it, and so
    after the timer; but nothing depends on the assets' records, which therefore wait till the end.
    """
    engine = _engine.Engine(setup(), partitions=play.partitions)
    for partition in range(play.partitions):
        engine.open_shard(partition)
    outputs: list[_engine.Output] = []
    batch: list[Consumed] = []

    def process() -> None:
        if batch:
            outputs.append(engine.process(list(inputs(batch)), batch[-1].now_ms))
            batch.clear()

    for number, record in enumerate(play.consumed):
        was_sent = decode_signal(record.value).source == "engine"
        if number in play.ticks and (was_sent or random.random() < 0.5):
            process()
            outputs.append(engine.process([], play.ticks[number], tick=range(play.partitions)))
        if record.topic != topics.SIGNALS_ASSET:
            if was_sent or random.random() < 0.1:
                process()
            batch.append(record)
    process()
    batch += (record for record in play.consumed if record.topic == topics.SIGNALS_ASSET)
    process()
    outputs.append(engine.process([], play.now_ms, tick=range(play.partitions)))
    return [
        (chunk.topic, key, value or b"")
        for output in outputs
        for chunk in output.chunks
        for key, value in _engine.unpack(chunk.data)
    ]


def inputs(batch: list[Consumed]) -> Iterator[tuple[str, int, list[int], bytes]]:
    """Runs of records of one topic and partition, as a log hands them out."""
    for (topic, partition), run in groupby(batch, attrgetter("topic", "partition")):
        records = list(run)
        packed = _engine.pack([(record.key, record.value) for record in records])
        yield topic, partition, [record.offset for record in records], packed


@given(histories, st.randoms(use_true_random=False))
def test_batches_make_no_difference(history: list[Action], random: Random) -> None:
    """However the log cuts its records, and however rarely timers are looked at."""
    play = Recorder()
    Player(play).perform(history)
    produced = [(topic, key, value) for topic, _, key, value in play.produced]
    assert outcome(rebatched(play, random)) == outcome(produced)


@given(st.lists(st.tuples(st.sampled_from(topics.SIGNALS), st.binary(), st.binary())))
def test_no_bytes_upset_the_engine(records: list[tuple[str, bytes, bytes]]) -> None:
    with Playground(setup(), partitions=2) as play:
        for topic, key, value in records:
            play.record(topic, key, value)
        assert len(play.dead_letters) == len(records)
