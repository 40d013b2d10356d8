"""Suite `model`: whole networks, evaluation and training step, beside PyTorch's where timm
or pytorchvideo has the same network.

`NAME_bBATCH_SIDE`: the network in the evaluation view ('fwd'), and a step of SGD with momentum
('train': loss, gradients, update and running statistics in one program whose state is donated).
The twin has the same weights and runs eagerly; `compiled_NAME_bBATCH_SIDE` has it under
torch.compile, which takes minutes to get ready. Segmenters and detectors have benchmarks of their
own, `benchmarks.segmentation_step` and `benchmarks.detection_step`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import models
from benchmarks import torch_models
from benchmarks.harness import Case, Prepared
from lambdanet.analysis import summary
from lambdanet.interop import names
from lambdanet.training import state

RATE, MOMENTUM = 1e-3, 0.9
LOGIT_TOLERANCE = 1e-4  # largest difference of a logit, relative to the largest logit
# Relative to the norm over all parameters. float32 in two orders of summation flips the sign of
# some inputs of ReLUs, and batch statistics of few positions pass that on.
GRADIENT_TOLERANCE = 1e-2


@dataclasses.dataclass(frozen=True)
class Network:
    """What is run: a network's name, images or clips per call and their side, options that make it
    comparable, and the frames of a clip.
    """

    name: str
    batch: int
    side: int
    options: tuple[tuple[str, Any], ...] = ()
    frames: int | None = None

    @property
    def case(self) -> str:
        return f"{self.name}_b{self.batch}_{self.side}"

    @property
    def shape(self) -> tuple[int, ...]:
        clip = () if self.frames is None else (self.frames,)
        return (self.batch, *clip, self.side, self.side, 3)

    def build(self) -> nnx.Module:
        return models.create_model(self.name, rngs=nnx.Rngs(0), **dict(self.options))


# Stochastic depth draws differ between frameworks.
_WHOLE = (("drop_path_rate", 0.0),)
NETWORKS = (
    Network("lambda_resnet26t", 8, 256),
    Network("resnet50", 4, 160),
    Network("lambda_resnet50", 4, 160),
    Network("lambda_resnet50", 8, 160),
    Network("lambda_resnet50ts", 4, 256),
    Network("swin_tiny", 2, 224, _WHOLE),
    Network("pvt_v2_b1", 2, 224, _WHOLE),
    Network("slide_swin_tiny", 2, 224, _WHOLE),
    Network("slide_pvt_tiny", 4, 224, _WHOLE),
    Network("lavit_tiny", 4, 224, _WHOLE),
    Network("c2d_resnet50_8x8", 2, 128, (("dropout_rate", 0.0),), frames=8),
)
COMPILED = ("lambda_resnet26t",)


def cases() -> list[Case]:
    """Returns two cases per network, and those of its twin where that is installed."""
    chosen = []
    directions = (("fwd", prepare_forward, _torch_forward), ("train", prepare_train, _torch_train))
    for network in NETWORKS:
        twin = torch_models.installed(network.name)
        candidates = {"eager": network.case}
        if twin and network.name in COMPILED:
            candidates["compile"] = f"compiled_{network.case}"
        for impl, name in candidates.items():
            for direction, ours, theirs in directions:
                case = functools.partial(Case, "model", name, direction)
                chosen.append(case("auto", functools.partial(ours, network)))
                if twin:
                    prepare = functools.partial(theirs, network, compile_it=impl == "compile")
                    chosen.append(case(impl, prepare, framework="torch"))
    return chosen


@functools.lru_cache(maxsize=1)
def _weights(network: Network) -> tuple[dict, dict]:
    """Returns (params, stats) as NumPy arrays: the twin's where there is one, else our initial
    values moved a little.
    """
    params, stats = state.abstract_weights(network.build)
    if torch_models.installed(network.name):
        found = _ours(network, torch_models.initial_state(network.name), require_all=True)
        return tuple(
            state.unflatten_names({name: found[name] for name in state.flatten_names(t)}, t)
            for t in (params, stats)
        )
    rng = np.random.default_rng(0)
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    start = jax.jit(lambda: state.split_model(network.build())[1:], compiler_options=options)
    params, stats = start()
    moved = jax.tree.map(
        lambda p: np.asarray(p) + (p.ndim == 1) * 0.1 * rng.standard_normal(p.shape, np.float32),
        params,
    )
    return moved, jax.tree.map(np.asarray, stats)


def _ours(
    network: Network, arrays: dict[str, np.ndarray], *, require_all: bool
) -> dict[str, np.ndarray]:
    """Returns the twin's arrays under our names."""
    model = nnx.eval_shape(network.build)
    leaves = [state.flatten_names(part) for part in state.split_model(model)[1:]]
    shapes = {name: tuple(leaf.shape) for part in leaves for name, leaf in part.items()}
    grammar = names.choose_table(model.torch_names, arrays, shapes)
    return names.convert(arrays, model.torch_names[grammar], shapes, require_all=require_all)


def _data(network: Network) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    images = rng.standard_normal(network.shape, np.float32)
    return images, rng.integers(0, 400, network.batch, np.int32)  # that many all of them have


def _work(network: Network, *, train: bool) -> dict[str, float]:
    """Useful operations of the layers; and the bytes of images, weights and, in training, momentum,
    read and written once.
    """
    totals = summary.totals(
        summary.summarise(nnx.eval_shape(network.build), network.side, network.side)
    )
    pixels = math.prod(network.shape)
    return dict(
        flops=2.0 * network.batch * totals["macs"] * (3 if train else 1),
        bytes=4.0 * (pixels + totals["parameters"] * (4 if train else 1)),
    )


