"""The import program: grammars, what is printed and written, conversions that have to be asked for,
and errors.

The files imported are state dicts of reference networks, from the golden fixtures.
"""

from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from flax import nnx
from golden_harness import Fixture

import models
from lambdanet.attention.window import resize_table
from lambdanet.interop import files
from lambdanet.interop.names import NameMappingError, choose_table, convert
from lambdanet.training import state, weights
from models import import_weights
from models.hierarchical.embeddings import resize_positions

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
SHAPE = dict(widths=(4, 8, 16, 32), num_heads=(1, 2, 2, 4), num_classes=10)
SWIN = dict(SHAPE, blocks=(2, 2, 2, 1), image_size=(64, 96))
SLIDE_SWIN = dict(SHAPE, blocks=(1, 2, 2, 1), image_size=(64, 64))
PVT = dict(
    blocks=(1, 2, 1, 2),
    widths=(4, 8, 12, 16),
    num_heads=(1, 2, 3, 4),
    mlp_ratios=(4, 4, 2, 2),
    num_classes=10,
    image_size=(64, 64),
)


def windows(side):
    return tuple(dict(name=name, window_size=side) for name in ("window", "shifted_window"))


SWIN["attention"] = (windows((4, 3)),) * 4
SLIDE_SWIN["attention"] = ("slide", "slide", windows(2), windows(2))
# What says that the windows of the fixture are as our options have them.
LIKE_OURS = f"--source-option=image_size={SWIN['image_size']}"


def state_dict(name):
    return Fixture.load(GOLDEN / f"{name}.npz").under("param/")


def official_swin():
    """The state dict of timm's network in the authors' grammar, with the buffers that their files
    have.
    """
    official = {}
    for key, array in state_dict("swin_net_a").items():
        if ".downsample." in key:
            stage = int(key.split(".")[1])
            key = key.replace(f"layers.{stage}.", f"layers.{stage - 1}.")
        official[key.replace("head.fc.", "head.")] = array
    official["layers.0.blocks.0.attn.relative_position_index"] = np.zeros((12, 12), np.int64)
    official["layers.0.blocks.1.attn_mask"] = np.zeros((32, 12, 12), np.float32)
    return official


def save(path, arrays):
    safetensors.numpy.save_file(
        {key: np.ascontiguousarray(array) for key, array in arrays.items()}, path
    )
    return path


@pytest.fixture
def run(tmp_path, capsys):
    """Runs the program on a state dict: (error or None, what it printed, path of what it wrote)."""

    def run(arrays, model, options, *flags, name="out.safetensors"):
        source = (
            save(tmp_path / "source.safetensors", arrays) if isinstance(arrays, dict) else arrays
        )
        chosen = [f"--option={key}={value!r}" for key, value in options.items()]
        out = tmp_path / name
        error = import_weights.main(
            [str(source), "--model", model, *chosen, "--out", str(out), *flags]
        )
        return error, capsys.readouterr().out, out

    return run


def build(name, options):
    return lambda: models.create_model(name, **options, rngs=nnx.Rngs(0))


def load(path, name, options):
    """Reads a file as `eval.py --weights` and `train.init_weights` do."""
    make = build(name, options)
    params, stats = weights.read_weights(path, nnx.eval_shape(make), *state.abstract_weights(make))
    return state.flatten_names(params) | state.flatten_names(stats)


# --------------------------------------------------------------------------------------------------
# The program
# --------------------------------------------------------------------------------------------------


def test_official_swin_file_is_written_in_our_layout(run, tmp_path):
    theirs = official_swin()
    error, printed, out = run(
        {f"module.{key}": array for key, array in theirs.items()}, "swin_tiny", SWIN, LIKE_OURS
    )
    assert error is None, error
    ours = load(out, "swin_tiny", SWIN)
    np.testing.assert_array_equal(
        ours["stages/1/embed/reduction/kernel"], theirs["layers.0.downsample.reduction.weight"].T
    )
    np.testing.assert_array_equal(
        ours["stages/3/embed/norm/scale"], theirs["layers.2.downsample.norm.weight"]
    )
    np.testing.assert_array_equal(ours["head/fc/bias"], theirs["head.bias"])
    assert sum(array.size for array in ours.values()) == sum(
        array.size for array in state_dict("swin_net_a").values()
    )
    with pytest.raises(NameMappingError, match="its 35 rows do not say .* a window of 4x3"):
        load(save(tmp_path / "official.safetensors", theirs), "swin_tiny", SWIN)

    rows = [" ".join(line.split()) for line in printed.splitlines()]
    assert (
        "layers.0.downsample.reduction.weight 8x16 stages/1/embed/reduction/kernel 16x8 linear"
        in rows
    )
    assert "layers.0.blocks.1.attn_mask 32x12x12 - dropped" in rows
    total = sum(array.size for array in ours.values())
    assert (
        f"swin_tiny: {len(ours)} arrays, {total:,} numbers, from {len(theirs)} keys (names: "
        "official); 2 dropped" in rows
    )
    assert len(rows) == 1 + len(theirs) + 2
    stored = files.model_of(files.read_metadata(out))
    assert (
        stored.pop("name") == "swin_tiny"
        and set(stored) == set(SWIN)
        and stored["blocks"] == [2, 2, 2, 1]
    )


