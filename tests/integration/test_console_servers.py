"""The console on a real Kafka and a real PostgreSQL, beside nothing else."""

import itertools
from pathlib import Path

import pytest

from bss_stream.clock import epoch_ms
from bss_stream.config import Config, Console, KafkaLog, Log, Sink
from bss_stream.testing import Playground
from bss_stream.validation import Secret
from tests.console import TOKEN, console, furnish
from tests.rider_story import hand_over, paid_plan
from tests.unit.histories import rfc3339
from tests.unit.test_console import csrf_of, letter_id

pytestmark = [pytest.mark.kafka, pytest.mark.postgres]

_prefixes = itertools.count(1)


@pytest.fixture
def config(kafka: str, postgres: str, tmp_path: Path) -> Config:
    kafka_log = KafkaLog(
        bootstrap_servers=(kafka,),
        replication_factor=1,
        min_insync_replicas=1,
        topic_prefix=f"console-{next(_prefixes)}.",
    )
    return Config(
        data_dir=str(tmp_path),
        log=Log(backend="kafka", kafka=kafka_log),
        sink=Sink(backend="postgres", dsn=Secret(postgres)),
        console=Console(token=Secret(TOKEN)),
    )


async def test_the_console_on_servers(config: Config) -> None:
    play = Playground()
    play.now_ms = epoch_ms() - 3 * 43_200_000
    paid_plan(play)
    hand_over(play, None, "bat-1", 1.5)
    play.now_ms = epoch_ms() - 60_000
    stamp = rfc3339(play.now_ms).encode()
    body = b'{"timestamp":"%s","plan_id":"p-9","correlation_id":"pay-9","data":{}}' % stamp
    play.mqtt("emit/abs/bss/payment/p-9/service_payment", body)
    await furnish(config, play)
    async with console(config) as (browser, _):
        await browser.log_in()
        page = await browser.until("/plans/p-1", "agree with the live state")
        assert 'class="badge ready">holds' in page
        assert ">payment and service<" in page
        assert "bat-1" in await browser.page("/ledger?kind=quota_used")
        assert "p-1" in await browser.page("/plans")
        assert "station-nbi-001" in await browser.page("/stations")
        path = f"/dead-letters/{await letter_id(browser, 'unknown_plan')}"
        csrf = csrf_of(await browser.page(path))
        done = await browser.form(f"{path}/replay", csrf=csrf, confirm="yes", note="mended")
        assert done.headers["location"] == path
        assert "console: mended" in await browser.until(path, 'class="badge ready">replayed')
