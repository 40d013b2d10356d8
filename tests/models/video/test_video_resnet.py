"""VideoResNet: what C2D and I3D compute, the extents of blocks, sizes, memory, weights of images,
counts, and refusals.
"""

import functools
import importlib.metadata

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from covering import part
from flax import nnx
from jaxpr_macs import jaxpr_macs

import models
from lambdanet.analysis import summary
from lambdanet.attention import create_attention
from lambdanet.interop import files
from lambdanet.interop.names import convert
from lambdanet.training import start_up, state, weights
from models.extent import run_block
from models.video.inflation import inflated
from models.video.video_resnet import VideoResNet

TINY = dict(blocks=(1, 2), widths=(4, 8), num_classes=5, image_size=(16, 12), frames=8)
SPARSE = dict(pooling="sparse", stem_frame_stride=1)
NEEDS_OPTIONS = importlib.metadata.version("jaxlib").startswith("0.10.")  # to recompute on CPU
SMALL_LAMBDA = dict(name="lambda", key_depth=4, num_heads=2, scope=3)


def build(name="c2d_resnet50", **options):
    return models.create_model(name, **{**TINY, **options}, rngs=nnx.Rngs(0))


def abstract(name="c2d_resnet50", **options):
    return nnx.eval_shape(functools.partial(build, name, **options))


def evaluating(model):
    return nnx.view(model, deterministic=True, use_running_average=True)


def clips(*size):
    return jax.ShapeDtypeStruct((2, *size, 3), "float32")


def shapes(model, x):
    graph, values = nnx.split(evaluating(model))
    run = lambda values, x: nnx.merge(graph, values).features(x)  # noqa: E731
    return [tuple(one.shape[1:4]) for one in jax.eval_shape(run, values, x)]


def random_arrays(model):
    """Random weights and statistics, by name."""
    _, params, stats = state.split_model(model)
    rng = np.random.default_rng(0)
    arrays = {}
    for name, leaf in (state.flatten_names(params) | state.flatten_names(stats)).items():
        array = 0.3 * rng.normal(size=leaf.shape)
        arrays[name] = np.exp(array) if name.endswith(("var", "scale")) else array
    return {name: array.astype(np.float32) for name, array in arrays.items()}


def fill(arrays, *trees):
    return [
        state.unflatten_names({name: arrays[name] for name in state.flatten_names(tree)}, tree)
        for tree in trees
    ]


def close(ours, theirs):
    """Equal up to rounding, which is that of the largest numbers."""
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * float(np.abs(theirs).max()) + 1e-9)


def run_features(model, arrays, x):
    graph, *trees = state.split_model(model)
    run = jax.jit(lambda params, stats, x: nnx.merge(graph, params, stats).features(x))
    return run(*fill(arrays, *trees), x)


def from_images(model, arrays):
    """The arrays for a network of clips."""
    _, params, stats = state.split_model(model)
    flat = state.flatten_names(params) | state.flatten_names(stats)
    return {name: model.fit_array(name, arrays[name], leaf.shape) for name, leaf in flat.items()}


@pytest.fixture(scope="module")
def image_network():
    options = {key: value for key, value in TINY.items() if key != "frames"}
    model = nnx.eval_shape(lambda: models.create_model("resnet50", **options, rngs=nnx.Rngs(0)))
    return evaluating(model), random_arrays(model)


def test_c2d_with_poolings_in_space_is_the_network_on_images_frame_by_frame(image_network):
    images, arrays = image_network
    video = evaluating(abstract(pooling="space", stem_frame_stride=1))
    x = np.random.default_rng(1).normal(size=(2, 2, 16, 12, 3)).astype(np.float32)
    ours = run_features(video, from_images(video, arrays), x)
    theirs = run_features(images, arrays, x.reshape(4, 16, 12, 3))
    for one, other in zip(ours, theirs, strict=True):
        close(one.reshape(other.shape), other)


