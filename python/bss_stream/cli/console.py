"""`bss-stream console`: the operators' pages."""

import asyncio
import logging

from bss_stream.cli import running
from bss_stream.config import Config
from bss_stream.errors import ConfigError

logger = logging.getLogger(__name__)


async def console(config: Config) -> None:
    """Serve the console until a signal. Raises ConfigError without the extra that it needs."""
    try:
        from bss_stream.console.serve import serve
    except ImportError as error:
        raise ConfigError(
            [
                f"the console needs what does not import ({error}): install the extra, "
                "pip install 'bss_stream[console]'"
            ]
        ) from error
    stop = asyncio.Event()
    with running.stop_signals(stop):
        scheme = "http" if config.console.cert_file is None else "https"
        where = f"{scheme}://{config.console.host}:{config.console.port}"
        logger.warning("console on %s; Ctrl-C ends", where)
        await serve(config, stop)
