"""Commands that run something: an event loop, signals, and an orderly end."""

import asyncio
import contextlib
import logging
import signal
import sys
from collections.abc import Coroutine, Mapping
from typing import Any, TypeVar

import msgspec

from bss_stream import _engine, audit_states
from bss_stream import audit as auditing
from bss_stream.audit_report import AuditReport
from bss_stream.config import Config
from bss_stream.errors import BssStreamError, ConfigError
from bss_stream.log.protocol import ReadableLog
from bss_stream.observe.server import observed
from bss_stream.roles import ROLES, Platform, Role, readable_log
from bss_stream.setup import compile_setup
from bss_stream.sink.store import open_ledger_store
from bss_stream.tracing import OFF, Tracing

logger = logging.getLogger(__name__)

T = TypeVar("T")


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on the fastest event loop there is."""
    if sys.platform == "win32":
        return asyncio.run(main)
    import uvloop

    return uvloop.run(main)


def replace(struct: T, changes: Mapping[str, object]) -> T:
    """A copy of a msgspec struct with some fields changed."""
    changed: T = msgspec.structs.replace(struct, **changes)  # type: ignore[type-var]
    return changed


@contextlib.contextmanager
def stop_signals(stop: asyncio.Event) -> Any:
    """Set `stop` on Ctrl-C and SIGTERM, so that the program drains instead of dying."""
    loop = asyncio.get_running_loop()
    names = (signal.SIGINT, signal.SIGTERM)
    try:
        for name in names:
            if sys.platform == "win32":  # whose loops know no signals
                signal.signal(name, lambda *_: loop.call_soon_threadsafe(stop.set))
            else:
                loop.add_signal_handler(name, stop.set)
        yield
    finally:
        for name in names:
            if sys.platform == "win32":
                signal.signal(name, signal.SIG_DFL)
            else:
                loop.remove_signal_handler(name)


def tracing(config: Config, roles: tuple[Role, ...], instance: str | None) -> Tracing:
    """What records spans, as the configuration wants it. Raises ConfigError without the extra."""
    if not config.tracing.enabled:
        return OFF
    try:
        from bss_stream import otel
    except ImportError as error:
        fault = f"$.tracing.enabled: true: expected the extra `otel` to be installed ({error})"
        raise ConfigError([fault]) from error
    named = "-".join((*(roles if roles != ROLES else ("run",)), instance or "0"))
    return otel.exporting(config.tracing.endpoint, named)


async def run_roles(config: Config, roles: tuple[Role, ...], instance: str | None) -> None:
    """Run roles until a signal, then drain them. SIGHUP reads the markets again."""
    stop = asyncio.Event()
    recorder = tracing(config, roles, instance)
    platform = Platform(config, roles, instance=instance, tracing=recorder)
    try:
        with stop_signals(stop):
            # Before the roles start, since that may take as long as a log is away.
            async with observed(config.http, platform), platform:
                await _run_until(stop, platform, roles)
    finally:
        await asyncio.to_thread(recorder.close)


async def _run_until(stop: asyncio.Event, platform: Platform, roles: tuple[Role, ...]) -> None:
    reloads: set[asyncio.Task[None]] = set()

    def reload() -> None:
        task = asyncio.create_task(_reload(platform))
        reloads.add(task)
        task.add_done_callback(reloads.discard)

    if hasattr(signal, "SIGHUP"):
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload)
    where = "" if platform.broker is None else f", MQTT on port {platform.broker.port}"
    logger.warning("running %s%s; Ctrl-C drains and ends", ", ".join(roles), where)
    try:
        await platform.run(stop)
    finally:
        for role, counters in platform.counters().items():
            logger.warning("%s: %s", role, counters)
        for line in platform.balance():
            logger.error("counters do not add up: %s", line)


async def _reload(platform: Platform) -> None:
    """Take the set-up as its files are now; what is wrong with it changes nothing."""
    try:
        await platform.reload()
    except (BssStreamError, ValueError) as error:
        logger.error("the set-up stays as it was: %s", error)
    else:
        logger.warning("the set-up was read again")


async def audit(config: Config, *, drained: bool, states: bool) -> AuditReport:
    """Audit the ledgers that a configuration names, also while the platform runs."""
    store = open_ledger_store(config.ledger_url().reveal())
    await asyncio.to_thread(store.open)
    try:
        if not states:
            return await asyncio.to_thread(auditing.audit, store, None, drained=drained)
        async with readable_log(config) as log:
            return await audit_with(config, store, log, drained=drained)
    finally:
        await asyncio.to_thread(store.close)


async def audit_with(config: Config, store: Any, log: ReadableLog, *, drained: bool) -> AuditReport:
    """Audit a store against the states in an open log."""
    engine = _engine.Engine(compile_setup(config.load_setup()), partitions=log.partitions)
    with await audit_states.collect_states(log, engine.describe_state) as found:
        report = await asyncio.to_thread(auditing.audit, store, found, drained=drained)
    report.log = await auditing.balance_log(log, drained=drained)
    if drained:
        report.log.check_copied(report.entries)
    return report
