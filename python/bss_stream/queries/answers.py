"""Messages in, echoes out, over one view of the ledger database."""

import logging
from collections.abc import Sequence
from typing import NamedTuple

from bss_stream.echo import rfc3339
from bss_stream.errors import ConfigError, FrameError
from bss_stream.mqtt.messages import Message, Received
from bss_stream.queries import wire
from bss_stream.queries.catalogue import Catalogue
from bss_stream.queries.plans import balance, swap_history
from bss_stream.queries.stations import nearby
from bss_stream.queries.wire import (
    Balance,
    FleetReport,
    Nearby,
    PaymentStatus,
    Reading,
    Rejection,
    StationReport,
    SwapHistory,
)
from bss_stream.reports.fleet import fleet_standing
from bss_stream.reports.network import Network
from bss_stream.reports.operator import operator_report
from bss_stream.reports.stations import stations
from bss_stream.sink.read_model import ReadModel, ReadView

logger = logging.getLogger(__name__)


class Answer(NamedTuple):
    """What became of one message."""

    outcome: str
    """A reason of the engine's list, or why no echo goes out: `no_query` or `unreadable`."""
    echo: Message | None


def answers(
    model: ReadModel, catalogue: Catalogue, messages: Sequence[Received], now_ms: int
) -> list[Answer]:
    """One answer a message, in order, all of one moment. Raises SinkError, as the model does."""
    with model.view() as view:
        recorded_ms = view.recorded_at_ms()
        as_of = None if recorded_ms is None else rfc3339(recorded_ms)
        return [_answer(view, catalogue, message, as_of, now_ms) for message in messages]


def _answer(
    view: ReadView, catalogue: Catalogue, message: Received, as_of: str | None, now_ms: int
) -> Answer:
    route = wire.route(message.topic)
    if route is None:
        # The broker sends what was subscribed to, so it is the topic's id that is no id.
        logger.warning("no query, and no topic to say so on: %r", message.topic[:120])
        return Answer("no_query", None)
    reading = wire.read(route, message)
    try:
        found = _found(view, catalogue, reading, now_ms)
    except (ConfigError, FrameError) as error:
        # One plan's entries must not stop the answers to all others.
        ids = {"id": reading.id, "correlation_id": reading.correlation_id}
        told = (route.query, reading.id, error)
        logger.error("%s of %s is not answered: %s", *told, extra=ids)
        return Answer("unreadable", None)
    moment = {"as_of": as_of}
    if isinstance(found, Rejection):
        return Answer(found.reason, wire.refused(reading, found, moment, now_ms))
    return Answer("ok", wire.answered(reading, {**moment, **found}, now_ms))


def _found(
    view: ReadView, catalogue: Catalogue, reading: Reading, now_ms: int
) -> dict[str, object] | Rejection:
    match reading.request:
        case SwapHistory():
            return swap_history(view, catalogue, reading.request)
        case Balance():
            return balance(view, catalogue, reading.request.plan_id)
        case Nearby():
            return nearby(view, catalogue, reading.request)
        case PaymentStatus():
            raise FrameError("the ledger database does not know what Odoo does")
        case StationReport(location_id):
            return _station(view, catalogue.network, location_id, now_ms)
        case FleetReport(fleet_id):
            return _fleet(view, catalogue.network, fleet_id, now_ms)
        case Rejection():
            return reading.request


def _station(
    view: ReadView, network: Network, location_id: str, now_ms: int
) -> dict[str, object] | Rejection:
    market = network.market_of_station(location_id)
    if market is None:
        return Rejection("unknown_location", location_id)
    (report,) = operator_report(stations(view, network, market, [location_id]), now_ms)
    return report


def _fleet(
    view: ReadView, network: Network, fleet_id: str, now_ms: int
) -> dict[str, object] | Rejection:
    market = network.market_of_fleet(fleet_id)
    found = None if market is None else fleet_standing(view, network, market, fleet_id, now_ms)
    return found or Rejection("unknown_value", f"fleet_id {fleet_id}")
