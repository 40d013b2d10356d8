"""Less-attention: the transforms of logits, what makes the first logits, the residual between
stages, the loss.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jaxpr_macs import jaxpr_macs
from jaxpr_sizes import largest_array

from lambdanet.attention import create_attention
from lambdanet.attention.attention_residual import AttentionResidual
from lambdanet.attention.diagonality_loss import VARIANTS, diagonality_loss
from lambdanet.attention.less_attention import LessAttention, resize_kernel
from lambdanet.attention.vanilla_attention import VanillaAttention

GRID, DIM, HEADS = (3, 5), 8, 2
N = math.prod(GRID)
once = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
resized_kernel = jax.jit(resize_kernel, static_argnums=(1, 2, 3))
loss_terms = jax.jit(diagonality_loss, static_argnums=(1, 2))


@pytest.fixture(scope="module", autouse=True)
def quick_compilation():
    """Compiles without optimisation: these programs run once."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def randomise(module, seed=0):
    """Evaluation view with every parameter drawn anew, so that nothing is zero or near the
    identity.
    """
    draw = np.random.default_rng(seed)
    for _, variable in nnx.to_flat_state(nnx.state(module, nnx.Param)):
        shape = variable.shape
        scale = shape[0] ** -0.5 if len(shape) > 1 else 1.0
        variable.set_value(jnp.asarray(scale * draw.standard_normal(shape), jnp.float32))
    return nnx.view(module, deterministic=True, use_running_average=True, raise_if_not_found=False)


def less(seed=0, **options):
    options = dict(num_heads=HEADS, size=GRID) | options
    made = nnx.eval_shape(lambda: LessAttention(DIM, **options, rngs=nnx.Rngs(0)))
    return randomise(made, seed)


def residual(*heads, **options):
    return randomise(AttentionResidual(*heads, **options, rngs=nnx.Rngs(0)))


def normal(*shape, seed=1):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def inputs(grid=GRID, batch=2, class_token=False):
    tokens = math.prod(grid) + class_token
    x = normal(batch, tokens, DIM) if class_token else normal(batch, *grid, DIM)
    return x, normal(batch, HEADS, tokens, tokens, seed=2)


def close(a, b, tolerance=1e-5):
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(float(np.abs(b).max()), 1.0))


