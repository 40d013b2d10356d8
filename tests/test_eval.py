"""eval.py: every mode on one tiny run, and what it says when it cannot."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import optax
import pytest
from covering import part
from flax import nnx
from ml_collections import ConfigDict, FrozenConfigDict
from PIL import Image

import eval as program
import models
import train
from configs import base
from lambdanet import config as configs
from lambdanet import data
from lambdanet.analysis import export, modes
from lambdanet.config_flag import load_recipe
from lambdanet.data import info_file, pseudo_labels
from lambdanet.interop import files
from lambdanet.training import compiling
from lambdanet.training.checkpoint import Checkpoints
from lambdanet.training.state import make_init

ROOT = Path(__file__).resolve().parent.parent
OPTIONS = dict(blocks=(1, 1), widths=(8, 16))


def make_run(workdir, name: str, **options):
    """Writes the config and a checkpoint of step 3, as train.py leaves them; EMA weights differ
    from the live ones.
    """
    config = base.get_config()
    config.data.source, config.data.synthetic_records, config.data.synthetic_classes = (
        "synthetic",
        22,
        3,
    )
    config.data.pseudo_split = "validation"
    config.train.batch_size, config.train.ema_decay = 8, 0.9
    config.model = {"name": name, **OPTIONS, **options}

    def build():
        return models.create_from_config(config, num_classes=3, rngs=nnx.Rngs(0))

    workdir.mkdir()
    configs.save(config, workdir)
    state = jax.jit(make_init(build, optax.identity(), ema=True))()
    state = state.replace(ema=jax.tree.map(lambda a: 1.5 * a, state.ema))
    checkpoints = Checkpoints(workdir, config.train.keep_last, config.train.keep_best)
    checkpoints.save(3, state, {"batches": 3}, configs.to_plain(config), {"accuracy": 0.5})
    checkpoints.close()
    return workdir


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("eval") / "run", "lambda_resnet_digits")


@pytest.fixture(scope="module")
def plain_workdir(tmp_path_factory):
    return make_run(
        tmp_path_factory.mktemp("eval") / "plain", "resnet_digits", blocks=(1,), widths=(8,)
    )


FLAGS = dict(
    workdir=None, weights=None, step="latest", average="live", split=None, batch_size=0,
    batch_sizes=[1, 8, 64], repeats=20, images=3, threshold=0.9, name="*", classes=None,
)  # fmt: skip


def run(mode: str, output, *, config=None, overrides=None, **given) -> dict:
    """Runs a mode as the command line would and returns what it wrote to its JSON file."""
    assert set(given) <= set(FLAGS)
    recipe = SimpleNamespace(path=config, overrides=overrides or {})
    if config:
        recipe.value = config if isinstance(config, ConfigDict) else load_recipe(str(config))
    program.run(mode, SimpleNamespace(**FLAGS | given, output=str(output)), recipe)
    path = output / f"{mode}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def error_of(mode: str, output, **given) -> str:
    with pytest.raises((ValueError, OSError)) as stop:
        run(mode, output, **given)
    return str(stop.value)


def test_accuracy_of_live_and_averaged_weights(workdir, tmp_path, capsys):
    result = run("accuracy", tmp_path, workdir=workdir, split="validation")
    assert result["split"] == "validation"
    for which in ("live", "ema"):
        assert (
            result[which]["count"] == 22
            and 0 <= result[which]["accuracy"] <= result[which]["top5"] == 1.0
        )
        assert result[which]["source"].endswith("step 3")
        wrong = result[which]["confusions"]
        assert wrong and all(row["true"] != row["predicted"] for row in wrong)
    assert "Most frequent confusions, live weights" in capsys.readouterr().out
    assert result["live"]["loss"] != result["ema"]["loss"]


@pytest.mark.exhaustive
def test_weights_of_another_run(workdir, tmp_path):
    """Averaged ones as of a file, live ones if asked for."""
    config = configs.load(workdir, base.get_config())
    for average, own in ((None, "ema"), ("live", "live")):
        given = dict(weights=workdir, average=average)
        (found, source), (expected, _) = (
            program.load_subject(config, **given).load_weights(),
            program.load_subject(workdir=workdir).load_weights(own),
        )
        assert source == str(workdir)
        jax.tree.map(np.testing.assert_array_equal, found, expected)
    config.train.init_weights = str(workdir)  # without --weights those that the recipe starts from
    assert program.load_subject(config).load_weights()[1] == str(workdir)
    config.train.init_head = "new"
    with pytest.raises(ValueError, match="weights are needed.*--weights=SOURCE"):
        program.load_subject(config).load_weights()
    said = error_of("accuracy", tmp_path, config=config, weights=str(tmp_path / "no.pth"))
    assert "no weights file" in said


def test_summary_counts_exactly(workdir, tmp_path):
    result = run("summary", tmp_path, workdir=workdir)
    model = nnx.eval_shape(
        lambda: models.create_model(
            "lambda_resnet_digits", rngs=nnx.Rngs(0), num_classes=3, **OPTIONS
        )
    )
    exact = sum(p.size for p in jax.tree.leaves(nnx.state(model, nnx.Param)))
    assert result["parameters"] == exact == sum(row["parameters"] for row in result["rows"])
    assert result["macs"] == model.macs(8, 8)
    assert result["compiler_flops"] == pytest.approx(2 * result["macs"], rel=0.5)


def test_summary_reads_the_weights_that_are_named(workdir, tmp_path, capsys):
    """In place of counting a model that they are not of."""
    file = tmp_path / "model.safetensors"
    files.save_safetensors(file, {"w": np.ones(3)}, files.export_metadata({"name": "resnet18"}))
    assert "model 'resnet18'" in error_of("summary", tmp_path, workdir=workdir, weights=file)
    run("summary", tmp_path, workdir=workdir, weights=workdir)
    assert f"The weights of {workdir} fit." in capsys.readouterr().out


def test_summary_of_a_recipe_without_its_data(tmp_path, capsys):
    recipe = tmp_path / "recipe.py"
    recipe.write_text(
        "from configs import base\n"
        "def get_config(arg):\n"
        "    config = base.get_config()\n"
        "    config.data.source, config.data.data_dir, config.data.channels = 'tfds', 'no/where', "
        "3\n"
        "    config.data.image_size, config.model.name = (224, 224), arg\n"
        "    return config\n"
    )
    result = run("summary", tmp_path, config=f"{recipe}:resnet18")
    assert result["parameters"] == 11_689_512
    assert "no/where" in capsys.readouterr().out, (
        "says why the number of classes is the model's own"
    )


def test_speed(workdir, tmp_path):
    result = run("speed", tmp_path, workdir=workdir, batch_sizes=[2], repeats=2)
    assert [r["batch_size"] for r in result["results"]] == [2]


@pytest.mark.exhaustive
def test_attention_pictures(workdir, tmp_path):
    pictures = run("attention", tmp_path, workdir=workdir, images=2)["pictures"]
    assert len(pictures) == 2, "one lambda layer in each of the two stages"
    for path in pictures.values():
        with Image.open(path) as picture:
            assert len(np.unique(np.asarray(picture.convert("L")))) > 100


@pytest.mark.exhaustive
def test_attention_of_a_model_without_any(plain_workdir, tmp_path):
    assert "no layer of this model can show its attention" in error_of(
        "attention", tmp_path, workdir=plain_workdir
    )


def test_exported_weights_are_a_weights_file(workdir, tmp_path, capsys, monkeypatch):
    """live -> export -> --weights gives the same accuracy as the checkpoint, and the exported
    program its logits. Weights that name no classes are taken in the order of the data's, and that
    is said, as is that the program is compiled.
    """
    monkeypatch.setattr(compiling, "SILENT", 0.001)
    result = run("export", tmp_path, workdir=workdir)
    assert "compiling the program for every platform" in capsys.readouterr().out
    assert result["reload_difference"] < 1e-5
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), dtype=np.uint8)
    assert export.load_exported(tmp_path / "model.stablehlo")(images).shape == (5, 3)
    own = run("accuracy", tmp_path, workdir=workdir)["live"]
    file = tmp_path / "model.safetensors"
    told = {k: v for k, v in files.read_metadata(file).items() if k != "data"}
    assert files.normalisation_of(told) == {"mean": (0.5,), "std": (0.5,)}
    files.save_safetensors(file, files.load_safetensors(file), told)
    capsys.readouterr()
    read = run("accuracy", tmp_path, workdir=workdir, weights=file)
    said = " ".join(capsys.readouterr().out.split())
    assert "do not name their classes: outputs are taken in the order of the data's" in said
    assert "ema" not in read
    assert {k: v for k, v in read["live"].items() if k != "source"} == {
        k: v for k, v in own.items() if k != "source"
    }


def test_pseudo_labels_can_be_trained_on(workdir, tmp_path):
    run("pseudo_label", tmp_path, workdir=workdir, threshold=0.1)
    split, ids, fields = pseudo_labels.read_fields(tmp_path / "pseudo_labels.json")
    assert split == "validation" and len(ids) and set(ids.tolist()) <= set(range(22))
    assert set(fields["label"].tolist()) <= {0, 1, 2}


def test_describe(tmp_path, capsys):
    run("describe", tmp_path, name="lambda_resnet_d*")
    assert "blocks" in capsys.readouterr().out
    run("describe", tmp_path, name="lambda*")
    assert "lambda_resnet50 " in capsys.readouterr().out.replace("\n", " \n")
    said = error_of("describe", tmp_path, name="lamdba")
    assert "no such model" in said and "Did you mean 'lambda'?" in said


def test_describe_knows_heads_and_the_options_of_the_parts_of_a_segmenter(tmp_path, capsys):
    run("describe", tmp_path, name="upernet")
    assert "pool_sizes" in capsys.readouterr().out
    run("describe", tmp_path, name="criss_cross")  # a block and a head
    said = capsys.readouterr().out
    assert "attention: context criss_cross" in said and "head: criss_cross: models" in said
    run("describe", tmp_path, name="small_semantic_fpn")
    said = capsys.readouterr().out
    head = said.split("options of config.model.head:")[1]
    assert "neck_channels: int | None = None\n  channels: int = 32\n" in head
    backbone = said.split("options of config.model.backbone:")[1]
    assert "zero_init_last: bool = False" in backbone and "num_classes" not in backbone
    assert "auxiliary: none here; allowed: context, criss_cross" in head
    run("describe", tmp_path)
    assert "head       upernet" in capsys.readouterr().out


ERRORS = {
    "nothing given": (dict(mode="accuracy"), "give --workdir=DIR"),
    "no run there": (dict(mode="accuracy", workdir="nowhere"), "config.json: no such file"),
    "no weights": (
        dict(mode="export", config="configs/base.py"),
        "weights are needed: give --workdir",
    ),
    "no such step": (dict(mode="accuracy", step="7"), "no checkpoint of step 7"),
    "bad step": (dict(mode="accuracy", step="last"), "allowed: best, latest"),
    "a step that only looks like a number": (dict(mode="accuracy", step="²"), "--step=²; allowed"),
    "a step of a file": (dict(mode="accuracy", step="3", weights="x.npz"), "a file has no steps"),
    "bad average": (dict(mode="accuracy", average="lve"), "--average=lve; allowed: live, ema"),
    "negative batch": (dict(mode="accuracy", batch_size=-1), "--batch_size=-1; allowed: 0 or more"),
    "no batch": (dict(mode="speed", batch_sizes=[1, 0]), "--batch_sizes=0; allowed: 1 or more"),
    "no call": (dict(mode="speed", repeats=0), "--repeats=0; allowed: 1 or more"),
    "no picture": (dict(mode="attention", images=0), "--images=0; allowed: 1 or more"),
    "no such split": (dict(mode="accuracy", split="tests"), "'tests'"),
    "missing weights file": (dict(mode="accuracy", weights="none.pth"), "none.pth"),
    "confidence not reached": (
        dict(mode="pseudo_label", threshold=1.0),
        "no record reaches confidence 1.0",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors(case, workdir, tmp_path):
    given, text = ERRORS[case]
    if case not in ("nothing given", "no weights", "no run there"):
        given = {"workdir": workdir} | given
    given = dict(given)
    assert text in error_of(given.pop("mode"), tmp_path, **given)


def test_an_output_that_cannot_be_is_named_by_its_flag(workdir, tmp_path):
    (tmp_path / "file").write_text("")
    text = error_of("summary", tmp_path / "file", workdir=workdir)
    assert "output = " in text and "name another with --output=DIR" in text


def test_weights_of_another_model(workdir, tmp_path):
    other = base.get_config()
    other.data.source, other.data.synthetic_classes = "synthetic", 4
    text = error_of("accuracy", tmp_path, workdir=workdir, config=other)
    assert "belongs to another model" in text and "head/fc/kernel" in text


def test_too_few_classes(workdir, tmp_path):
    overrides = {"model.num_classes": "2"}
    text = error_of("accuracy", tmp_path, workdir=workdir, overrides=overrides)
    assert "model.num_classes=2, but the data has 3" in text


@pytest.mark.parametrize(
    ("names", "said"),  # the data has '0', '1', '2'
    [
        (("1", "0", "2"), "(0 was '1', is '0', 1 was '0', is '1')"),
        (("2", "other", "0"), "(0 was '2', is '0', 1 was 'other', is '1', 2 was '0', is '2')"),
        (("0", "other", "2"), ""),  # one was called something else
    ],
)
def test_data_with_the_classes_under_other_numbers_are_not_scored(names, said, tmp_path, capsys):
    workdir = make_run(tmp_path / "run", "resnet_digits", blocks=(1,), widths=(8,))
    info_file.keep(data.DataInfo({}, names), workdir, begins=True)
    if not said:
        run("accuracy", tmp_path / "out", workdir=str(workdir))
        assert "The data has other classes than the weights were trained with: 1 was" in (
            capsys.readouterr().out
        )
        return
    text = error_of("accuracy", tmp_path / "out", workdir=str(workdir))
    assert f"the classes of {workdir} under other numbers {said}" in text
    assert f"in the order of the weights: {', '.join(names)}" in text


def test_nothing_is_prepared_where_only_a_config_of_a_run_points(workdir, tmp_path):
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    config = configs.load(workdir, base.get_config())
    config.data.source, config.data.data_dir = "digits", str(tmp_path / "elsewhere")
    configs.save(config, foreign)
    assert "does not exist" in error_of("accuracy", tmp_path, workdir=foreign)
    assert not (tmp_path / "elsewhere").exists()


def test_a_config_from_python_is_left_as_it_is_and_takes_the_overrides():
    config = base.get_config()
    config.train.init_weights, config.data.pseudo_labels = "start.npz", "labels.json"
    for given in (config, FrozenConfigDict(config)):
        needs = dict(needs_data=False, needs_weights=False)
        subject = program.load_subject(given, overrides={"seed": "3"}, **needs)
        assert subject.config.seed == 3 and not subject.config.train.init_weights
    assert config.train.init_weights == "start.npz" and config.data.pseudo_labels == "labels.json"
    assert config.seed == 0


@pytest.mark.parametrize("wrong", ["configs/digits.py", base.get_config().to_dict()])
def test_what_is_no_config_is_refused(wrong, tmp_path):
    kind = type(wrong).__name__
    for call in (program.load_subject, lambda config: train.run(config, tmp_path)):
        with pytest.raises(configs.ConfigError, match=f"must be a ConfigDict, not {kind}.*from_pl"):
            call(wrong)
    assert not list(tmp_path.iterdir())


WRITERS = {
    "pseudo_labels.json": lambda *given: program.label_split(*given, threshold=0.0),
    "attention.json": lambda *given: program.draw_attention(*given, images=1),
    "model.stablehlo": lambda *given: program.export_model(*given),
}


@pytest.mark.parametrize("name", part(WRITERS, ["pseudo_labels.json"]))
def test_folders_may_be_text_and_need_not_exist(name, workdir, tmp_path):
    folder = tmp_path / "a" / "b"
    WRITERS[name](program.load_subject(workdir=workdir), str(folder))
    assert list(folder.iterdir()) and (name == "attention.json" or (folder / name).exists())


def test_pictures_come_from_as_many_batches_as_they_need():
    black = np.zeros((4, 2, 2, 1), np.uint8)
    batches = [
        dict(image=black + i, mask=np.array(mask, np.float32))
        for i, mask in enumerate([[0, 0, 0, 0], [1, 0, 1, 1], [1, 1, 0, 0]])
    ]
    first, shapes = modes.first_images(batches, 4)
    assert first[:, 0, 0, 0].tolist() == [1, 1, 1, 2] and shapes.tolist() == [[2, 2]] * 4
    assert len(modes.first_images(batches, 99)[0]) == 5
    with pytest.raises(ValueError, match="no image of the split"):
        modes.first_images(batches[:1], 3)


def test_the_part_of_a_canvas_that_is_picture_is_known():
    """By what the task says, or by its labels, which padding has none of."""
    batch = dict(image=np.zeros((2, 8, 80, 3), np.uint8), mask=np.ones(2, np.float32))
    said = np.array([[8, 40], [1, 80]], np.int32)
    assert np.array_equal(modes.first_images([{**batch, "image_shape": said}], 2)[1], said)
    labels = np.full((2, 8, 80), 255, np.uint8)
    labels[0, :8, :40] = 0
    labels[0, 0, 0] = 255  # a pixel of the picture without a class
    assert modes.first_images([{**batch, "label_map": labels}], 2)[1].tolist() == [[8, 40], [8, 80]]


def test_a_task_without_classes_has_nothing_to_label(workdir, tmp_path):
    subject = program.load_subject(workdir=workdir)
    subject = dataclasses.replace(subject, info=data.DataInfo({"image": "image"}, ()))
    with pytest.raises(ValueError, match="reads no field 'label'.*allowed: 'classification'"):
        program.label_split(subject, tmp_path / "labels", threshold=0.0)
    assert not (tmp_path / "labels").exists()


@pytest.mark.exhaustive  # each of these is what a mode of the program calls
def test_from_python(workdir):
    subject = program.load_subject(workdir=workdir)
    result = program.accuracy(subject, split="validation", batch_size=4)
    assert result["live"]["count"] == 22
    assert program.summarise(subject)["parameters"] > 0
    assert program.measure_speed(subject, batch_sizes=(1,), repeats=1)["results"]


def test_the_command_line(workdir, tmp_path, monkeypatch):
    command = [sys.executable, str(ROOT / "eval.py"), "--mode=accuracy", "--split=validation"]
    done = subprocess.run(
        [*command, f"--workdir={workdir}", f"--output={tmp_path}"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "lambda_resnet_digits on validation" in done.stdout
    # Wrong input ends with its message: exit code 1, no traceback.
    given = SimpleNamespace(**FLAGS | dict(mode="accuracy", workdir="nowhere", output=None))
    vars(given).update(dict.fromkeys(program.ONLY_FOR))
    monkeypatch.setattr(program.flags, "FLAGS", given)
    for module, name in ((program.start_up, "prepare_cpu"), (program.logging, "set_verbosity")):
        monkeypatch.setattr(module, name, lambda *_: None)  # what it sets in a process of its own
    recipe = SimpleNamespace(path=None, overrides={})
    monkeypatch.setattr(program, "CONFIG", recipe, raising=False)
    with pytest.raises(SystemExit, match=r"^eval.py --mode=accuracy: (.|\n)*nowhere/config"):
        program.main(["eval.py"])
