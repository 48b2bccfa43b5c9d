"""docker-compose.yml as Compose reads it."""

from typing import Any, Final

SECRETS: Final = "/run/secrets/"
"""Where a container has its secrets."""


def ours(model: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The services that run bss-stream."""
    return {name: one for name, one in model["services"].items() if "build" in one}
