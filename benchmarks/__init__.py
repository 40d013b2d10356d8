"""Measuring this project's own code: `python -m benchmarks micro|ops|model|input|memory` and
`python -m benchmarks.compare`.
"""
