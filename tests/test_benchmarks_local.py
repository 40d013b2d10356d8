"""The correctness gate of every candidate for Slide and local attention, on tiny problems."""

import pytest
from covering import part

from benchmarks import micro_local

CANDIDATES = {"slide": micro_local.slide_mix.IMPLS, "local": micro_local.neighborhood.LOWERINGS}
SHAPE = (1, 4, 2, 3)


@pytest.mark.parametrize("kind", part(CANDIDATES, ["slide"]))
def test_lowerings_pass_their_gate_and_a_wrong_one_does_not(kind, monkeypatch):
    for impl in CANDIDATES[kind]:
        micro_local.prepare(kind, SHAPE, "train", impl).check()
    right = micro_local.FUNCTIONS[kind]
    monkeypatch.setitem(
        micro_local.FUNCTIONS, kind, lambda *args, **named: right(*args, **named) * 1.001
    )
    with pytest.raises(AssertionError, match="output is off by"):
        micro_local.prepare(kind, SHAPE, "fwd", "auto").check()


@pytest.mark.parametrize(
    ("kind", "form"), [("slide", "two_paths"), ("slide", "merged"), ("local", "unfold")]
)
def test_torch_forms_agree(kind, form):
    pytest.importorskip("torch")
    for direction in ("fwd", "train"):
        micro_local.prepare_torch(kind, SHAPE, direction, form).check()
