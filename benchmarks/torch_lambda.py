"""PyTorch forms of the lambda layer's core for `micro_lambda`, eager, channels first as their
projections leave them.

Operands: q [b, h k, H, W], keys [b, u k, H, W], v [b, u v, H, W] and the table in the layout of the
form; the answer is [b, h v, H, W]. All three make the map of lambdas first and differ in how;
written from the formulas (Bello 2021, arXiv 2102.08602, eq. 3), each in the form one public
implementation uses. torch is imported when a form is called.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

FORMS = ("conv_rr1", "pairs", "conv_1rr")
LARGEST_PAIRS = (
    2**30
)  # bytes of embeddings, one copy per image, beyond which 'pairs' is no candidate


def supports(form: str, *, batch: int, n: int, key_depth: int, intra_depth: int) -> bool:
    """Tells whether a form exists for a shape: two of them know no intra-depth, and 'pairs' is
    quadratic in the map.
    """
    if form == "pairs" and 4 * batch * n * n * key_depth > LARGEST_PAIRS:
        return False
    return intra_depth == 1 or form == "conv_1rr"


def conv_rr1(q: Any, keys: Any, v: Any, table: Any, *, heads: int) -> Any:
    """A 3-D convolution with a kernel of r x r x 1 and the value channels as its third axis, as
    timm has it.
    """
    from torch.nn import functional

    b, _, height, width = q.shape
    k, n = table.shape[0], height * width
    r = table.shape[2]
    q = q.reshape(b, heads, k, n).transpose(-1, -2)
    v = v.reshape(b, -1, n).transpose(-1, -2)  # b n v
    content = q @ (functional.softmax(keys.reshape(b, k, n), dim=-1) @ v).unsqueeze(1)
    lambdas = functional.conv3d(
        v.reshape(b, 1, height, width, -1), table, padding=(r // 2, r // 2, 0)
    )
    lambdas = lambdas.reshape(b, 1, k, n, -1).transpose(2, 3)  # b 1 n k v
    position = (q.unsqueeze(-2) @ lambdas).squeeze(-2)
    return (content + position).transpose(-1, -2).reshape(b, -1, height, width)


def pairs(q: Any, keys: Any, v: Any, table: Any, index: Any, seen: Any, *, heads: int) -> Any:
    """Embeddings gathered for all pairs of positions, then one matrix product per query, as timm's
    other path has it.
    """
    from torch.nn import functional

    b, _, height, width = q.shape
    k, n = table.shape[1], height * width
    q = q.reshape(b, heads, k, n).transpose(-1, -2)
    v = v.reshape(b, -1, n).transpose(-1, -2)
    content = q @ (functional.softmax(keys.reshape(b, k, n), dim=-1) @ v).unsqueeze(1)
    embeddings = table[index]  # n m k
    if seen is not None:
        embeddings = embeddings * seen
    lambdas = (embeddings.expand(b, -1, -1, -1).transpose(-1, -2) @ v.unsqueeze(1)).unsqueeze(1)
    position = (q.unsqueeze(-2) @ lambdas).squeeze(-2)
    return (content + position).transpose(-1, -2).reshape(b, -1, height, width)


def conv_1rr(q: Any, keys: Any, v: Any, table: Any, *, heads: int) -> Any:
    """A 3-D convolution with a kernel of 1 x r x r and the value channels as its first axis, as
    lucidrains has it.
    """
    import torch
    from torch.nn import functional

    b, _, height, width = q.shape
    k, u, _, r, _ = table.shape
    q = q.reshape(b, heads, k, -1)
    v = v.reshape(b, u, -1, height * width)
    lambdas = torch.einsum("bukm,buvm->bkv", keys.reshape(b, u, k, -1).softmax(dim=-1), v)
    content = torch.einsum("bhkn,bkv->bhvn", q, lambdas)
    lambdas = functional.conv3d(
        v.reshape(b, u, -1, height, width), table, padding=(0, r // 2, r // 2)
    )
    position = torch.einsum("bhkn,bkvn->bhvn", q, lambdas.flatten(3))
    return (content + position).reshape(b, -1, height, width)


def to_torch(form: str, name: str, array: np.ndarray) -> np.ndarray:
    """Returns an operand of `micro_lambda`, its gradient or the answer in the layout of a form."""
    if name != "table":  # [b, H, W, x, y] -> [b, x y, H, W]
        b, height, width = array.shape[:3]
        return np.ascontiguousarray(array.reshape(b, height, width, -1).transpose(0, 3, 1, 2))
    if form == "pairs":
        return array.reshape(-1, array.shape[-1])  # offsets, k
    kernel = array.transpose(3, 2, 0, 1)  # k u r r
    return np.ascontiguousarray(kernel[..., None] if form == "conv_rr1" else kernel[:, :, None])


def runner(
    form: str,
    operands: Mapping[str, np.ndarray],
    cotangent: np.ndarray,
    direction: str,
    *,
    dtype: str = "float32",
) -> Callable[[], dict[str, Any]]:
    """Returns a function that computes the answer 'y' and, for direction 'train', the gradients by
    operand, in a dtype and on the device that is torch's default as this is called.
    """
    import torch

    def tensor(name: str, array: np.ndarray) -> torch.Tensor:
        return torch.tensor(to_torch(form, name, array), dtype=getattr(torch, dtype))

    tensors = {name: tensor(name, array) for name, array in operands.items()}
    weight = tensor("y", cotangent)
    options: dict[str, Any] = dict(heads=operands["q"].shape[3])
    if form == "pairs":
        options |= _pair_index(operands["q"].shape[1:3], operands["table"].shape[:2])
        if options["seen"] is not None:
            options["seen"] = options["seen"].to(tensors["table"].dtype)
    function = {"conv_rr1": conv_rr1, "pairs": pairs, "conv_1rr": conv_1rr}[form]

    def forward():
        with torch.no_grad():
            return {"y": function(**tensors, **options)}

    def train():
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in tensors.items()}
        y = function(**leaves, **options)
        gradients = torch.autograd.grad(y, list(leaves.values()), weight)
        return {"y": y.detach(), **dict(zip(leaves, gradients, strict=True))}

    return forward if direction == "fwd" else train


def _pair_index(size: tuple[int, int], taps: tuple[int, int]) -> dict[str, Any]:
    """Returns the row of the table of every pair, and where there is one (None if everywhere)."""
    import torch

    places = np.stack(np.mgrid[: size[0], : size[1]], -1).reshape(-1, 2)
    offsets = (
        places[None] - places[:, None] + np.array(taps) // 2
    )  # key - query, centre tap in the middle
    seen = ((offsets >= 0) & (offsets < taps)).all(-1)
    index = np.where(seen, offsets[..., 0] * taps[1] + offsets[..., 1], 0)
    mask = None if seen.all() else torch.tensor(seen[..., None].astype(np.float32))
    return dict(index=torch.tensor(index), seen=mask)
