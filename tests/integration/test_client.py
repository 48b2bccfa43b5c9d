"""The typed client against the whole platform on real brokers: answers, refusals, cuts, silence."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from msgspec.json import decode

from bss_stream.client import Accepted, Actor, Outcome, PlatformClient, Reason, Refused
from bss_stream.config import Config, EmbeddedLog, Log, Mqtt
from bss_stream.contract.echoes import Issued
from bss_stream.contract.queries import Nearby
from bss_stream.contract.requests import (
    ArmAnswer,
    ContinueService,
    CustomerBinding,
    IdentifyCustomer,
    OdooSync,
    PaymentAndService,
    PaymentReversal,
    ReportActivity,
    ReportLost,
    Scan,
    ServiceData,
    ServicePayment,
    Validate,
    encode,
)
from bss_stream.errors import MqttError, NoEchoError
from bss_stream.mqtt.client import MqttClient
from bss_stream.mqtt.messages import Message, MqttSettings, Subscription
from bss_stream.roles import Platform
from bss_stream.simulate.arm import AllocateCommand
from tests.eventually import eventually
from tests.servers.mosquitto import Mosquitto
from tests.servers.ports import free_port
from tests.servers.proxy import Proxy

WAIT_S = 60.0
STATION = "station-nbi-003"
ACTOR = Actor(type="customer", id="cust-1")
SWAP_COUNT = "service-swap-count-nairobi"


def settings(port: int, client_id: str) -> MqttSettings:
    return MqttSettings(
        host="127.0.0.1",
        port=port,
        client_id=client_id,
        clean_start=True,
        backoff_min_s=0.01,
        backoff_max_s=0.2,
    )


@pytest.fixture(params=[pytest.param("mosquitto", marks=pytest.mark.mosquitto), "embedded"])
async def port(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[int]:
    """The broker of a platform at work: a real Mosquitto, then the platform's own."""
    if request.param == "mosquitto":
        mosquitto: Mosquitto = request.getfixturevalue("mosquitto")
        mqtt = Mqtt(embedded=False, port=mosquitto.port)
    else:
        mqtt = Mqtt(port=0)
    log = Log(embedded=EmbeddedLog(durability="process"))
    async with Platform(Config(data_dir=str(tmp_path), mqtt=mqtt, log=log)) as platform:
        yield mqtt.port if platform.broker is None else platform.broker.port
        await platform.drain()


@asynccontextmanager
async def client_on(
    port: int, client_id: str = "app", **options: Any
) -> AsyncIterator[PlatformClient]:
    options.setdefault("timeout_s", WAIT_S)
    async with PlatformClient(settings(port, client_id), ACTOR, **options) as client:
        yield client


class Arm:
    """Answers every command with the next battery, unless told to be silent."""

    def __init__(self, client: MqttClient) -> None:
        self._client = client
        self._batteries = iter(f"bat-{n}" for n in range(1, 1_000))
        self.silent = False
        self.unanswered: list[AllocateCommand] = []

    async def serve(self) -> None:
        await self._client.subscribe(Subscription("cmd/ABS/EPS/+/allocate"))
        async for batch in self._client.batches(100):
            self._client.ack(batch)
            self.unanswered += [decode(one.payload, type=AllocateCommand) for one in batch]
            if not self.silent:
                await self.answer()

    async def answer(self) -> None:
        commands, self.unanswered = self.unanswered, []
        await self._client.publish([self._answer(command) for command in commands])

    def _answer(self, command: AllocateCommand) -> Message:
        answer = ArmAnswer(
            status="issued",
            asset_id=next(self._batteries),
            correlation_id=command.correlation_id,
            plan_id=command.plan_id,
            fleet_id=command.fleet_id,
            returned_asset_id=command.returned_asset_id,
            energy_transferred=Decimal("1.25"),
        )
        topic = f"echo/ABS/EPS/{command.location_id}/allocate"
        return Message(topic=topic, payload=encode(answer))


@pytest.fixture
async def arm(port: int) -> AsyncIterator[Arm]:
    async with MqttClient(settings(port, "arm")) as client:
        arm = Arm(client)
        serving = asyncio.create_task(arm.serve())
        yield arm
        serving.cancel()
        await asyncio.wait([serving])


