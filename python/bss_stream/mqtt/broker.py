"""The embedded MQTT broker: rumqttd, from the iotcore wheel, in a process of its own.

Good for a demonstration, a test or one small site. It keeps everything in memory: a message that
it has acknowledged and not delivered yet is lost with it (docs/decisions/0004-mqtt-client.md has
this and its other limits).
"""

import asyncio
import contextlib
import importlib.util
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from bss_stream.errors import ConfigError, MqttError

IN_FLIGHT_MAX: Final = 100
"""Messages that rumqttd sends one client ahead of its acknowledgements, whatever it is told."""

_SEGMENTS: Final = 8
_START_TIMEOUT_S: Final = 15.0
_STOP_TIMEOUT_S: Final = 5.0


class EmbeddedBroker:
    """A broker for MQTT 5 on 127.0.0.1: an asynchronous context manager, or `start` and `stop`.

    `port` 0 takes a free one. `kept_bytes_max` bounds what is kept for each topic filter that was
    ever subscribed to: a client that falls further behind than that loses messages.
    """

    def __init__(
        self,
        *,
        port: int = 0,
        payload_bytes_max: int = 1_200_000,
        connections_max: int = 1_000,
        kept_bytes_max: int = 64 * 1024 * 1024,
    ) -> None:
        self.host: Final = "127.0.0.1"
        self.port = port
        self._payload_bytes_max = payload_bytes_max
        self._connections_max = connections_max
        self._kept_bytes_max = kept_bytes_max
        self._process: asyncio.subprocess.Process | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    async def start(self) -> None:
        """Start and wait until it accepts connections.

        Raises ConfigError without the `embedded` extra or with a port that is taken, MqttError
        when the broker does not come up.
        """
        if importlib.util.find_spec("iotcore") is None:
            need = "the embedded broker needs an extra: pip install 'bss_stream[embedded]'"
            raise ConfigError([f"mqtt.broker: {need}"])
        self.port = _available(self.host, self.port)
        self._folder = tempfile.TemporaryDirectory(prefix="bss-stream-broker-")
        config = Path(self._folder.name) / "rumqttd.toml"
        config.write_text(self._toml())
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", __name__, str(config)),
            # The process ends when this pipe closes: it does not outlive a killed parent.
            stdin=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(_START_TIMEOUT_S):
                await self._accepting()
        except TimeoutError as error:
            await self.stop()
            raise MqttError(
                f"the embedded broker does not listen on {self.host}:{self.port} "
                f"after {_START_TIMEOUT_S:.0f} s"
            ) from error

    async def stop(self) -> None:
        """Stop it and free its port. Everything that it holds is gone."""
        process, self._process = self._process, None
        if process is not None:
            if process.stdin is not None:
                process.stdin.close()
            try:
                async with asyncio.timeout(_STOP_TIMEOUT_S):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    async def watch(self) -> None:
        """Return once `stop` is called; raise MqttError if the broker ends before that."""
        process = self._process
        if process is not None:
            code = await process.wait()
            if process is self._process:
                raise MqttError(f"the embedded broker has ended with code {code}")

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()

    async def _accepting(self) -> None:
        while True:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection(self.host, self.port)
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
                return
            if self._process is not None and self._process.returncode is not None:
                code = self._process.returncode
                await self.stop()
                raise MqttError(f"the embedded broker ended with code {code} while starting")
            await asyncio.sleep(0.02)

    def _toml(self) -> str:
        return f"""\
id = 0

[router]
id = 0
max_connections = {self._connections_max}
max_outgoing_packet_count = 200
max_segment_size = {self._kept_bytes_max // _SEGMENTS}
max_segment_count = {_SEGMENTS}

[v5.1]
name = "v5-1"
listen = "{self.host}:{self.port}"
next_connection_delay_ms = 1

[v5.1.connections]
connection_timeout_ms = 10000
max_payload_size = {self._payload_bytes_max}
max_inflight_count = 1000
"""


def _available(host: str, port: int) -> int:
    """A port to listen on: the one asked for if it is free. Raises ConfigError."""
    with socket.socket() as probe:
        # As the broker does it: a port in TIME_WAIT is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            fault = f"mqtt.broker.port: {port} on {host}: {error}; 0 takes a free port"
            raise ConfigError([fault]) from error
        taken: int = probe.getsockname()[1]
        return taken


def _serve(config_path: str) -> None:
    """The child process: run the broker until the parent closes our standard input."""
    from iotcore import IotCoreBroker

    # Ctrl-C reaches the whole process group, as the end of a service or of a terminal may, and the
    # parent still has messages to acknowledge: its end is this process's.
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    # rumqttd wraps its routing in spans of level error, and each one would become a log record.
    logging.getLogger("rumqttd").setLevel(logging.CRITICAL + 1)
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    IotCoreBroker(config_path=config_path).run_forever()


def _exit_with_parent() -> None:
    sys.stdin.buffer.read()
    # run_forever has no way out, and there is nothing to save.
    os._exit(0)


if __name__ == "__main__":
    _serve(sys.argv[1])
