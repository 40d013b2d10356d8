"""Object context: the unit by dense attention in NumPy, pooled and in cells; the start at zero;
counts, names, options.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lambdanet.attention import create_attention
from lambdanet.attention.ocnet import (
    TORCH_NAMES,
    TORCH_NAMES_SEPARATE,
    AspObjectContext,
    ObjectContext,
    PyramidObjectContext,
)
from lambdanet.interop.names import convert
from lambdanet.ops.cell_attention import cell_runs
from lambdanet.training.state import flatten_names

DIM = 6


def build(kind, seed=0, dim=DIM, **options):
    """A block in the evaluation view with random numbers everywhere; only traced, which is faster
    than initialising.
    """
    built = nnx.eval_shape(lambda: kind(dim, **options, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(seed)
    for path, variable in nnx.to_flat_state(nnx.state(built, (nnx.Param, nnx.BatchStat))):
        low, high = dict(scale=(0.7, 1.3), var=(0.7, 1.3)).get(path[-1], (-0.8, 0.8))
        variable.set_value(jnp.asarray(rng.uniform(low, high, variable.shape), jnp.float32))
    return nnx.view(built, deterministic=True, use_running_average=True)


def image(*size, dim=DIM, batch=2):
    return np.random.default_rng(7).standard_normal((batch, *size, dim)).astype(np.float32)


@jax.jit
def run_shown(built, x):
    """The result and the attention map of every unit."""
    y, sown = nnx.capture(nnx.view(built, capture=True), nnx.Intermediate)(x)
    units = nnx.to_pure_dict(sown)["units"]
    return y, [units[number]["attention_map"][0] for number in sorted(units)]


def linear(module, x):
    return x @ np.float64(module.kernel[...]) + np.float64(module.bias[...])


def layer(module, x, slope=0.0):
    """A 1x1, norm, (leaky) ReLU in float64."""
    mean, var, scale, bias = (
        np.float64(getattr(module.norm, name)[...]) for name in ("mean", "var", "scale", "bias")
    )
    y = (linear(module.linear, x) - mean) / np.sqrt(var + 1e-5) * scale + bias
    return np.where(y > 0, y, slope * y)


def pooled(x, window):
    b, h, w, c = x.shape
    rows, columns = min(h, window), min(w, window)
    out = np.empty((b, h // rows, w // columns, c))
    for i, j in np.ndindex(*out.shape[1:3]):
        out[:, i, j] = x[:, i * rows : (i + 1) * rows, j * columns : (j + 1) * columns].max((1, 2))
    return out


def corners(before, after):
    """[after, before]: linear interpolation with the first and last positions on each other."""
    matrix = np.zeros((after, before))
    for i in range(after):
        source = i * (before - 1) / (after - 1) if after > 1 else 0.0
        low = int(source)
        matrix[i, low] += 1 - (source - low)
        matrix[i, min(low + 1, before - 1)] += source - low
    return matrix


def cell_labels(length, cells):
    """The cell of every position by the rule of the paper's release, a short axis cut into single
    positions.
    """
    cells = min(cells, length)
    return np.minimum(np.arange(length) // (length // cells), cells - 1)


def unit_by_hand(unit, x, slope=0.0):
    """Context and attention map of one unit."""
    size = x.shape[1:3]
    x = pooled(np.float64(x), unit.pool)
    b, h, w, c = x.shape
    flat = x.reshape(b, h * w, c)
    key = flat
    for module in unit.key:
        key = layer(module, key, slope)
    query = key
    if unit.query is not None:
        query = flat
        for module in unit.query:
            query = layer(module, query, slope)
    label = (cell_labels(h, unit.cells)[:, None] * 100 + cell_labels(w, unit.cells)).ravel()
    logits = np.where(
        label[:, None] == label, query @ key.swapaxes(1, 2) / np.sqrt(key.shape[-1]), -np.inf
    )
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    grow = np.kron(corners(h, size[0]), corners(w, size[1]))
    context = grow @ linear(unit.out, weights @ linear(unit.value, flat))
    return context.reshape(b, *size, -1), (grow @ weights).reshape(b, 1, *size, h, w)


@pytest.mark.parametrize(
    ("size", "options"),
    [
        ((5, 7), dict(sizes=(1, 2))),
        (
            (5, 4),
            dict(
                sizes=(3,), share_qk=False, num_qk_convs=2, activation="leaky_relu_0.01", dim_out=4
            ),
        ),
        ((1, 5), dict(sizes=(2,))),
    ],
    ids=["two_sizes", "separate_queries", "shorter_than_the_window"],
)
def test_base_equals_dense_attention_on_the_pooled_map(size, options):
    built, x = build(ObjectContext, key_dim=3, value_dim=5, **options), image(*size)
    slope = 0.01 if "activation" in options else 0.0
    contexts, maps = zip(*(unit_by_hand(unit, x, slope) for unit in built.units), strict=True)
    expected = layer(built.fuse, np.concatenate([sum(contexts), x], -1), slope)
    y, shown = run_shown(built, x)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    for ours, reference in zip(shown, maps, strict=True):
        np.testing.assert_allclose(ours, reference, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("size", "sizes"),
    [((6, 12), (1, 2, 6)), ((5, 7), (2, 3)), ((2, 4), (3, 6))],
    ids=["divisible", "longer_last_cells", "shorter_than_the_cells"],
)
def test_pyramid_equals_dense_attention_inside_cells(size, sizes):
    built, x = build(PyramidObjectContext, sizes=sizes), image(*size)
    contexts, maps = zip(*(unit_by_hand(unit, x) for unit in built.units), strict=True)
    expected = layer(built.fuse, np.concatenate([layer(built.lift, x), *contexts], -1))
    y, shown = run_shown(built, x)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    for ours, reference in zip(shown, maps, strict=True):
        np.testing.assert_allclose(ours, reference, rtol=1e-4, atol=1e-6)


def test_cells_tile_every_axis_in_at_most_two_runs():
    for length in range(1, 20):
        for cells in range(1, 8):
            runs = cell_runs(length, cells)
            assert len(runs) <= 2
            label = [
                cell
                for cell, side in enumerate(s for _, n, s in runs for _ in range(n))
                for _ in range(side)
            ]
            np.testing.assert_array_equal(label, cell_labels(length, cells))
            assert runs[-1][0] == sum(n * s for _, n, s in runs[:-1])


@pytest.mark.parametrize(
    "spec",
    ["object_context", dict(name="pyramid_object_context", sizes=(3,))],
    ids=["base", "pyramid"],
)
def test_context_is_zero_at_first_and_only_its_output_projection_learns(spec):
    built, x = create_attention(spec, DIM, rngs=nnx.Rngs(0)), image(4, 6)

    @jax.jit
    def contexts_and_gradient(built, x):
        graphdef, params, rest = nnx.split(built, nnx.Param, ...)

        def loss(params):
            return jnp.sum(nnx.merge(graphdef, params, rest)(x) ** 3)

        return [unit(x) for unit in built.units], jax.grad(loss)(params)

    contexts, gradient = contexts_and_gradient(
        nnx.view(built, deterministic=True, use_running_average=True), x
    )
    assert all(not np.any(context) for context in contexts)
    for path, value in flatten_names(nnx.to_pure_dict(gradient)).items():
        if "/key/" in path or "/value/" in path:
            assert not np.any(value), path
        elif path.startswith("units"):
            assert np.abs(value).max() > 0, path


def test_asp_branches_and_size():
    """Every branch in its place of the concatenation: the context is constant while the attention's
    output is zero.
    """
    built, x = (
        build(AspObjectContext, dim=8, width=4, dilations=(1, 3), activation="relu"),
        image(7, 5, dim=8),
    )
    built.unit.out.kernel[...] = jnp.zeros_like(built.unit.out.kernel[...])

    @jax.jit
    def parts(built, x):
        return (
            built(x),
            built.unit(built.context_in(x)),
            [built.point(x), *(branch(x) for branch in built.dilated)],
        )

    y, context, others = parts(built, x)
    np.testing.assert_allclose(
        context, np.broadcast_to(built.unit.out.bias[...], context.shape), rtol=1e-5
    )
    context = layer(built.context_out, np.float64(context))

    def fused(branches):
        norm = built.fuse.norm
        z = np.concatenate(branches, -1) @ np.float64(built.fuse.linear.kernel[...])
        z = (z - norm.mean[...]) / np.sqrt(np.float64(norm.var[...]) + 1e-5) * norm.scale[
            ...
        ] + norm.bias[...]
        return np.maximum(z, 0)

    np.testing.assert_allclose(y, fused([context, *others]), rtol=1e-5, atol=1e-5)
    assert built.dilated[1].conv.kernel_dilation in (3, (3, 3))


def test_parameters_of_the_paper():
    module = nnx.eval_shape(lambda: create_attention("object_context", 512, rngs=nnx.Rngs(0)))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(module, nnx.Param)))
    head = (
        9 * 2048 * 512 + 3 * 512 + parameters + 512 * 19 + 19
    )  # 3x3 with bias and norm in front, classifier behind
    assert round(head / 1e6, 2) == 10.37


@pytest.mark.parametrize("shared", [True, False])
def test_names_of_both_releases(shared):
    """openseg.pytorch keeps norm and ReLU in a Sequential; OCNet.pytorch lists its shared
    projection under two names.
    """
    module = build(
        ObjectContext, key_dim=3, value_dim=5, share_qk=shared, num_qk_convs=1 if shared else 2
    )
    state = nnx.to_pure_dict(nnx.state(module, (nnx.Param, nnx.BatchStat)))
    shapes = {path: leaf.shape for path, leaf in flatten_names(state).items()}
    rng = np.random.default_rng(0)
    torch = {}

    def point(name, out, into, norm=None):
        torch.update(
            {f"{name}.weight": rng.random((out, into, 1, 1)), f"{name}.bias": rng.random(out)}
        )
        kinds = ("weight", "bias", "running_mean", "running_var") if norm else ()
        torch.update({f"{norm}.{kind}": rng.random(out) for kind in kinds})

    tail = "" if shared else ".0"
    for stack in ("f_key", "f_query"):
        for index, into in ((0, 6),) if shared else ((0, 6), (2, 3)):
            point(f"stages.0.{stack}.{index}", 3, into, f"stages.0.{stack}.{index + 1}{tail}")
    point("stages.0.f_value", 5, 6)
    point("stages.0.W", 6, 5)
    point("conv_bn_dropout.0", 6, 12, f"conv_bn_dropout.1{tail}")
    ours = convert(torch, TORCH_NAMES if shared else TORCH_NAMES_SEPARATE, shapes)
    assert set(ours) == set(shapes)
    np.testing.assert_array_equal(
        ours["units/0/key/0/linear/kernel"], torch["stages.0.f_key.0.weight"][..., 0, 0].T
    )
    if not shared:
        last = torch["stages.0.f_query.3.0.running_var"]
        np.testing.assert_array_equal(ours["units/0/query/1/norm/var"], last)


def test_dropout_takes_whole_channels():
    built = nnx.view(build(ObjectContext, dim=16, dropout=0.5), deterministic=False)
    y = np.asarray(
        jax.jit(lambda built, x: built(x, rngs=nnx.Rngs(dropout=0)))(built, image(3, 4, dim=16))
    )
    dropped = (y == 0).all((1, 2))
    assert 0 < dropped.sum() < dropped.size


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "object_context",
            dict(sizes=()),
            r"object_context: sizes is \(\); allowed: a tuple of numbers from 1",
        ),
        ("object_context", dict(num_qk_convs=0), "num_qk_convs is 0; allowed: 1 or more"),
        ("object_context", dict(activation="swish"), "activation is 'swish'"),
        ("pyramid_object_context", dict(sizes=(1, 0)), r"sizes is \(1, 0\); allowed"),
        ("pyramid_object_context", dict(dropout=-0.1), "dropout is -0.1; allowed"),
        ("asp_object_context", dict(dilations=6), "dilations is 6; allowed"),
    ],
)
def test_bad_options(name, options, message):
    with pytest.raises(ValueError, match=message):
        create_attention(dict(name=name, **options), 8, rngs=nnx.Rngs(0))


def test_asp_context_starts_to_learn():
    """Its norm turns the constant first context into zeros; only an activation with a gradient at
    zero lets it begin.
    """
    x = image(6, 5, dim=8)

    def gradient(activation):
        options = {} if activation is None else dict(activation=activation)
        built = create_attention(
            dict(name="asp_object_context", dilations=(1,), **options), 8, rngs=nnx.Rngs(0)
        )
        graphdef, params, rest = nnx.split(built, nnx.Param, ...)
        target = jax.random.normal(jax.random.key(1), x.shape)

        def loss(params):
            return jnp.sum((nnx.merge(graphdef, params, rest, copy=True)(x) - target) ** 2)

        return nnx.to_pure_dict(jax.jit(jax.grad(loss))(params))["context_out"]["norm"]["bias"]

    assert np.abs(gradient(None)).min() > 0
    np.testing.assert_array_equal(gradient("relu"), 0)
