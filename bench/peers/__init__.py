"""What users could pick instead, doing the same work: a part of `python -m bench.report`."""