def test_a_folder_that_does_not_exist_is_told_before_anything_is_read(tmp_path):
    error = import_weights.main(
        ["none.pth", "--model", "swin_tiny", "--out", str(tmp_path / "no" / "x.safetensors")]
    )
    assert "no/x.safetensors; its folder does not exist. Fix:" in error


def test_an_existing_file_stays_unless_overwriting_is_asked_for(run):
    _, _, out = run(official_swin(), "swin_tiny", SWIN, LIKE_OURS)
    out.write_bytes(b"mine")
    error, _, _ = run(official_swin(), "swin_tiny", SWIN)
    assert (
        "out.safetensors exists; give another name, or --overwrite" in error
        and out.read_bytes() == b"mine"
    )
    error, _, _ = run(official_swin(), "swin_tiny", SWIN, LIKE_OURS, "--overwrite")
    assert error is None and files.read_metadata(out)["layout"] == "lambdanet"
    error, _, again = run(
        out, "swin_tiny", SWIN, name="again.safetensors"
    )  # a file of ours may be the source, too
    assert error is None, error
    first, second = load(out, "swin_tiny", SWIN), load(again, "swin_tiny", SWIN)
    assert all(np.array_equal(array, second[name]) for name, array in first.items())


def test_what_cannot_be_done_is_said(run, tmp_path):
    theirs = official_swin()
    assert (
        "unknown model 'swin_tinny'. Did you mean 'swin_tiny'?" in run(theirs, "swin_tinny", {})[0]
    )
    assert "image_sise" in run(theirs, "swin_tiny", dict(image_sise=3))[0]
    assert "--option is 'blocks'" in run(theirs, "swin_tiny", {}, "--option=blocks")[0]
    assert (
        "out.npz; allowed: a name that ends in .safetensors"
        in run(theirs, "swin_tiny", SWIN, name="out.npz")[0]
    )
    assert "no weights file" in run(tmp_path / "none.pth", "swin_tiny", SWIN)[0]
    damaged = save(tmp_path / "damaged.safetensors", theirs)
    damaged.write_bytes(damaged.read_bytes()[:-8])
    assert "no readable safetensors file" in run(damaged, "swin_tiny", SWIN)[0]
    assert "neither the authors' code nor weights are public" in run(theirs, "lavit_tiny", {})[0]
    theirs["layers.9.blocks.0.norm1.weight"] = theirs.pop("norm.weight")
    theirs["head.weight"] = theirs["head.weight"][:7]
    error, _, out = run(theirs, "swin_tiny", SWIN)
    for text in (
        "source.safetensors (names: official): the weights do not fit the model",
        "1 missing",
        "norm/scale (32,)",
        "layers.9.blocks.0.norm1.weight (32,): the model has no stages/9/blocks/0/norm1/scale",
        "head.weight (7, 32) -> head/fc/kernel: gives (32, 7), the model has (32, 10)",
    ):
        assert text in error, error
    assert not out.exists()


@pytest.mark.parametrize(("flags", "prefer_ema"), [((), True), (("--live",), False)])
def test_live_or_averaged_weights(run, monkeypatch, flags, prefer_ema):
    def read_state(path, **options):
        raise files.WeightsFileError(str(options))

    monkeypatch.setattr(files, "read_state", read_state)
    error, _, _ = run(official_swin(), "swin_tiny", SWIN, *flags)
    assert f"'prefer_ema': {prefer_ema}" in error


# --------------------------------------------------------------------------------------------------
# Grammars
# --------------------------------------------------------------------------------------------------


def grammar(name, options, keys):
    model = nnx.eval_shape(build(name, options))
    return choose_table(model.torch_names, keys, state.flatten_names(state.split_model(model)[1]))


