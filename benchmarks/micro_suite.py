"""Suite `micro`: attention cores and blocks one by one."""

from __future__ import annotations

from benchmarks import micro_blocks, micro_lambda, micro_local
from benchmarks.harness import Case


def cases() -> list[Case]:
    """Returns the cases of the suite."""
    return micro_lambda.cases() + micro_local.cases() + micro_blocks.cases()
