"""The golden harness: it fails for every kind of difference, and every case of other_configs.json
can be built.
"""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import golden_harness
import jax
import numpy as np
import pytest
import test_golden
from flax import nnx
from golden_families import FAMILIES
from golden_harness import Fixture, Ours, check, module_case, run

from lambdanet.interop.names import BATCH_NORM, LINEAR, NameMappingError, prefixed

ROOT = Path(__file__).resolve().parents[2]
BATCH, EPSILON = 6, 1e-5


class LinearNorm(nnx.Module):
    """The smallest module with a gradient and running statistics: y = batch_norm(x W + b)."""

    def __init__(self, rngs):
        self.linear = nnx.Linear(3, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, momentum=0.9, epsilon=EPSILON, rngs=rngs)

    def __call__(self, x):
        return self.norm(self.linear(x))


RULES = (*prefixed(LINEAR, r"fc\.", "linear"), *prefixed(BATCH_NORM, r"bn\.", "norm"))


def build(fixture: Fixture) -> Ours:
    def call(module, inputs):
        return {"out/y": module(inputs["x"])}

    return module_case(fixture, lambda: LinearNorm(nnx.Rngs(0)), RULES, call, norm_count=BATCH)


def reference() -> Fixture:
    """What PyTorch would write for LinearNorm, from its formulas in float64."""
    draw = np.random.RandomState(0)
    x, weight, bias, gamma, beta, mean = (
        draw.standard_normal(shape) for shape in ((BATCH, 3), (4, 3), (4,), (4,), (4,), (4,))
    )
    var, cotangent = draw.uniform(0.5, 1.5, 4), draw.standard_normal((BATCH, 4))
    z = x @ weight.T + bias
    scale = gamma / np.sqrt(var + EPSILON)
    grad_z = cotangent * scale
    batch_mean, batch_var = z.mean(0), z.var(0)
    arrays = {
        "in/x": x,
        "param/fc.weight": weight,
        "param/fc.bias": bias,
        "param/bn.weight": gamma,
        "param/bn.bias": beta,
        "param/bn.running_mean": mean,
        "param/bn.running_var": var,
        "out/y": (z - mean) * scale + beta,
        "out/y_train": (z - batch_mean) / np.sqrt(batch_var + EPSILON) * gamma + beta,
        "cotangent/y": cotangent,
        "grad/in/x": grad_z @ weight,
        "grad/param/fc.weight": grad_z.T @ x,
        "grad/param/fc.bias": grad_z.sum(0),
        "grad/param/bn.weight": (cotangent * (z - mean) / np.sqrt(var + EPSILON)).sum(0),
        "grad/param/bn.bias": cotangent.sum(0),
        "after_train/bn.running_mean": 0.9 * mean + 0.1 * batch_mean,
        "after_train/bn.running_var": 0.9 * var + 0.1 * z.var(0, ddof=1),
    }
    return Fixture(
        "toy_a", {"family": "toy"}, {key: array.astype(np.float32) for key, array in arrays.items()}
    )


REFERENCE = reference()
COMPARED = [key for key in REFERENCE.arrays if key.startswith(("out/", "grad/", "after_train/"))]
TOY = {"toy": build}


def changed(**arrays) -> Fixture:
    return replace(
        REFERENCE,
        arrays={**REFERENCE.arrays, **{key.replace("__", "/"): a for key, a in arrays.items()}},
    )


def test_equal_module_passes():
    check(REFERENCE, TOY)


@pytest.mark.parametrize("key", COMPARED)
def test_a_change_in_any_array_is_found(key):
    array = REFERENCE.arrays[key].copy()
    array.flat[-1] += 3e-4 * np.abs(array).max()
    with pytest.raises(AssertionError, match="toy_a: 1 problems") as caught:
        check(changed(**{key: array}), TOY)
    assert ("grad/param" if key.startswith("grad/param") else key.split("/")[0]) in str(
        caught.value
    )


def test_nan_shape_and_unknown_arrays_are_found(monkeypatch):
    y = REFERENCE.arrays["out/y"]
    with pytest.raises(AssertionError, match="out/y: differs by nan"):
        check(changed(out__y=np.where(y == y.max(), np.nan, y)), TOY)
    with pytest.raises(AssertionError, match=r"out/y: shape \(6, 4\), the reference has \(4, 6\)"):
        check(changed(out__y=y.T), TOY)
    for key in ("out__z", "feat_shape__stem", "buffer__index", "meta__note"):
        with pytest.raises(
            AssertionError, match=f"{key.replace('__', '/')}: our module gives no such array"
        ):
            check(changed(**{key: y}), TOY)
    monkeypatch.setitem(golden_harness.NOT_PRODUCED, ("toy", "out/z"), "a reason")
    check(changed(out__z=y), TOY)
    with pytest.raises(NameMappingError, match="fc.extra"):
        check(changed(**{"param/fc.extra": y}), TOY)


