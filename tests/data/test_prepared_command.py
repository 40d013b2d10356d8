"""The last line of `prepare`: a whole command, that fits the images it was printed for."""

import re
import shlex
import shutil

import numpy as np
import pytest
from absl import flags
from data_helpers import jpeg, open_source
from ml_collections import config_flags
from PIL import Image

import models
from configs import base, finetune, photos
from lambdanet import config as config_lib
from lambdanet.data import prepare
from lambdanet.interop import files


def config_of(line, recipe=photos):
    """The config that a printed command trains with."""
    python, script, *options = shlex.split(line.removeprefix("train with: "))
    assert (python, script) == ("python", "train.py")
    file, _, argument = options[0].removeprefix("--config=").partition(":")
    assert file == f"configs/{recipe.__name__.rpartition('.')[2]}.py"
    command = [script, *(o for o in options if o.startswith("--config."))]
    values = flags.FlagValues()
    holder = config_flags.DEFINE_config_dict(
        "config", recipe.get_config(argument), flag_values=values, sys_argv=command
    )
    values(command)
    config_lib.validate(holder.value, base.get_config(), models.registry)
    return holder.value, [o for o in options if not o.startswith("--config")]


def photographs(root, *, size, mode="RGB", count=10):
    """root/<class>/<n>.png: noise of that size."""
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        for i in range(count):
            shape = (size[1], size[0], *([3] if mode == "RGB" else []))
            image = Image.fromarray(rng.integers(0, 256, shape, np.uint8))
            image.save(root / name / f"{i}.png")
    return root


@pytest.mark.parametrize("arguments", [["--split=1"], ["--split=0.6,0.2,0.2"], ["--split=0.7,0.3"]])
def test_it_reads_the_splits_that_there_are(tmp_path, capsys, arguments):
    root = photographs(tmp_path / "photos", size=(80, 60), count=20)
    out = tmp_path / "it's $HOME"
    assert prepare.main([str(root), str(out), *arguments]) == 0
    config, others = config_of(capsys.readouterr().out.splitlines()[-1])
    assert config.data.data_dir == str(out) and others == ["--workdir=runs/it's $HOME"]
    recipe = photos.get_config("cpu")
    for key in ("image_size", "channels", "mean", "std", "crop", "flip"):
        assert config.data[key] == recipe.data[key]
    sizes = {
        name: len(open_source(config.data, name))
        for name in (config.data.train_split, config.data.eval_split, config.data.test_split)
        if name
    }
    assert sum(sizes.values()) == 40 and all(sizes.values())
    assert len(sizes) == arguments[0].count(",") + 1


def test_small_grey_and_few_images_are_told(tmp_path, capsys):
    root = photographs(tmp_path / "digits", size=(28, 28), mode="L")
    assert prepare.main([str(root), str(tmp_path / "set"), "--split=1"]) == 0
    config, _ = config_of(capsys.readouterr().out.splitlines()[-1])
    assert config.data.channels == 1 and config.data.image_size == (32, 32)
    assert config.data.mean == (0.5,) and config.data.std == (0.25,)
    assert config.train.batch_size == 8  # of 20: two batches at least
    (root / "dog" / "colour.jpg").write_bytes(jpeg((250, 0, 0), size=(28, 28)))
    assert prepare.main([str(root), str(tmp_path / "other"), "--split=1"]) == 0
    config, _ = config_of(capsys.readouterr().out.splitlines()[-1])
    assert config.data.channels == 3 and config.data.image_size == (32, 32)


def test_uneven_classes_are_told_and_the_option_is_there(tmp_path, capsys):
    root = photographs(tmp_path / "photos", size=(60, 60))
    for i in range(7):
        (root / "dog" / f"{i}.png").unlink()
    shutil.copy(root / "cat" / "0.png", root / "cat" / "more.png")
    assert prepare.main([str(root), str(tmp_path / "set"), "--split=1"]) == 0
    said = capsys.readouterr().out
    assert "note: uneven classes, 3 to 11 images in train; --config.classification.class" in said
    option = "--config.classification.class_weights=balanced"
    assert option in said
    config, _ = config_of(f"{said.splitlines()[-1]} {option}")
    assert config.classification.class_weights == "balanced"


@pytest.mark.parametrize(("size", "mode"), [((60, 60), "RGB"), ((28, 28), "L")])
def test_few_images_are_told_of_fine_tuning(tmp_path, capsys, size, mode):
    root = photographs(tmp_path / "photos", size=size, mode=mode)
    assert prepare.main([str(root), str(tmp_path / "set")]) == 0
    *notes, line = capsys.readouterr().out.splitlines()
    (note,) = [text for text in notes if "public weights" in text]
    recipe = re.search(r"--config=(\S+?),? ", note)[1]
    without = re.findall(r"--config\.data\.\w+", note)
    assert bool(without) == (mode == "L")
    options = [o for o in shlex.split(line) if o.partition("=")[0] not in without]
    tuning = shlex.join(options).replace("configs/photos.py:cpu", recipe)
    path = tmp_path / "weights.safetensors"  # in place of the hub's
    files.save_safetensors(path, {"kernel": np.zeros(1, np.float32)}, {})
    config, _ = config_of(f"{tuning} --config.train.init_weights={path}", finetune)
    public = finetune.get_config(recipe.partition(":")[2])
    for key in ("image_size", "channels", "mean", "std"):
        assert config.data[key] == public.data[key]
