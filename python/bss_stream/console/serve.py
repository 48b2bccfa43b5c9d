"""The console as a process: made from the configuration, served until it is told to stop."""

import asyncio
import contextlib
import logging
from collections.abc import Iterator
from functools import partial
from typing import Final

import uvicorn

from bss_stream.clock import epoch_ms
from bss_stream.config import Config
from bss_stream.console.access import Access
from bss_stream.console.app import make_app
from bss_stream.console.context import Context, Markets
from bss_stream.console.database import LedgerDatabase
from bss_stream.console.figures import Figures
from bss_stream.console.render import Renderer, Units
from bss_stream.console.watch import Watch
from bss_stream.errors import BssStreamError, ConfigError
from bss_stream.roles import readable_log, replay_letters
from bss_stream.sink.read_model import open_read_model

logger = logging.getLogger(__name__)

HOUR_MS: Final = 3_600_000
CONNECTIONS_MAX: Final = 256
STOP_S: Final = 3


class _Server(uvicorn.Server):
    """Told to stop by whoever runs it, not by signals of its own."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def make_context(config: Config) -> Context:
    """What the pages work with. Raises ConfigError."""
    markets = Markets(config.load_setup())
    units = Units(markets.catalogue)
    open_log = partial(readable_log, config)
    return Context(
        access=Access(config.console_token(), config.console.session_hours * HOUR_MS, epoch_ms),
        database=LedgerDatabase(open_read_model(config.console_url().reveal())),
        reports=LedgerDatabase(open_read_model(config.console_url().reveal())),
        watch=Watch(open_log, Figures(epoch_ms)),
        markets=markets,
        units=units,
        renderer=Renderer(units),
        open_log=open_log,
        replay=partial(replay_letters, config),
        clock_ms=epoch_ms,
    )


async def serve(config: Config, stop: asyncio.Event) -> None:
    """Serve until `stop` is set. Raises ConfigError, and BssStreamError for a port in use."""
    console = config.console
    secure = console.behind_https or console.cert_file is not None
    app, live = make_app(make_context(config), secure=secure)
    server = _Server(
        uvicorn.Config(
            app,
            host=console.host,
            port=console.port,
            ssl_certfile=console.cert_file,
            ssl_keyfile=console.key_file,
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            ws="none",
            limit_concurrency=CONNECTIONS_MAX,
            timeout_graceful_shutdown=STOP_S,
        )
    )
    serving = asyncio.create_task(_serve(server))
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait((serving, stopping), return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    live.stop()
    server.should_exit = True
    await serving


async def _serve(server: uvicorn.Server) -> None:
    try:
        await server.serve()
    except OSError as error:
        raise ConfigError([f"$.console.cert_file, $.console.key_file: {error}"]) from error
    except SystemExit as error:
        # uvicorn has logged why it cannot listen.
        raise BssStreamError(
            f"the console cannot listen on {server.config.host}:{server.config.port}: "
            "set console.host and console.port to what is free"
        ) from error
