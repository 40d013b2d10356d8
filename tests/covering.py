"""Products of which the suite runs a covering part, and `make exhaustive` the rest."""

import pytest


def part(cases, kept):
    """Parameters of a test, those that are not kept marked `exhaustive`.

    Args:
      cases: values, or tuples of values.
      kept: which of them every run of the suite has: a function of one, or a collection. All of a
        collection must be among the cases.

    Returns:
      What `pytest.mark.parametrize` takes.

    Raises:
      ValueError: a kept case is none of the cases, or none is kept.
    """
    cases = list(cases)
    chosen = [case for case in cases if kept(case)] if callable(kept) else list(kept)
    if not chosen or any(case not in cases for case in chosen):
        raise ValueError(f"kept are {chosen}; allowed: one or more of {cases}")
    return [
        pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=marks)
        for case in cases
        for marks in [() if case in chosen else pytest.mark.exhaustive]
    ]