async def paid_plan(client: PlatformClient, plan_id: str = "p-1") -> None:
    sync = OdooSync(
        odoo_subscription_id=7,
        odoo_payment_state="paid",
        odoo_subscription_state="in_progress",
        odoo_currency_id="KES",
        odoo_amount_total=Decimal("1500.50"),
        template_id="template-nairobi-basic",
        customer_id="cust-1",
    )
    synced = await client.sync(plan_id, sync)
    assert isinstance(synced, Accepted)
    assert synced.metadata is not None
    assert [one.input for one in synced.metadata.fsm_inputs_generated] == [
        "CONTRACT_SIGNED",
        "DEPOSIT_PAID",
        "DEPOSIT_CONFIRMED",
    ]
    assert isinstance(await client.initialize_states(plan_id), Accepted)


def issued(outcome: Outcome[Issued]) -> Issued:
    assert isinstance(outcome, Accepted), outcome
    assert outcome.metadata is not None
    return outcome.metadata


async def test_a_swap_is_accepted_and_says_which_battery(port: int, arm: Arm) -> None:
    async with client_on(port) as client:
        await paid_plan(client)
        first = await client.swap("p-1", CustomerBinding(STATION))
        assert issued(first).asset_id == "bat-1"
        second = await client.swap("p-1", CustomerBinding(STATION, returned_asset_id="bat-1"))
        assert isinstance(second, Accepted)
        assert (second.reason, second.is_repeat) == (Reason("ok"), False)
        told = issued(second)
        assert (told.asset_id, told.location_id) == ("bat-2", STATION)
        used = {state.service_id: state.used for state in told.service_states}
        assert used["service-electricity-nairobi"] == Decimal("2.5")


async def test_a_swap_is_refused_with_its_reason(port: int, arm: Arm) -> None:
    async with client_on(port) as client:
        unknown = await client.swap("p-1", CustomerBinding(STATION))
        assert isinstance(unknown, Refused)
        assert unknown.reason is Reason("unknown_plan")
        assert unknown.action_required == unknown.reason.action_required
        await paid_plan(client)
        refused = await client.swap("p-1", CustomerBinding("station-nowhere"), correlation_id="c-1")
        assert isinstance(refused, Refused)
        assert (refused.reason, refused.detail) == (Reason("unknown_location"), "station-nowhere")
        assert (refused.correlation_id, refused.is_repeat) == ("c-1", False)
        again = await client.swap("p-1", CustomerBinding("station-nowhere"), correlation_id="c-1")
        assert isinstance(again, Refused)
        assert (again.reason, again.is_repeat) == (refused.reason, True)


async def test_many_ask_at_once_and_each_gets_its_own_answer(port: int, arm: Arm) -> None:
    async with client_on(port) as client:
        plans = [f"p-{n}" for n in range(20)]
        await asyncio.gather(*(paid_plan(client, plan) for plan in plans))
        asked = [client.identify_customer(plan, IdentifyCustomer("qr")) for plan in plans]
        for plan, outcome in zip(plans, await asyncio.gather(*asked), strict=True):
            assert isinstance(outcome, Accepted)
            assert outcome.metadata is not None
            assert outcome.metadata.service_plan_data.service_plan_id == plan


async def test_a_request_whose_echo_is_cut_off_is_repeated_and_applied_once(
    port: int, arm: Arm
) -> None:
    async with (
        Proxy(port) as proxy,
        client_on(port, "other") as other,
        client_on(proxy.port, timeout_s=2.0, attempts=30) as client,
    ):
        await paid_plan(other)
        # The client has heard an echo before what it is told is held back.
        assert isinstance(await client.swap("p-1", CustomerBinding("nowhere")), Refused)
        proxy.hold_answers()
        swap = asyncio.create_task(client.swap("p-1", CustomerBinding(STATION)))
        async with asyncio.timeout(WAIT_S):
            while await batteries(other) == []:
                pass
        proxy.cut()
        outcome = await swap
        assert isinstance(outcome, Accepted)
        assert (outcome.reason, outcome.is_repeat) == (Reason("duplicate"), True)
        assert outcome.metadata is None
        assert await batteries(other) == ["bat-1"]


async def batteries(client: PlatformClient) -> list[str]:
    """What the plan holds."""
    identified = await client.identify_customer("p-1", IdentifyCustomer("qr"))
    assert isinstance(identified, Accepted)
    assert identified.metadata is not None
    states = identified.metadata.service_plan_data.service_states
    return [state.current_asset for state in states if state.current_asset is not None]