def prepare_forward(network: Network) -> Prepared:
    """Compiles our network's evaluation view; the gate is the twin's logits, or finite logits that
    differ between images.
    """
    params, stats = jax.tree.map(jnp.asarray, _weights(network))
    images = jnp.asarray(_data(network)[0])
    _, view = state.views(network.build)
    lowered = jax.jit(lambda params, stats, x: nnx.merge(view, params, stats)(x)).lower(
        params, stats, images
    )
    compiled, facts = _compile(lowered)

    def check():
        logits = np.asarray(compiled(params, stats, images))
        varied = np.isfinite(logits).all() and np.ptp(logits, axis=0).max() > 0
        assert varied, "the logits are not finite, or all the same"
        if torch_models.installed(network.name):
            _check_logits(logits, _eager_logits(network))

    return Prepared(
        lambda: (jax.block_until_ready(compiled(params, stats, images)), None)[1],
        check,
        items=network.batch,
        temp_mib=compiled.memory_analysis().temp_size_in_bytes / 2**20,
        facts=facts,
        **_work(network, train=False),
    )


def _compile(lowered: Any) -> tuple[Any, dict[str, float]]:
    began = time.perf_counter()
    compiled = lowered.compile()
    return compiled, {"compile_s": time.perf_counter() - began}


def _check_logits(logits: np.ndarray, expected: np.ndarray) -> None:
    error = np.abs(logits - expected).max() / np.abs(expected).max()
    assert error < LOGIT_TOLERANCE, f"logits are off by {error:.1e}"


@functools.lru_cache(maxsize=1)
def _eager_logits(network: Network) -> np.ndarray:
    return torch_models.forward(network.name, _data(network)[0], compile_it=False)[0]()


def _torch_forward(network: Network, *, compile_it: bool) -> Prepared:
    run, facts = torch_models.forward(network.name, _data(network)[0], compile_it=compile_it)
    return Prepared(
        lambda: (run(), None)[1],
        lambda: _check_logits(run(), _eager_logits(network)),
        items=network.batch,
        facts=facts,
        **_work(network, train=False),
    )


def prepare_train(network: Network) -> Prepared:
    """Compiles our training step; the gate is the twin's loss and gradients, or else a loss that
    falls on the same batch.
    """
    images, labels = (jnp.asarray(a) for a in _data(network))
    view, _ = state.views(network.build)

    def loss_and_stats(params, stats, images):
        model = nnx.merge(view, params, stats)
        logits = model(images, rngs=nnx.Rngs(dropout=0))
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return loss, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))

    def step(params, stats, velocity, images):
        (loss, stats), gradients = jax.value_and_grad(loss_and_stats, has_aux=True)(
            params, stats, images
        )
        velocity = jax.tree.map(lambda v, g: MOMENTUM * v + g, velocity, gradients)
        return jax.tree.map(lambda p, v: p - RATE * v, params, velocity), stats, velocity, loss

    def start():
        params, stats = jax.tree.map(jnp.array, _weights(network))
        return params, stats, jax.tree.map(jnp.zeros_like, params)

    compiled, facts = _compile(jax.jit(step, donate_argnums=(0, 1, 2)).lower(*start(), images))
    current = [start()]

    def run():
        *current[0], loss = compiled(*current[0], images)
        return loss

    def check():
        loss = float(run())
        gradients = jax.tree.map(np.asarray, current[0][2])  # the first velocity
        assert np.isfinite(loss), "the loss is not finite"
        if torch_models.installed(network.name):
            _check_gradients(loss, state.flatten_names(gradients), network)
        else:
            later = [float(run()) for _ in range(3)][-1]
            moved = f"from {loss:.4f} to {later:.4f}"
            assert later < loss, f"three steps on one batch took the loss {moved}"
        current[0] = start()

    return Prepared(
        lambda: (jax.block_until_ready(run()), None)[1],
        check,
        items=network.batch,
        temp_mib=compiled.memory_analysis().temp_size_in_bytes / 2**20,
        facts=facts,
        close=current.clear,
        **_work(network, train=True),
    )


@functools.lru_cache(maxsize=1)
def _eager_gradients(network: Network) -> tuple[float, dict[str, np.ndarray]]:
    return _first_step(network, compile_it=False)[1:]


def _first_step(network: Network, *, compile_it: bool) -> tuple[Callable, float, dict]:
    """Builds the twin's step and does one; returns (the step, loss, gradients by our names)."""
    run, gradients = torch_models.train_step(
        network.name, *_data(network), rate=RATE, momentum=MOMENTUM, compile_it=compile_it
    )
    loss = run()
    return run, loss, _ours(network, gradients(), require_all=False)


def _check_gradients(loss: float, gradients: dict[str, np.ndarray], network: Network) -> None:
    expected_loss, expected = _eager_gradients(network)
    assert abs(loss - expected_loss) < LOGIT_TOLERANCE * expected_loss, (
        f"the loss is {loss:.6f} instead of {expected_loss:.6f}"
    )
    alone = sorted(gradients.keys() ^ expected.keys())
    assert not alone, f"gradients of only one: {alone}"
    off = sum(float(np.sum((gradients[name] - expected[name]) ** 2)) for name in gradients) ** 0.5
    error = off / sum(float(np.sum(g**2)) for g in expected.values()) ** 0.5
    assert error < GRADIENT_TOLERANCE, f"the gradients are off by {error:.1e}"


def _torch_train(network: Network, *, compile_it: bool) -> Prepared:
    began = time.perf_counter()
    run, loss, gradients = _first_step(network, compile_it=compile_it)
    return Prepared(
        lambda: (run(), None)[1],
        lambda: _check_gradients(loss, gradients, network),
        items=network.batch,
        facts={"compile_s": time.perf_counter() - began} if compile_it else {},
        **_work(network, train=True),
    )
