"""What a client can ask: each request's topic, the topic of its echo, and how to read it."""

from typing import Any, Final, Generic, TypeVar

from msgspec import DecodeError, Struct
from msgspec.json import Decoder

from bss_stream import topic_table
from bss_stream.client.echo import read_echo
from bss_stream.client.outcome import Accepted, Outcome, Refused
from bss_stream.contract import echoes, queries, requests
from bss_stream.contract.catalogue import ECHO_TOPICS, QUERY_TOPICS, answer_topic
from bss_stream.contract.fields import Reason
from bss_stream.errors import FrameError
from bss_stream.queries.wire import Query

D = TypeVar("D", bound=Struct)
M = TypeVar("M")


class _Said(Struct, frozen=True):
    message: str | None = None
    detail: str | None = None
    action_required: str | None = None


class _SaidData(Struct, frozen=True):
    metadata: _Said


class _SaidEcho(Struct, frozen=True):
    data: _SaidData


_SAID: Final = Decoder(_SaidEcho)


class Exchange(Generic[D, M]):
    """One kind of request with data D, whose accepted echo has metadata M."""

    def __init__(self, name: str, address: str, echo_address: str, envelope: Any, metadata: Any):
        self.name = name
        self.address = address
        self.echo_address = echo_address
        self._decoder: Decoder[Any] = Decoder(envelope[metadata])

    def topic(self, entity_id: str) -> str:
        """Where it is asked."""
        return _filled(self.address, entity_id)

    def echo_filter(self, entity_id: str = "+") -> str:
        """What to subscribe to for the echoes about one plan or battery, or about all."""
        return _filled(self.echo_address, entity_id)

    def read(self, payload: bytes) -> Outcome[M]:
        """The outcome in an echo.

        Raises FrameError for one that is not as the contract says, or says a reason that this
        version does not know.
        """
        try:
            echo = read_echo(payload)
            reason = Reason(echo.data.metadata.reason or "")
            if echo.succeeded():
                return Accepted(
                    correlation_id=echo.correlation_id,
                    reason=reason,
                    signals=echo.data.signals,
                    metadata=None if echo.is_repeat() else self._metadata(payload),
                    is_repeat=echo.is_repeat(),
                )
            said = _SAID.decode(payload).data.metadata
            return Refused(
                correlation_id=echo.correlation_id,
                reason=reason,
                signals=echo.data.signals,
                message=said.message or reason.message,
                detail=said.detail,
                action_required=said.action_required,
                # A refusal has a message of its own; what a check found has one for each.
                metadata=self._metadata(payload) if said.message is None else None,
                is_repeat=echo.is_repeat(),
            )
        except (ValueError, DecodeError) as error:
            raise FrameError(f"an echo of {self.name} says {payload[:200]!r}: {error}") from error

    def _metadata(self, payload: bytes) -> M:
        metadata: M = self._decoder.decode(payload).data.metadata
        return metadata


def _filled(address: str, entity_id: str) -> str:
    segments = [entity_id if part.startswith("{") else part for part in address.split("/")]
    return "/".join(segments)


_ADDRESSES: Final = {row.event: row.filter for row in topic_table.load().rows}
_ECHOES: Final = dict(reversed(ECHO_TOPICS))
_QUERIES: Final = dict(QUERY_TOPICS)


def _event(event: str, data: type[D], metadata: type[M]) -> Exchange[D, M]:
    echo_address = _ECHOES[event]
    envelope = echoes.envelope_of(echo_address)
    return Exchange(event, _ADDRESSES[event], echo_address, envelope, metadata)


def _query(query: Query, data: type[D], metadata: type[M]) -> Exchange[D, M]:
    envelope = queries.envelope_of(query)
    return Exchange(query, _QUERIES[query], answer_topic(query), envelope, metadata)


IDENTIFY: Final = _event("identify_customer", requests.IdentifyCustomer, echoes.Identified)
HAND_OVER: Final = _event("payment_and_service", requests.PaymentAndService, echoes.HandedOver)
SWAP: Final = _event("customer_binding", requests.CustomerBinding, echoes.Issued)
INITIALIZE: Final = _event("initialize_states", requests.InitializeStates, echoes.PlanStates)
SYNC: Final = _event("odoo_sync", requests.OdooSync, echoes.Synced)
PAY: Final = _event("service_payment", requests.ServicePayment, echoes.PlanStates)
PAY_BACK: Final = _event("payment_reversal", requests.PaymentReversal, echoes.PlanStates)
VALIDATE: Final = _event("validate", requests.Validate, echoes.Validated)
REPORT_ACTIVITY: Final = _event("report_activity", requests.ReportActivity, echoes.Applied)
REPORT_LOST: Final = _event("report_lost", requests.ReportLost, echoes.PlanStates)
CONTINUE: Final = _event("continue_service", requests.ContinueService, echoes.PlanStates)
SCAN: Final = _event("asset_scan", requests.Scan, echoes.Scanned)
SWAP_HISTORY: Final = _query(Query.SWAP_HISTORY, queries.SwapHistory, queries.SwapsTold)
BALANCE: Final = _query(Query.BALANCE, queries.Balance, queries.BalanceTold)
NEARBY: Final = _query(Query.NEARBY, queries.Nearby, queries.NearbyTold)
