"""Asks the platform over MQTT and awaits the echo."""

import asyncio
import logging
import uuid
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from msgspec import UNSET, Struct

from bss_stream.client import exchange
from bss_stream.client.echo import read_echo
from bss_stream.client.exchange import Exchange
from bss_stream.client.outcome import Outcome
from bss_stream.clock import epoch_ms
from bss_stream.contract.catalogue import carries
from bss_stream.contract.echoes import (
    Applied,
    HandedOver,
    Identified,
    Issued,
    PlanStates,
    Scanned,
    Synced,
    Validated,
)
from bss_stream.contract.queries import (
    Balance,
    BalanceTold,
    Nearby,
    NearbyQuery,
    NearbyTold,
    SwapHistory,
    SwapsTold,
)
from bss_stream.contract.requests import (
    Actor,
    AssetScan,
    ContinueService,
    CustomerBinding,
    IdentifyCustomer,
    InitializeStates,
    OdooSync,
    PaymentAndService,
    PaymentReversal,
    PlanRequest,
    ReportActivity,
    ReportLost,
    Scan,
    ServicePayment,
    Validate,
    encode,
)
from bss_stream.echo import rfc3339
from bss_stream.errors import BssStreamError, FrameError, MqttError, NoEchoError
from bss_stream.mqtt.client import MqttClient
from bss_stream.mqtt.messages import Message, MqttSettings, Received, Subscription

logger = logging.getLogger(__name__)

TIMEOUT_S: Final = 30.0
"""How long clients in the field wait for an echo before they ask again."""
ATTEMPTS: Final = 2
_BATCH_MAX: Final = 1_000

D = TypeVar("D", bound=Struct)
M = TypeVar("M")


