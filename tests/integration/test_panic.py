"""A panic of the engine, were there one: an exception that ends the processor, and no data lost.

The engine has no reachable panic that we know of. But `pack` panics on purpose for a part that no
log can take, and reaching that needs an allocation that is never touched, so a true panic can
cross the binding here without a hook in the product.
"""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from bss_stream import _engine
from bss_stream.log.embedded import EmbeddedLog
from bss_stream.processor import Processor, ProcessorSettings
from tests.integration.processing import GROUP, SETUP, Clock, append, running, shard_id, traffic
from tests.logs import PARTITIONS
from tests.undisturbed import check_contents, read_log, undisturbed

UNTAKEABLE_BYTES = 2**32


def panic(*_: object, **__: object) -> Any:
    """Have Rust panic."""
    return _engine.pack([(bytes(UNTAKEABLE_BYTES), None)])


def is_panic(error: BaseException) -> bool:
    return type(error).__name__ == "PanicException" and "under 4 GiB" in str(error)


def test_a_panic_is_an_exception_and_the_interpreter_goes_on() -> None:
    with pytest.raises(BaseException) as caught:
        panic()
    assert is_panic(caught.value)
    assert not isinstance(caught.value, Exception), "no `except Exception` may swallow it"
    assert _engine.unpack(_engine.pack([(b"k", b"v")])) == [(b"k", b"v")]


class Poisoned:
    """An engine whose work panics; everything else is the real one's."""

    def __init__(self, engine: _engine.Engine) -> None:
        self._engine = engine
        self.process = panic

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)


@pytest.mark.parametrize(
    "records", [20, 2_000], ids=["in the event loop", "in the engine's thread"]
)
async def test_a_panic_ends_the_processor_and_the_next_one_applies_everything(
    tmp_path: Path, records: int
) -> None:
    """It is no LogError, so nobody tries the same records again in silence, or commits them."""
    log = EmbeddedLog(tmp_path / "log", partitions=PARTITIONS)
    await log.open()
    arrivals = traffic(10, 1_500, 7)[:records]
    await append(log, arrivals, at_once=records)
    clock = Clock(arrivals[-1].received_ms)
    settings = ProcessorSettings(group=GROUP, transactional_id=shard_id, threads=2)
    processor = Processor(log, SETUP, settings, clock_ms=clock)
    processor._engine = Poisoned(processor._engine)  # type: ignore[assignment]
    with pytest.raises(BaseException) as caught:
        async with asyncio.timeout(60):
            await processor.run()
    assert is_panic(caught.value)
    assert processor.counters.transactions == 0
    assert processor.shards == frozenset(), "what the engine was in the middle of is dropped"

    async with running(log, clock, drain=True):
        pass
    contents = await read_log(log)
    check_contents(
        contents, undisturbed(contents, SETUP, partitions=PARTITIONS, now_ms=clock.now_ms)
    )
    await log.close()
