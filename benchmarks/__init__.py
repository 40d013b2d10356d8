"""Measuring this project's own code: `python -m benchmarks input|ops|model|memory` and `python -m benchmarks.compare`."""