def test_inflated_kernels_give_of_a_still_clip_what_they_give_of_the_image(image_network):
    images, arrays = image_network
    options = dict(stem_frames=5, stem_frame_stride=1, pooling="space", inflation="3x1x1")
    video = evaluating(abstract(**options, inflated_blocks=("all", (2,))))
    assert video.stages[1].blocks[1].conv1.conv.kernel.shape == (3, 1, 1, 32, 8)
    x = np.random.default_rng(1).normal(size=(1, 1, 16, 12, 3)).astype(np.float32)
    ours = run_features(video, from_images(video, arrays), np.tile(x, (1, 9, 1, 1, 1)))
    theirs = run_features(images, arrays, x[0])
    for one, other in zip(ours, theirs, strict=True):  # two, one and one frame from the borders
        close(one[:, 4], other)
    assert float(jnp.abs(ours[-1][:, 0] - theirs[-1]).max()) > 1e-3


def test_kernels_of_the_middle_frame_give_of_a_clip_what_they_give_of_its_frames(image_network):
    images, arrays = image_network
    options = dict(stem_frames=5, stem_frame_stride=1, pooling="space", inflation="3x1x1")
    video = evaluating(abstract(**options, image_weights="centre"))
    x = np.random.default_rng(1).normal(size=(1, 3, 16, 12, 3)).astype(np.float32)
    ours = run_features(video, from_images(video, arrays), x)
    theirs = run_features(images, arrays, x[0])
    for one, other in zip(ours, theirs, strict=True):
        close(one[0], other)


@pytest.mark.exhaustive
def test_a_segmenter_starts_a_network_with_blocks_of_its_own(tmp_path):
    net = dict(blocks=(1, 1), widths=(4, 8), stem="strided", block="basic")
    backbone = dict({k: v for k, v in net.items() if k != "block"}, name="resnet18")
    head = dict(name="fcn", channels=4)
    options = dict(backbone=backbone, head=head, num_classes=3)
    reader = nnx.eval_shape(lambda: models.create_model("segmenter", **options, rngs=nnx.Rngs(1)))
    arrays = random_arrays(reader)
    path = tmp_path / "reader.safetensors"
    files.save_safetensors(path, arrays, files.export_metadata({"name": "segmenter"}))
    blocks = dict(
        context=dict(name="nonlocal", after="stage1.1"),
        attention=(None, dict(SMALL_LAMBDA, spatial_dims=3)),
        **dict(inflation="3x3x3", image_weights="centre", frames=4, pooling="space"),
    )
    model = build("c2d_resnet50", **net, **blocks)
    own = {**state.flatten_names(state.split_model(model)[1])}
    read = weights.read_weights(path, model, *state.split_model(model)[1:], head="new")
    kept = ("stages/0/blocks/0/context", "stages/1/blocks/0/attention", "head/fc")
    kept += ("stages/1/blocks/0/norm_attention",)
    found = state.flatten_names(read[0])
    assert all(any(name.startswith(path) for name in found) for path in kept)
    for name, array in found.items():
        stored = own[name] if name.startswith(kept) else arrays[f"backbone/{name}"]
        if array.shape != stored.shape:
            centre = len(array) // 2
            assert not np.delete(array, centre, 0).any()
            array = array[centre]
        np.testing.assert_array_equal(array, stored, err_msg=name)
    with pytest.raises(ValueError, match="missing"):
        weights.read_weights(path, model, *state.split_model(model)[1:])


