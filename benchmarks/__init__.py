"""Timing of this project's own code: `python -m benchmarks input|ops|model`."""