def test_the_grammar_is_told_by_the_keys():
    timm, official = state_dict("swin_net_a"), official_swin()
    assert grammar("swin_tiny", SWIN, timm) == "timm"
    assert grammar("swin_tiny", SWIN, official) == "official"
    bodies = [[key for key in keys if not key.startswith("head")] for keys in (timm, official)]
    assert [grammar("swin_tiny", SWIN, keys) for keys in bodies] == ["timm", "official"]
    official = state_dict("pvtv2_net_a")
    assert grammar("pvt_v2_b1", PVT, official) == "official"
    timm = [
        "patch_embed.proj.weight",
        "stages.1.downsample.proj.weight",
        "stages.0.blocks.0.mlp.dwconv.weight",
    ]
    assert grammar("pvt_v2_b1", PVT, timm) == "timm"


@pytest.mark.parametrize("family", ["swin", "pvt", "pvt_v2", "cswin", "nat"])
def test_slide_stages_of_every_family_have_names(family):
    """Names of the Slide-Swin code below `attn.`, whatever the family's own attention is called."""
    model = nnx.eval_shape(build(f"slide_{family}_digits", {}))
    at = {
        "swin": "layers.0.blocks.0",
        "pvt": "block1.0",
        "pvt_v2": "block1.0",
        "cswin": "stage1.0",
        "nat": "levels.0.blocks.0",
    }
    leaves = state.flatten_names(state.split_model(model)[1])
    shapes = {
        name: leaf.shape
        for name, leaf in leaves.items()
        if name.startswith("stages/0/blocks/0/attention/")
    }
    inner = {"qkv.weight": (96, 32), "qkv.bias": (96,), "proj.weight": (32, 32), "proj.bias": (32,)}
    inner |= {"dep_conv.bias": (144,), "dep_conv1.weight": (144, 1, 3, 3), "dep_conv1.bias": (144,)}
    inner |= {"relative_position_bias_table": (1, 2, 1, 9, 1, 1)}
    theirs = {
        f"{at[family]}.attn.{key}": np.zeros(shape, np.float32) for key, shape in inner.items()
    }
    theirs[f"{at[family]}.attn.dep_conv.weight"] = np.tile(
        np.eye(9, dtype=np.float32), (16, 1)
    ).reshape(144, 1, 3, 3)
    table = model.torch_names["official"]
    assert {name: array.shape for name, array in convert(theirs, table, shapes).items()} == shapes
    theirs[f"{at[family]}.attn.dep_conv.weight"] *= 2
    with pytest.raises(
        NameMappingError, match="dep_conv.weight -> dropped: this kernel is not the fixed shift"
    ):
        convert(theirs, table, shapes)


# --------------------------------------------------------------------------------------------------
# Conversions
# --------------------------------------------------------------------------------------------------


@pytest.mark.exhaustive
def test_window_tables_are_resized_on_demand(run):
    theirs = state_dict("slide_swin_net_a")
    wide = dict(
        SLIDE_SWIN, image_size=(128, 128), attention=("slide", "slide", windows((3, 2)), windows(2))
    )
    made_with = f"--source-option=attention={SLIDE_SWIN['attention']!r}"
    error, _, _ = run(theirs, "slide_swin_tiny", wide, "--resize-tables")
    assert (
        "its 9 rows do not say of which height and width; a window of 7x7, as supposed, has 169; "
        "the model has a window of 3x2 (the import program: --source-option)" in error
    )
    error, _, _ = run(theirs, "slide_swin_tiny", wide, made_with)
    assert (
        "it is for a window of 2x2, the model has a window of 3x2" in error
        and "--resize-tables" in error
        and "--warm" not in error
    )
    error, printed, out = run(theirs, "slide_swin_tiny", wide, made_with, "--resize-tables")
    assert error is None, error
    assert printed.count("resized from a window of 2x2") == 2 and ", 2 resized" in printed
    ours, same = (
        load(out, "slide_swin_tiny", wide),
        load(save(out.with_name("s"), theirs), "slide_swin_tiny", SLIDE_SWIN),
    )
    for name, array in ours.items():
        expected = same[name]
        if name.startswith("stages/2/") and name.endswith("relative_bias"):
            expected = resize_table(expected, (2, 2), (3, 2))
        np.testing.assert_array_equal(array, expected, err_msg=name)
    square = dict(SWIN, attention=(windows(2),) * 4)
    made_with = f"--source-option=attention={SWIN['attention']!r}"
    flags = ("--resize-tables", made_with)
    error, _, out = run(official_swin(), "swin_tiny", square, *flags, name="square.safetensors")
    assert error is None, error
    table = official_swin()["layers.0.blocks.0.attn.relative_position_bias_table"]
    np.testing.assert_array_equal(
        load(out, "swin_tiny", square)["stages/0/blocks/0/attention/relative_bias"],
        resize_table(table, (4, 3), (2, 2)),
    )


