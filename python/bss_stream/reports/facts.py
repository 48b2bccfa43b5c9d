"""Ledger entries as reports read them."""

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Final, NamedTuple

import msgspec

from bss_stream.errors import FrameError
from bss_stream.ledger_kinds import RULES, Money
from bss_stream.reports.network import Network
from bss_stream.sink.read_model import ReadView

ISSUES: Final = ("quota_used", "late_issue", "asset_replaced")
"""An entry of these with an `asset_id` tells that the battery went out."""
BATTERY_KINDS: Final = (*ISSUES, "asset_returned", "asset_lost", "asset_found", "asset_settled")
MONEY_KINDS: Final = tuple(kind for kind, rule in RULES.items() if rule.money is not Money.NONE)
EVER: Final = 2**62
"""Later than any entry, in epoch ms."""


class Fact(msgspec.Struct, frozen=True):
    """A ledger entry, as far as reports are concerned."""

    plan_id: str
    seq: int
    kind: str
    source: str
    event_at: datetime
    units: int
    amount_minor: int
    currency: str
    service_id: str | None = None
    asset_id: str | None = None
    returned_asset_id: str | None = None
    location_id: str | None = None
    template_id: str | None = None
    template_version: int | None = None


class Signed(NamedTuple):
    """What a plan's customer has signed."""

    market_id: str
    fleets: tuple[str, ...]
    """Of its bundle: what it pays for cannot be told apart by fleet where these are several."""


_decoder: Final = msgspec.json.Decoder(Fact)


def facts(
    view: ReadView, kinds: Sequence[str], from_ms: int = -EVER, to_ms: int = EVER
) -> Iterator[Fact]:
    """Entries of these kinds that happened within a time, in order. Raises FrameError."""
    for text in view.entries_within(kinds, from_ms, to_ms):
        try:
            yield _decoder.decode(text)
        except msgspec.DecodeError as error:
            raise FrameError(f"ledger entry {text[:80]!r}: {error}") from error


def signed_plans(contracts: Iterable[Fact], network: Network) -> dict[str, Signed]:
    """Of each plan, its market and fleets; none of one whose template the set-up lacks."""
    known = {
        version: Signed(market.market_id, fleets)
        for market in network.markets
        for version, fleets in market.templates.items()
    }
    return {
        fact.plan_id: signed
        for fact in contracts
        if (signed := known.get((fact.template_id or "", fact.template_version or 0)))
    }


class Issue(NamedTuple):
    """A battery that went out."""

    plan_id: str
    source: str
    """The record that caused it: one of several entries about the same battery counts."""
    asset_id: str


def issue(fact: Fact) -> Issue | None:
    """Which battery an entry says has gone out, if it does."""
    if fact.kind not in ISSUES or fact.asset_id is None:
        return None
    return Issue(fact.plan_id, fact.source, fact.asset_id)
