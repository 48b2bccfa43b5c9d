"""The console in a real browser, beside an embedded platform with riders on it."""

import asyncio
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import orjson
import pytest

from bss_stream import dead_letters
from bss_stream.clock import epoch_ms
from bss_stream.config import Config, Console, EmbeddedLog, Log, Mqtt
from bss_stream.console.serve import serve
from bss_stream.dead_letters import Filter
from bss_stream.mqtt.client import MqttClient
from bss_stream.mqtt.messages import Message
from bss_stream.roles import Platform, mqtt_settings, readable_log
from bss_stream.simulate import FaultShares, SimulationConfig, SimulatorProcess
from bss_stream.validation import Secret
from tests.servers.chromium import DESKTOP, PHONE, OpenPage
from tests.servers.ports import free_port
from tests.unit.histories import rfc3339

if TYPE_CHECKING:
    from playwright.async_api import Page

pytestmark = pytest.mark.chromium

TOKEN = "a-token-that-nobody-guesses"
PLAN = "plan-late"
SYNC = f"emit/odo/subscription/plan/{PLAN}/sync"
PAGES = ("/", "/stations", "/operator", "/fleets", "/plans", "/ledger", "/dead-letters")
RIDING = SimulationConfig(
    plans=40,
    rate=20.0,
    joining_rate=200.0,
    faults=FaultShares(garbage=0.05, duplicate=0.02, exhausted_quota=0),
)
WAIT_MS = 60_000


@dataclass
class Network:
    """A platform with its console; riders are on it while somebody rides."""

    config: Config
    platform: Platform

    def riders(self) -> SimulatorProcess:
        broker = mqtt_settings(self.config, "simulate", self.platform.broker)
        return SimulatorProcess(self.platform.setup, broker, RIDING, duration_s=600)

    async def bring(self, topic: str, correlation_id: str, **data: object) -> None:
        """One message by MQTT, as any client sends it."""
        body = {
            "timestamp": rfc3339(epoch_ms()),
            "plan_id": PLAN,
            "correlation_id": correlation_id,
            "data": data,
        }
        settings = mqtt_settings(self.config, "bringer", self.platform.broker)
        async with MqttClient(settings) as client:
            await client.publish([Message(topic=topic, payload=orjson.dumps(body))])

    async def letters(self, reason: str) -> list[str]:
        """Ids of the plan's dead letters."""
        wanted = Filter(reasons=frozenset((reason,)), entity=PLAN)
        async with readable_log(self.config) as log:
            return [
                letter.id
                for partition in range(log.partitions)
                async for letter in dead_letters.letters(log, partition, wanted)
            ]


@pytest.fixture
async def config(tmp_path: Path) -> AsyncIterator[Config]:
    """A platform's configuration; its console runs already, the platform does not."""
    config = Config(
        data_dir=str(tmp_path / "data"),
        log=Log(embedded=EmbeddedLog(durability="process")),
        mqtt=Mqtt(port=0),
        console=Console(port=free_port(), token=Secret(TOKEN)),
    )
    stop = asyncio.Event()
    serving = asyncio.create_task(serve(config, stop))
    yield config
    stop.set()
    await serving


@pytest.fixture
async def network(config: Config) -> AsyncIterator[Network]:
    async with Platform(config) as platform:
        yield Network(config, platform)
        await platform.drain()


def url(config: Config) -> str:
    return f"http://127.0.0.1:{config.console.port}"


async def entered(config: Config, page: "Page") -> None:
    """Log in; what the browser finds wrong with a page fails the test."""
    page.on("pageerror", lambda error: pytest.fail(str(error)))
    for _ in range(100):
        try:
            await page.goto(f"{url(config)}/")
            break
        except Exception:  # noqa: BLE001 - the browser's own for a server that is not there yet
            await asyncio.sleep(0.1)
    await page.get_by_label("Token").fill(TOKEN)
    await page.get_by_role("button", name="Log in").click()
    await page.wait_for_url(f"{url(config)}/")


async def total(page: "Page", name: str) -> int:
    text = await page.locator(f'[data-figure="{name}"] [data-total]').inner_text()
    return int(re.sub(r"\D", "", text))


