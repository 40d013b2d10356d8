"""PyTorch checkpoints of dense-prediction backbones: mmsegmentation's and transformers' Swin, norms
on the outputs, deep stems, files with a classifier for networks without.
"""

import numpy as np
import pytest
from flax import nnx

import models
from lambdanet.interop.names import NameMappingError, choose_table, convert
from lambdanet.training.state import flatten_names

WIDTHS, HEADS, WINDOW = (8, 16), (2, 4), 3
RANDOM = np.random.default_rng(0)


def shapes_of(name, **options):
    model = nnx.eval_shape(lambda: models.create_model(name, rngs=nnx.Rngs(0), **options))
    leaves = flatten_names(nnx.to_pure_dict(nnx.state(model, (nnx.Param, nnx.BatchStat))))
    return model, {path: leaf.shape for path, leaf in leaves.items()}


def swin(**options):
    from models.hierarchical.swin import windows

    return shapes_of(
        "swin_tiny",
        blocks=(1, 2),
        widths=WIDTHS,
        num_heads=HEADS,
        mlp_ratios=(2, 2),
        attention=(windows(WINDOW, fit=False),) * 2,
        **options,
    )


def pair(name, *shape):
    draw = RANDOM.standard_normal
    return {f"{name}.weight": draw(shape), f"{name}.bias": draw(shape[:1])}


def official_swin(*, outputs):
    """State of the authors' code for dense tasks (norms on the outputs) or for classification."""
    state = pair("patch_embed.proj", WIDTHS[0], 3, 4, 4) | pair("patch_embed.norm", WIDTHS[0])
    for stage, (dim, heads, blocks) in enumerate(zip(WIDTHS, HEADS, (1, 2), strict=True)):
        for index in range(blocks):
            at = f"layers.{stage}.blocks.{index}"
            state |= pair(f"{at}.norm1", dim) | pair(f"{at}.norm2", dim)
            state |= pair(f"{at}.attn.qkv", 3 * dim, dim) | pair(f"{at}.attn.proj", dim, dim)
            state |= pair(f"{at}.mlp.fc1", 2 * dim, dim) | pair(f"{at}.mlp.fc2", dim, 2 * dim)
            table = RANDOM.standard_normal(((2 * WINDOW - 1) ** 2, heads))
            state[f"{at}.attn.relative_position_bias_table"] = table
            state[f"{at}.attn.relative_position_index"] = np.zeros((WINDOW**2, WINDOW**2))
        if outputs:
            state |= pair(f"norm{stage}", dim)
    state |= pair("layers.0.downsample.norm", 4 * WIDTHS[0])
    state["layers.0.downsample.reduction.weight"] = RANDOM.standard_normal((16, 32))
    return state if outputs else state | pair("norm", 16) | pair("head", 5, 16)


def unfolded(array):
    """Columns of patch merging in the order of an unfolded map: each channel's four positions, row
    by row; the authors' code has each position's channels, column by column.
    """
    channels, out = array.shape[-1] // 4, np.empty_like(array)
    for channel in range(channels):
        for row, column in np.ndindex(2, 2):
            theirs = (2 * column + row) * channels + channel
            out[..., 4 * channel + 2 * row + column] = array[..., theirs]
    return out


def as_mmseg(state):
    renamed = {}
    for key, array in state.items():
        array = unfolded(array) if "downsample" in key else array
        for old, new in (
            ("layers.", "stages."),
            ("attn.", "attn.w_msa."),
            ("mlp.fc1", "ffn.layers.0.0"),
            ("mlp.fc2", "ffn.layers.1"),
            ("patch_embed.proj", "patch_embed.projection"),
        ):
            key = key.replace(old, new)
        renamed[key] = array
    return renamed