def softmax(a):
    e = np.exp(a - a.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("center_rows", [False, True])
def test_equation_five_by_loops(center_rows):
    module, (x, logits) = less(center_rows=center_rows), inputs()
    y, handed = once(module)(x, logits)
    weight = {
        f"{name}_{part}": np.asarray(getattr(getattr(module, name), part)[...], np.float64)
        for name in ("theta", "psi", "value", "output")
        for part in ("kernel", "bias")
    }
    for b in range(2):
        v = (
            np.asarray(x[b], np.float64).reshape(N, DIM) @ weight["value_kernel"]
            + weight["value_bias"]
        )
        mixed = np.zeros((N, DIM))
        for h in range(HEADS):
            a = np.asarray(logits[b, h], np.float64)
            if center_rows:
                a = a - a.mean(1)[:, None]
            keys = np.array([row @ weight["theta_kernel"] + weight["theta_bias"] for row in a])
            new = np.array(
                [column @ weight["psi_kernel"] + weight["psi_bias"] for column in keys.T]
            ).T
            close(handed[b, h], new)
            part = slice(h * DIM // HEADS, (h + 1) * DIM // HEADS)
            mixed[:, part] = softmax(new) @ v[:, part]
        close(y[b].reshape(N, DIM), mixed @ weight["output_kernel"] + weight["output_bias"])


def test_identity_is_reuse_and_new_layers_start_near_it():
    module, (x, logits) = less(), inputs()
    for side in (module.theta, module.psi):
        side.kernel.set_value(jnp.eye(N))
        side.bias.set_value(jnp.zeros(N))
    reuse = less(transform="reuse", size=None)
    for name in ("value", "output"):
        nnx.update(getattr(reuse, name), nnx.state(getattr(module, name)))
    y, handed = module(x, logits)
    np.testing.assert_array_equal(handed, logits)
    for own, other in zip(reuse(x, logits), (y, logits), strict=True):
        close(own, other)
    new = LessAttention(DIM, size=(14, 14), rngs=nnx.Rngs(3))
    for side in (new.theta, new.psi):
        noise = np.asarray(side.kernel[...]) - np.eye(196)
        assert (
            abs(noise.std() - 0.002) < 1e-4
            and abs(noise.mean()) < 1e-4
            and not side.bias[...].any()
        )
    assert {"theta_height", "psi_width"} <= set(nnx.state(less(transform="kron"))) and not less(
        transform="kron"
    ).biased


def test_equal_transforms_keep_symmetry_and_two_layers_compose():
    module, (_, logits) = less(transform_bias=False), inputs()
    w_theta, w_psi = module.theta.kernel[...], module.psi.kernel[...]
    module.psi.kernel.set_value(w_theta)
    symmetric = logits + jnp.swapaxes(logits, -1, -2)
    new = module.transform_logits(symmetric, GRID)
    close(new, jnp.swapaxes(new, -1, -2))
    module.psi.kernel.set_value(w_psi)
    second = less(seed=5, transform_bias=False)
    chained = second.transform_logits(module.transform_logits(logits, GRID), GRID)
    both = less(transform_bias=False)
    for side in ("theta", "psi"):  # kernels are [in, out]: the first layer's stands on the left
        product = getattr(module, side).kernel[...] @ getattr(second, side).kernel[...]
        getattr(both, side).kernel.set_value(product)
    close(both.transform_logits(logits, GRID), chained)


@pytest.mark.parametrize("class_token", [False, True])
def test_kron_is_the_full_transform_of_the_kronecker_products(class_token):
    options = dict(transform_bias=True, class_token=class_token)
    kron, full, (x, logits) = (
        less(transform="kron", **options),
        less(**options),
        inputs(class_token=class_token),
    )
    for side in ("theta", "psi"):
        product = jnp.kron(
            getattr(kron, f"{side}_height").kernel[...], getattr(kron, f"{side}_width").kernel[...]
        )
        token = jnp.pad(jnp.ones((1, 1)), ((0, N), (0, N))) if class_token else 0.0
        getattr(full, side).kernel.set_value(token + jnp.pad(product, ((int(class_token), 0),) * 2))
        getattr(full, side).bias.set_value(getattr(kron, side).bias[...])
    for name in ("value", "output"):
        nnx.update(getattr(full, name), nnx.state(getattr(kron, name)))
    factored, whole = (
        once(functools.partial(module, grid=GRID))(x, logits) for module in (kron, full)
    )
    for own, other in zip(factored, whole, strict=True):
        close(own, other)


def test_only_later_layers_see_the_bias_of_psi():
    module, (x, logits) = less(), inputs()
    graphdef, state = nnx.split(module)

    def gradient(part):
        def loss(state):
            return (nnx.merge(graphdef, state)(x, logits)[part] ** 2).sum()

        return once(jax.grad(loss))(state)

    from_values, from_logits = gradient(0), gradient(1)
    scale = jnp.abs(from_values["theta"]["bias"][...]).max()
    assert scale > 1e-3 and jnp.abs(from_values["psi"]["bias"][...]).max() < 1e-5 * scale
    assert jnp.abs(from_logits["psi"]["bias"][...]).max() > 1


@pytest.mark.exhaustive
def test_policies_for_another_size():
    other = (4, 6)
    x, logits = inputs(other)
    message = (
        r"the map is 4x6, the weights are made for 3x5; allowed: that size.*'interpolate'.*'reuse'"
    )
    with pytest.raises(ValueError, match=message):
        less()(x, logits)
    np.testing.assert_array_equal(once(less(resize="reuse"))(x, logits)[1], logits)
    with pytest.raises(ValueError, match="the map is 4x6"):
        less(transform="kron", resize="refuse")(x, logits)
    # 'interpolate' is a layer made for the other size from the resized weights.
    for made, factors in (
        (less(resize="interpolate"), None),
        (less(transform="kron", transform_bias=True), "height width"),
    ):
        there = less(size=other, transform=made.transform, transform_bias=True)
        for side in ("theta", "psi"):
            bias = jax.image.resize(
                getattr(made, side).bias[...].reshape(GRID), other, "linear"
            ).reshape(-1)
            getattr(there, side).bias.set_value(bias)
            for axis, factor in enumerate(factors.split() if factors else ()):
                name, (old, new) = f"{side}_{factor}", (GRID[axis], other[axis])
                getattr(there, name).kernel.set_value(
                    resized_kernel(getattr(made, name).kernel[...], (old,), (new,))
                )
            if not factors:
                getattr(there, side).kernel.set_value(
                    resized_kernel(getattr(made, side).kernel[...], GRID, other)
                )
        both = (once(lambda a, m=m: m.transform_logits(a, other))(logits) for m in (made, there))
        close(*both)
    # On one axis: the identity of 2 on 4 positions is a smoothing whose rows sum to one.
    smooth = [[1.0, 0.0], [0.75, 0.25], [0.25, 0.75], [0.0, 1.0]]
    expected = np.array(smooth) @ np.array(smooth).T
    close(
        resized_kernel(np.eye(2, dtype=np.float32), (2,), (4,)),
        (expected / expected.sum(1, keepdims=True)).T,
    )


@pytest.mark.parametrize(("old", "new"), [((3, 5), (4, 6)), ((6, 4), (3, 4)), ((5,), (2,))])
@pytest.mark.parametrize("class_token", [False, True])
def test_resizing_keeps_sums_and_the_class_token(old, new, class_token):
    first, m = int(class_token), math.prod(old) + class_token
    kernel = np.abs(np.asarray(normal(m, m))) + np.float32(0.1)
    resized = np.asarray(resized_kernel(kernel, old, new, class_token))

    def interpolated(row):
        return np.ravel(jax.image.resize(row.reshape(old), new, "linear"))

    close(resized[first:, first:].sum(0), interpolated(kernel[first:, first:].sum(0)))
    if class_token:
        assert resized[0, 0] == kernel[0, 0]
        close(resized[1:, 0].sum(), kernel[1:, 0].sum())
        close(resized[0, 1:], interpolated(kernel[0, 1:]))
    np.testing.assert_allclose(resized_kernel(kernel, old, old, class_token), kernel, rtol=1e-6)


def test_resized_weights_that_cancel_are_not_blown_up():
    kernel = jnp.array([[1.0, 2.0], [-1.0, -2.0]])
    plain = jax.image.resize(kernel, (5, 5), "linear")
    close(resize_kernel(kernel, (2,), (5,)), plain * 2 / 5)


def test_vanilla_attention_is_multi_head_attention_with_logits():
    made = nnx.eval_shape(lambda: VanillaAttention(DIM, num_heads=HEADS, rngs=nnx.Rngs(0)))
    module, x = randomise(made), inputs()[0]
    mhsa = create_attention("mhsa", DIM, num_heads=HEADS, rngs=nnx.Rngs(0))
    nnx.update(mhsa.query, nnx.state(module.query))
    nnx.update(mhsa.output, nnx.state(module.output))
    for part in ("kernel", "bias"):
        key, value = jnp.split(getattr(module.key_value, part)[...], 2, axis=-1)
        getattr(mhsa.key, part).set_value(key)
        getattr(mhsa.value, part).set_value(value)
    y, logits = once(module)(x)
    close(y, once(mhsa.__call__)(x))
    addition = normal(2, HEADS, N, N)
    close(module(x, addition)[1], logits + addition)
    as_list, _ = module(x.reshape(2, N, DIM), grid=GRID)
    close(as_list, y.reshape(2, N, DIM))


def test_logits_that_nobody_reads_are_not_held():
    x, logits = inputs()
    handing, alone = (
        nnx.eval_shape(
            lambda on=on: VanillaAttention(DIM, num_heads=HEADS, hands_on=on, rngs=nnx.Rngs(0))
        )
        for on in (True, False)
    )
    handing, alone = (randomise(made) for made in (handing, alone))
    for given in ((x,), (x, normal(*logits.shape))):
        y, nothing = once(alone)(*given)
        assert nothing is None
        close(y, once(handing)(*given)[0])
    side = 40
    large = jax.ShapeDtypeStruct((1, side, side, DIM), jnp.float32)
    sizes = [largest_array(made, large) for made in (handing, alone)]
    assert sizes[1] < sizes[0] == HEADS * side**4


def test_logits_stay_float32_and_without_dropout():
    x, logits = inputs()
    for make, state in ((LessAttention, (logits,)), (VanillaAttention, ())):
        options = dict(size=GRID) if make is LessAttention else {}
        exact, half = (
            make(DIM, num_heads=HEADS, dtype=d, rngs=nnx.Rngs(0), **options)
            for d in (None, jnp.bfloat16)
        )
        (y, handed), (y16, handed16) = exact(x, *state), half(x, *state)
        assert y16.dtype == jnp.bfloat16 and handed16.dtype == jnp.float32
        close(y16.astype(jnp.float32), y, 2e-2)
        if make is LessAttention:
            np.testing.assert_array_equal(handed16, handed)
        dropping = nnx.view(
            make(DIM, num_heads=HEADS, dropout_rate=0.5, rngs=nnx.Rngs(0), **options),
            deterministic=False,
        )
        dropped, kept = dropping(x, *state, rngs=nnx.Rngs(dropout=0))
        assert jnp.abs(dropped - y).max() > 1e-3
        np.testing.assert_array_equal(kept, handed)


@pytest.mark.parametrize("class_token", [False, True])
def test_multiply_adds_and_captured_maps(class_token):
    x, logits = inputs(batch=1, class_token=class_token)
    for options in (
        dict(),
        dict(transform="kron", transform_bias=True),
        dict(transform="reuse", size=None),
    ):
        module = less(class_token=class_token, **options)
        called = functools.partial(module, grid=GRID)
        assert module.macs(*GRID) == jaxpr_macs(called, x, logits), options
    vanilla = VanillaAttention(DIM, num_heads=HEADS, class_token=class_token, rngs=nnx.Rngs(0))
    assert vanilla.macs(*GRID) == jaxpr_macs(functools.partial(vanilla, grid=GRID), x)
    for shown_by, state in ((module, (logits,)), (vanilla, ())):
        _, sown = nnx.capture(nnx.view(shown_by, capture=True), nnx.Intermediate)(
            x, *state, grid=GRID
        )
        (shown,) = nnx.to_pure_dict(sown)["attention_map"]
        assert shown.shape == (1, HEADS, *GRID, *GRID)
        total = shown.sum((-1, -2))
        assert (total < 1).all() if class_token else np.allclose(total, 1, atol=1e-5)


def test_residual_at_mean_pooling_is_the_product_of_pooled_queries_and_keys():
    grid = (4, 6)
    q, k = normal(2, HEADS, *grid, 3), normal(2, HEADS, *grid, 3, seed=2)
    logits = jnp.einsum("bhijd,bhkld->bhijkl", q, k).reshape(2, HEADS, 24, 24)
    module = AttentionResidual(HEADS, HEADS, norm="none", scale_init=1.0, rngs=nnx.Rngs(0))
    module.downsample_kernel.set_value(jnp.full((HEADS, 2, 2, 2, 2), 1 / 16))
    module.heads.kernel.set_value(jnp.eye(HEADS))
    q, k = (a.reshape(2, HEADS, 2, 2, 3, 2, 3).mean((3, 5)).reshape(2, HEADS, 6, 3) for a in (q, k))
    close(module(logits, grid), jnp.einsum("bhid,bhjd->bhij", q, k))


def test_residual_leaves_out_odd_rows_and_columns_and_class_tokens():
    module, logits = residual(2, 3, class_token_in=True, class_token_out=True), normal(1, 2, 16, 16)
    addition, gradient = once(jax.value_and_grad(lambda a: (module(a, GRID) ** 2).sum()))(logits)
    kept = np.zeros(GRID, bool)
    kept[:2, :4] = True
    kept = np.concatenate(([False], kept.reshape(-1)))
    assert (np.asarray(gradient) != 0).any((0, 1)).tolist() == np.outer(kept, kept).tolist()
    result = np.asarray(module(logits, GRID))
    assert result.shape == (1, 3, 3, 3) and addition > 0
    assert not result[:, :, 0].any() and not result[:, :, :, 0].any() and result[:, :, 1:, 1:].all()


def test_forms_of_the_residual():
    logits = normal(2, 2, 16, 16)
    separable = residual(2, 2, kernel="separable", norm="none")
    full = residual(2, 2, norm="none")
    graphdef, _ = nnx.split(full)
    state = nnx.state(separable)
    u, g = state.pop("downsample_query_kernel")[...], state.pop("downsample_key_kernel")[...]
    state["downsample_kernel"] = nnx.Param(jnp.einsum("cpq,cst->cpqst", u, g))
    merged = nnx.merge(graphdef, state)
    close(*once(lambda a: (separable(a, (4, 4)), merged(a, (4, 4))))(logits))

    query_only = residual(2, 3, mode="query_only", norm="none")
    reduced = np.asarray(normal(2, 2, 16, 5))
    expected, kernel = np.zeros((2, 2, 4, 5)), np.asarray(query_only.downsample_kernel[...])
    for c in range(2):
        for i in range(4):
            cells = [
                (2 * (i // 2) + p, 2 * (i % 2) + q, kernel[c, p, q]) for p in (0, 1) for q in (0, 1)
            ]
            expected[:, c, i] = sum(
                weight * reduced[:, c, 4 * row + column] for row, column, weight in cells
            )
    down = once(lambda a: query_only.downsample(a, (4, 4)) - query_only.downsample_bias[...])
    close(np.moveaxis(np.asarray(down(reduced)), -1, 1), expected)
    assert jax.eval_shape(lambda a: query_only(a, (4, 4)), reduced).shape == (2, 3, 4, 5)
    for module, shown in ((full, (1, 2, 16, 16)), (query_only, (1, 2, 16, 5))):
        assert module.macs(4, 4, keys=5) == jaxpr_macs(
            lambda a, module=module: module(a, (4, 4)), jnp.ones(shown)
        )

    instance = AttentionResidual(2, 2, norm="instance", rngs=nnx.Rngs(0))
    normed = once(lambda a: instance.normalise(instance.downsample(a, (4, 4))))(logits)
    normed = np.asarray(normed)
    close(normed.mean((1, 2)), np.zeros((2, 2)), 1e-4)
    close(normed.std((1, 2)), np.ones((2, 2)), 1e-2)
    start = AttentionResidual(2, 3, rngs=nnx.Rngs(0))
    assert (start.layer_scale.gamma[...] == jnp.float32(0.1)).all() and not start.downsample_bias[
        ...
    ].any()
    assert (
        abs(start.downsample_kernel[...].mean() - 1 / 16) < 0.02
        and start.downsample_kernel[...].std() < 0.04
    )


def test_hinge_is_zero_where_the_properties_hold_and_the_printed_loss_is_not():
    identity = np.eye(6, dtype=np.float32)[None, None]
    printed = []
    for factor in (1.0, 2.0):
        for variant in ("norm_hinge_agg", "norm_hinge_pair"):
            terms = loss_terms(factor * identity, variant, "logits")
            assert [np.asarray(term)[0, 0] for term in terms] == [0.0, 0.0]
        terms = loss_terms(factor * identity, "paper", "logits")
        printed.append(sum(np.asarray(term)[0, 0] for term in terms))
    assert printed[1] > printed[0] > 0  # grows with the diagonal that it should reward
    # Weaker than one other entry of its row, but not than their mean: the two hinges differ.
    row = identity.copy()
    row[0, 0, 0, 1] = row[0, 0, 1, 0] = 1.5
    agg, pair = (
        np.asarray(loss_terms(row, variant, "logits")[1])[0, 0]
        for variant in ("norm_hinge_agg", "norm_hinge_pair")
    )
    assert agg == 0 < pair
    for variant in VARIANTS:
        assert float(loss_terms(np.ones((1, 1), np.float32), variant, "logits")[1]) == 0
    gradient = once(jax.grad(lambda a: sum(diagonality_loss(a, "norm_hinge_pair")).sum()))
    assert not np.any(gradient(np.ones((1, 1, 4, 4), np.float32)))  # kinks have derivative zero
    low = jax.eval_shape(diagonality_loss, jax.ShapeDtypeStruct((1, 1, 6, 6), jnp.bfloat16))
    assert low[0].dtype == jnp.float32


def test_errors():
    x, logits = inputs()
    wrong = [
        (lambda: less(num_heads=3), "num_heads is 3; allowed: divisors of dim=8"),
        (lambda: less(transform="dense"), "transform is 'dense'; allowed: full, kron, reuse"),
        (lambda: less(size=None), r"size is None; allowed: \(height, width\)"),
        (
            lambda: less(resize="crop"),
            "resize is 'crop'; allowed: None, refuse, interpolate, reuse",
        ),
        (
            lambda: less(transform="reuse", resize="reuse"),
            "resize is 'reuse'; allowed: None with transform 'reuse'",
        ),
        (lambda: less(transform="reuse", transform_bias=True), "transform_bias is True"),
        (
            lambda: less()(x, logits[:, :, :4]),
            r"logits have shape \(2, 2, 4, 15\); expected \(2, 2, 15, 15\)",
        ),
        (lambda: less()(x[..., :4], logits), r"input has shape \(2, 3, 5, 4\)"),
        (
            lambda: less(class_token=True)(x, logits),
            r"grid is None; expected \[batch, tokens, 8\] with grid",
        ),
        (
            lambda: VanillaAttention(
                DIM, num_heads=2, sr_ratio=2, class_token=True, rngs=nnx.Rngs(0)
            ),
            "sr_ratio is 2",
        ),
        (
            lambda: VanillaAttention(DIM, num_heads=2, sr_ratio=4, rngs=nnx.Rngs(0))(x),
            "the map is 3x5; sr_ratio=4 needs",
        ),
        (
            lambda: VanillaAttention(DIM, num_heads=2, rngs=nnx.Rngs(0))(x, logits[:1]),
            "the addition has shape",
        ),
        (lambda: residual(2, 2, norm="layer"), "norm is 'layer'; allowed: batch, instance, none"),
        (lambda: residual(2, 2, mode="query_only", kernel="separable"), "kernel is 'separable'"),
        (lambda: residual(2, 2, mode="query_only", class_token_out=True), "there is a class token"),
        (lambda: residual(2, 2)(logits, (4, 4)), r"expected \[batch, 2, 16, 16\] for a 4x4 map"),
        (lambda: residual(2, 2)(logits, (1, 15)), "the map is 1x15; allowed: 2x2 or more"),
        (lambda: diagonality_loss(logits, "hinge"), "variant is 'hinge'; allowed: paper"),
        (lambda: diagonality_loss(logits, on="weights"), "on is 'weights'; allowed: logits, probs"),
        (lambda: diagonality_loss(logits[:, :, :3]), "expected square matrices"),
    ]
    for call, message in wrong:
        with pytest.raises(ValueError, match=message):
            call()
