"""The correctness gate of the survey's blocks in suite `micro`, on small maps."""

import numpy as np
import pytest

from benchmarks import micro_blocks

SMALL = dict(side=16, dim=16)


@pytest.mark.parametrize("name", micro_blocks.BLOCKS)
def test_blocks_pass_their_gate(name):
    micro_blocks.prepare(name, "train", **SMALL).check()


def test_a_wrong_gradient_does_not_pass():
    right = {"y": np.ones(4), "x": np.full(4, 2.0)}
    micro_blocks._compare("cgnl", right, right)
    with pytest.raises(AssertionError, match="gradient of x is off by"):
        micro_blocks._compare("cgnl", {"y": np.ones(4), "x": np.full(4, 2.001)}, right)


@pytest.mark.parametrize("name", micro_blocks.BLOCKS)
def test_torch_forms_agree(name):
    pytest.importorskip("torch")
    for direction in ("fwd", "train"):
        micro_blocks.prepare_torch(name, direction, **SMALL).check()