def as_transformers(state, *, modules):
    """The names in a file, or those of the modules of version 5."""
    renamed = {}
    parts = ("q_proj", "k_proj", "v_proj") if modules else ("self.query", "self.key", "self.value")
    table = "relative_position_bias." if modules else "self."
    names = (
        ("patch_embed.proj.", "embeddings.patch_embeddings.projection."),
        ("patch_embed.norm.", "embeddings.norm."),
        ("norm0.", "hidden_states_norms.stage1."),
        ("layers.", "encoder.layers."),
        (".norm1.", ".layernorm_before."),
        (".norm2.", ".layernorm_after."),
        ("norm1.", "hidden_states_norms.stage2."),
        ("attn.proj", "attention.o_proj" if modules else "attention.output.dense"),
        ("attn.relative", f"attention.{table}relative"),
        ("mlp.fc1", "mlp.fc1" if modules else "intermediate.dense"),
        ("mlp.fc2", "mlp.fc2" if modules else "output.dense"),
        ("head.", "classifier."),
    )
    for key, array in state.items():
        theirs = key
        for old, new in names:
            theirs = new + theirs[len(old) :] if theirs.startswith(old) else theirs
            theirs = theirs.replace(old, new) if old[0] in ".am" else theirs
        theirs = "layernorm." + key[5:] if key.startswith("norm.") else theirs
        if ".attn.qkv." in key:
            for part, piece in zip(parts, np.split(array, 3), strict=True):
                renamed[theirs.replace("attn.qkv", f"attention.{part}")] = piece
        else:
            renamed[theirs] = array
    bare = {"hidden_states_norms", "classifier"}
    with_prefix = modules or "head.weight" in state
    return {
        key if key.split(".")[0] in bare or not with_prefix else f"swin.{key}": array
        for key, array in renamed.items()
    }


FORMS = {
    "mmseg": ("mmseg", as_mmseg),
    "file of transformers": ("transformers", lambda s: as_transformers(s, modules=False)),
    "modules of transformers": ("transformers", lambda s: as_transformers(s, modules=True)),
}


@pytest.mark.parametrize("outputs", [True, False], ids=["dense", "classifier"])
@pytest.mark.parametrize("form", FORMS)
def test_swin_in_other_names_is_the_same_network(form, outputs):
    grammar, rename = FORMS[form]
    model, shapes = swin(
        **(dict(num_classes=0, output_norm=True) if outputs else {"num_classes": 5})
    )
    state = official_swin(outputs=outputs)
    theirs, tables = rename(state), model.torch_names
    assert choose_table(tables, state, shapes) == "official"
    assert choose_table(tables, theirs, shapes) == grammar
    expected = convert(state, tables["official"], shapes)
    found = convert(theirs, tables[grammar], shapes)
    assert expected.keys() == found.keys() == shapes.keys()
    for path, array in expected.items():
        np.testing.assert_array_equal(found[path], array, err_msg=path)


def test_a_missing_projection_and_a_wrong_one_are_named():
    model, shapes = swin(num_classes=0, output_norm=True)
    state = as_transformers(official_swin(outputs=True), modules=False)
    at = "encoder.layers.0.blocks.0.attention.self"
    del state[f"{at}.key.weight"]
    state[f"{at}.value.bias"] = np.zeros(9)
    with pytest.raises(NameMappingError) as error:
        convert(state, model.torch_names["transformers"], shapes)
    text = str(error.value)
    assert r"stages/0/blocks/0/attention/qkv/kernel [2/3] (8, 8)" in text
    assert "value.bias (9,) -> stages/0/blocks/0/attention/qkv/bias [3/3]: gives (9,)" in text


@pytest.mark.parametrize(("name", "first"), [("cswin_tiny", 1), ("nat_mini", 0), ("swin_tiny", 0)])
def test_norms_on_the_outputs_have_the_names_of_the_authors_code(name, first):
    model, shapes = shapes_of(name, num_classes=0, output_norm=True)
    widths = [info["channels"] for info in model.feature_info]
    state = {}
    for number, width in enumerate(widths, first):
        state |= pair(f"norm{number}", width)
    found = convert(state, model.torch_names["official"], shapes, require_all=False)
    for number in range(4):
        for theirs, ours in (("weight", "scale"), ("bias", "bias")):
            array = state[f"norm{number + first}.{theirs}"]
            np.testing.assert_array_equal(found[f"output_norms/{number}/{ours}"], array)