def test_weights_of_images_start_a_network_of_clips(image_network, tmp_path):
    images, arrays = image_network
    video = functools.partial(build, stem_frames=5, inflation="3x3x3", num_classes=7)
    model = nnx.eval_shape(video)
    path = tmp_path / "images.safetensors"
    files.save_safetensors(path, arrays, files.export_metadata({"name": "resnet50", **TINY}))
    params, stats = state.abstract_weights(video)
    for leaf_name in ("head/fc/kernel", "head/fc/bias"):
        assert leaf_name in state.flatten_names(params)
    params = jax.tree.map(lambda leaf: np.full(leaf.shape, 3, leaf.dtype), params)
    read, _ = weights.read_weights(path, model, params, stats, head="new")
    read = state.flatten_names(read)
    assert np.all(read["head/fc/kernel"] == 3)
    kernel = read["stem/conv1/conv/kernel"]
    assert kernel.shape == (5, 7, 7, 3, 4)
    np.testing.assert_allclose(kernel.sum(0), arrays["stem/conv1/conv/kernel"], rtol=1e-5)
    name = "stages/0/blocks/0/conv2/conv/kernel"
    np.testing.assert_allclose(read[name], np.stack([arrays[name] / 3] * 3), rtol=1e-6)
    with pytest.raises(ValueError, match="head/fc/kernel"):
        weights.read_weights(path, model, params, stats)


@pytest.mark.parametrize(
    ("options", "first", "second"),
    [
        (dict(), (4, 8, 6), (2, 4, 3)),
        (dict(pooling="code"), (4, 7, 5), (2, 4, 3)),
        (dict(pooling="sparse", stem_frame_stride=1), (16, 8, 6), (8, 4, 3)),
        (dict(pooling="space", stem="cifar"), (8, 32, 24), (8, 16, 12)),
    ],
)
def test_sizes(options, first, second):
    model = abstract(**options)
    assert shapes(model, clips(16, 32, 24)) == [first, second]
    for size, info in zip((first, second), model.feature_info, strict=True):
        assert -(-16 // info["frame_stride"]) == size[0]
        assert info["stride"] == {8: 4, 7: 4, 4: 8, 32: 1, 16: 2}[size[1]]
    assert [frames for frames, *_ in shapes(model, clips(1, 9, 5))] == [1, 1]


def test_extents():
    block = create_attention(
        dict(name="nonlocal", zero_init="none", init="torch"), 4, rngs=nnx.Rngs(0)
    )
    block = nnx.view(block, use_running_average=True)
    x = np.random.default_rng(0).normal(size=(2, 3, 2, 4, 4)).astype(np.float32)
    call = jax.jit(block)
    found = {
        extent: np.asarray(jax.jit(functools.partial(run_block, extent, block))(x))
        for extent in ("space", "time", "spacetime")
    }
    frames = np.stack([call(x[:, t]) for t in range(3)], 1)
    np.testing.assert_allclose(found["space"], frames, rtol=1e-4, atol=1e-5)
    pixels = np.stack([np.stack([call(x[:, :, i, j]) for j in range(4)], 2) for i in range(2)], 2)
    np.testing.assert_allclose(found["time"], pixels, rtol=1e-4, atol=1e-5)
    whole = found["spacetime"]
    np.testing.assert_allclose(whole, call(x), rtol=1e-5, atol=1e-6)
    assert min(float(np.abs(whole - one).max()) for one in (frames, pixels)) > 1e-3


BLOCKS = {
    "spacetime": ("nonlocal", "cgnl", "double_attention", "criss_cross", "gc", "se"),
    "space": ("interlaced", dict(name="cbam", reduction=2), dict(name="nonlocal", extent="space")),
    "time": (dict(name="nonlocal", extent="time"),),
}
MIXERS = {
    "spacetime": (
        dict(SMALL_LAMBDA, spatial_dims=3),
        dict(name="linformer", num_heads=2),
        dict(name="mhsa", num_heads=2),
    ),
    "space": (SMALL_LAMBDA, dict(name="slide", num_heads=2), dict(name="window", num_heads=2)),
    "time": (dict(SMALL_LAMBDA, spatial_dims=1, extent="time"),),
}


def test_every_context_block_stands_in_one_network_and_counts_its_work():
    entries = [
        {**({"name": spec} if isinstance(spec, str) else spec), "after": "stage2.1"}
        for specs in BLOCKS.values()
        for spec in specs
    ]
    model = abstract(context=tuple(entries), **SPARSE)
    extents = [extent for extent, specs in BLOCKS.items() for _ in specs]
    assert dict(model.stages[1].blocks[0].context_extents) == {"post": tuple(extents)}
    check_summary(model)


@pytest.mark.parametrize("extent", MIXERS)
def test_mixers_by_extent(extent):
    for spec in MIXERS[extent]:
        model = abstract(attention=spec, attention_blocks=((), (1, 2)), **SPARSE)
        assert [block.extent for block in model.stages[1].blocks] == [extent] * 2
        check_summary(model)
    assert model.stages[0].blocks[0].attention is None


def check_summary(model):
    """Rows, sizes and work are those of the traced network."""
    rows = summary.summarise(model, 16, 12)
    assert rows[-1]["path"] == "head/fc"
    sizes = [
        next(r["output_shape"][:3] for r in reversed(rows) if r["path"].startswith(f"stages/{n}/"))
        for n in range(2)
    ]
    assert sizes == shapes(model, clips(8, 16, 12))


def test_macs_are_those_of_the_traced_network():
    # Kernels of one frame: what XLA's convolutions do is what they count. Pixels over time, too.
    model = evaluating(abstract(stem_frames=5, inflation="3x1x1", inflated_blocks=((), (2,))))
    graph, values = nnx.split(model)
    x = jax.ShapeDtypeStruct((1, 8, 16, 12, 3), "float32")
    traced = jaxpr_macs(lambda values, x: nnx.merge(graph, values)(x), values, x)
    assert model.macs(16, 12) == traced


def test_a_tied_mixer_gets_the_size_of_the_clip_at_its_place():
    spec = dict(name="linformer", num_heads=2)
    model = abstract(attention=spec, attention_blocks=((), (1, 2)), **SPARSE)
    first, second = (block.attention.size for block in model.stages[1].blocks)
    assert (first, second) == ((4, 4, 3), (4, 2, 2))


@pytest.mark.exhaustive
def test_recomputation_changes_no_gradient():
    small = dict(image_size=(8, 8), stem="cifar", **SPARSE)
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 4, 3)).astype(np.float32)
    found = []
    for remat in ("none", "block", "stage"):
        model = nnx.view(abstract(**small, remat=remat), deterministic=True)
        graph, params, stats = state.split_model(model)
        trees = fill(random_arrays(model), params, stats)

        def loss(params, stats, x, graph=graph):
            return jnp.sum(jnp.sin(nnx.merge(graph, params, stats)(x)))

        options = start_up.recomputing_options(model)
        assert bool(options) == (NEEDS_OPTIONS and remat != "none")
        value, gradient = jax.jit(jax.value_and_grad(loss), compiler_options=options)(*trees, x)
        found.append((value, state.flatten_names(gradient)))
    (value, expected), *others = found
    assert float(np.abs(expected["stem/conv1/conv/kernel"]).max()) > 0
    for other, gradient in others:
        np.testing.assert_allclose(other, value, rtol=1e-4)
        for name, array in expected.items():
            close(gradient[name], array)


