"""Measuring this project's own code: `python -m benchmarks micro|blocks|ops|model|input|memory` and
`python -m benchmarks.compare`.
"""