def test_learned_positions_are_resized_on_demand(run):
    theirs, tall = state_dict("pvt_net_a"), dict(PVT, image_size=(96, 64))
    made_with = f"--source-option=image_size={PVT['image_size']}"
    error, _, _ = run(theirs, "pvt_tiny", tall, "--resize-tables")
    assert "pos_embed1 -> stages/0/position_embedding: its 256 rows do not say" in error
    assert "a map of 56x56, as supposed, has 3136" in error  # the preset's
    for size in ((96, 64), (32, 128)):  # the other has as many positions, elsewhere on the map
        error, _, _ = run(theirs, "pvt_tiny", dict(PVT, image_size=size), made_with)
        own = f"{size[0] // 4}x{size[1] // 4}"
        assert f"it is for a map of 16x16, the model has a map of {own}" in error
        assert "--resize-tables" in error
    error, printed, out = run(theirs, "pvt_tiny", tall, made_with, "--resize-tables")
    assert error is None and "; 4 resized" in printed, error
    ours = load(out, "pvt_tiny", tall)
    table = theirs["pos_embed4"][0]
    np.testing.assert_array_equal(ours["stages/3/class_position"], table[:1])
    for stage, cells in ((1, theirs["pos_embed2"][0]), (3, table[1:])):
        side = int(len(cells) ** 0.5)
        at_run_time = resize_positions(cells, (side, side), (side * 3 // 2, side)).reshape(
            -1, cells.shape[1]
        )
        np.testing.assert_allclose(
            ours[f"stages/{stage}/position_embedding"], at_run_time, atol=1e-5
        )


@pytest.mark.exhaustive
def test_slide_attention_starts_from_swin_on_demand(run):
    theirs = official_swin()
    slide = dict(SWIN, attention=("slide", "slide", *SWIN["attention"][2:]))
    error, _, _ = run(theirs, "slide_swin_tiny", slide)
    assert "missing" in error and "--warm-start-slide" in error
    flags = ("--warm-start-slide", "--seed=3", LIKE_OURS)
    error, printed, out = run(theirs, "slide_swin_tiny", slide, *flags)
    assert error is None, error
    ours = load(out, "slide_swin_tiny", slide)
    key, path, heads, dim = "layers.1.blocks.0.attn", "stages/1/blocks/0/attention", 2, 8
    depth = dim // heads
    for head, part, column in np.ndindex(heads, 3, depth):
        row, source = head * 3 * depth + part * depth + column, part * dim + head * depth + column
        np.testing.assert_array_equal(
            ours[f"{path}/qkv/kernel"][:, row], theirs[f"{key}.qkv.weight"][source]
        )
        assert ours[f"{path}/qkv/bias"][row] == theirs[f"{key}.qkv.bias"][source]
    np.testing.assert_array_equal(ours[f"{path}/output/kernel"], theirs[f"{key}.proj.weight"].T)
    names = [
        f"{path}/{name}"
        for name in ("position_bias", "fixed_bias", "deformed_kernel", "deformed_bias")
    ]

    def initial_values():
        flat = state.flatten_names(
            state.split_model(models.create_model("slide_swin_tiny", **slide, rngs=nnx.Rngs(3)))[1]
        )
        return [flat[name] for name in names]

    for name, value in zip(names, state.initialise(initial_values, None), strict=True):
        np.testing.assert_allclose(ours[name], value, rtol=1e-6, err_msg=name)
    assert "; 2 dropped, 4 left out, 16 with their initial value" in printed
    table = theirs["layers.2.blocks.0.attn.relative_position_bias_table"]
    np.testing.assert_array_equal(ours["stages/2/blocks/0/attention/relative_bias"], table)


def test_slide_attention_starts_from_a_query_and_a_pair(run):
    theirs = state_dict("pvt_net_a")
    slide = dict(
        PVT,
        attention=(
            "slide",
            "slide",
            *(dict(name="spatial_reduction", sr_ratio=ratio) for ratio in (2, 1)),
        ),
    )
    error, printed, out = run(theirs, "slide_pvt_tiny", slide, "--warm-start-slide")
    assert error is None, error
    ours = load(out, "slide_pvt_tiny", slide)
    key, path = "block2.1.attn", "stages/1/blocks/1/attention"
    joint = np.concatenate([theirs[f"{key}.q.weight"], theirs[f"{key}.kv.weight"]])
    for head, part, column in np.ndindex(2, 3, 4):
        row = head * 12 + part * 4 + column
        np.testing.assert_array_equal(
            ours[f"{path}/qkv/kernel"][:, row], joint[part * 8 + head * 4 + column]
        )
    rows = [" ".join(line.split()) for line in printed.splitlines()]
    assert f"{key}.q.weight 8x8 {path}/qkv/kernel 8x24 linear, to qkv/kernel, head by head" in rows
    assert f"{key}.sr.weight 8x8x4x4 - left out: slide attention has none" in rows


def test_a_warm_start_that_does_not_apply(run):
    theirs = state_dict("slide_swin_net_a")
    error, _, _ = run(theirs, "slide_swin_tiny", SLIDE_SWIN, "--warm-start-slide")
    assert "the file has the weights of every slide attention" in error
    for flag in ("--warm-start-slide", "--merge-slide", "--split-slide"):
        assert (
            f"{flag}: the model has no slide attention" in run(theirs, "swin_tiny", SWIN, flag)[0]
        )


def merged_grammar(theirs):
    """A file of the merged form, as the public code would write it with one convolution."""
    merged = {key: array for key, array in theirs.items() if ".dep_conv1." not in key}
    for key in merged:
        if ".dep_conv." in key:
            merged[key] = merged[key] + theirs[key.replace("dep_conv.", "dep_conv1.")]
    return merged


@pytest.mark.exhaustive
def test_slide_attention_is_merged_and_split_on_demand(run):
    theirs = state_dict("slide_swin_net_a")
    error, printed, out = run(theirs, "slide_swin_tiny", SLIDE_SWIN, "--merge-slide")
    assert error is None, error
    stored = files.model_of(files.read_metadata(out))
    assert stored["attention"][:2] == [{"name": "slide", "merged": True}] * 2 and stored[
        "attention"
    ][2] == list(windows(2))
    options = dict(
        SLIDE_SWIN, attention=(dict(name="slide", merged=True),) * 2 + SLIDE_SWIN["attention"][2:]
    )
    ours, path, key = (
        load(out, "slide_swin_tiny", options),
        "stages/1/blocks/1/attention",
        "layers.1.blocks.1.attn",
    )
    merged = merged_grammar(theirs)
    kernel = np.moveaxis(merged[f"{key}.dep_conv.weight"], (0, 1), (-1, -2))
    np.testing.assert_allclose(ours[f"{path}/deformed_kernel"], kernel, rtol=1e-6)
    np.testing.assert_allclose(
        ours[f"{path}/deformed_bias"], merged[f"{key}.dep_conv.bias"], rtol=1e-6, atol=1e-7
    )
    assert f"{path}/fixed_bias" not in ours

    # The merged file itself: as it is for a merged model, split for the other, refused without the
    # flag.
    error, _, direct = run(merged, "slide_swin_tiny", options, name="direct.safetensors")
    assert error is None, error
    loaded = load(direct, "slide_swin_tiny", options)
    assert all(
        np.allclose(loaded[name], array, rtol=1e-6, atol=1e-7) for name, array in ours.items()
    )
    error, _, _ = run(merged, "slide_swin_tiny", SLIDE_SWIN, name="x.safetensors")
    assert "is not the fixed shift" in error and "--split-slide" in error
    error, printed, split = run(
        merged, "slide_swin_tiny", SLIDE_SWIN, "--split-slide", name="split.safetensors"
    )
    assert error is None, error
    again = load(split, "slide_swin_tiny", SLIDE_SWIN)
    kernel = np.moveaxis(theirs[f"{key}.dep_conv1.weight"], (0, 1), (-1, -2))
    np.testing.assert_allclose(again[f"{path}/deformed_kernel"], kernel, atol=2e-7)
    np.testing.assert_allclose(
        again[f"{path}/deformed_bias"], merged[f"{key}.dep_conv.bias"], rtol=1e-6
    )
    assert not again[f"{path}/fixed_bias"].any()
    error, _, _ = run(theirs, "slide_swin_tiny", options, name="y.safetensors")
    assert "dep_conv1.weight" in error and "--merge-slide" in error
