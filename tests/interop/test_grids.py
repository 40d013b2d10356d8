"""Tables of positions: what map or window a file's are for, and that every block says its own."""

import functools
import math

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import models
from lambdanet import attention
from lambdanet.analysis.weight_import import import_weights
from lambdanet.interop import files
from lambdanet.interop.grids import Grid, Known, grids_of
from lambdanet.interop.names import NameMappingError
from lambdanet.layers.resize import resize_bilinear
from lambdanet.registry import signature
from lambdanet.training import state, weights

TIED = [
    name
    for name in attention.registry.names()
    if "size" in signature(attention.registry.lookup(name)[0]).parameters
]


def shapes(model):
    _, params, stats = state.split_model(model)
    flat = state.flatten_names(params) | state.flatten_names(stats)
    return {path: leaf.shape for path, leaf in flat.items()}


def block(name, size):
    factory, preset = attention.registry.lookup(name)
    heads = {"num_heads": 2} if "num_heads" in attention.registry.parameters(name) else {}
    return nnx.eval_shape(lambda: factory(16, **preset, **heads, size=size, rngs=nnx.Rngs(0)))


@pytest.mark.parametrize("name", TIED)
def test_every_block_says_the_map_of_its_lists_of_positions(name):
    """Arrays that are as long for 2x8 as for 4x4 and 8x2 positions, but not for 2x6, are lists."""
    wide, square, tall, other = (block(name, s) for s in ((2, 8), (4, 4), (8, 2), (2, 6)))
    lists = {
        path
        for path, shape in shapes(wide).items()
        if shape == shapes(square)[path] == shapes(tall)[path] != shapes(other)[path]
    }
    said = {path for path, grid in grids_of(wide).items() if grid.kind == "map"}
    assert said == lists
    for path, grid in grids_of(wide).items():
        assert grid.rows == shapes(wide)[path][max(len(shapes(wide)[path]) - 2, 0)]
        assert grid != grids_of(tall)[path]


def test_some_blocks_have_lists_of_positions():
    assert {name for name in TIED if grids_of(block(name, (2, 8)))} >= {"linformer", "window"}


def swin(window):
    spec = tuple(dict(name=name, window_size=window) for name in ("window", "shifted_window"))
    options = dict(blocks=(2,), widths=(8,), num_heads=(2,), mlp_ratios=(2,), num_classes=3)
    return "swin_tiny", dict(options, attention=(spec,), image_size=(64, 64))


def pvt(mixer):
    def options(size):
        shape = dict(blocks=(1,), widths=(8,), num_heads=(2,), mlp_ratios=(2,), num_classes=3)
        size = tuple(4 * side for side in size)
        return "pvt_tiny", dict(shape, attention=(mixer,), pool="mean", image_size=size)

    return options


@pytest.mark.parametrize(
    ("options", "kind"),
    [(swin, "window"), (pvt("mhsa"), "map"), (pvt("linformer"), "map")],
    ids=["swin", "pvt", "linformer"],
)
def test_families_refuse_files_of_another_shape(tmp_path, options, kind):
    made = [
        lambda name=name, more=more: models.create_model(name, rngs=nnx.Rngs(0), **more)
        for name, more in map(options, ((2, 8), (8, 2)))
    ]
    wide, tall = map(nnx.eval_shape, made)
    assert shapes(wide) == shapes(tall)
    arrays = {path: np.zeros(shape, np.float32) for path, shape in shapes(wide).items()}
    name, more = options((2, 8))
    metadata = files.export_metadata(dict(more, name=name), grids_of(wide))
    files.save_safetensors(tmp_path / "w", arrays, metadata)
    weights.read_weights(tmp_path / "w", wide, *state.split_model(wide)[1:])
    with pytest.raises(NameMappingError) as caught:
        weights.read_weights(tmp_path / "w", tall, *state.split_model(tall)[1:])
    text = f"it is for a {kind} of 2x8, the model has a {kind} of 8x2"
    assert str(caught.value).count(text) == len(grids_of(tall)) > 0


def test_a_table_of_a_wide_map_is_resized_as_one_though_its_rows_make_a_square(tmp_path):
    """64 positions of a map of 4x16, in a file of ours, for a map of 8x32."""
    name, options = pvt("mhsa")((4, 16))
    build = lambda **more: models.create_model(name, rngs=nnx.Rngs(0), **options | more)  # noqa: E731
    narrow, key = nnx.eval_shape(build), "stages/0/position_embedding"
    arrays = {path: np.zeros(shape, np.float32) for path, shape in shapes(narrow).items()}
    column = np.tile(np.arange(16, dtype=np.float32), 4)  # every position holds that of its own
    arrays[key] = np.repeat(column[:, None], arrays[key].shape[1], 1)
    files.save_safetensors(
        tmp_path / "w", arrays, files.export_metadata(dict(options, name=name), grids_of(narrow))
    )
    wide = functools.partial(build, image_size=(32, 128))
    found = import_weights(str(tmp_path / "w"), wide, resize_tables=True).arrays[key]
    expected = resize_bilinear(jnp.asarray(arrays[key]).reshape(1, 4, 16, -1), (8, 32))[0]
    np.testing.assert_allclose(found, np.reshape(expected, found.shape), atol=1e-6)


def test_lavit_says_its_maps():
    model = nnx.eval_shape(lambda: models.create_model("lavit_digits", rngs=nnx.Rngs(0)))
    found, known = grids_of(model), shapes(model)
    assert {path.split("/")[-2] for path in found} >= {"theta", "psi"}
    for path, grid in found.items():
        assert grid.rows == known[path][max(len(known[path]) - 2, 0)], path


@pytest.mark.parametrize("rounds", [math.floor, math.ceil])
def test_the_shape_of_the_images_gives_the_map(rounds):
    generator = np.random.default_rng(0)
    for _ in range(3000):
        stride = int(generator.choice([4, 7, 8, 14, 16, 32]))
        height, width = (int(n) for n in generator.integers(stride, 40 * stride, 2))
        size = rounds(height / stride), rounds(width / stride)
        known = Known(image_size=(height, width))
        assert known.grid("p", math.prod(size), Grid("map", (1, 1))) == Grid("map", size)


def test_what_is_known_counts_in_order():
    square, wide = Grid("window", (3, 3)), Grid("window", (2, 8))
    assert Known().grid("p", 25, square) == square
    assert Known().grid("p", 45, wide) is None  # 8x2, 3x5 and 5x3 have as many
    assert Known(supposed={"p": wide}).grid("p", 45, square) == wide
    assert Known(sizes={"p": (8, 2)}, supposed={"p": wide}).grid("p", 45, wide).size == (8, 2)
    with pytest.raises(ValueError, match="it has 45 rows, its file says a window of 2x2"):
        Known(sizes={"p": (2, 2)}).grid("p", 45, wide)
    token = Grid("map", (4, 4), extra=1)
    assert Known(image_size=(16, 64)).grid("p", 65, token) == Grid("map", (4, 16), extra=1)


@pytest.mark.parametrize("grids", ["[]", "{", '{"p": 3}', '{"p": [0, 2]}', '{"p": [2, "2"]}'])
def test_sizes_in_metadata_that_are_none(grids):
    with pytest.raises(files.WeightsFileError, match="metadata 'grids'"):
        files.known_grids({"grids": grids})