def nearly_vanishing(share: float, **arrays) -> Fixture:
    """Cotangents whose sums over the batch, the gradients of both biases, are a share of what they
    were; for a share of zero the reference's rounding is another than ours.
    """
    given = REFERENCE.arrays
    cotangent = given["cotangent/y"] - (1 - share) * given["cotangent/y"].mean(0)
    scale = given["param/bn.weight"] / np.sqrt(given["param/bn.running_var"] + EPSILON)
    normed = (given["out/y"] - given["param/bn.bias"]) / given["param/bn.weight"]
    gradients = {
        "grad/in/x": cotangent * scale @ given["param/fc.weight"],
        "grad/param/fc.weight": (cotangent * scale).T @ given["in/x"],
        "grad/param/fc.bias": (cotangent * scale).sum(0) if share else np.full(4, 1e-7),
        "grad/param/bn.weight": (cotangent * normed).sum(0),
        "grad/param/bn.bias": cotangent.sum(0) if share else np.full(4, 1e-7),
    }
    arrays = {"cotangent/y": cotangent, **gradients, **arrays}
    return changed(**{key: np.float32(array) for key, array in arrays.items()})


def test_rounding_of_a_gradient_that_vanishes_is_no_difference():
    fixture = nearly_vanishing(0.0)
    check(fixture, TOY)
    pairs, _ = run(fixture, build(fixture))
    without_floor = [replace(pair, floor=0.0).problem() for pair in pairs]
    assert sum(problem is not None for problem in without_floor) == 2


def test_a_gradient_that_should_vanish_and_does_not_is_found():
    """A term that is missing or doubled leaves far more than the floor."""
    gradients = nearly_vanishing(0.0).under("grad/").values()
    largest = max(np.abs(array).max() for array in gradients)
    with pytest.raises(AssertionError, match="toy_a: 1 problems") as caught:
        check(nearly_vanishing(0.0, **{"grad/param/fc.bias": np.full(4, 1e-5 * largest)}), TOY)
    assert "linear/bias" in str(caught.value)


@pytest.mark.parametrize("share", [1.0, 0.1, 0.03])
def test_the_floor_hides_nothing_in_gradients_that_are_merely_small(share):
    fixture = nearly_vanishing(share)
    check(fixture, TOY)
    for key in ("grad/param/fc.bias", "grad/param/bn.bias"):
        with pytest.raises(AssertionError, match="toy_a: 1 problems"):
            check(nearly_vanishing(share, **{key: fixture.arrays[key] * (1 + 3e-4)}), TOY)


def test_family_without_builder_and_empty_fixture_fail():
    with pytest.raises(AssertionError, match="no builder for the family 'toy' of toy_a"):
        check(REFERENCE, {})
    with pytest.raises(AssertionError, match="nothing to compare"):
        check(
            replace(REFERENCE, arrays={"in/x": REFERENCE.arrays["in/x"]}),
            {"toy": lambda f: Ours(lambda p, i: {})},
        )


def test_prefixed_cases_are_checked_one_by_one():
    def double(fixture):
        return Ours(lambda params, inputs: {"out/y": 2 * inputs["x"]})

    x = np.arange(3, dtype=np.float32)
    arrays = {"1d/in/x": x, "1d/out/y": 2 * x, "cross/in/x": x, "cross/out/y": 2 * x}
    check(Fixture("toy_b", {"family": "double"}, arrays), {"double": double})
    with pytest.raises(AssertionError, match="cross/out/y: differs"):
        check(
            Fixture("toy_b", {"family": "double"}, {**arrays, "cross/out/y": x}), {"double": double}
        )


@pytest.mark.exhaustive
def test_command_line(tmp_path):
    def pytest_run(*options):
        command = [
            sys.executable,
            "-m",
            "pytest",
            "tests/test_golden.py",
            "-p",
            "no:cacheprovider",
            *options,
        ]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)

    np.savez(tmp_path / "toy_a.npz", config=json.dumps({"family": "toy"}), **{"out/y": np.zeros(3)})
    result = pytest_run("--golden-dir", str(tmp_path), "--golden-family", "to*")
    assert result.returncode == 1 and "no builder for the family 'toy'" in result.stdout, (
        result.stdout
    )
    assert "test_golden[toy_a]" in result.stdout

    class Metafunc:
        fixturenames = ("golden_file",)
        config = SimpleNamespace(
            getoption={"--golden-dir": str(tmp_path), "--golden-family": "other*"}.get
        )

    with pytest.raises(pytest.UsageError, match="holds 1 .npz files.*=other"):
        test_golden.pytest_generate_tests(Metafunc)


