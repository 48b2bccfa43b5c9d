"""Messages that must end as dead letters, each with the reasons that may be given for it.

A message is spoiled, not invented: it starts as a good request of a living plan, so that only the
one fault stands between it and a swap. None of them may change a plan.
"""

from enum import StrEnum
from random import Random
from typing import Final, NamedTuple

from bss_stream.contract.requests import Actor, CustomerBinding, IdentifyCustomer
from bss_stream.simulate import bodies
from bss_stream.simulate.bodies import Stamp

PAYLOAD_BYTES_MAX: Final = 65_536
"""What the engine accepts of one message."""

_FUTURE_MS: Final = 3_600_000
_PAST_MS: Final = 3 * 86_400_000


class Garbage(StrEnum):
    """What is wrong with a message."""

    NOT_JSON = "not_json"
    TRUNCATED = "truncated"
    INVALID_UTF8 = "invalid_utf8"
    DEEP_NESTING = "deep_nesting"
    WRONG_TYPE = "wrong_type"
    MISSING_FIELD = "missing_field"
    TOO_LARGE = "too_large"
    PLAN_MISMATCH = "plan_mismatch"
    UNKNOWN_PLAN = "unknown_plan"
    FROM_THE_FUTURE = "from_the_future"
    FROM_THE_PAST = "from_the_past"


REASONS: Final[dict[Garbage, frozenset[str]]] = {
    Garbage.NOT_JSON: frozenset({"malformed_json"}),
    Garbage.TRUNCATED: frozenset({"malformed_json"}),
    Garbage.INVALID_UTF8: frozenset({"invalid_utf8"}),
    Garbage.DEEP_NESTING: frozenset({"nesting_too_deep"}),
    Garbage.WRONG_TYPE: frozenset({"wrong_type"}),
    Garbage.MISSING_FIELD: frozenset({"missing_field"}),
    Garbage.TOO_LARGE: frozenset({"payload_too_large"}),
    Garbage.PLAN_MISMATCH: frozenset({"id_mismatch"}),
    Garbage.UNKNOWN_PLAN: frozenset({"unknown_plan"}),
    Garbage.FROM_THE_FUTURE: frozenset({"timestamp_skew"}),
    Garbage.FROM_THE_PAST: frozenset({"timestamp_skew"}),
}
"""Why each may be refused."""

KINDS: Final = tuple(Garbage)


class Spoiled(NamedTuple):
    """A message ready to send."""

    topic: str
    payload: bytes


def spoil(
    garbage: Garbage,
    *,
    plan_id: str,
    station: str,
    correlation: str,
    wall_ms: int,
    random: Random,
) -> Spoiled:
    """A customer_binding or identify_customer of the plan with one fault in it."""
    stamp = Stamp()
    shift_ms = {Garbage.FROM_THE_FUTURE: _FUTURE_MS, Garbage.FROM_THE_PAST: -_PAST_MS}
    named = plan_id + "-nobody" if garbage is Garbage.UNKNOWN_PLAN else plan_id
    inside = plan_id + "-other" if garbage is Garbage.PLAN_MISMATCH else named
    # Without a location there is no binding; of identify_customer no field is sure to be needed.
    self_service = random.random() < 0.5 or garbage is Garbage.MISSING_FIELD
    kind = "service" if self_service else "attendant"
    action = "customer_binding" if self_service else "identify_customer"
    good = bodies.request(
        stamp(wall_ms + shift_ms.get(garbage, 0)),
        inside,
        correlation,
        Actor(type="customer" if self_service else "attendant", id="sim-garbage"),
        CustomerBinding(station, "any-fleet") if self_service else IdentifyCustomer("qr", station),
    )
    return Spoiled(f"emit/uxi/{kind}/plan/{named}/{action}", _spoiled(garbage, good, random))


def _spoiled(garbage: Garbage, good: bytes, random: Random) -> bytes:
    head, _, _ = good.partition(b'"data":')
    match garbage:
        case Garbage.NOT_JSON:
            return b"swap please; " + good
        case Garbage.TRUNCATED:
            return good[: random.randrange(1, len(good) - 1)]
        case Garbage.INVALID_UTF8:
            return good.replace(b'"data":{', b'"data":{"note":"\xff\xfe\x80",')
        case Garbage.DEEP_NESTING:
            depth = random.randrange(100, 1_000)
            deep = b"[" * depth + b"]" * depth
            return good.replace(b'"data":{', b'"data":{"note":' + deep + b",")
        case Garbage.WRONG_TYPE:
            return head + random.choice((b'"data":[1,2]}', b'"data":"swap"}', b'"data":7}'))
        case Garbage.MISSING_FIELD:
            return head + b'"data":{}}'
        case Garbage.TOO_LARGE:
            padding = b"x" * (PAYLOAD_BYTES_MAX + random.randrange(1, 8_192))
            return good.replace(b'"data":{', b'"data":{"note":"' + padding + b'",')
        case _:
            return good
