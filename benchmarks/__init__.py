"""Measured comparisons against a peer or a bound, each a command: `python -m benchmarks.NAME`."""
