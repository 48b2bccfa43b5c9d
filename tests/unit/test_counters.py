"""What roles count adds up, and what does not is said."""

from collections import Counter

import pytest

from bss_stream import _engine
from bss_stream.bridge import BridgeCounters
from bss_stream.counters import RoleCounters, Sample
from bss_stream.odoo.counters import OdooCounters
from bss_stream.processor import ENDINGS, Ending, ProcessorCounters
from bss_stream.publisher import PublisherCounters
from bss_stream.queries.loop import QueriesCounters
from bss_stream.sink.loop import SinkCounters

EVEN: list[RoleCounters] = [
    BridgeCounters(received=9, appended=5, refused=Counter(bad_key=1), in_hand=3),
    ProcessorCounters(
        records=15,
        outcomes=Counter(ok=1, quota_exhausted=2, duplicate=3, malformed_json=4, in_progress=5),
    ),
    PublisherCounters(owed=3, published=2, refused=Counter(publish_refused=1)),
    SinkCounters(records=6, entries=3, duplicates=2, rejects=Counter(undecodable=1)),
    OdooCounters(
        records=10,
        written=Counter(payment=2, usage=3),
        refused=Counter(usage=1),
        no_billing=3,
        unchanged=1,
        queries=2,
        answers=Counter(ok=1),
        in_hand=1,
    ),
    QueriesCounters(received=3, answers=Counter(ok=1, unknown_plan=1), in_hand=1),
]


@pytest.mark.parametrize("counters", EVEN, ids=lambda one: type(one).__name__)
def test_what_adds_up_and_what_does_not(counters: RoleCounters) -> None:
    assert counters.balance() == []
    whole = next(counters.values())
    setattr(counters, whole.name, whole.value + 1)
    (line,) = counters.balance()
    assert line.startswith(f"{whole.name} is {whole.value + 1}, and ")
    assert line.endswith(f" is {whole.value}")


def test_every_reason_has_one_ending() -> None:
    assert ENDINGS.keys() == {code for code, *_ in _engine.reasons()}
    assert set(ENDINGS.values()) == set(Ending)
    assert ENDINGS["rejected_transition"] is Ending.DEAD_LETTERED
    assert ENDINGS["rate_limited"] is Ending.REJECTED


def test_values_are_names_labels_and_numbers() -> None:
    counters = BridgeCounters(received=2, appended=1, refused=Counter(bad_key=1))
    assert Sample("refused", "bad_key", 1) in counters.values()
    assert str(BridgeCounters()) == "nothing"
    assert str(counters) == "received=2, appended=1, refused.bad_key=1"
