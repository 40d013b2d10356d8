"""Suite `micro`: attention cores one by one."""

from __future__ import annotations

from benchmarks import micro_attention, micro_lambda, micro_local
from benchmarks.harness import Case


def cases() -> list[Case]:
    """Returns the cases of the suite."""
    parts = micro_lambda, micro_attention, micro_local
    return [case for part in parts for case in part.cases()]