class PlatformClient:
    """A station's or an app's line to the platform: an asynchronous context.

    Every method asks one thing and returns what the echo says: `Accepted` or `Refused`. A request
    whose echo does not come in time is sent again under the same correlation id, so it is applied
    once however often it is sent. After `attempts` NoEchoError is raised: then nobody knows, and
    asking again with its correlation id tells. MqttError is raised once the connection has failed
    for good; one that is merely lost is waited out.
    """

    def __init__(
        self,
        settings: MqttSettings,
        actor: Actor,
        *,
        plan_id: str | None = None,
        timeout_s: float = TIMEOUT_S,
        attempts: int = ATTEMPTS,
        patience_s: float = 10.0,
    ) -> None:
        """`plan_id` has the client listen to one plan's echoes alone: a rider's app may no more.

        A broker that cannot be reached at first is tried again for `patience_s`.
        """
        if attempts < 1 or timeout_s <= 0:
            raise ValueError(
                f"attempts is {attempts} and timeout_s {timeout_s}: expected 1 or more, and above 0"
            )
        self._mqtt = MqttClient(settings)
        self._actor = actor
        self._plan_id = plan_id
        self._timeout_s = timeout_s
        self._attempts = attempts
        self._patience_s = patience_s
        self._subscribed: dict[str, asyncio.Task[None]] = {}
        self._waiting: dict[tuple[str, str], asyncio.Future[Outcome[Any]]] = {}
        """By the echo's address and the correlation id."""
        self._exchanges: dict[str, Exchange[Any, Any]] = {}
        """Those in use, by the echo's address."""
        self._receiver: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self._mqtt.connect(patience_s=self._patience_s)
        self._receiver = asyncio.create_task(self._receive(), name="platform-client")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._mqtt.close()
        if self._receiver is not None:
            await self._receiver
        await asyncio.gather(*self._subscribed.values(), return_exceptions=True)

    # Swaps.

    async def swap(
        self, plan_id: str, data: CustomerBinding, *, correlation_id: str | None = None
    ) -> Outcome[Issued]:
        """Ask for a battery at a station's door; the echo comes once ARM has issued one."""
        return await self._ask_plan(exchange.SWAP, plan_id, data, correlation_id)

    async def identify_customer(
        self, plan_id: str, data: IdentifyCustomer, *, correlation_id: str | None = None
    ) -> Outcome[Identified]:
        """Who the customer is and what the plan has."""
        return await self._ask_plan(exchange.IDENTIFY, plan_id, data, correlation_id)

    async def validate(
        self, plan_id: str, data: Validate, *, correlation_id: str | None = None
    ) -> Outcome[Validated]:
        """Whether a swap would be accepted; a refusal's metadata has every check's verdict."""
        return await self._ask_plan(exchange.VALIDATE, plan_id, data, correlation_id)

    async def payment_and_service(
        self, plan_id: str, data: PaymentAndService, *, correlation_id: str | None = None
    ) -> Outcome[HandedOver]:
        """What was paid and went over a staffed station's counter, all or nothing."""
        return await self._ask_plan(exchange.HAND_OVER, plan_id, data, correlation_id)

    async def report_activity(
        self, plan_id: str, data: ReportActivity, *, correlation_id: str | None = None
    ) -> Outcome[Applied]:
        """What an attendant did."""
        return await self._ask_plan(exchange.REPORT_ACTIVITY, plan_id, data, correlation_id)

    # Plans.

    async def sync(
        self, plan_id: str, data: OdooSync, *, correlation_id: str | None = None
    ) -> Outcome[Synced]:
        """What Odoo says of the subscription; the first one makes the plan."""
        return await self._ask_plan(exchange.SYNC, plan_id, data, correlation_id)

    async def initialize_states(
        self, plan_id: str, *, correlation_id: str | None = None
    ) -> Outcome[PlanStates]:
        """Grant the first quotas."""
        data = InitializeStates()
        return await self._ask_plan(exchange.INITIALIZE, plan_id, data, correlation_id)

    async def service_payment(
        self, plan_id: str, data: ServicePayment, *, correlation_id: str | None = None
    ) -> Outcome[PlanStates]:
        """A payment from outside a station."""
        return await self._ask_plan(exchange.PAY, plan_id, data, correlation_id)

    async def payment_reversal(
        self, plan_id: str, data: PaymentReversal, *, correlation_id: str | None = None
    ) -> Outcome[PlanStates]:
        """A payment goes back."""
        return await self._ask_plan(exchange.PAY_BACK, plan_id, data, correlation_id)

    async def report_lost(
        self, plan_id: str, data: ReportLost, *, correlation_id: str | None = None
    ) -> Outcome[PlanStates]:
        """The battery on record is gone."""
        return await self._ask_plan(exchange.REPORT_LOST, plan_id, data, correlation_id)

    async def continue_service(
        self, plan_id: str, data: ContinueService, *, correlation_id: str | None = None
    ) -> Outcome[PlanStates]:
        """What the customer chose after a lost battery was found."""
        return await self._ask_plan(exchange.CONTINUE, plan_id, data, correlation_id)

    async def scan(
        self, asset_id: str, data: Scan, *, correlation_id: str | None = None
    ) -> Outcome[Scanned]:
        """How an attendant found a battery."""

        def request(stamp: str, told: str) -> Struct:
            return AssetScan(
                timestamp=stamp,
                asset_id=asset_id,
                correlation_id=told,
                actor=self._actor,
                data=data,
            )

        return await self._ask(exchange.SCAN, asset_id, "+", request, correlation_id)

    # Queries.

    async def swap_history(
        self, plan_id: str, data: SwapHistory | None = None
    ) -> Outcome[SwapsTold]:
        """The plan's last swaps."""
        asked = SwapHistory() if data is None else data
        return await self._ask_plan(exchange.SWAP_HISTORY, plan_id, asked, None)

    async def balance(self, plan_id: str) -> Outcome[BalanceTold]:
        """The plan's accounts and its last payment."""
        return await self._ask_plan(exchange.BALANCE, plan_id, Balance(), None)

    async def nearby(self, data: Nearby) -> Outcome[NearbyTold]:
        """The stations around a place."""

        def request(stamp: str, told: str) -> Struct:
            return NearbyQuery(
                timestamp=stamp, correlation_id=told, actor=self._actor, plan_id=UNSET, data=data
            )

        return await self._ask(exchange.NEARBY, "", "+", request, None)

    # Asking.

    async def _ask_plan(
        self, asked: Exchange[D, M], plan_id: str, data: D, correlation_id: str | None
    ) -> Outcome[M]:
        if self._plan_id not in (None, plan_id):
            raise ValueError(f"plan_id is {plan_id!r}: this client is for {self._plan_id!r} alone")

        def request(stamp: str, told: str) -> Struct:
            return PlanRequest(
                timestamp=stamp,
                plan_id=plan_id,
                correlation_id=told,
                actor=self._actor,
                data=data,
            )

        return await self._ask(asked, plan_id, self._plan_id or "+", request, correlation_id)

    async def _ask(
        self,
        asked: Exchange[D, M],
        entity_id: str,
        listen_to: str,
        request: Callable[[str, str], Struct],
        correlation_id: str | None,
    ) -> Outcome[M]:
        told = correlation_id or uuid.uuid4().hex
        key = (asked.echo_address, told)
        if key in self._waiting:
            raise ValueError(f"{asked.name} under {told!r} is being asked for already")
        message = Message(
            topic=asked.topic(entity_id),
            payload=encode(request(rfc3339(epoch_ms()), told)),
            correlation=told.encode(),
        )
        waiting: asyncio.Future[Outcome[M]] = asyncio.get_running_loop().create_future()
        self._waiting[key] = waiting
        self._exchanges[asked.echo_address] = asked
        try:
            for _ in range(self._attempts):
                try:
                    async with asyncio.timeout(self._timeout_s):
                        await self._listen(asked.echo_filter(listen_to))
                        await self._publish(message)
                        return await asyncio.shield(waiting)
                except TimeoutError:
                    logger.info("no echo of %s under %s yet", asked.name, told)
            raise NoEchoError(asked.name, told, self._attempts)
        finally:
            del self._waiting[key]
            waiting.cancel()

    async def _listen(self, echo_filter: str) -> None:
        """Subscribe, once; whoever comes meanwhile waits for the same answer."""
        task = self._subscribed.get(echo_filter)
        if task is None or (task.done() and (task.cancelled() or task.exception() is not None)):
            task = asyncio.create_task(self._mqtt.subscribe(Subscription(echo_filter)))
            self._subscribed[echo_filter] = task
        await asyncio.shield(task)

    async def _publish(self, message: Message) -> None:
        for refusal in await self._mqtt.publish([message]):
            raise MqttError(f"the broker refused a message on {message.topic}: {refusal.reason}")

    # Listening.

    async def _receive(self) -> None:
        failure: BssStreamError = MqttError("this client is closed")
        try:
            async for batch in self._mqtt.batches(_BATCH_MAX):
                for message in batch:
                    self._take(message)
                self._mqtt.ack(batch)
        except MqttError as error:
            failure = error
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(failure)

    def _take(self, message: Received) -> None:
        asked = next(
            (one for address, one in self._exchanges.items() if carries(address, message.topic)),
            None,
        )
        if asked is None:
            return  # An echo of what an earlier session has asked.
        try:
            told = read_echo(message.payload).correlation_id
        except ValueError as error:
            logger.warning("no echo on %s: %s", message.topic, error)
            return
        waiting = self._waiting.get((asked.echo_address, told))
        if waiting is None or waiting.done():
            return  # Another client's, or the second echo of a request that was sent twice.
        try:
            waiting.set_result(asked.read(message.payload))
        except FrameError as error:
            waiting.set_exception(error)
