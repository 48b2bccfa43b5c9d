"""The check of a log against its own signals: it must see what is missing, doubled or changed."""

import pytest

from bss_stream import topics
from bss_stream.testing import Playground, Produced
from tests.integration.processing import SETUP, traffic
from tests.logs import PARTITIONS
from tests.undisturbed import LogRecord, check_contents, is_internal, undisturbed

Contents = dict[str, list[LogRecord]]


@pytest.fixture
def contents() -> Contents:
    """What a log would hold after a playground's day."""
    play = Playground(SETUP, partitions=PARTITIONS)
    found: Contents = {topic: [] for topic in topics.ALL}

    def keep(record: Produced) -> None:
        offset = sum(other.partition == record.partition for other in found[record.topic])
        found[record.topic].append(LogRecord(record.partition, offset, record.key, record.value))

    for arrival in traffic(plans=6, requests=20, seed=1):
        known = len(play.produced)
        keep(Produced(arrival.topic, arrival.partition, arrival.key, arrival.value))
        play.record(arrival.topic, arrival.key, arrival.value)
        for record in play.produced[known:]:
            keep(record)
    return found


def check(contents: Contents) -> None:
    check_contents(contents, undisturbed(contents, SETUP, partitions=PARTITIONS))


def test_a_log_without_a_fault_passes(contents: Contents) -> None:
    check(contents)
    assert all(contents[topic] for topic in (*topics.SIGNALS, *topics.STATES, topics.OUTBOX))


TOPICS = (topics.LEDGER_SERVICE, topics.OUTBOX, topics.SIGNALS_ASSET, topics.STATE_PLAN)
FAULTS = [(topic, fault) for topic in TOPICS for fault in ("lost", "doubled", "changed")]
# A state that comes twice is the same state.
FAULTS.remove((topics.STATE_PLAN, "doubled"))


@pytest.mark.parametrize(("topic", "fault"), FAULTS)
def test_a_fault_in_any_topic_is_seen(contents: Contents, topic: str, fault: str) -> None:
    records = contents[topic]
    last = records[-1]
    assert topic not in topics.SIGNALS or is_internal(last.value)
    if fault == "lost":
        records[:] = [record for record in records if record.key != last.key]
    elif fault == "doubled":
        records.append(last._replace(offset=last.offset + 1))
    else:
        records[-1] = last._replace(value=last.value + b" ")
    with pytest.raises(AssertionError, match="keys are not as they should be"):
        check(contents)


def test_a_signal_that_was_applied_twice_is_seen(contents: Contents) -> None:
    """As if the log had it once and its effects twice."""
    signals = contents[topics.SIGNALS_PLAN]
    entry = contents[topics.LEDGER_PAYMENT][0]
    source = next(at for at, record in enumerate(signals) if record.key == entry.key)
    del signals[source]
    with pytest.raises(AssertionError, match="keys are not as they should be"):
        check(contents)
