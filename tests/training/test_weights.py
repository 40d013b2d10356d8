"""Starting a run from a weights file: our layout, PyTorch's names, old and new classifier."""

import jax
import numpy as np
import optax
import pytest
from flax import nnx

import models
from configs import base
from lambdanet.interop import files
from lambdanet.interop.grids import grids_of
from lambdanet.interop.names import NameMappingError
from lambdanet.training import mesh, state, weights

TINY = dict(blocks=(1, 1), widths=(8, 8), attention=None)


def build(num_classes=10, seed=0):
    return models.create_model(
        "lambda_resnet_digits", num_classes=num_classes, rngs=nnx.Rngs(seed), **TINY
    )


def fresh_state(num_classes=10, ema=True):
    """A function that makes the state of step 0, and its shardings."""
    init = state.make_init(lambda: build(num_classes, seed=1), optax.sgd(0.1), ema=ema)
    return init, mesh.state_shardings(jax.eval_shape(init), mesh.make_mesh(), 2**18)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A weights file in our layout, and the names and arrays in it."""
    _, params, stats = state.split_model(build())
    flat = {
        k: np.asarray(v)
        for k, v in (state.flatten_names(params) | state.flatten_names(stats)).items()
    }
    path = tmp_path_factory.mktemp("weights") / "own.safetensors"
    files.save_safetensors(path, flat, files.export_metadata({"name": "lambda_resnet_digits"}))
    return path, flat


def section(path, **options):
    train = base.get_config().train
    train.update({"init_weights": str(path)} | options)
    return train


def test_everything_is_taken_and_the_averages_start_there_too(saved):
    path, flat = saved
    init, shardings = fresh_state()
    now = weights.start(init, section(path), build(), shardings)
    for tree in ({**now.params}, now.ema["params"]):
        for name, leaf in state.flatten_names(tree).items():
            np.testing.assert_array_equal(leaf, flat[name], err_msg=name)
    pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves((now.params, now.ema))]
    assert len(set(pointers)) == len(
        pointers
    )  # or donating the state would give one buffer away twice


def test_a_new_head_keeps_its_initialisation(saved):
    path, flat = saved
    init, shardings = fresh_state(num_classes=7)
    head = np.asarray(state.initialise(init, shardings).params["head"]["fc"]["kernel"])
    after = weights.start(init, section(path, init_head="new"), build(7), shardings)
    np.testing.assert_array_equal(after.params["head"]["fc"]["kernel"], head)
    stem = next(k for k in flat if k.startswith("stem") and k.endswith("kernel"))
    np.testing.assert_array_equal(state.flatten_names(after.params)[stem], flat[stem])
    init, shardings = fresh_state()
    after = weights.start(init, section(path, init_head="new"), build(), shardings)
    assert not np.array_equal(after.params["head"]["fc"]["kernel"], flat["head/fc/kernel"])


def test_another_head_without_being_asked_for_is_an_error(saved):
    init, shardings = fresh_state(num_classes=7)
    with pytest.raises(NameMappingError, match="head/fc/kernel"):
        weights.start(init, section(saved[0]), build(7), shardings)


PVT = dict(
    blocks=(1, 1), widths=(16, 16), num_heads=(1, 2), mlp_ratios=(2, 2), num_classes=3,
    attention=("mhsa", "mhsa"), pool="mean",
)  # fmt: skip


def pvt(size):
    return lambda: models.create_model("pvt_tiny", image_size=size, rngs=nnx.Rngs(0), **PVT)


@pytest.mark.parametrize("size", [(32, 32), (64, 16)])
@pytest.mark.parametrize("says", ["grids", "image_size", "nothing"])
def test_as_many_positions_of_a_map_of_another_shape_are_refused(tmp_path, size, says):
    """16x64 images have a map of 4x16; 8x8 and 16x4 have as many positions."""
    flat = {n: a for p in state.split_model(pvt((16, 64))())[1:]
            for n, a in state.flatten_names(p).items()}  # fmt: skip
    path, options = tmp_path / "w.safetensors", dict(name="pvt_tiny", **PVT)
    grids = grids_of(nnx.eval_shape(pvt((16, 64)))) if says == "grids" else None
    options |= {"image_size": (16, 64)} if says == "image_size" else {}
    files.save_safetensors(path, flat, files.export_metadata(options, grids))

    def read(size):
        _, params, stats = state.split_model(nnx.eval_shape(pvt(size)))
        return weights.read_weights(path, nnx.eval_shape(pvt(size)), params, stats)

    own = f"{size[0] // 4}x{size[1] // 4}"
    if says != "nothing":
        read((16, 64))
        with pytest.raises(
            NameMappingError, match=f"for a map of 4x16, the model has a map of {own}.*--resize"
        ):
            read(size)
    else:  # taken for the model's own map where that is square, as nearly all published ones are
        with pytest.raises(NameMappingError, match="64 rows do not say .* 4x16 .*--source-option"):
            read((16, 64))
        if size == (32, 32):
            read(size)


def test_live_and_averaged_weights_by_choice(monkeypatch, tmp_path):
    """The switch reaches the reader of files from the start of a run."""
    (tmp_path / "x.pth").write_text("")
    given = []

    def read_state(path, **options):
        given.append(options["prefer_ema"])
        raise files.WeightsFileError("enough")

    monkeypatch.setattr(files, "read_state", read_state)
    init, shardings = fresh_state(ema=False)
    for options in ({}, {"init_average": "live"}):
        with pytest.raises(files.WeightsFileError, match="enough"):
            weights.start(init, section(tmp_path / "x.pth", **options), build(), shardings)
    assert given == [True, False]


def test_a_segmenter_starts_from_a_classifier_and_keeps_its_own_heads(tmp_path):
    def classifier():
        return models.create_model("pvt_tiny", image_size=(16, 64), rngs=nnx.Rngs(0), **PVT)

    flat = {n: a for p in state.split_model(classifier())[1:]
            for n, a in state.flatten_names(p).items()}  # fmt: skip
    path = tmp_path / "w.safetensors"
    metadata = files.export_metadata({"name": "pvt_tiny"}, grids_of(nnx.eval_shape(classifier)))
    files.save_safetensors(path, flat, metadata)

    def segmenter(size=(16, 64), **norms):
        options = {k: v for k, v in PVT.items() if k != "num_classes"} | norms
        return models.create_model(
            "segmenter", backbone=dict(name="pvt_tiny", **options), num_classes=5, image_size=size,
            head=dict(name="fcn", channels=8), rngs=nnx.Rngs(1),
        )  # fmt: skip

    model = segmenter()
    params, stats = state.split_model(model)[1:]
    read = weights.read_weights(path, model, params, stats, head="backbone")
    found = state.flatten_names(read[0])
    for name, leaf in state.flatten_names(params).items():
        of_file = flat[name.removeprefix("backbone/")] if name.startswith("backbone/") else leaf
        np.testing.assert_array_equal(found[name], of_file, err_msg=name)
    normed = segmenter(output_norm=True)  # of which classifiers have none
    own = state.split_model(normed)[1:]
    read = state.flatten_names(weights.read_weights(path, normed, *own, head="backbone")[0])
    for name, leaf in state.flatten_names(own[0]).items():
        kept = not name.startswith("backbone/") or "/output_norms/" in name
        of_file = leaf if kept else flat[name.removeprefix("backbone/")]
        np.testing.assert_array_equal(read[name], of_file, err_msg=name)
    with pytest.raises(NameMappingError, match="head/"):  # or everything has to be there
        weights.read_weights(path, model, params, stats)
    wide = nnx.eval_shape(lambda: segmenter((32, 32)))
    with pytest.raises(NameMappingError, match="for a map of 4x16, the model has a map of 8x8"):
        weights.read_weights(path, wide, *state.split_model(wide)[1:], head="backbone")
    # a segmenter's own file gives its backbone, too, under whatever head
    whole = {n: a for p in (params, stats) for n, a in state.flatten_names(p).items()}
    metadata = files.export_metadata({"name": "segmenter"}, grids_of(model))
    files.save_safetensors(path, {n: a + 1 for n, a in whole.items()}, metadata)
    read = weights.read_weights(path, model, params, stats, head="backbone")
    for name, leaf in state.flatten_names(params).items():
        expected = leaf + name.startswith("backbone/")
        np.testing.assert_array_equal(state.flatten_names(read[0])[name], expected, err_msg=name)
    with pytest.raises(NameMappingError, match="for a map of 4x16, the model has a map of 8x8"):
        weights.read_weights(path, wide, *state.split_model(wide)[1:], head="backbone")
    plain = nnx.eval_shape(classifier)
    with pytest.raises(ValueError, match="init_head='backbone' is for .*allowed: 'load', 'new'"):
        weights.read_weights(path, plain, *state.split_model(plain)[1:], head="backbone")


def test_what_does_not_fit_names_the_choice_that_would(tmp_path):
    """And none where there is none, or the one that was made."""

    def small(kind, classes, channels=3):
        options = dict(num_classes=classes, in_channels=channels, rngs=nnx.Rngs(0))
        if kind == "classifier":
            return models.create_model("resnet18", **net, **options)
        head = dict(name="fcn", channels=8)
        return models.create_model("segmenter", backbone=dict(name="resnet18", **net), head=head,
                                   **options)  # fmt: skip

    def says(stored, wanted, head):
        build, path = (lambda: small(*wanted)), tmp_path / "w.safetensors"
        flat = {n: a for part in state.split_model(small(*stored))[1:]
                for n, a in state.flatten_names(part).items()}  # fmt: skip
        files.save_safetensors(path, flat, files.export_metadata({"name": "any"}))
        init = state.make_init(build, optax.sgd(0.1), ema=False)
        with pytest.raises(ValueError) as caught:
            weights.start(init, section(path, init_head=head), nnx.eval_shape(build), None)
        return str(caught.value)

    net = dict(blocks=(1, 1), widths=(8, 8), stem="strided")
    own, other = ("classifier", 5), ("segmenter", 7)
    for head in ("load", "new"):
        assert "fits with --config.train.init_head=backbone, which" in says(own, other, head)
    assert "fits with --config.train.init_head=new" in says(own, ("classifier", 7), "load")
    assert "fits with --config.train.init_head=new" in says(own, ("classifier", 7), "backbone")
    assert "fits with --config.train.init_head=load" in says(own, own, "backbone")
    grey = ("segmenter", 7, 1)  # its first kernel has another shape, whatever is taken
    for head in set(weights.HEADS) - {"propagation"}:  # which it has not
        assert "Fix: build" in (said := says(own, grey, head)) and "init_head" not in said
