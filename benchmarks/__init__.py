"""Measure speed and sameness; run from the root with `python -m benchmarks.NAME`."""
