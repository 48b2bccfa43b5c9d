"""Benchmarks: run with `pytest bench --benchmark-enable`."""
