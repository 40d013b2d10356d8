"""A suite of its own: `make optimised`. What users run is compiled at XLA's default level, nearly
all other tests at level 0 (tests/conftest.py).
"""

import os

import pytest

if "optimization_level" in os.environ.get("XLA_FLAGS", ""):
    raise pytest.UsageError(
        "tests/optimised is for XLA's default level, and XLA_FLAGS is "
        f"{os.environ['XLA_FLAGS']!r}. Fix: `make optimised`, or XLA_FLAGS= in front of pytest"
    )
