"""The markets: read from folders of JSON files, checked as a whole, compiled for the engine."""

from bss_stream.setup.compile import Limits, compile_setup
from bss_stream.setup.load import load_setup, packaged_markets, packaged_models
from bss_stream.setup.market import Market, Model, Setup

__all__ = [
    "Limits",
    "Market",
    "Model",
    "Setup",
    "compile_setup",
    "load_setup",
    "packaged_markets",
    "packaged_models",
]
