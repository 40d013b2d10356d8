"""PyTorch forms of attention over lists of tokens, by the rules of `torch_context`; maps are [b, h,
w, c].
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.torch_layers import linear


def _heads(block: Any, tokens: Any) -> Any:
    """[b, n, c] -> [b, heads, n, depth]."""
    return tokens.view(*tokens.shape[:2], block.num_heads, -1).transpose(1, 2)


def mhsa(block: Any, w: Mapping[str, Any], x: Any) -> Any:
    """Multi-head attention by PyTorch's own core."""
    from torch.nn import functional

    tokens = x.flatten(1, 2)
    heads = (_heads(block, linear(w, name, tokens)) for name in ("query", "key", "value"))
    y = functional.scaled_dot_product_attention(*heads)
    return linear(w, "output", y.transpose(1, 2).reshape(x.shape))


def linformer(block: Any, w: Mapping[str, Any], x: Any) -> Any:
    """Keys and values of each head compressed along the positions."""
    tokens = x.flatten(1, 2)
    query, key, value = (linear(w, name, tokens) for name in ("query", "key", "value"))
    key, value = (
        w[f"compress_{name}/kernel"].t() @ a for name, a in (("key", key), ("value", value))
    )
    query, key, value = (_heads(block, a) for a in (query, key, value))
    weights = (query @ key.transpose(2, 3) * query.shape[3] ** -0.5).softmax(3)
    return linear(w, "output", (weights @ value).transpose(1, 2).reshape(x.shape))


def vanilla_attention(block: Any, w: Mapping[str, Any], x: Any) -> Any:
    """LaViT's first layers: (output, logits)."""
    tokens = x.flatten(1, 2)
    query = _heads(block, linear(w, "query", tokens))
    key, value = (_heads(block, a) for a in linear(w, "key_value", tokens).chunk(2, 2))
    logits = query @ key.transpose(2, 3) * block.head_dim**-0.5
    y = logits.softmax(3) @ value
    return linear(w, "output", y.transpose(1, 2).reshape(x.shape)), logits


def less_attention(block: Any, w: Mapping[str, Any], x: Any, logits: Any) -> Any:
    """LaViT's other layers: (output, logits), as linear layers along keys, then along queries."""
    logits = linear(w, "psi", linear(w, "theta", logits).transpose(2, 3)).transpose(2, 3)
    value = _heads(block, linear(w, "value", x.flatten(1, 2)))
    y = logits.softmax(3) @ value
    return linear(w, "output", y.transpose(1, 2).reshape(x.shape)), logits
