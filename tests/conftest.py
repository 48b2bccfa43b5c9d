"""Fixtures shared by all suites: the real servers, and how long hypothesis searches."""

import os

from hypothesis import settings

pytest_plugins = [
    "tests.servers.certificates",
    "tests.servers.chromium",
    "tests.servers.kafka",
    "tests.servers.kafka_access",
    "tests.servers.mosquitto",
    "tests.servers.postgres",
]

# No deadline: how long an example takes says nothing on a shared machine.
settings.register_profile("quick", deadline=None)
settings.register_profile("slow", deadline=None, max_examples=3_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))
