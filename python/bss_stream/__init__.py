"""A stream processor for battery-swap networks: MQTT signals in, ledgers and echoes out."""

from importlib.metadata import version

__all__ = ["__version__"]

__version__ = version("bss_stream")
