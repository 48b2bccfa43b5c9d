"""What several integration suites start."""

from collections.abc import AsyncIterator

import pytest

from bss_stream.mqtt.broker import EmbeddedBroker


@pytest.fixture(params=[pytest.param("mosquitto", marks=pytest.mark.mosquitto), "embedded"])
async def broker_port(request: pytest.FixtureRequest) -> AsyncIterator[int]:
    """The port of a real Mosquitto, then of the embedded broker."""
    if request.param == "mosquitto":
        yield request.getfixturevalue("mosquitto").port
    else:
        async with EmbeddedBroker() as broker:
            yield broker.port
