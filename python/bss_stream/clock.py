"""The machine's clock: the one place that reads it, for whoever is not given another."""

import time


def epoch_ms() -> int:
    """Now, in epoch milliseconds."""
    return time.time_ns() // 1_000_000
