"""What of a product the suite runs."""

import pytest
from covering import part


def left_out(parameters):
    return [p.values for p in parameters if "exhaustive" in [mark.name for mark in p.marks]]


def test_what_is_not_kept_is_marked():
    assert left_out(part("abc", "b")) == [("a",), ("c",)]
    assert left_out(part([(1, 2), (3, 4)], lambda case: case[0] > 1)) == [(1, 2)]
    assert [p.values for p in part([(1, 2), (3, 4)], [(3, 4)])] == [(1, 2), (3, 4)]


@pytest.mark.parametrize("kept", ["bd", "", lambda case: False])
def test_a_part_that_covers_nothing_or_what_is_not_there_is_refused(kept):
    with pytest.raises(ValueError, match="allowed: one or more of"):
        part("abc", kept)
