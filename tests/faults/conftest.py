"""Servers that faults may strike: the session's own ones must stay up for the other suites."""

import os
from collections.abc import Iterator

import pytest

from tests.servers.kafka import KafkaServer


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the long variants unless FAULT_LONG=1."""
    if os.environ.get("FAULT_LONG") == "1":
        return
    for item in items:
        if item.get_closest_marker("long") is not None:
            item.add_marker(pytest.mark.skip(reason="FAULT_LONG=1 runs it"))


@pytest.fixture(scope="session")
def _own_kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaServer]:
    server = KafkaServer(tmp_path_factory.mktemp("faulty-kafka"))
    yield server
    server.kill()


@pytest.fixture
def faulty_kafka(_own_kafka: KafkaServer) -> KafkaServer:
    """A running broker to be killed, frozen or cut off."""
    if not _own_kafka.running:
        _own_kafka.start()
    return _own_kafka
