"""The programs of examples/ do what they say."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from flax import nnx
from PIL import Image

from lambdanet.interop import files
from lambdanet.training import state
from models import create_model

ROOT = Path(__file__).resolve().parent.parent


def example(name: str):
    """Returns a program as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_layer_in_a_model_of_ones_own_learns():
    assert example("reuse_layer").main(steps=60) > 0.8


@pytest.mark.exhaustive
def test_attention_is_swapped_by_name():
    program = example("swap_attention")
    seconds = program.main((*program.NAMES, "se"), batch=2, repeats=1, dim=16, depth=1, side=32)
    assert list(seconds) == [*program.NAMES, "se"] and min(seconds.values()) > 0


@pytest.mark.exhaustive
def test_a_folder_is_fine_tuned(tmp_path):
    """From weights of our own export, with a class count of another: a new head, a finished run."""
    draw = np.random.default_rng(0)
    for number, name in enumerate(("bright", "dark")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(12):
            pixels = draw.integers(0, 40, (24, 24, 3)) + 200 * (number == 0)
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "photos" / name / f"{i}.png")
    options = dict(blocks=(1, 1), widths=(8, 8))
    model = create_model("resnet18", num_classes=5, **options, rngs=nnx.Rngs(0))
    _, params, stats = state.split_model(model)
    weights = state.flatten_names(params) | state.flatten_names(stats)
    about = dict(name="resnet18", num_classes=5, image_size=(32, 32), **options)
    file = str(tmp_path / "weights.safetensors")
    files.save_safetensors(file, weights, files.export_metadata(about, {}))
    changes = {"model.blocks": (1, 1), "model.widths": (8, 8), "data.image_size": (32, 32)}
    changes |= {"train.batch_size": 8, "train.min_steps": 0, "train.epochs": 6.0}
    folders = str(tmp_path / "photos"), file, str(tmp_path / "run")
    accuracy = example("finetune_folder").main(*folders, "resnet18", **changes)
    assert 0 <= accuracy <= 1 and (tmp_path / "run" / "report.md").is_file()