def test_a_network_without_class_token_takes_the_positions_of_the_map():
    options = dict(blocks=(1, 1), widths=(8, 16), num_heads=(1, 2), mlp_ratios=(1, 1))
    options |= dict(attention="mhsa", image_size=(32, 32))
    model, shapes = shapes_of("pvt_tiny", num_classes=0, **options)
    state = {
        "pos_embed1": RANDOM.standard_normal((1, 64, 8)),
        "pos_embed2": RANDOM.standard_normal((1, 17, 16)),
        "cls_token": RANDOM.standard_normal((1, 1, 16)),
        **pair("norm", 16),
        **pair("head", 5, 16),
    }
    found = convert(state, model.torch_names["official"], shapes, require_all=False)
    assert found.keys() == {f"stages/{i}/position_embedding" for i in (0, 1)}
    np.testing.assert_array_equal(found["stages/0/position_embedding"], state["pos_embed1"][0])
    np.testing.assert_array_equal(found["stages/1/position_embedding"], state["pos_embed2"][0, 1:])


STEMS = {
    "official": ("conv{0}", "bn{0}", (1, 2, 3)),
    "mmseg": ("stem.{0}", "stem.{1}", (0, 3, 6)),
    "timm": ("conv1.{0}", "conv1.{1}", (0, 3, 6)),  # the last norm is bn1
}


@pytest.mark.parametrize("grammar", STEMS)
@pytest.mark.parametrize("stem", ["deep", "deep_narrow"])
@pytest.mark.parametrize("shortcut", ["conv", "avg"])
def test_deep_stems(grammar, stem, shortcut):
    if (stem, shortcut) == ("deep", "avg"):
        with pytest.raises(ValueError, match="no PyTorch name table for stem='deep' with"):
            _ = shapes_of("resnet50", stem=stem, shortcut=shortcut)[0].torch_names
        return
    model, shapes = shapes_of(
        "resnet50",
        blocks=(1,),
        widths=(8,),
        stem=stem,
        shortcut=shortcut,
        output_stride=8,
        num_classes=0,
    )
    if grammar not in model.torch_names:
        assert grammar == "official" and stem == "deep_narrow"
        return
    state, channels = {}, {"deep": (3, 8, 8, 16), "deep_narrow": (3, 4, 4, 8)}[stem]
    conv, norm, numbers = STEMS[grammar]
    at = ("0", "1") if shortcut == "conv" else ("1", "2")
    layers = [
        (conv.format(n), norm.format(n, n + 1), (o, i, 3, 3))
        for n, o, i in zip(numbers, channels[1:], channels, strict=False)
    ]
    if grammar == "timm":
        layers[2] = (layers[2][0], "bn1", layers[2][2])
    layers += [
        (f"layer1.0.conv{n}", f"layer1.0.bn{n}", shape)
        for n, shape in enumerate(((8, channels[-1], 1, 1), (8, 8, 3, 3), (32, 8, 1, 1)), 1)
    ]
    layers.append(
        (f"layer1.0.downsample.{at[0]}", f"layer1.0.downsample.{at[1]}", (32, channels[-1], 1, 1))
    )
    for conv_name, norm_name, shape in layers:
        state[f"{conv_name}.weight"] = RANDOM.standard_normal(shape)
        norm_state = {part: RANDOM.standard_normal(shape[:1]) for part in ("weight", "bias")}
        norm_state |= {part: RANDOM.random(shape[:1]) for part in ("running_mean", "running_var")}
        state |= {f"{norm_name}.{part}": array for part, array in norm_state.items()}
    state |= pair("fc", 5, 32)  # of the file's classifier, dropped
    if stem == "deep" or grammar == "mmseg":
        assert choose_table(model.torch_names, state, shapes) == grammar
    found = convert(state, model.torch_names[grammar], shapes)
    assert found.keys() == shapes.keys()
    norm_name = layers[0][1]
    scale = state[f"{norm_name}.weight"]
    np.testing.assert_array_equal(
        found["stem/conv1/norm/scale"], abs(scale) + 1e-5 if grammar == "official" else scale
    )
