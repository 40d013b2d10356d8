"""Local attention whose shifted keys and values go through a linear map over the window: the core
of Slide attention.

    key[x, o, c]   = sum_t W_k[t, c, o] k[x + t, c] + b_k[c, o] + r[h, o]     (r in the position bias 'key')
    logit[x, o]    = sum_c q[x, c] key[x, o, c]  + r[h, o]                    (r in the position bias 'logit')
    value[x, o, c] = sum_t W_v[t, c, o] v[x + t, c] + b_v[c, o]
    y[x, c]        = sum_o softmax_o(logit)[x, o] value[x, o, c]

o counts the slots of the window and t its taps, both row by row from the upper left; k and v are
zero outside the map, and a slot outside the map keeps its place in the softmax. With W[t, c, o] = 1
where t = o, else 0, slot o is the neighbour at tap o and this is plain local attention. Keys and
values of all slots are k^2 copies of the map. They need not be made: both sums may be taken in
another order,

    logit[x, o] = sum_t sum_c (q[x, c] k[x + t, c]) W_k[t, c, o] + ...
    y[x, c]     = sum_t (sum_o a[x, o] W_v[t, c, o]) v[x + t, c] + ...

one small matrix product per tap around an elementwise product with a shifted map. The derivatives
have the same form, with shifts the other way round.

Array layouts: q, k, v [b, h, w, heads, d]; weights [k, k, d, slots]; biases [d, slots]; position
bias [heads, slots].
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from lambdanet.ops.wide_einsum import wide_einsum

IMPLS = ("auto", "shift", "conv", "im2col")
POSITION_BIASES = ("key", "logit")

Map = Float[Array, "b h w n d"]
Slots = Float[Array, "b h w n o"]
Weight = Float[Array, "k k d o"]


def shift_weight(kernel_size: int) -> Float[np.ndarray, "k k 1 o"]:
    """Returns the weight whose slot o is the neighbour at tap o, for every channel: the shifts of
    local attention.
    """
    slots = kernel_size**2
    return np.eye(slots, dtype=np.float32).reshape(kernel_size, kernel_size, 1, slots)


def slide_mix(
    q: Map,
    k: Map,
    v: Map,
    *,
    key_weight: Weight,
    value_weight: Weight,
    key_bias: Float[Array, "d o"] | None = None,
    value_bias: Float[Array, "d o"] | None = None,
    position_bias: Float[Array, "n o"] | None = None,
    position_bias_on: str = "key",
    impl: str = "auto",
) -> tuple[Map, Slots]:
    """Mixes values over a window; logits and softmax in float32 or wider.

    Lowerings, equal up to rounding in values and gradients:
        'shift': one small matrix product per tap around shifted products; neither keys nor values
            of the slots are made, in the backward pass neither.
        'conv': keys and values of the slots by a depthwise convolution, as the reference does it.
        'im2col': keys and values of the slots from the k^2 shifted copies of the map.
        'auto': 'shift'.

    Args:
        q: queries, already scaled.
        k: keys.
        v: values.
        key_weight: W_k.
        value_weight: W_v.
        key_bias: b_k.
        value_bias: b_v.
        position_bias: r.
        position_bias_on: where r is added: 'key', to every channel of the keys of a slot, or
            'logit'.
        impl: the lowering.

    Returns:
        The mixed values in the dtype of `v`, and the softmax over the slots.

    Raises:
        ValueError: unknown impl or position_bias_on, or a window of even size.
    """
    if impl not in IMPLS:
        raise ValueError(f"impl is {impl!r}; allowed: {', '.join(IMPLS)}")
    if position_bias_on not in POSITION_BIASES:
        raise ValueError(
            f"position_bias_on is {position_bias_on!r}; allowed: {', '.join(POSITION_BIASES)}"
        )
    if any(size % 2 == 0 for weight in (key_weight, value_weight) for size in weight.shape[:2]):
        raise ValueError(
            f"weights have {key_weight.shape[:2]} and {value_weight.shape[:2]} taps; both sides "
            "must be odd"
        )
    precise = jnp.promote_types(q.dtype, jnp.float32)
    added = None if position_bias is None or position_bias_on == "logit" else position_bias
    if impl in ("auto", "shift"):
        logits = tap_logits(q, k, key_weight)
        if key_bias is not None:
            logits += wide_einsum("bxync,co->bxyno", q, key_bias)
        if added is not None:
            logits += q.astype(precise).sum(-1, keepdims=True) * added
    else:
        keys = _slots(k, key_weight, key_bias, impl)
        keys = keys if added is None else keys + added[:, None]
        logits = wide_einsum("bxync,bxynco->bxyno", q, keys)
    if position_bias is not None and position_bias_on == "logit":
        logits += position_bias
    weights = jax.nn.softmax(logits, axis=-1)
    a = weights.astype(v.dtype)
    if impl in ("auto", "shift"):
        y = tap_mix(a, v, value_weight)
        if value_bias is not None:
            y += wide_einsum("bxyno,co->bxync", a, value_bias)
    else:
        y = jnp.einsum("bxyno,bxynco->bxync", a, _slots(v, value_weight, value_bias, impl))
    return y.astype(v.dtype), weights


@jax.custom_vjp
def tap_logits(q: Map, k: Map, weight: Weight) -> Slots:
    """Returns sum_t sum_c q[x, c] k[x + t, c] W[t, c, o], in float32 or wider."""
    return _logits(q, k, weight)


@jax.custom_vjp
def tap_mix(a: Slots, v: Map, weight: Weight) -> Map:
    """Returns sum_t (sum_o a[x, o] W[t, c, o]) v[x + t, c], in float32 or wider."""
    return _mix(a, v, weight)


def _tap_logits_forward(q, k, weight):
    return _logits(q, k, weight), (q, k, weight)


def _tap_logits_backward(saved, cotangent):
    q, k, weight = saved
    slots = cotangent.astype(q.dtype)
    return _like(
        saved,
        _mix(slots, k, weight),
        _transposed(slots, q, weight),
        _correlation(slots, q, k, weight),
    )


def _tap_mix_forward(a, v, weight):
    return _mix(a, v, weight), (a, v, weight)


def _tap_mix_backward(saved, cotangent):
    a, v, weight = saved
    g = cotangent.astype(v.dtype)
    return _like(
        saved, _logits(g, v, weight), _transposed(a, g, weight), _correlation(a, g, v, weight)
    )


tap_logits.defvjp(_tap_logits_forward, _tap_logits_backward)
tap_mix.defvjp(_tap_mix_forward, _tap_mix_backward)

# All four are partial derivatives of one form, sum over x, t, c, o of a[x, o] q[x, c] k[x + t, c]
# W[t, c, o].


def _logits(q: Map, k: Map, weight: Weight) -> Slots:
    """By a."""

    def add(total, one, moved):
        return total + wide_einsum("bxync,co->bxyno", q * moved, one), None

    return _over_taps(add, _zeros(q, weight.shape[-1]), weight, k)[0]


def _mix(a: Slots, v: Map, weight: Weight) -> Map:
    """By q."""

    def add(total, one, moved):
        return total + wide_einsum("bxyno,co->bxync", a, one) * moved, None

    return _over_taps(add, _zeros(v, v.shape[-1]), weight, v)[0]


def _transposed(a: Slots, q: Map, weight: Weight) -> Map:
    """By k, as a gather: what position x + t receives from x is read at x, with the taps in
    reverse.
    """

    def add(total, one, slots, moved):
        return total + wide_einsum("bxyno,co->bxync", slots, one) * moved, None

    return _over_taps(add, _zeros(q, q.shape[-1]), weight[::-1, ::-1], a, q)[0]


def _correlation(a: Slots, q: Map, k: Map, weight: Weight) -> Weight:
    """By W."""
    slots = a.reshape(
        -1, a.shape[-1]
    )  # as a product of matrices: XLA does not see that four axes are one

    def one_tap(nothing, one, moved):
        return nothing, wide_einsum("xc,xo->co", (q * moved).reshape(-1, q.shape[-1]), slots)

    return jnp.stack(_over_taps(one_tap, None, weight, k)[1], axis=1)


def _over_taps(step: Callable, carry: Any, weight: Weight, *maps: jax.Array) -> tuple[Any, list]:
    """Loops over the taps: carry, out = step(carry, weight of the tap [d, o], *maps moved so that x
    + tap stands at x).

    Returns the last carry, and per column of the window what the steps gave, its rows stacked. One
    turn of the loop per row of the window, so that what the taps need is held for a row at a time.
    Written out, the sum over all taps would become one fused operation, before which all of its
    terms are held.
    """
    rows, columns = weight.shape[:2]
    around = (0, 0), (rows // 2, rows // 2), (columns // 2, columns // 2), (0, 0), (0, 0)
    padded = [jnp.pad(x, around) for x in maps]

    def body(carry, one_row):
        row, weights = one_row
        outs = []
        for column in range(columns):
            moved = (
                lax.dynamic_slice(p, (0, row, column, 0, 0), x.shape)
                for p, x in zip(padded, maps, strict=True)
            )
            carry, out = step(carry, weights[column], *moved)
            outs.append(out)
        return carry, outs

    return lax.scan(body, carry, (jnp.arange(rows), weight))


def _zeros(x: jax.Array, channels: int) -> jax.Array:
    return jnp.zeros((*x.shape[:-1], channels), jnp.promote_types(x.dtype, jnp.float32))


def _like(saved, *gradients):
    return tuple(
        gradient.astype(value.dtype) for gradient, value in zip(gradients, saved, strict=True)
    )


def _slots(
    x: Map, weight: Weight, bias: jax.Array | None, impl: str
) -> Float[Array, "b h w n d o"]:
    """Keys or values of all slots."""
    batch, height, width, heads, depth = x.shape
    slots = weight.shape[-1]
    if impl == "im2col":
        columns = _over_taps(lambda nothing, one, moved: (nothing, moved), None, weight, x)[1]
        out = jnp.einsum("jibxync,ijco->bxynco", jnp.stack(columns), weight)
    else:
        kernel = jnp.tile(
            weight.reshape(*weight.shape[:2], 1, depth * slots), heads
        )  # the same for every head
        numbers = ("NHWC", "HWIO", "NHWC")
        whole = x.reshape(batch, height, width, heads * depth)
        groups = heads * depth
        out = lax.conv_general_dilated(
            whole, kernel, (1, 1), "SAME", dimension_numbers=numbers, feature_group_count=groups
        )
        out = out.reshape(*x.shape, slots)
    return out if bias is None else out + bias