# --------------------------------------------------------------------------------------------------
# Cases known by configuration and shapes only

OTHER = json.loads((ROOT / "tests" / "golden" / "other_configs.json").read_text())


def timm_keys(blocks: str, table: dict[str, int]) -> list[tuple[str, tuple[int, ...]]]:
    """State-dict keys of timm's lambda networks, from the grammar of the architecture alone.

    Args:
      blocks: stages separated by '/', one letter per block: B(ottleneck) or S (lambda).
      table: "stage.block" -> side of the map that a relative table belongs to; {} for the
          convolutional networks.
    """

    def norm(name, channels):
        kinds = ("weight", "bias", "running_mean", "running_var")
        return [(f"{name}.{kind}", (channels,)) for kind in kinds] + [
            (f"{name}.num_batches_tracked", ())
        ]

    def conv(name, out, into, side):
        return [(f"{name}.conv.weight", (out, into, side, side)), *norm(f"{name}.bn", out)]

    keys, into = [], 3
    for number, out in enumerate((24, 32, 64), 1):
        keys += conv(f"stem.conv{number}", out, into, 3)
        into = out
    for stage, letters in enumerate(blocks.split("/")):
        width, out = 64 * 2**stage, 256 * 2**stage
        for index, letter in enumerate(letters):
            name = f"stages.{stage}.{index}"
            if index == 0:
                keys += conv(f"{name}.shortcut", out, into, 1)
            keys += conv(f"{name}.conv1_1x1", width, into, 1)
            if letter == "B":
                keys += conv(f"{name}.conv2_kxk", width, width, 3)
            else:
                attention = f"{name}.self_attn"
                keys.append((f"{attention}.qkv.weight", (64 + 16 + width // 4, width, 1, 1)))
                keys += norm(f"{attention}.norm_q", 64) + norm(f"{attention}.norm_v", width // 4)
                if table:
                    side = 2 * table[f"{stage}.{index}"] - 1
                    keys.append((f"{attention}.pos_emb", (side, side, 16)))
                else:
                    keys += [
                        (f"{attention}.conv_lambda.weight", (16, 1, 9, 9, 1)),
                        (f"{attention}.conv_lambda.bias", (16,)),
                    ]
                keys += norm(f"{name}.post_attn", width)
            keys += conv(f"{name}.conv3_1x1", out, width, 1)
            into = out
    return [*keys, ("head.fc.weight", (1000, into)), ("head.fc.bias", (1000,))]


GRAMMARS = {
    "timm_lambda_resnet26t_logits": ("BB/BB/BS/SS", {}),
    # at 128 pixels: stride 8 in front of the first lambda blocks of stages 2 and 3 means maps of 8
    # and, after it, 4
    "timm_lambda_resnet26rpt_logits": ("BB/BB/BS/SS", {"2.1": 8, "3.0": 8, "3.1": 4}),
    "timm_lambda_resnet50ts_logits": ("BBB/BBBS/BSBSBS/BSB", {}),
}


def test_grammar_gives_the_keys_of_the_reference():
    fixture = Fixture.load(ROOT / "tests" / "golden" / "timm_lambda_resnet26t_logits.npz")
    stored = [
        (key, tuple(shape))
        for key, shape in json.loads(str(fixture.arrays["meta/state_dict_keys"]))
    ]
    assert sorted(stored) == sorted(timm_keys(*GRAMMARS[fixture.family]))


# All have fixtures by now, which tests/test_golden.py compares.
@pytest.mark.exhaustive
@pytest.mark.parametrize("name", OTHER)
def test_other_case_has_the_reference_shapes(name):
    draw = np.random.RandomState(0)
    arrays = {}
    for key, shape in OTHER[name]["shapes"].items():
        array = draw.standard_normal(shape).astype(np.float32)
        arrays[key] = np.abs(array) + 0.5 if key.endswith("running_var") else array
        if key.startswith("param/") and key.endswith(
            "dep_conv.weight"
        ):  # the fixed shifts, refused if they are none
            slots = shape[-1] ** 2
            arrays[key] = np.tile(np.eye(slots, dtype=np.float32), (shape[0] // slots, 1)).reshape(
                shape
            )
    family = OTHER[name]["config"]["family"]
    if family in GRAMMARS:
        arrays["meta/state_dict_keys"] = np.asarray(json.dumps(timm_keys(*GRAMMARS[family])))
    fixture = Fixture(name, OTHER[name]["config"], arrays)
    for case in fixture.cases():
        pairs, missing = run(case, FAMILIES[family](case), jax.eval_shape)
        assert not missing and pairs
        assert [(pair.key, pair.ours.shape) for pair in pairs] == [
            (pair.key, pair.reference.shape) for pair in pairs
        ]
