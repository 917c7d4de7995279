"""The benchmarks, one short file each; see `eval/benchmark.py`."""
