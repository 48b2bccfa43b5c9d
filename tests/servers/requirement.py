"""What happens when a real server is missing: a visible skip, or a failure where it is required."""

import os
from typing import NoReturn

import pytest


def missing(server: str, why: str) -> NoReturn:
    """Skip the test, or fail it when BSS_REQUIRE_SERVERS=1 (as .ci/run sets)."""
    message = f"{server} is not available: {why}"
    if os.environ.get("BSS_REQUIRE_SERVERS") == "1":
        pytest.fail(message)
    pytest.skip(message)
