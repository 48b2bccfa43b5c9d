"""`bss-stream`: the command line. Exit codes: 0 done, 1 a check found faults, 2 wrong use."""

from bss_stream.cli.main import main

__all__ = ["main"]