def test_bfloat16_is_that_of_the_maps_and_not_of_the_logits():
    graph, values = nnx.split(evaluating(abstract(dtype="bfloat16", inflation="3x1x1")))

    def run(values, x):
        model = nnx.merge(graph, values)
        return model(x), model.features(x)

    logits, maps = jax.eval_shape(run, values, clips(8, 16, 12))
    assert (logits.shape, logits.dtype) == ((2, 5), jnp.float32)
    assert {one.dtype for one in maps} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.exhaustive
def test_recomputation_halves_the_memory_of_long_clips():
    """64 frames of 112x112: bytes that the compiler plans for beside weights and clip."""

    def planned(remat):
        options = dict(blocks=(3, 4), widths=(16, 32), image_size=(112, 112), frames=64)
        model = nnx.view(abstract(**options, remat=remat), deterministic=True)
        graph, params, stats = state.split_model(model)

        def loss(params, stats, x):
            return jnp.sum(nnx.merge(graph, params, stats)(x))

        x = jax.ShapeDtypeStruct((1, 64, 112, 112, 3), "float32")
        options = start_up.recomputing_options(model)
        gradient = jax.jit(jax.grad(loss), compiler_options=options)
        compiled = gradient.lower(params, stats, x).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert planned("block") < 0.5 * planned("none")