async def test_who_gets_no_echo_is_told_and_may_ask_again(port: int, arm: Arm) -> None:
    async with client_on(port) as patient, client_on(port, "hasty", timeout_s=0.2) as hasty:
        await paid_plan(patient)
        arm.silent = True
        with pytest.raises(NoEchoError, match="after 2 attempts") as caught:
            await hasty.swap("p-1", CustomerBinding(STATION))
        asked = caught.value.correlation_id
        again = patient.swap("p-1", CustomerBinding(STATION), correlation_id=asked)
        waiting = asyncio.create_task(again)
        await eventually(lambda: bool(arm.unanswered), WAIT_S)
        arm.silent = False
        await arm.answer()
        outcome = await waiting
        assert isinstance(outcome, Accepted)
        assert await batteries(patient) == ["bat-1"]


async def test_everything_that_can_be_asked_is_answered(port: int, arm: Arm) -> None:
    async with client_on(port, plan_id="p-1") as client:
        await paid_plan(client)
        service = ServiceData(new_battery_id="bat-9", energy_transferred=Decimal("0.75"))
        payment = ServicePayment(
            payment_amount=Decimal(100),
            payment_reference="receipt-1",
            payment_type="TOP_UP",
            service_id=SWAP_COUNT,
        )
        answers: list[Outcome[Any]] = [
            await client.payment_and_service("p-1", PaymentAndService(STATION, service)),
            await client.report_activity("p-1", ReportActivity(STATION, "cleaned")),
            await client.service_payment("p-1", payment),
            await client.payment_reversal("p-1", PaymentReversal("receipt-1", "REVERSAL")),
            await client.scan("bat-9", Scan(STATION, "OK")),
            await client.report_lost("p-1", ReportLost("bat-9")),
            await client.nearby(Nearby(lat=-1.2841, lon=36.8233)),
        ]
        for answer in answers:
            assert isinstance(answer, Accepted), answer
            assert answer.metadata is not None
        refused = await client.continue_service("p-1", ContinueService("new_battery"))
        assert isinstance(refused, Refused)
        assert refused.reason is Reason("rejected_transition")
        validated = await client.validate("p-1", Validate("station-nowhere"))
        assert isinstance(validated, Refused)
        assert validated.metadata is not None
        assert [one.validator for one in validated.metadata.validators if not one.passed] == [
            "location",
            "battery",
        ]
        with pytest.raises(ValueError, match="for 'p-1' alone"):
            await client.balance("p-2")


async def test_queries_are_answered_with_exact_decimals(port: int, arm: Arm) -> None:
    async with client_on(port) as client:
        await paid_plan(client)
        await client.swap("p-1", CustomerBinding(STATION))
        async with asyncio.timeout(WAIT_S):
            while True:
                # The sink is a moment behind the echo.
                history = await client.swap_history("p-1")
                if isinstance(history, Accepted) and history.metadata and history.metadata.swaps:
                    break
        [swap] = history.metadata.swaps
        assert (swap.battery_issued, swap.energy_kwh) == ("bat-1", Decimal("1.25"))
        balance = await client.balance("p-1")
        assert isinstance(balance, Accepted)
        assert balance.metadata is not None
        assert balance.metadata.last_payment is not None
        assert balance.metadata.last_payment.amount == Decimal("1500.5")


async def test_a_client_that_is_closed_lets_nobody_wait(port: int, arm: Arm) -> None:
    async with client_on(port) as client:
        await paid_plan(client)
        arm.silent = True
        waiting = asyncio.create_task(client.swap("p-1", CustomerBinding(STATION)))
        await eventually(lambda: bool(arm.unanswered), WAIT_S)
    with pytest.raises(MqttError, match="closed"):
        await waiting


async def test_a_broker_that_is_not_there_is_an_error() -> None:
    nobody = MqttSettings(host="127.0.0.1", port=free_port(), client_id="app")
    client = PlatformClient(nobody, ACTOR, patience_s=0.1)
    with pytest.raises(MqttError):
        await client.__aenter__()


async def test_one_correlation_id_asks_one_thing_at_a_time(port: int) -> None:
    async with client_on(port) as client:
        await paid_plan(client)
        first = asyncio.create_task(
            client.swap("p-1", CustomerBinding(STATION), correlation_id="c-1")
        )
        await asyncio.sleep(0)
        with pytest.raises(ValueError, match="is being asked for already"):
            await client.swap("p-1", CustomerBinding(STATION), correlation_id="c-1")
        first.cancel()
        await asyncio.wait([first])
