"""Suite `micro`: attention cores one by one."""

from __future__ import annotations

from benchmarks import micro_lambda, micro_local
from benchmarks.harness import Case


def cases() -> list[Case]:
    """Returns the cases of the suite."""
    return micro_lambda.cases() + micro_local.cases()
