"""Part `torch` of `python -m benchmarks gpu`: PyTorch and timm on the same device.

The lambda core in its three public forms (`torch_lambda`), attention by
`scaled_dot_product_attention`, and training steps of timm's networks in bfloat16 (autocast, as is
usual there; channels last) at the largest batch size at which ours ran. Eager. float32 is TF32, as
in the cases of ours beside which these stand.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks import gpu_networks, micro_attention, micro_lambda, torch_lambda, torch_models
from benchmarks.gpu_equality import ARITHMETICS
from benchmarks.gpu_sizes import Sizes
from benchmarks.harness import Case, Prepared

Records = Sequence[Mapping[str, Any]]
DTYPES = {"float32": "float32_default", "bfloat16": "bfloat16"}
TWINS = {ours: name for ours, (package, name) in torch_models.TWINS.items() if package == "timm"}
TWINS["resnet18"] = "resnet18"
"""Ours to timm's name."""
SDPA = ("mhsa", "spatial_reduction")  # the cores without a bias


def missing(*, miniature: bool) -> str:
    """Returns why nothing can be measured, '' if it can."""
    if importlib.util.find_spec("torch") is None:
        return "PyTorch is not installed"
    import torch

    if not torch.cuda.is_available() and not miniature:
        return f"PyTorch {torch.__version__} finds no GPU"
    return ""


def device() -> str:
    """Returns PyTorch's name of the device."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def cases(sizes: Sizes, records: Records) -> list[Case]:
    """Returns the cases, named as those of ours."""
    found = []
    for shape in sizes.lambdas:
        given = dict(batch=shape.batch, n=shape.side**2, key_depth=micro_lambda.KEY_DEPTH)
        given["intra_depth"] = shape.intra_depth
        for dtype in DTYPES:
            name = shape.name if dtype == "float32" else f"{shape.name}_{dtype}"
            found += [
                _case(name, direction, form, prepare_lambda, shape, direction, form, dtype)
                for direction in ("fwd", "train")
                for form in torch_lambda.FORMS
                if torch_lambda.supports(form, **given)
            ]
    for core, side in sizes.attention:
        for dtype in DTYPES if core in SDPA else ():
            name = f"attention_{core}_{side}x{side}_{dtype}"
            found += [
                _case(name, d, "sdpa", prepare_attention, core, side, d, dtype)
                for d in ("fwd", "train")
            ]
    if importlib.util.find_spec("timm") is not None:
        for network, _ in sizes.networks:
            fitting = [b for b, fits in gpu_networks.tried(records, network).items() if fits]
            if network in TWINS and fitting:
                name = gpu_networks.case_name(network, max(fitting), sizes.image[0])
                make = prepare_network, network, max(fitting), sizes
                found.append(_case(name, "train", "eager", *make))
    return found


def _case(name: str, direction: str, impl: str, make: Callable[..., Prepared], *given: Any) -> Case:
    prepare = functools.partial(make, *given)
    return Case("torch", name, direction, impl, prepare, framework="torch")


def _timed(run: Callable[[], Any]) -> None:
    import torch

    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _allow_tf32() -> None:
    import torch

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True


def prepare_lambda(shape: micro_lambda.Shape, direction: str, form: str, dtype: str) -> Prepared:
    """One form of the lambda core."""
    import torch

    _allow_tf32()
    operands, weight, exact = micro_lambda.problem(shape)
    with torch.device(device()):
        run = torch_lambda.runner(form, operands, weight, direction, dtype=dtype)
    expected = {name: torch_lambda.to_torch(form, name, a) for name, a in exact.items()}

    def check():
        _compare(run(), expected, ARITHMETICS[DTYPES[dtype]].allowed)

    flops, moved = micro_lambda.work(shape, direction, 4 if dtype == "float32" else 2)
    timed = functools.partial(_timed, run)
    return Prepared(timed, check, flops=flops, bytes=moved, facts=dict(dtype=dtype))


def prepare_attention(core: str, side: int, direction: str, dtype: str) -> Prepared:
    """scaled_dot_product_attention, heads moved as it wants them outside the time."""
    import torch
    from torch.nn import functional

    _allow_tf32()
    arrays = micro_attention.operands(core, side)
    kind = getattr(torch, dtype)
    q, k, v = (
        torch.from_numpy(a).to(device(), kind).transpose(1, 2).contiguous() for a in arrays.values()
    )
    q, k, v = (a.requires_grad_(direction == "train") for a in (q, k, v))
    cotangent = torch.ones_like(q)

    def run():
        y = functional.scaled_dot_product_attention(q, k, v)
        if direction == "fwd":
            return {"y": y}
        return {"y": y, "gradients": torch.autograd.grad(y, (q, k, v), cotangent)}

    def check():
        wide = (a.detach().double().cpu().numpy() for a in (q, k, v))
        y, *gradients = _attention(*wide)
        found, allowed = run(), ARITHMETICS[DTYPES[dtype]].allowed
        _compare(found, {"y": y}, allowed)
        if direction == "train":
            names = "qkv"
            found = dict(zip(names, found["gradients"], strict=True))
            _compare(found, dict(zip(names, gradients, strict=True)), allowed)

    return Prepared(functools.partial(_timed, run), check, facts=dict(dtype=dtype))


def _attention(
    q: np.ndarray, k: np.ndarray, v: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns output and gradients of q, k, v for an output gradient of ones."""
    scale = q.shape[-1] ** -0.5
    logits = scale * (q @ k.swapaxes(-1, -2))
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    y = weights @ v
    of_weights = np.broadcast_to(v.sum(-1)[..., None, :], weights.shape)
    of_logits = scale * weights * (of_weights - (of_weights * weights).sum(-1, keepdims=True))
    of_k = of_logits.swapaxes(-1, -2) @ q
    of_v = np.broadcast_to(weights.sum(-2)[..., None], v.shape)
    return y, of_logits @ k, of_k, of_v


def _compare(found: Mapping[str, Any], expected: Mapping[str, np.ndarray], allowed: float) -> None:
    for name, exact in expected.items():
        if name in found:
            array = found[name].detach().double().cpu().numpy()
            off = np.linalg.norm(array - exact) / np.linalg.norm(exact)
            assert off < allowed, f"{name} is off by {off:.1e}, allowed {allowed:.0e}"


def prepare_network(name: str, batch: int, sizes: Sizes) -> Prepared:
    """A step of AdamW of timm's network under autocast to bfloat16."""
    import timm
    import torch

    side, channels = sizes.image
    torch.manual_seed(0)
    model = timm.create_model(TWINS[name], num_classes=sizes.classes, in_chans=channels)
    model = model.to(device(), memory_format=torch.channels_last).train()
    x = torch.randn(batch, channels, side, side, device=device())
    x = x.to(memory_format=torch.channels_last)
    target = torch.randint(sizes.classes, (batch,), device=device())
    update = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def run():
        update.zero_grad()
        with torch.autocast(device(), torch.bfloat16):
            loss = torch.nn.functional.cross_entropy(model(x), target)
        loss.backward()
        update.step()
        return loss

    def check():
        assert np.isfinite(run().item()), "the loss is not finite"

    facts = dict(network=name, batch=batch, dtype="bfloat16")
    return Prepared(functools.partial(_timed, run), check, items=batch, facts=facts)
