"""A real mosquitto server for tests, started as a process on a free loopback port."""

import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.servers.ports import free_port
from tests.servers.requirement import missing

START_TIMEOUT_S = 10.0


class Mosquitto:
    """One broker: its port stays the same over restarts, its sessions with `persistence`."""

    def __init__(self, binary: str, folder: Path, *, persistence: bool, lines: list[str]) -> None:
        self.port = free_port()
        self._binary = binary
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        config = [
            f"listener {self.port} 127.0.0.1",
            "allow_anonymous true",
            "max_inflight_messages 0",
            "max_queued_messages 0",
            "set_tcp_nodelay true",
            # Started as root it would give up its rights, and its folder with them.
            "user root",
            f"persistence {'true' if persistence else 'false'}",
            f"persistence_location {folder}/",
            # It writes its sessions every so many changes only; a kill loses those since.
            "autosave_interval 1",
            "autosave_on_changes true",
            *lines,
        ]
        self._config = folder / "mosquitto.conf"
        self._config.write_text("\n".join(config) + "\n")

    def start(self) -> None:
        """Start and wait until it accepts connections."""
        log = (self._folder / "mosquitto.log").open("ab")
        with log:
            self._process = subprocess.Popen(
                [self._binary, "-c", str(self._config)], stdout=log, stderr=log
            )
        give_up_at = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError as error:
                if self._process.poll() is not None or time.monotonic() > give_up_at:
                    log_text = (self._folder / "mosquitto.log").read_text()
                    raise AssertionError(f"mosquitto did not start: {log_text}") from error
                time.sleep(0.02)

    def stop(self) -> None:
        """Stop in good order: clients are told, sessions are saved."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Stop as a power cut does."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Stop and start on the same port."""
        self.stop()
        self.start()

    @property
    def log(self) -> str:
        """What it has logged, over all its starts."""
        return (self._folder / "mosquitto.log").read_text(errors="replace")

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(timeout=START_TIMEOUT_S)
            self._process = None


def password_file(file: Path, passwords: Mapping[str, str]) -> Path:
    """Write a password file that knows these users."""
    file.touch(mode=0o600)
    for user, password in passwords.items():
        command = ["mosquitto_passwd", "-b", str(file), user, password]
        subprocess.run(command, check=True, capture_output=True)
    return file


MosquittoFactory = Callable[..., Mosquitto]


def mosquitto_server(
    folder: Path, *, persistence: bool, lines: list[str] | None = None
) -> Mosquitto:
    """A broker to be started; skips or fails where there is none."""
    binary = shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
    if binary is None:
        missing("mosquitto", "install the Debian package `mosquitto`")
    return Mosquitto(binary, folder, persistence=persistence, lines=lines or [])


@pytest.fixture
def start_mosquitto(tmp_path: Path) -> Iterator[MosquittoFactory]:
    """Start brokers: `start_mosquitto(persistence=False, lines=[])`; all stop with the test."""
    brokers: list[Mosquitto] = []

    def start(*, persistence: bool = False, lines: list[str] | None = None) -> Mosquitto:
        folder = tmp_path / f"mosquitto-{len(brokers)}"
        broker = mosquitto_server(folder, persistence=persistence, lines=lines)
        brokers.append(broker)
        broker.start()
        return broker

    yield start
    for broker in brokers:
        broker.kill()


@pytest.fixture
def mosquitto(start_mosquitto: MosquittoFactory) -> Mosquitto:
    """A broker without persistence."""
    return start_mosquitto()
