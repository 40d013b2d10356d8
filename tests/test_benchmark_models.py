"""Suites ops and model: every candidate's gate on tiny problems, and that a wrong result does not
pass.
"""

import dataclasses

import numpy as np
import pytest

from benchmarks import dispatch_suite, model_suite, ops_suite, torch_models
from benchmarks.ops_suite import Operation

TINY = (
    Operation("conv", 1, 5, 4, 8, 3, 2, 2),
    Operation("conv", 2, 4, 2, 3, 1, 2),
    Operation("conv", 1, 8, 3, 2, 4, 4),
    Operation("max_pool", 1, 5, 2, 2, 3, 2),
    Operation("batch_norm", 2, 3, 4, 4),
    Operation("gelu", 1, 3, 4, 4),
)


@pytest.mark.parametrize("operation", TINY, ids=lambda operation: operation.case)
def test_operations_pass_their_gate(operation):
    for direction in (
        ("fwd", "train", "input_gradient") if operation.kind == "conv" else ("fwd", "train")
    ):
        ops_suite.prepare_operation(operation, direction, "auto").check()


def test_depthwise_is_checked_by_sums_over_its_taps_and_a_wrong_result_fails(monkeypatch):
    operation = Operation("conv", 1, 5, 64, 64, 3, 2, 64)
    ops_suite.prepare_operation(operation, "train", "auto").check()
    right = ops_suite.convolution
    monkeypatch.setattr(
        ops_suite, "convolution", lambda *a, **options: right(*a, **options) * 1.001
    )
    with pytest.raises(AssertionError, match="result 0 is off by 1"):
        ops_suite.prepare_operation(operation, "train", "auto").check()


@pytest.mark.parametrize("operation", TINY, ids=lambda operation: operation.case)
def test_pytorchs_operations_pass_the_same_gate(operation):
    pytest.importorskip("torch")
    for direction in (
        ("fwd", "train", "input_gradient") if operation.kind == "conv" else ("fwd", "train")
    ):
        ops_suite.prepare_torch(operation, direction).check()


def test_names_of_the_operations():
    names = list(dict.fromkeys(case.name for case in ops_suite.cases()))
    assert len(names) == len(ops_suite.OPERATIONS)
    assert (
        names[1] == "conv_3x3_b8_28x28_c128_d128_g32" and "depthwise_3x3s2_b8_28x28_c192" in names
    )


SMALL = dict(blocks=(1, 1), widths=(4, 8), attention_blocks=((), "all"), num_classes=7)


@pytest.mark.exhaustive
def test_networks_pass_their_gate_and_a_rising_loss_does_not(monkeypatch):
    monkeypatch.setattr(torch_models, "installed", lambda name: False)
    network = model_suite.Network("lambda_resnet26t", 2, 32, tuple(SMALL.items()))
    forward = model_suite.prepare_forward(network)
    forward.check()
    assert forward.facts["compile_s"] > 0 and forward.flops > 0
    monkeypatch.setattr(
        model_suite,
        "_data",
        lambda network: (np.ones((2, 32, 32, 3), np.float32), np.array([1, 2], np.int32)),
    )
    with pytest.raises(AssertionError, match="or all the same"):
        model_suite.prepare_forward(network).check()
    monkeypatch.undo()
    monkeypatch.setattr(torch_models, "installed", lambda name: False)
    monkeypatch.setattr(
        model_suite, "_data", lambda network: (images(), np.array([1, 2], np.int32))
    )
    train = model_suite.prepare_train(network)
    train.check()
    train.run()
    monkeypatch.setattr(model_suite, "RATE", -model_suite.RATE)
    with pytest.raises(AssertionError, match="three steps on one batch took the loss"):
        model_suite.prepare_train(network).check()


def images():
    return np.random.default_rng(0).standard_normal((2, 32, 32, 3), np.float32)


def test_timms_twin_has_our_logits_and_gradients(monkeypatch):
    pytest.importorskip("timm")
    monkeypatch.setitem(torch_models.TWINS, "resnet18", ("timm", "resnet18"))
    network = model_suite.Network("resnet18", 2, 64)
    model_suite.prepare_forward(network).check()
    model_suite.prepare_train(network).check()
    eager = model_suite._torch_train(network, compile_it=False)
    eager.check()
    eager.run()
    assert eager.facts == {}
    model_suite._eager_gradients.cache_clear()
    wrong = dataclasses.replace(network, batch=3)
    monkeypatch.setattr(model_suite, "_eager_gradients", lambda _: (0.0, {}))
    with pytest.raises(AssertionError, match="the loss is"):
        model_suite.prepare_train(wrong).check()


def test_compiled_twins_have_names_of_their_own_and_both_directions(monkeypatch):
    monkeypatch.setattr(torch_models, "installed", lambda name: name in torch_models.TWINS)
    cases = model_suite.cases()
    compiled = [(case.name, case.direction) for case in cases if case.impl == "compile"]
    assert compiled == [("compiled_lambda_resnet26t_b8_256", way) for way in ("fwd", "train")]
    assert all(
        sum(case.name == name and case.direction == way and case.impl == "auto" for case in cases)
        for name, way in compiled
    )
    eager = {case.name for case in cases if case.impl == "eager"}
    assert len(eager) == len(torch_models.TWINS) and "c2d_resnet50_8x8_b2_128" in eager
    monkeypatch.setattr(torch_models, "installed", lambda name: False)
    assert {case.framework for case in model_suite.cases()} == {"ours"}


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "network",
    [
        model_suite.Network("pvt_v2_b1", 2, 64, (("drop_path_rate", 0.0),)),
        model_suite.Network("lambda_resnet50ts", 2, 64),
        model_suite.Network("c2d_resnet50_8x8", 2, 64, (("dropout_rate", 0.0),), frames=8),
    ],
    ids=lambda network: network.name,
)
def test_twins_of_other_families_have_our_logits_and_gradients(network):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    package, _ = torch_models.TWINS[network.name]
    pytest.importorskip(package, reason=f"{package} is not installed")
    model_suite.prepare_forward(network).check()
    model_suite.prepare_train(network).check()


@pytest.mark.exhaustive
def test_pythons_share_of_a_step(monkeypatch):
    assert [case.name for case in dispatch_suite.cases()] == [
        "dispatch_lambda_resnet50",
        "dispatch_resnet50",
    ]
    monkeypatch.setattr(dispatch_suite, "STEPS", 3)
    prepared = dispatch_suite.prepare("resnet18")
    prepared.check()
    wall, cpu = prepared.run()
    assert 0 < cpu and 0 < wall < 10