C2D_50, I3D_50, C2D_101 = 24_327_632, 28_043_472, 43_319_760
# nine blocks more of res4 have a 3x1x1 in place of the first 1x1
I3D_101 = C2D_101 + I3D_50 - C2D_50 + 9 * 2 * 1024 * 256
NL5 = 2 * 526_592 + 3 * 2_101_760
CGNL5 = 2 * (3 * 512 * 256 + 512 * 256 // 8 + 2 * 512) + 3 * 1_640_448
COUNTS = {
    **dict.fromkeys(("c2d_resnet50", "c2d_resnet50_8x8"), C2D_50),  # pytorchvideo's c2d_r50
    **dict.fromkeys(("i3d_resnet50", "i3d_resnet50_8x8"), I3D_50),  # pytorchvideo's i3d_r50
    "slow_resnet50": 32_454_096,
    "i3d_resnet50_3x3x3": 33_433_808,
    "nl_c2d_resnet50": C2D_50 + 2_101_760,
    **dict.fromkeys(("nl5_c2d_resnet50", "nl5_c2d_resnet50_8x8"), C2D_50 + NL5),
    "nl10_c2d_resnet50": C2D_50 + 4 * 526_592 + 6 * 2_101_760,
    **dict.fromkeys(("nl5_i3d_resnet50", "nl5_i3d_resnet50_8x8"), I3D_50 + NL5),
    "cgnl_c2d_resnet50": C2D_50 + 1_640_448,
    "cgnl5_c2d_resnet50": C2D_50 + CGNL5,
    "a2_c2d_resnet50_8x8": 31_682_000,
    "c2d_resnet101": C2D_101,
    "i3d_resnet101": I3D_101,
    "i3d_resnet101_3x3x3": 63_042_768,
    "nl_c2d_resnet101": C2D_101 + 2_101_760,
    "nl5_c2d_resnet101": C2D_101 + NL5,
    "nl5_i3d_resnet101": I3D_101 + NL5,
    "cgnl_c2d_resnet101": C2D_101 + 1_640_448,
    "cgnl5_c2d_resnet101": C2D_101 + CGNL5,
    "small_i3d": 27 * 16
    + 2 * 9 * 16**2  # stem, first stage
    + (27 * 16 + 9 * 32 + 16) * 32  # second: 3x3x3, 1x3x3, shortcut
    + (27 * 32 + 9 * 64 + 32) * 64
    + 2 * (3 * 16 + 3 * 32 + 3 * 64)  # norms
    + 65 * 400,
}
COVERING = [
    *("c2d_resnet50", "i3d_resnet50", "slow_resnet50", "i3d_resnet50_3x3x3", "nl5_c2d_resnet50"),
    *("cgnl5_c2d_resnet50", "a2_c2d_resnet50_8x8", "i3d_resnet101", "small_i3d"),
]


def test_every_preset_is_counted():
    ours = {name for name in models.list_models() if models.registry.lookup(name)[0] is VideoResNet}
    assert ours == set(COUNTS)


@pytest.mark.parametrize("name", part(COUNTS, COVERING))
def test_counts(name):
    model = nnx.eval_shape(lambda: models.create_model(name, rngs=nnx.Rngs(0)))
    leaves = jax.tree.leaves(nnx.state(model, nnx.Param))
    assert sum(leaf.size for leaf in leaves) == COUNTS[name]


def test_inflated_blocks_of_the_paper():
    def stages(blocks):
        found = inflated("paper", blocks)
        return [tuple(b for s, b in sorted(found) if s == stage) for stage in range(len(blocks))]

    assert stages((3, 4, 6, 3)) == [(0, 1, 2), (0, 2), (0, 2, 4), (1,)]
    assert stages((3, 4, 23, 3))[2] == tuple(range(0, 23, 2))
    assert inflated(((), "all", (2,)), (1, 2, 3)) == {(1, 0), (1, 1), (2, 1)}


def test_pytorchvideo_names():
    model = abstract("i3d_resnet50_8x8", blocks=(1, 1, 1, 1), widths=(4, 4, 4, 4))
    _, params, stats = state.split_model(model)
    ours = state.flatten_names(params) | state.flatten_names(stats)
    norm = ("weight", "bias", "running_mean", "running_var")
    keys = {"blocks.0.conv.weight": (4, 3, 5, 7, 7), **{f"blocks.0.norm.{n}": (4,) for n in norm}}
    for number, dim in ((1, 4), (3, 16), (4, 16), (5, 16)):
        block = f"blocks.{number}.res_blocks.0."
        frames = 1 if number == 5 else 3
        for conv, of, shape in (
            ("branch1_conv", "branch1_norm", (16, dim, 1, 1, 1)),
            ("branch2.conv_a", "branch2.norm_a", (4, dim, frames, 1, 1)),
            ("branch2.conv_b", "branch2.norm_b", (4, 4, 1, 3, 3)),
            ("branch2.conv_c", "branch2.norm_c", (16, 4, 1, 1, 1)),
        ):
            keys[f"{block}{conv}.weight"] = shape
            keys |= {f"{block}{of}.{one}": shape[:1] for one in norm}
            keys[f"{block}{of}.num_batches_tracked"] = ()
    keys |= {"blocks.6.proj.weight": (5, 16), "blocks.6.proj.bias": (5,)}
    arrays = {key: np.zeros(shape, np.float32) for key, shape in keys.items()}
    shapes = {name: tuple(leaf.shape) for name, leaf in ours.items()}
    found = convert(arrays, model.torch_names["pytorchvideo"], shapes)
    assert found.keys() == shapes.keys()
    assert {"pytorchvideo", "torchvision"} <= set(model.torch_names)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (dict(frames=0), "frames is 0; allowed: a positive integer"),
        (dict(stem_frames=4), "stem_frames is 4; allowed: odd"),
        (dict(pooling="papers"), "pooling is 'papers'; allowed: .* Did you mean 'paper'"),
        (dict(inflation="3x1x1", block="basic"), "inflation is '3x1x1'; allowed: 'none', '3x3x3'"),
        (dict(inflated_blocks=((), (3,))), r"inflated_blocks\[1\] is \(3,\); .* from 1 to 2"),
        (dict(inflated_blocks="all"), "inflated_blocks is 'all'; allowed: 'paper', or a tuple"),
        (
            dict(context=dict(name="interlaced", after="stage1.1", extent="spacetime")),
            "context has the extent 'spacetime'; allowed for 'interlaced': space",
        ),
        (
            dict(attention=dict(name="lambda", extent="spacetime")),
            "allowed for 'lambda': space, or spatial_dims=3",
        ),
        (
            dict(context=(dict(name="cgnl", after="stage1.1", extent="frame"),)),
            r"context\[0\] has the extent 'frame'; allowed: spacetime, space, time",
        ),
        (dict(context=dict(name="cgnl", after="stage1.1", extend="space")), "mean 'extent'"),
        (dict(share_embeddings=True), "no option 'share_embeddings'"),
    ],
)
def test_refused_options(options, text):
    with pytest.raises(ValueError, match=text):
        abstract(**options)


def test_other_refusals():
    with pytest.raises(ValueError, match="no option 'extent'"):
        context = dict(name="nonlocal", after="stage1.1", extent="space")
        models.model_builder("resnet50", context=context)
    with pytest.raises(ValueError, match=r"expected \[batch, frames, height, width, 3\]"):
        abstract().features(jnp.zeros((2, 16, 12, 3)))
    with pytest.raises(ValueError, match="'c2d_resnet50' is no backbone of images"):
        models.model_builder("segmenter", backbone="c2d_resnet50", num_classes=3)