async def test_an_operator_watches_riders(network: Network, open_page: OpenPage) -> None:
    page = await open_page(DESKTOP)
    await entered(network.config, page)
    async with network.riders() as riders:
        for name in ("swaps", "signals", "echoes", "entries"):
            before = await total(page, name)
            await page.wait_for_function(
                "([name, before]) => Number(document.querySelector(`[data-figure=${name}] "
                "[data-total]`).textContent.replace(/\\D/g, '')) > before",
                arg=[name, before],
                timeout=WAIT_MS,
            )
        assert await page.locator("#stream").get_attribute("data-state") == "live"
        assert await page.locator('[data-figure="swaps"] polyline').count() == 1
        await page.locator("#ok-share").wait_for(timeout=WAIT_MS)
        event = page.locator("#events .plan a").first
        await event.wait_for(timeout=WAIT_MS)
        plan_id = await event.inner_text()

        await page.goto(f"{url(network.config)}/plans/{plan_id}")
        lit = page.locator(".state.current text:not(.stays)")
        await lit.first.wait_for(timeout=WAIT_MS)
        # As the state is by now: the page asks for it again by itself.
        await page.get_by_text("BATTERY_ISSUED", exact=True).first.wait_for(timeout=WAIT_MS)
        assert await lit.all_text_contents() == ["CURRENT", "BATTERY_ISSUED"]
        assert await page.get_by_text("holds", exact=True).count() == 1
        await page.locator(".timeline .echo").first.wait_for(timeout=WAIT_MS)

        await page.goto(f"{url(network.config)}/stations")
        heard = page.locator(".card.ready, .card.limited, .card.not_ready")
        await heard.first.wait_for(timeout=WAIT_MS)
        assert await page.locator(".spot").count() == await page.locator(".card").count()
        riders.stop()


async def test_a_replay_brings_a_signal_back(network: Network, open_page: OpenPage) -> None:
    page = await open_page(DESKTOP)
    await entered(network.config, page)
    # A payment that came before its plan did.
    await network.bring(
        f"emit/abs/bss/payment/{PLAN}/service_payment",
        "pay-1",
        service_id="service-swap-count-nairobi",
        payment_reference="ref-1",
        payment_amount=100,
        payment_method="MPESA",
        payment_type="TOP_UP",
    )
    await page.goto(f"{url(network.config)}/dead-letters?reason=unknown_plan")
    link = page.locator("#letters tbody a").first
    await link.wait_for(timeout=WAIT_MS)
    await network.bring(
        SYNC,
        "sync-1",
        odoo_subscription_id=1,
        odoo_payment_state="paid",
        odoo_subscription_state="in_progress",
        odoo_currency_id="KES",
        odoo_amount_total=8000,
        template_id="template-nairobi-basic",
        customer_id="cust-1",
    )
    await network.bring(f"emit/uxi/service/plan/{PLAN}/initialize_states", "init-1")
    await link.click()
    await page.get_by_label("Why").fill("the plan is there now")
    await page.get_by_role("checkbox").check()
    await page.get_by_role("button", name="Replay").click()
    await page.get_by_text("replayed", exact=True).wait_for(timeout=WAIT_MS)
    assert await page.get_by_role("button", name="Replay").count() == 0
    assert await network.letters("unknown_plan") == [page.url.rpartition("/")[2]]
    assert len(await network.letters("replayed")) == 1

    await page.goto(f"{url(network.config)}/ledger?plan={PLAN}&kind=service_payment")
    for _ in range(600):
        if await page.locator("table.ledger tbody tr").count():
            break
        await asyncio.sleep(0.1)
        await page.reload()
    assert "100.00 KES" in await page.locator("table.ledger tbody tr").inner_text()


async def test_a_phone_shows_everything_in_its_width(network: Network, open_page: OpenPage) -> None:
    page = await open_page(PHONE)
    await entered(network.config, page)
    async with network.riders() as riders:
        link = page.locator("#events .plan a").first
        await link.wait_for(timeout=WAIT_MS)
        plan_id = await link.inner_text()
        await page.goto(f"{url(network.config)}/dead-letters")
        letter = page.locator("#letters tbody a").first
        await letter.wait_for(timeout=WAIT_MS)
        path = await letter.get_attribute("href")
        for shown in (*PAGES, f"/plans/{plan_id}", path):
            await page.goto(f"{url(network.config)}{shown}")
            wide = await page.evaluate("document.documentElement.scrollWidth")
            assert wide <= PHONE[0], shown
            assert await page.locator("h1").is_visible()
        assert not await page.locator(".map").is_visible()
        riders.stop()


async def test_a_console_that_is_there_first_shows_what_comes(
    config: Config, open_page: OpenPage
) -> None:
    page = await open_page(DESKTOP)
    await entered(config, page)
    live, stations = page, await page.context.new_page()
    await live.locator("#log-fault").wait_for(timeout=WAIT_MS)
    await live.locator("#database-fault").wait_for(timeout=WAIT_MS)
    await stations.goto(f"{url(config)}/stations")
    assert await stations.locator("h1").inner_text() == "The ledger database is away"
    async with Platform(config) as platform:
        # Nobody touches the pages.
        await live.locator("#log-fault").wait_for(state="hidden", timeout=WAIT_MS)
        await live.locator("#database-fault").wait_for(state="hidden", timeout=WAIT_MS)
        await stations.get_by_role("heading", name="Stations").wait_for(timeout=WAIT_MS)
        await platform.drain()
