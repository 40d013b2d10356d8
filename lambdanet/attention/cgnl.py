"""The compact generalized non-local block: every channel of every position talks to every other, in
linear time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from lambdanet.attention.registration import registry
from lambdanet.interop.names import BATCH_NORM, POINTWISE, Rule, prefixed
from lambdanet.layers import Captures, Linear, batch_norm, check_map

_RBF_GAMMA = 1e-4
_ALLOWED = {"kernel": ("dot", "rbf"), "norm": ("group", "batch")}


@registry.register("cgnl")
class CompactGeneralizedNonLocal(Captures, nnx.Module):
    r"""y = x + norm(z(K(theta, phi) g)), a non-local block over channel-position pairs; the
    residual is inside.

    theta, phi and g are 1x1 convolutions to c channels, cut into G groups of neighbouring channels.
    In a group all L = N c / G entries (N positions) are one vector, and K is L x L: the generalized
    non-local operator relates every channel at every position with every other. Its kernels are
    polynomials K_ij = sum_p k_p theta_i^p phi_j^p, so K g needs no matrix but only P + 1 sums over
    the group:

        s_p = sum_j phi_j^p g_j,    (K g)_i = sum_p k_p theta_i^p s_p

        'dot'   K_ij = theta_i phi_j                 (the preset 'cgnl')
        'rbf'   k_p = beta (2 gamma)^p / p!          (the preset 'cgnlx': CGNLx, a Gaussian RBF's Taylor series)
                gamma = 1e-4, beta = exp(-2 gamma)

    z is a 1x1 convolution c -> dim in the same G groups; nothing has a bias but the norm, whose
    scale starts at zero: the block starts as the identity. There is neither softmax nor division by
    the number of entries. All sums over the map are in float32; time and memory are linear in the
    map.

    The group norm cancels the sums of the dot kernel: z is linear and in the same groups as the
    norm, so norm(z(s theta)) = sign(s) norm(z(theta)) but for epsilon, and the gradients of `phi`
    and `g` all but vanish once z's output is large against sqrt(epsilon). At the initial weights
    (deviation 0.01) it is smaller than that, so early training does use them. `norm='batch'` keeps
    the sums, as does the RBF kernel, a mixture of powers, in part.

    True RBF has beta = exp(-gamma (theta_i^2 + phi_j^2)) for each pair; the released code takes a
    constant and says that training was difficult otherwise.

    Shapes: [b, *spatial, dim] with one to three spatial axes to the same; all axes form one set of
    positions. With the view attribute `capture`, a call sows `gate` [b, *spatial, c], the kernel's
    output K g before z, of both signs.

    Source: Yue et al. 2018, "Compact Generalized Non-local Network", and its released code (G = 8,
    c = dim / 2, order 3, no scale). `norm='batch'` after the authors' later Caffe version, which
    has no groups and does not start at zero.

    Args:
        dim: channels.
        inner_dim: channels of theta, phi and g, c; None means dim / 2.
        groups: groups of channels, G; divides `dim` and `inner_dim`.
        kernel: 'dot' | 'rbf'.
        order: highest power P of the RBF's series; read only with `kernel='rbf'`.
        use_scale: divides the sums by sqrt(L).
        norm: 'group' (G groups, epsilon 1e-5) | 'batch'.
        norm_momentum: decay of the running statistics of `norm='batch'`.
        dtype: dtype of activations and output; None keeps the input's.
        param_dtype: dtype of stored parameters.
        rngs: initialisation source. Convolutions start N(0, 0.01^2).

    Raises:
        ValueError: an option outside its allowed values, or groups that do not divide the channels.
    """  # noqa: E501

    kind: ClassVar[str] = "context"

    def __init__(
        self,
        dim: int,
        *,
        inner_dim: int | None = None,
        groups: int = 8,
        kernel: str = "dot",
        order: int = 3,
        use_scale: bool = False,
        norm: str = "group",
        norm_momentum: float = 0.9,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        inner = dim // 2 if inner_dim is None else inner_dim
        for name, value in (("kernel", kernel), ("norm", norm)):
            if value not in _ALLOWED[name]:
                raise ValueError(
                    f"cgnl: {name} is {value!r}; allowed: {', '.join(map(repr, _ALLOWED[name]))}"
                )
        if order < 1:
            raise ValueError(f"cgnl: order is {order}; allowed: 1 or more")
        if inner < 1 or groups < 1 or dim % groups or inner % groups:
            raise ValueError(
                f"cgnl: groups is {groups}; allowed: divisors of both the {dim} channels and the "
                f"{inner} inner channels "
                f"(inner_dim, half the channels by default), here {_divisors(math.gcd(dim, inner))}"
            )
        self.dim, self.inner_dim, self.groups = dim, inner, groups
        self.coefficients = (0.0, 1.0) if kernel == "dot" else rbf_coefficients(order)
        self.use_scale, self.dtype = use_scale, dtype
        init = nnx.initializers.normal(0.01)
        options = dict(
            use_bias=False, kernel_init=init, dtype=dtype, param_dtype=param_dtype, rngs=rngs
        )
        self.theta, self.phi, self.g = (Linear(dim, inner, **options) for _ in range(3))
        # [c / G, dim]: column o holds the weights of output channel o, which sees the channels of
        # its own group.
        self.out_kernel = nnx.Param(init(rngs.params(), (inner // groups, dim), param_dtype))
        if norm == "batch":
            options = dict(
                momentum=norm_momentum,
                zero_init=True,
                dtype=dtype,
                param_dtype=param_dtype,
                rngs=rngs,
            )
            self.norm = batch_norm(dim, **options)
        else:
            self.norm = nnx.GroupNorm(
                dim,
                num_groups=groups,
                epsilon=1e-5,
                scale_init=nnx.initializers.zeros_init(),
                # The variance may be below epsilon: a difference of two means would lose it.
                use_fast_variance=False,
                dtype=dtype,
                param_dtype=param_dtype,
                rngs=rngs,
            )

    def __call__(
        self, x: Float[Array, "b *s c"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b *s c"]:
        """Maps [b, *spatial, dim] to the same shape; `rngs` is not read."""
        check_map("cgnl", x, self.dim)
        x = x.astype(self.dtype or x.dtype)
        batch, spatial = x.shape[0], x.shape[1:-1]

        def project(layer):
            return layer(x).reshape(batch, -1, self.groups, self.inner_dim // self.groups)

        response = kernel_response(
            project(self.theta),
            project(self.phi),
            project(self.g),
            self.coefficients,
            use_scale=self.use_scale,
        )
        response = response.astype(x.dtype)
        if self.capture:
            self.sow(nnx.Intermediate, "gate", response.reshape(batch, *spatial, self.inner_dim))
        kernel = self.out_kernel[...].astype(self.dtype or self.out_kernel.dtype)
        kernel = kernel.reshape(-1, self.groups, self.dim // self.groups)
        z = jnp.einsum("bpgi,igo->bpgo", response, kernel)
        return x + self.norm(z.reshape(x.shape)).astype(x.dtype)

    def macs(self, *spatial: int) -> int:
        """Returns the multiply-adds of the four convolutions for one sample.

        The kernel itself is elementwise products and sums only, about 2 P per entry of the
        c-channel map; not counted.
        """
        return math.prod(spatial) * self.dim * (3 * self.inner_dim + self.inner_dim // self.groups)


def rbf_coefficients(order: int) -> tuple[float, ...]:
    """Returns k_0 .. k_order of the Taylor series of beta exp(2 gamma theta phi), gamma = 1e-4,
    beta = exp(-2 gamma).
    """
    beta = math.exp(-2 * _RBF_GAMMA)
    return tuple(
        beta * (2 * _RBF_GAMMA) ** power / math.factorial(power) for power in range(order + 1)
    )


def kernel_response(
    theta: Float[Array, "b n g i"],
    phi: Float[Array, "b n g i"],
    g: Float[Array, "b n g i"],
    coefficients: Sequence[float],
    *,
    use_scale: bool = False,
) -> Float[Array, "b n g i"]:
    """Applies the kernel K_ij = sum_p k_p theta_i^p phi_j^p to g, within each group of each sample.

    Args:
        theta: [batch, positions, groups, channels of a group].
        phi: likewise.
        g: likewise.
        coefficients: k_0, k_1, ... of the polynomial, two or more.
        use_scale: divides by the square root of the entries of a group.

    Returns:
        K g, of the same shape, in float32 (float64 for float64).
    """
    theta, phi, g = (a.astype(jnp.promote_types(a.dtype, jnp.float32)) for a in (theta, phi, g))
    divisor = math.sqrt(g.shape[1] * g.shape[3]) if use_scale else 1.0
    sums, weighted = [], g
    for power, coefficient in enumerate(coefficients):
        weighted = weighted * phi if power else weighted
        total = jnp.sum(weighted, axis=(1, 3), keepdims=True) if coefficient else 0.0
        sums.append(total * (coefficient / divisor))
    response = sums[-1]
    for total in reversed(sums[:-1]):  # Horner: one product per power
        response = response * theta + total
    return response


def _divisors(number: int) -> str:
    return ", ".join(str(n) for n in range(1, number + 1) if number % n == 0)


registry.register("cgnlx", CompactGeneralizedNonLocal, kernel="rbf")

TORCH_NAMES = (
    *prefixed(POINTWISE, r"t\.", "theta"),
    *prefixed(POINTWISE, r"p\.", "phi"),
    *prefixed(POINTWISE, r"g\.", "g"),
    Rule(r"z\.weight", "out_kernel", "pointwise"),
    *prefixed(BATCH_NORM[:2], r"gn\.", "norm"),
    *prefixed(BATCH_NORM, r"bn\.", "norm"),
)
"""Names of the authors' `SpatialCGNL` and `SpatialCGNLx`."""
