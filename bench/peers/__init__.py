"""What users could pick instead of the engine, doing the same work: `python -m bench.peers`."""
