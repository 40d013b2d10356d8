"""Runs that start from weights whose pictures were normalised otherwise say so."""

import io

import numpy as np
import pytest
from run_helpers import quick_compilation

import eval as program
import train
from configs import base, finetune
from lambdanet.interop import files, sources
from lambdanet.training import advice, weights
from models import pretrained

IMAGENET = pretrained.MEAN, pretrained.STD


def config_of(source, mean=(0.5,), std=(0.5,)):
    config = base.get_config("smoke")
    config.train.init_weights, config.train.steps = str(source), 2
    config.train.keep_best = config.train.cache_dir = ""
    config.data.mean, config.data.std = mean, std
    return config


def data_of(mean=(0.5,), std=(0.5,)):
    return {"mean": mean, "std": std}


@pytest.fixture(scope="module")
def run_of(tmp_path_factory):
    """The workdir of a run on pictures of mean 0.4 and deviation 0.3."""
    workdir = tmp_path_factory.mktemp("runs") / "first"
    with quick_compilation():
        train.run(config_of("", (0.4,), (0.3,)), workdir, stream=io.StringIO())
    return workdir


@pytest.mark.parametrize("exported", [False, True])
def test_a_run_and_its_export_know_how_their_pictures_were_normalised(run_of, tmp_path, exported):
    source = str(tmp_path / "w.safetensors" if exported else run_of)
    told = files.export_metadata({"name": "m"}, normalisation={"mean": [0.4], "std": [0.3]})
    files.save_safetensors(tmp_path / "w.safetensors", {"w": np.ones(3)}, told)
    assert weights.normalisation_of(source) == {"mean": (0.4,), "std": (0.3,)}
    (text,) = advice.normalisation_advice(source, data_of())
    assert "data.mean=(0.5,) and data.std=(0.5,)" in text and source in text
    assert "--config.data.mean='(0.4,)' --config.data.std='(0.3,)'" in text
    for same in (((0.4,), (0.3,)), ((0.4,) * 3, (0.3,) * 3)):
        assert not advice.normalisation_advice(source, data_of(*same))


def test_a_run_says_it_once_at_its_start(run_of, tmp_path):
    config, said = config_of(run_of), [io.StringIO(), io.StringIO()]
    with quick_compilation():
        train.run(config, tmp_path / "w", stream=said[0])
        train.run(config, tmp_path / "w", stream=said[1])
    counts = [" ".join(text.getvalue().split()).count("learnt from had others") for text in said]
    assert counts == [1, 0]


def test_an_evaluation_of_such_weights_says_it(run_of, capsys):
    for mean, says in ((0.5, 1), (0.4, 0)):
        config = config_of("", (mean,), (0.3,))
        program.load_subject(config, weights=run_of)
        said = " ".join(capsys.readouterr().out.split())
        assert said.count("give --config.data.mean='(0.4,)' --config.data.std='(0.3,)'") == says


def test_an_evaluation_asks_the_table_of_public_weights(tmp_path, monkeypatch, capsys):
    path = tmp_path / "w.safetensors"
    files.save_safetensors(path, {"fc.weight": np.ones(3)})

    def found(source):  # what is fetched of the hub
        return source if isinstance(source, sources.Source) else sources.Source(path, False, source)

    monkeypatch.setattr(sources, "resolve", found)
    program.load_subject(config_of(""), weights=pretrained.TABLE["resnet50"].source)
    said = " ".join(capsys.readouterr().out.split())
    assert f"--config.data.mean='{pretrained.MEAN}'" in said


def test_public_weights_know_it_by_the_table(monkeypatch):
    monkeypatch.setattr(weights, "normalisation_of", lambda source: {})
    source = pretrained.TABLE["resnet50"].source
    for named in (source, f"{source}@main", f"{source}/model.safetensors"):
        assert advice.normalisation_advice(named, data_of(), pretrained.normalisation)
        own = data_of(*IMAGENET)
        assert not advice.normalisation_advice(named, own, pretrained.normalisation)
    for other in ("hf:somebody/else", f"{source}x", "weights.pth"):
        assert not advice.normalisation_advice(other, data_of(), pretrained.normalisation)


@pytest.mark.parametrize(
    "stored", ["[]", "{}", '{"mean": [0.5]}', '{"mean": "a", "std": [1]}', "{"]
)
def test_what_a_file_says_of_it_must_be_numbers(tmp_path, stored):
    told = files.export_metadata({"name": "m"}) | {"normalisation": stored}
    with pytest.raises(files.WeightsFileError, match="metadata 'normalisation'"):
        files.normalisation_of(told)
    assert files.normalisation_of({"normalisation": stored}) == {}  # a file of somebody else
    kept = files.export_metadata({"name": "m"}, normalisation={"mean": IMAGENET[0], "std": (1,)})
    assert files.normalisation_of(kept) == {"mean": IMAGENET[0], "std": (1.0,)}


@pytest.mark.parametrize(
    "arg", ["", "small_semantic_fpn,segmentation", "mask_rcnn_swin_tiny,detection",
            "faster_rcnn_resnet50_mmdet,detection", "small_retinanet,detection"],
)  # fmt: skip
def test_fine_tuning_begins_with_the_normalisation_of_imagenet(arg):
    config = finetune.get_config(arg)
    assert (tuple(config.data.mean), tuple(config.data.std)) == IMAGENET
