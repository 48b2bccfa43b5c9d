"""Adapters frozen past their session, killed in the midst of a batch, and started again."""

from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from bss_stream.config import Config
from bss_stream.log.protocol import Log
from bss_stream.roles import make_log
from tests.eventually import eventually
from tests.integration.test_odoo import bring, in_odoo
from tests.integration.test_odoo_inbound import odoo_config
from tests.ledger_chain import PlanLedger
from tests.platform_processes import PlatformProcess, servers_config
from tests.servers.mosquitto import Mosquitto
from tests.servers.odoo import OdooServer, billing_models

SWAPS, ENERGY = "service-swap-count-nairobi", "service-electricity-nairobi"
WAIT_S = 90.0


def plans() -> Iterator[PlanLedger]:
    """Plans with entries of the packaged market's services, without end."""
    number = 0
    while True:
        plan = PlanLedger(f"plan-{number}")
        plan.deposit(150_050)
        plan.pay(ENERGY, 3_333, 10)
        plan.grant(SWAPS, 30)
        for energy in range(5):
            plan.use(SWAPS, 1)
            plan.use(ENERGY, 1_040 + energy)
        yield plan
        number += 1


BILLED = 14
"""Entries of such a plan: all of them."""


@pytest.mark.kafka
@pytest.mark.mosquitto
async def test_each_entry_is_one_record_whoever_freezes_or_dies(
    tmp_path: Path, kafka: str, mosquitto: Mosquitto
) -> None:
    """A frozen adapter's partitions go to the other; thawed, it finishes what it had begun."""
    async with OdooServer() as odoo, AsyncExitStack() as stack:
        billing_models(odoo)
        file = servers_config(tmp_path, kafka, mosquitto.port, "postgresql://unused")
        file.write_text(file.read_text() + odoo_config(odoo, tmp_path, batch_records_max=20))
        log: Log = make_log(Config.load(file))
        await log.open()
        stack.push_async_callback(log.close)
        adapters = [PlatformProcess(file, "odoo", instance=str(n)) for n in range(2)]
        for one in adapters:
            await stack.enter_async_context(one)
        source, brought = plans(), 0

        async def bring_some(count: int) -> None:
            nonlocal brought
            await bring(log, [next(source) for _ in range(count)])
            brought += count

        async def all_there() -> None:
            await eventually(lambda: in_odoo(odoo) >= brought * BILLED, WAIT_S)

        await bring_some(20)
        await all_there()
        for frozen in (0, 1):
            await bring_some(40)
            await eventually(lambda: in_odoo(odoo) > (brought - 40) * BILLED, WAIT_S)
            adapters[frozen].freeze()
            await bring_some(20)
            # Its session ends, and the other one does its work.
            await all_there()
            await bring_some(20)
            adapters[frozen].thaw()
            await all_there()
        for killed in (1, 0):
            await bring_some(40)
            await eventually(lambda: in_odoo(odoo) > (brought - 40) * BILLED, WAIT_S)
            await adapters[killed].kill()
            await adapters[killed].start()
            await all_there()
        for one in adapters:
            assert await one.end() == 0, one.log
        assert in_odoo(odoo) == brought * BILLED
        check_figures(odoo, brought)


def check_figures(odoo: OdooServer, plans: int) -> None:
    """Every plan has the same history."""
    money: dict[str, int] = {}
    energy: dict[str, int] = {}
    for row in odoo.rows("x_bss_payment"):
        money[row["x_plan_id"]] = money.get(row["x_plan_id"], 0) + int(row["x_amount_minor"])
    for row in odoo.rows("x_bss_usage"):
        if row["x_service_id"] == ENERGY:
            energy[row["x_plan_id"]] = energy.get(row["x_plan_id"], 0) + round(1000 * row["x_used"])
    assert len(money) == len(energy) == plans
    assert set(money.values()) == {153_383}
    assert set(energy.values()) == {5 * 1_040 + 10}
