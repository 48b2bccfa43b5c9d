"""Fixtures shared by all suites: the real servers."""

pytest_plugins = ["tests.servers.kafka", "tests.servers.mosquitto", "tests.servers.postgres"]
