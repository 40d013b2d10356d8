"""Suite `blocks`: PyTorch's forms compute what our blocks do, to the last digits of float64, and no
block is left without one.
"""

import dataclasses

import jax
import numpy as np
import pytest
from covering import part

from benchmarks import blocks_suite, torch_blocks, torch_forms
from lambdanet import attention
from lambdanet.interop.names import NameMappingError, Rule

SMALL = (14, 64)  # several windows, stripes and cells that do not divide the map, two heads
SMALL_FOR = {
    "halo_attention": (16, 64),
    "interlaced": (16, 64),
    "vanilla_attention": (4, 128),
    "less_attention": (4, 128),
}
FORMS = [(name, impl) for name, forms in torch_blocks.FORMS.items() for impl in forms]
EXACT = 1e-9


def off(found, expected):
    """Largest norm of a difference, relative to that of all gradients, or of an output."""
    outputs = expected.keys() & torch_forms.OUTPUTS
    gradients = np.sqrt(sum(np.sum(expected[k] ** 2) for k in expected.keys() - outputs))
    scale = {k: np.linalg.norm(expected[k]) for k in outputs}
    return max(np.linalg.norm(found[k] - expected[k]) / scale.get(k, gradients) for k in expected)


def in_float64(name, size):
    """A problem whose operands are float64, the results being so already."""
    given = blocks_suite.problem(name, *size)
    wide = {
        field: jax.tree.map(np.float64, getattr(given, field))
        for field in ("inputs", "params", "cotangents")
    }
    return dataclasses.replace(given, **wide)


@pytest.mark.parametrize(
    ("name", "impl"), part(FORMS, [("gc", "timm"), ("less_attention", "eager")])
)
def test_torch_forms_are_the_same_function(name, impl):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    pytest.importorskip("timm", reason="timm is not installed")
    size = SMALL_FOR.get(name, SMALL)
    given = in_float64(name, size)
    run, read = blocks_suite.torch_runner(name, impl, given, "train")
    found = read(run())
    assert found.keys() == given.expected.keys()
    assert all(found[key].dtype == np.float64 for key in found)
    assert off(found, given.expected) < EXACT
    run, read = blocks_suite.torch_runner(name, impl, given, "fwd")
    outputs = read(run())
    assert outputs.keys() == given.cotangents.keys()
    assert off(outputs, {key: given.expected[key] for key in outputs}) < EXACT


@pytest.mark.parametrize("name", part(blocks_suite.BLOCKS, ["se"]))
def test_blocks_pass_their_gate(name):
    prepared = blocks_suite.prepare(name, "train", *SMALL_FOR.get(name, SMALL))
    prepared.check()
    prepared.run()
    assert prepared.flops > 0 and prepared.temp_mib >= 0


def test_torch_candidates_pass_the_gate_and_other_parameters_do_not(monkeypatch):
    pytest.importorskip("timm", reason="timm is not installed")
    for direction in blocks_suite.DIRECTIONS:
        prepared = blocks_suite.prepare_torch("se", direction, *SMALL, "timm")
        prepared.check()
        prepared.run()
    right = torch_blocks.FORMS["se"]["timm"]

    def wrong(block, side, params):
        return right(block, side, {**params, "expand/bias": params["expand/bias"] + 1e-3})

    monkeypatch.setitem(torch_blocks.FORMS["se"], "timm", wrong)
    with pytest.raises(AssertionError, match="output y is off by"):
        blocks_suite.prepare_torch("se", "fwd", *SMALL, "timm").check()


def test_a_wrong_gradient_does_not_pass():
    right = {"y": np.ones(4), "x": np.full(4, 2.0)}
    blocks_suite.compare("cgnl", right, right)
    with pytest.raises(AssertionError, match="gradient of x is off by"):
        blocks_suite.compare("cgnl", {"y": np.ones(4), "x": np.full(4, 2.001)}, right)


def test_every_registered_block_has_a_case_or_a_reason():
    names = {block.options.get("name", name) for name, block in blocks_suite.BLOCKS.items()}
    names.discard("vanilla_attention")  # in no registry
    without = set(blocks_suite.WITHOUT_CASE)
    assert names | without == set(attention.list_attention()) and not names & without
    assert all(blocks_suite.WITHOUT_CASE.values())
    # those with the same reason are what it says
    for name in without:
        factory, options = attention.registry.lookup(name)
        assert factory is attention.registry.lookup("nonlocal")[0] and options


def test_every_case_has_a_form_and_two_maps(monkeypatch):
    assert torch_blocks.FORMS.keys() == blocks_suite.BLOCKS.keys()
    assert all(torch_blocks.FORMS.values())
    assert all(len(set(block.maps)) == 2 for block in blocks_suite.BLOCKS.values())
    monkeypatch.setattr(torch_forms, "installed", lambda: False)
    alone = blocks_suite.cases()
    assert len(alone) == 4 * len(blocks_suite.BLOCKS)
    assert {case.framework for case in alone} == {"ours"}
    monkeypatch.setattr(torch_forms, "installed", lambda: True)
    both = blocks_suite.cases()
    of_window = [c for c in both if c.name == "window_56x56_d128" and c.direction == "train"]
    assert [(c.framework, c.impl) for c in of_window] == [
        ("ours", "auto"),
        ("torch", "timm"),
        ("torch", "fused"),
    ]
    assert len(both) == 4 * (len(blocks_suite.BLOCKS) + len(FORMS))


def test_parameters_go_where_the_table_finds_them():
    """A joint projection, a kernel with exchanged inputs, and a table that leaves out a part."""
    params = {
        "query/kernel": np.arange(6.0).reshape(3, 2),
        "key/kernel": 10 + np.arange(3.0).reshape(3, 1),
        "conv/kernel": 20 + np.arange(8.0).reshape(2, 2, 2, 1),
    }
    joint = Rule(r"qk\.weight", ("query/kernel", "key/kernel"), "linear")
    swap = Rule(r"conv", "conv/kernel", lambda a: np.moveaxis(a[:, ::-1], (0, 1), (-1, -2)))
    shapes = {"qk.weight": (3, 3), "conv": (1, 2, 2, 2)}
    found = torch_forms.in_torch(shapes, params, (joint, swap))
    np.testing.assert_array_equal(found["qk.weight"], [[0, 2, 4], [1, 3, 5], [10, 11, 12]])
    np.testing.assert_array_equal(found["conv"][0, 0], params["conv/kernel"][:, :, 1, 0])
    with pytest.raises(NameMappingError, match="conv/kernel"):
        torch_forms.in_torch({"qk.weight": (3, 3)}, params, (joint,))
