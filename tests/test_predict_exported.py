"""examples/predict_exported.py: an exported network without the project gives the numbers of
`eval.py --mode=predict`.
"""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from prediction_helpers import evaluate, lines_of, run_of, write_clip, write_pictures

from configs import base
from lambdanet import data, tasks
from lambdanet.analysis import export

SCRIPT = Path(__file__).resolve().parent.parent / "examples" / "predict_exported.py"
TASKS = ["classification", "segmentation", "detection", "clips"]
spec = importlib.util.spec_from_file_location("predict_exported", SCRIPT)
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)


@pytest.mark.parametrize("size", [(20, 24), (32, 32), (96, 64)])
def test_pictures_are_prepared_to_the_pixel(size, tmp_path):
    names, kind = write_pictures(tmp_path), tasks.get("classification").predictions()
    for crop, keep_aspect in ((1.0, True), (0.8, True), (0.875, False)):
        config = base.get_config()
        config.data.image_size, config.data.channels = size, 3
        config.data.eval_crop, config.data.eval_keep_aspect = crop, keep_aspect
        plain = data.attributes(config)
        how = kind.describe_preprocessing(plain)
        for name in names:
            ours = kind.example((tmp_path / name).read_bytes(), plain)["image"]
            np.testing.assert_array_equal(script.crop(tmp_path / name, how), ours, err_msg=name)


@pytest.mark.parametrize(
    "task", [TASKS[0], *(pytest.param(task, marks=pytest.mark.exhaustive) for task in TASKS[1:])]
)
def test_an_exported_network_gives_the_numbers_of_predict(task, tmp_path):
    workdir, photos = run_of(task, tmp_path / "run"), tmp_path / "photos"
    names = write_pictures(photos) if task != "clips" else []
    inputs = [photos / name for name in names]
    if task == "clips":
        inputs = [write_clip(tmp_path / "long"), write_clip(tmp_path / "short", 2, (40, 50))]
    evaluate("predict", workdir, tmp_path, input=list(map(str, inputs)))
    evaluate("export", workdir, tmp_path)
    expected = lines_of(tmp_path / "predictions")
    for path, found, labels in script.predict(tmp_path, inputs):
        line = expected.pop(path.name)
        drawn = line.pop("drawn")
        assert {"file": line["file"], **found} == line, "to the last digit"
        assert (labels is not None) == (task == "segmentation")
        if labels is not None:
            with Image.open(tmp_path / "predictions" / drawn["labels"]) as theirs:
                np.testing.assert_array_equal(labels, np.asarray(theirs))
    assert not expected


@pytest.fixture
def exported(tmp_path):
    """A segmenter that calls bright pixels 'light', exported with batches of two."""
    config, folder = base.get_config(), tmp_path / "export"
    config.task, config.data.image_size, config.data.channels = "segmentation", (8, 12), 3
    how = tasks.get("segmentation").predictions().describe_preprocessing(data.attributes(config))
    blank = np.zeros((8, 12, 3), np.uint8)
    export.export_model(
        lambda images: (images[..., 0] > 100).astype(np.uint8),
        folder / "model.stablehlo", inputs=[blank], platforms=("cpu",),
    )  # fmt: skip
    about = {"task": "segmentation", "inputs": {"image": {}}, "classes": ["dark", "light"]}
    text = json.dumps(about | {"batch_size": 2, "preprocessing": how})
    (folder / "export.json").write_text(text)
    return folder


def test_the_command_names_what_it_cannot_read_and_goes_on(exported, tmp_path, monkeypatch, capsys):
    """Pictures of one name in several folders keep a label map each, in a folder that is made."""
    for folder, value in (("a", 0), ("b", 255)):
        (tmp_path / folder / "deeper").mkdir(parents=True)
        pixels = np.full((6, 9, 3), value, np.uint8)
        Image.fromarray(pixels).save(tmp_path / folder / "deeper" / "x.png")
    (tmp_path / "a" / "broken.jpg").write_bytes(b"no picture")
    (tmp_path / "a" / "notes.txt").write_text("")
    (tmp_path / "a" / "LICENSE").write_text("free")
    (tmp_path / "a" / "c.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    Image.new("RGB", (9, 6)).save(tmp_path / "a" / "d.jp2")
    shutil.copy(tmp_path / "a" / "deeper" / "x.png", tmp_path / "a" / "e")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)

    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["predict_exported.py", *arguments])
        code, said = script.main(), capsys.readouterr()
        return code, list(map(json.loads, said.out.splitlines())), said.err

    code, lines, said = command("export", "a", "no.png", "b", "--output=made/here")
    assert code == 1
    assert lines.pop(1)["file"] == "a/e", "a picture without an ending"
    assert [line["file"] for line in lines] == ["a/deeper/x.png", "b/deeper/x.png"]
    assert [line["drawn"]["labels"] for line in lines] == ["x_labels.png", "x_2_labels.png"]
    assert [line["classes"][0]["class"] for line in lines] == ["dark", "light"]
    for number, line in enumerate(lines):
        with Image.open(tmp_path / "made" / "here" / line["drawn"]["labels"]) as picture:
            np.testing.assert_array_equal(np.asarray(picture), np.full((6, 9), number))
    assert [text.split(": ")[0] for text in said.splitlines()] == [
        *("a/broken.jpg", "a/c.HEIC", "a/d.jp2", "no.png")
    ]
    assert "cannot be read" in said and "Traceback" not in said
    code, lines, said = command("export", "b/deeper/x.png")
    assert code == 0 and len(lines) == 1 and "drawn" not in lines[0] and not said
    for arguments, message in (
        (("export", "empty"), "empty: no picture in this folder"),
        (("nowhere", "b"), "nowhere: no export.json there"),
    ):
        with pytest.raises(SystemExit) as end:
            command(*arguments)
        assert end.value.code == 2 and message in capsys.readouterr().err


ALONE = """
import importlib.metadata, runpy, sys
brought = {"jax", "jaxlib", "numpy", "scipy", "ml_dtypes", "opt_einsum", "flatbuffers", "PIL"}
absent = {*importlib.metadata.packages_distributions(), "lambdanet", "models"} - brought
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in absent:
            raise ModuleNotFoundError(f"No module named {name!r}")
sys.meta_path.insert(0, Absent())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""Runs a script where nothing is installed but what its docstring names."""


@pytest.mark.exhaustive
def test_the_script_runs_without_the_project(tmp_path):
    workdir, photos = run_of("classification", tmp_path / "run"), tmp_path / "photos"
    names = write_pictures(photos)
    evaluate("export", workdir, tmp_path / "export")
    copy = tmp_path / "predict_exported.py"
    copy.write_bytes(SCRIPT.read_bytes())
    command = [sys.executable, "-c", ALONE, str(copy), str(tmp_path / "export")]
    done = subprocess.run(
        [*command, *(str(photos / name) for name in names), "--top=2"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [Path(line["file"]).name for line in lines] == names
    assert all(len(line["classes"]) == 2 for line in lines)
