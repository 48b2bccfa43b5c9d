"""What fleets bring in and lose (AM6), added up from the ledgers."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

import msgspec

from bss_stream.ledger_kinds import RULES, Money
from bss_stream.reports.facts import Fact, Signed, issue


class Totals(msgspec.Struct):
    """Money in a currency's minor unit, and batteries."""

    received_minor: int = 0
    """Paid by customers, less what has bounced."""
    returned_minor: int = 0
    granted_minor: int = 0
    charged_minor: int = 0
    settlements_minor: int = 0
    """Of what was received: paid for lost batteries."""

    @property
    def net_minor(self) -> int:
        """What is left of what came in."""
        return self.received_minor - self.returned_minor

    def add(self, fact: Fact) -> None:
        """One entry."""
        name = f"{RULES[fact.kind].money}_minor"
        setattr(self, name, getattr(self, name) + fact.amount_minor)
        if fact.kind == "settlement":
            self.settlements_minor += fact.amount_minor

    def as_object(self) -> dict[str, int]:
        """For a report."""
        found: dict[str, int] = msgspec.structs.asdict(self)
        return found | {"net_minor": self.net_minor}


def finance(
    entries: Iterable[Fact], plans: Mapping[str, Signed], currency: str
) -> dict[str, object]:
    """Totals of money in all, by service and by the fleets of the plan; losses in batteries.

    A plan of several fleets counts under all of them together: its payments name none.
    """
    total = Totals()
    services: defaultdict[str, Totals] = defaultdict(Totals)
    fleets: defaultdict[tuple[str, ...], Totals] = defaultdict(Totals)
    batteries: set[str] = set()
    happened: Counter[str] = Counter()
    for fact in entries:
        if (going := issue(fact)) is not None:
            batteries.add(going.asset_id)
        happened[fact.kind] += 1
        if RULES[fact.kind].money is Money.NONE:
            continue
        signed = plans.get(fact.plan_id)
        for each in (
            total,
            services[fact.service_id or ""],
            fleets[() if signed is None else signed.fleets],
        ):
            each.add(fact)
    return {
        "currency": currency,
        **total.as_object(),
        "batteries_in_use": len(batteries),
        "net_minor_per_battery": total.net_minor // len(batteries) if batteries else None,
        "services": [
            {"service_id": service_id or None, **services[service_id].as_object()}
            for service_id in sorted(services)
        ],
        "fleets": [{"fleets": list(key), **fleets[key].as_object()} for key in sorted(fleets)],
        "batteries": {
            "lost": happened["asset_lost"],
            "found": happened["asset_found"],
            "written_off": happened["asset_settled"],
        },
    }
