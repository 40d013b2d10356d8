"""Predictions: the pixels of evaluation, one program for all pictures, the same answer by every
way, class names without the data, and everything that can be wrong with pictures and folders.
"""

import csv
import io
import json
import struct
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from data_helpers import jpeg, write_video
from PIL import Image
from prediction_helpers import (
    CLASSES,
    RUNS,
    evaluate,
    lines_of,
    picture,
    run_of,
    write_clip,
    write_pictures,
)
from pycocotools import mask as run_lengths

import eval as program
from configs import base
from lambdanet import config as configs
from lambdanet import data, tasks
from lambdanet.analysis import predict
from lambdanet.analysis.predict import Predictor, load_model
from lambdanet.data import prepare, video_files
from lambdanet.data.record import Record
from lambdanet.ops.images import normalise
from lambdanet.tasks import classification_predictions


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return run_of("classification", tmp_path_factory.mktemp("predict") / "run")


@pytest.fixture(scope="module")
def predictor(workdir):
    return Predictor(workdir)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures") / "photos"
    write_pictures(folder)
    return folder


@pytest.mark.parametrize("name", tasks.TASKS)
def test_every_task_predicts_by_the_names_of_the_contract(name):
    kind = tasks.get(name).predictions()
    assert set(tasks.PREDICTIONS) <= set(vars(kind))
    config = data.attributes(base.get_config())
    assert set(kind.INPUTS) <= set(tasks.get(name).blank(config))


# ---- The same pixels, the same answers -----------------------------------------------------------


@pytest.mark.parametrize("task", ["classification", "segmentation", "detection", "clips"])
def test_the_pixels_are_those_of_evaluation(task, pictures, tmp_path):
    model, settings = RUNS[task]
    config = base.get_config()
    config.data.image_size, config.data.channels = model["image_size"], 3
    for key, value in settings.items():
        section, name = key.split(".")
        config[section][name] = value
    config, kind = data.attributes(config), tasks.get(task).predictions()
    info = data.DataInfo({"image": "image"}, ("a", "b"))
    files = sorted(pictures.iterdir())
    if task == "clips":
        files = [write_clip(tmp_path / "clip")]
    for path in files:
        frames = [p.read_bytes() for p in sorted(path.iterdir())] if path.is_dir() else []
        contents = frames or path.read_bytes()
        with Image.open(io.BytesIO(frames[0] if frames else contents)) as image:
            turned = image.getexif().get(0x0112, 1) > 4
            size = image.size[::-1] if turned else image.size
        labels = np.zeros((*size[::-1], 1), np.uint8)
        fields = dict(label=1, image=contents, frames=frames, segmentation_mask=labels)
        fields |= dict(bboxes=np.zeros((0, 4), np.float32), labels=np.zeros(0, np.int64))
        fields |= dict(boxes=fields["bboxes"], classes=fields["labels"])
        record = Record(fields, 0, str(path))
        stored = tasks.get(task).example(record, info, config, None)
        found = kind.example(contents, config)
        for name in kind.INPUTS:
            np.testing.assert_array_equal(found[name], stored[name], err_msg=path.name)


def test_paths_images_and_pixels_give_the_answer_of_the_network(workdir, predictor, pictures):
    path = pictures / "plain.png"
    with Image.open(path) as image:
        image.load()
        by_path, by_text, by_image, by_pixels = predictor(
            [path, str(path), image, np.asarray(image)]
        )
    config = configs.load(workdir, base.get_config())
    pixels = predictor.kind.example(path.read_bytes(), data.attributes(config))["image"]
    model = load_model(workdir)
    logits = model(normalise(jnp.asarray(pixels[None]), config.data.mean, config.data.std))
    expected = np.asarray(jax.nn.softmax(logits))[0]
    for found in (by_path, by_text, by_image, by_pixels):
        np.testing.assert_allclose(found["probabilities"], expected, atol=1e-6)
        numbers = [one["number"] for one in found["classes"]]
        assert numbers == list(np.argsort(-expected))
        for one in found["classes"]:
            assert one["probability"] == found["probabilities"][one["number"]]
            assert one["class"] == (*CLASSES, "class 3")[one["number"]]
    (alone,) = predictor(path)
    np.testing.assert_allclose(alone["probabilities"], expected, atol=1e-6)
    assert len(predictor(np.stack([np.asarray(picture(9, 8))] * 3))) == 3


def test_one_program_for_pictures_of_all_sizes_and_a_part_of_a_batch(workdir, pictures):
    files = sorted(pictures.iterdir())
    assert len(files) % 4
    whole = Predictor(workdir, batch_size=4, top=2)
    found = whole(files)
    assert whole._answer._cache_size() == 1
    assert all(len(one["classes"]) == 2 for one in found)
    for path, one in zip(files[::3], found[::3], strict=True):
        (alone,) = whole([path])
        np.testing.assert_allclose(alone["probabilities"], one["probabilities"], atol=1e-6)
    differ = {tuple(np.round(one["probabilities"], 4)) for one in found}
    assert len(differ) > len(files) // 2, "or the network says the same of everything"
    assert [whole.batch_size(n) for n in (1, 2, 3, 4, 99)] == [1, 2, 4, 4, 4]


def test_what_is_left_out_of_a_picture_is_noted(predictor, pictures):
    found, plain = predictor([pictures / "pages.tif", pictures / "plain.png"])
    assert found["note"] == "has 2 frames or pages, of which the first is used"
    assert "note" not in plain
    np.testing.assert_array_equal(found["probabilities"], plain["probabilities"])


def test_what_is_no_input_is_refused(workdir, predictor, tmp_path):
    for wrong in (3, {"a": 1}, [3], [None]):
        with pytest.raises(TypeError, match="allowed: a path, an image of Pillow, a uint8 array"):
            predictor(wrong)
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ValueError) as error:
        predictor([tmp_path / "text.png", np.zeros((4, 4)), tmp_path / "none.png"])
    first, text, pixels, none = str(error.value).splitlines()
    assert first == "3 pictures of 3 cannot be read:" and text.endswith("text.png: not an image")
    assert "input 1: cannot be read (pixels float64 [4, 4]; allowed: uint8" in pixels
    assert "No such file" in none
    for given, text in (
        (dict(top=0), "top=0; allowed: 1 or more"),
        (dict(batch_size=-1), "batch_size=-1"),
        (dict(fps=3.0), "fps=3.0: not for the task 'classification'"),
        (dict(step="last"), "allowed: best, latest"),
    ):
        with pytest.raises(ValueError, match=text):
            Predictor(workdir, **given)
    with pytest.raises(ValueError, match="config.json: no such file"):
        Predictor(tmp_path)


def test_a_library_without_its_repository_says_so(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(predict.importlib, "import_module", missing)
    with pytest.raises(ModuleNotFoundError, match="No module named 'eval'.*name that folder in PY"):
        Predictor("runs/any")


# ---- The command ---------------------------------------------------------------------------------


def test_the_files_of_a_folder_of_pictures(workdir, predictor, pictures, tmp_path, capsys):
    found = evaluate("predict", workdir, tmp_path, input=[str(pictures)], top=3)
    folder, names = tmp_path / "predictions", sorted(p.name for p in pictures.iterdir())
    lines = lines_of(folder)
    assert list(lines) == names and found["count"] == len(names) and found["problems"] == []
    expected = predictor([pictures / name for name in names])
    rows = list(csv.reader(open(folder / "predictions.csv", encoding="utf-8")))
    assert rows[0] == ["file", "class", "number", "probability"] and len(rows) == 3 * len(names) + 1
    for number, (name, one) in enumerate(zip(names, expected, strict=True)):
        line = lines[name]
        shown = [c | {"probability": round(c["probability"], 6)} for c in one["classes"][:3]]
        for ours, theirs in zip(line["classes"], shown, strict=True):
            assert ours["class"] == theirs["class"]
            assert ours["probability"] == pytest.approx(theirs["probability"], abs=2e-6)
        best = line["classes"][0]
        assert rows[1 + 3 * number] == [line["file"], *map(str, best.values())]
        with Image.open(folder / line["drawn"]["classes"]) as drawn:
            assert drawn.width >= 320 and drawn.height > 72
    assert "probabilities" not in line
    said = capsys.readouterr().out
    assert "pages.tif: has 2 frames or pages, of which the first is used." in said
    assert "names only 3 of 4, so classes are numbered, such as 'class 3'; --mode=predict" in said
    assert f"{len(names)} pictures in batches of 16;" in said and "ankle boot" in said
    assert [note for note in found["notes"] if "pages.tif" in note]


def bomb():
    """A PNG of some bytes that asks for 40,000 x 40,000 pixels."""
    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b"")]
    chunks = [
        struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def test_pictures_that_cannot_be_read_keep_no_others_waiting(workdir, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    picture(40, 30).save(photos / "good.png")
    whole = (photos / "good.png").read_bytes()
    wrong = {
        "bomb.png": (bomb(), "cannot be read (1600 megapixels; allowed: up to 300"),
        "cut.jpg": (jpeg((1, 2, 3), (64, 64))[:-30], "cannot be read (image file is truncated"),
        "cut.png": (whole[: len(whole) // 2], "cannot be read ("),
        "empty.png": (b"", "cannot be read (an empty file)"),
        "page.jpg": (b"<html>", "not an image"),
        "script.png": (b"%!PS-Adobe-3.0 EPSF-3.0", "not an image"),
    }
    for name, (contents, _) in wrong.items():
        (photos / name).write_bytes(contents)
    Image.fromarray(np.full((9, 9), 40_000, np.uint16)).save(photos / "deep.png")
    wrong["deep.png"] = (b"", "cannot be read (pixel mode 'I;16' is not 8 bits per channel")
    with pytest.raises(ValueError, match="^7 pictures are left out:") as error:
        evaluate("predict", workdir, tmp_path / "out", input=[str(photos)])
    for line, name in zip(str(error.value).splitlines()[1:], sorted(wrong), strict=True):
        assert f"{name}: {wrong[name][1]}" in line
    found = json.loads((tmp_path / "out" / "predict.json").read_text())
    assert found["count"] == 1 and len(found["problems"]) == 7
    assert list(lines_of(tmp_path / "out" / "predictions")) == ["good.png"]
    (photos / "good.png").unlink()
    before = sorted((tmp_path / "out").rglob("*"))
    with pytest.raises(ValueError, match="^none of the 7 pictures can be read:\n"):
        evaluate("predict", workdir, tmp_path / "out", input=[str(photos)])
    assert sorted((tmp_path / "out").rglob("*")) == before, "what was there stays"
    with pytest.raises(ValueError, match="^the picture cannot be read:\n.*not an image"):
        evaluate("predict", workdir, tmp_path / "out", input=[str(photos / "page.jpg")])


def test_pictures_of_formats_that_are_not_read_are_named(workdir, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    picture(40, 30).save(photos / "good", "PNG")
    picture(40, 30).save(photos / "scan.jp2")
    (photos / "a.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + b"0" * 99)
    (photos / "notes.txt").write_text("no picture")
    with pytest.raises(ValueError, match="^2 pictures are left out:") as error:
        evaluate("predict", workdir, tmp_path / "out", input=[str(photos)])
    assert "a.HEIC: cannot be read (HEIC or AVIF, which is not read: convert it" in str(error.value)
    assert "scan.jp2: format JPEG2000; allowed: JPEG, MPO, PNG, " in str(error.value)
    assert list(lines_of(tmp_path / "out" / "predictions")) == ["good"]


def test_results_are_replaced_completely_and_nothing_else_is(workdir, tmp_path):
    for name in ("a", "b"):
        picture(20, 20).save(tmp_path / f"{name}.png")
    out, folder = tmp_path / "out", tmp_path / "out" / "predictions"
    evaluate("predict", workdir, out, input=[str(tmp_path / "*.png")])
    evaluate("predict", workdir, out, input=[str(tmp_path / "b.png")])
    written = sorted(p.name for p in folder.iterdir())
    assert written == ["b_classes.png", "predictions.csv", "predictions.jsonl"]
    with pytest.raises(ValueError, match="lies in .*predictions, which the results replace"):
        evaluate("predict", workdir, out, input=[str(folder)])
    foreign = tmp_path / "other" / "predictions"
    foreign.mkdir(parents=True)
    (foreign / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds what was written of something else; move it away"):
        evaluate("predict", workdir, tmp_path / "other", input=[str(tmp_path / "b.png")])
    assert [p.name for p in (tmp_path / "other").iterdir()] == ["predictions"]
    assert [p.name for p in foreign.iterdir()] == ["thesis.txt"]


def test_a_video_where_pictures_are_read(workdir, tmp_path):
    (tmp_path / "film.mp4").touch()
    with pytest.raises(ValueError, match="film.mp4: a video.*'classification' reads pictures; cut"):
        evaluate("predict", workdir, tmp_path / "out", input=[str(tmp_path / "film.mp4")])
    assert not (tmp_path / "out" / "predictions").exists()


@pytest.mark.exhaustive
def test_a_video_where_a_network_of_videos_reads_pictures(tmp_path):
    (tmp_path / "film.mp4").touch()
    frames = run_of("video_detection", tmp_path / "frames")
    with pytest.raises(ValueError, match="`--mode=video --input=.*film.mp4` runs it frame after"):
        evaluate("predict", frames, tmp_path / "out", input=[str(tmp_path / "film.mp4")])
    with pytest.raises(ValueError, match="top=3: not for the task 'video_detection'"):
        picture(9, 9).save(tmp_path / "a.png")
        evaluate("predict", frames, tmp_path / "out", input=[str(tmp_path / "a.png")], top=3)
    assert not (tmp_path / "out" / "predictions").exists()
    assert evaluate("export", frames, tmp_path)["reload_difference"] < 1e-5


# ---- Class names ---------------------------------------------------------------------------------


def test_classes_are_numbered_where_nobody_kept_their_names(tmp_path, capsys):
    old = run_of("classification", tmp_path / "old", classes=None)
    predictor = Predictor(old)
    assert predictor.names == [f"class {i}" for i in range(4)]
    (note,) = predictor.notes
    assert "old/classes.json is missing, so classes are numbered, such as 'class 3'; " in note
    assert "no classes.json in the run and no data (data.data_dir=" in capsys.readouterr().out
    (old / "classes.json").write_text("{")
    with pytest.raises(ValueError, match="classes.json is damaged"):
        Predictor(old)


def test_exported_weights_keep_the_names(workdir, tmp_path):
    found = evaluate("export", workdir, tmp_path)
    assert found["classes"] == [*CLASSES, "class 3"]
    assert found["inputs"] == {"image": {"dtype": "uint8", "shape": ["batch", 20, 24, 3]}}
    assert found["outputs"] == {"dtype": "float32", "shape": ["batch", 4]}
    asked = {"size": [20, 24], "channels": 3, "crop": 0.8, "interpolation": "bicubic"}
    assert asked.items() <= found["preprocessing"].items()
    weights = tmp_path / "model.safetensors"
    config = configs.load(workdir, base.get_config())
    subject = program.load_subject(config, weights=weights, needs_data=False)
    assert Predictor(subject).names == [*CLASSES, "class 3"]
    plain = tmp_path / "plain.npz"
    evaluate("export", run_of("classification", tmp_path / "old", classes=None), tmp_path / "o")
    weights = tmp_path / "o" / "model.safetensors"
    subject = program.load_subject(config, weights=weights, needs_data=False)
    (note,) = Predictor(subject).notes
    assert note.startswith(f"{weights} keeps no names of classes, so classes are numbered, such as")
    assert not plain.exists()


def test_names_are_taken_from_a_file_where_one_is_given(workdir, pictures, tmp_path, capsys):
    names = tmp_path / "names.txt"
    names.write_text("crane\nFüße \ncrane\n狗\n", encoding="utf-8")  # ImageNet has two cranes
    given = dict(input=[str(pictures / "plain.png")], classes=str(names), top=4)
    evaluate("predict", workdir, tmp_path, **given)
    (line,) = lines_of(tmp_path / "predictions").values()
    assert [found["class"] for found in sorted(line["classes"], key=lambda c: c["number"])] == [
        "crane", "Füße", "crane", "狗",
    ]  # fmt: skip
    assert "numbered" not in capsys.readouterr().out
    found = evaluate("export", workdir, tmp_path, classes=str(names))
    assert found["classes"] == ["crane", "Füße", "crane", "狗"]
    for content, said in ((b"a\nb\n", "2 lines; needed: 4"), (b"\xff", "is no UTF-8 text")):
        names.write_bytes(content)
        with pytest.raises(ValueError, match=f"--classes={names}: {said}"):
            evaluate("predict", workdir, tmp_path, **given)
    with pytest.raises(ValueError, match="--classes=x: only for --mode=predict and export"):
        evaluate("accuracy", workdir, tmp_path, classes="x")


def test_photos_that_are_not_turned_upright_are_mentioned(workdir):
    overrides = {"data.exif_orientation": "False"}
    subject = program.load_subject(workdir=workdir, overrides=overrides, needs_data=False)
    assert "--config.data.exif_orientation=True turns them" in Predictor(subject).notes[-1]
    assert not any("exif" in note for note in Predictor(workdir).notes)


def test_a_name_that_no_font_has_is_drawn_as_its_number():
    shown = classification_predictions.shown_name
    assert shown("Füße", 1) == "Füße" and shown("狗", 2) == "#2" and shown("a\nb", 3) == "a\\nb"
    classes = [{"class": "w" * 200, "number": 0, "probability": 1.0}]
    drawn = classification_predictions.draw(Image.new("RGB", (400, 20)), classes)
    assert drawn.size == (400, 56)
    right = np.asarray(drawn)[20:, -6:]
    assert (right == 255).all(), "text and bar end before the margin"


# ---- Other tasks ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run_folders(tmp_path_factory):
    """Runs of the other tasks, made when they are asked for."""
    root, made = tmp_path_factory.mktemp("others"), {}

    def get(task):
        if task not in made:
            made[task] = run_of(task, root / task)
        return made[task]

    return get


@pytest.mark.exhaustive  # the suite has test_segmentation_runs.py
def test_label_maps_have_the_size_of_the_picture(run_folders, pictures, tmp_path):
    workdir, given = run_folders("segmentation"), [str(pictures / "*")]
    evaluate("predict", workdir, tmp_path, input=given)
    lines, folder = lines_of(tmp_path / "predictions"), tmp_path / "predictions"
    seen = set()
    for line in lines.values():
        with Image.open(folder / line["drawn"]["labels"]) as drawn:
            labels = np.asarray(drawn)
        assert labels.shape == (line["height"], line["width"])
        shares = {one["number"]: one["share"] for one in line["classes"]}
        assert sum(shares.values()) == pytest.approx(1, abs=1e-5)
        for number, share in shares.items():
            assert (labels == number).mean() == pytest.approx(share, abs=1e-6)
            seen.add(number)
        with Image.open(folder / line["drawn"]["overlay"]) as mixed:
            assert mixed.size == labels.shape[::-1]
    turned = lines["turned_6.jpg"]
    assert (turned["width"], turned["height"]) == (190, 310) and len(seen) > 1
    assert (folder / "legend.png").exists()
    (found,) = Predictor(workdir)([pictures / "plain.png"])
    with Image.open(folder / lines["plain.png"]["drawn"]["labels"]) as drawn:
        np.testing.assert_array_equal(found["labels"], np.asarray(drawn))


@pytest.mark.exhaustive
def test_boxes_are_in_pixels_of_the_picture(run_folders, pictures, tmp_path):
    workdir = run_folders("detection")
    evaluate("predict", workdir, tmp_path, input=[str(pictures)])
    folder, lines = tmp_path / "predictions", lines_of(tmp_path / "predictions")
    coco = json.loads((folder / "predictions.json").read_text())
    assert [image["file_name"] for image in coco["images"]] == list(lines)
    found = [one["box"] for line in lines.values() for one in line["objects"]]
    found = [box for box in found if box[0] < box[2] and box[1] < box[3]]
    assert len(found) == len(coco["annotations"]) > 0
    paths = [str(path) for path in (pictures, folder / "predictions.json", tmp_path / "set")]
    assert prepare.main(["coco", *paths, "--on-error=skip"]) == 0  # sets have no GIF, no TIFF
    assert (tmp_path / "set").is_dir()
    for line in lines.values():
        for one in line["objects"]:
            left, top, right, bottom = one["box"]
            assert 0 <= left <= right <= line["width"] and 0 <= top <= bottom <= line["height"]
    rows = list(csv.reader(open(folder / "predictions.csv", encoding="utf-8")))
    assert rows[0][3:] == ["score", "left", "top", "right", "bottom"]
    assert len(rows) == sum(len(line["objects"]) for line in lines.values()) + 1
    config = configs.load(workdir, base.get_config())
    path = pictures / "turned_6.jpg"
    example = Predictor(workdir).kind.example(path.read_bytes(), data.attributes(config))
    model = load_model(workdir)
    pixels = normalise(jnp.asarray(example["image"][None]), config.data.mean, config.data.std)
    found = jax.device_get(model.detect(pixels, jnp.asarray(example["image_shape"][None])))
    scores = found["scores"][0][found["valid"][0]]
    line = lines["turned_6.jpg"]
    np.testing.assert_allclose([one["score"] for one in line["objects"]], scores, atol=2e-6)
    scale = np.tile([190 / example["image_shape"][1], 310 / example["image_shape"][0]], 2)
    boxes = np.clip(found["boxes"][0][found["valid"][0]] * scale, 0, [190, 310, 190, 310])
    np.testing.assert_allclose([one["box"] for one in line["objects"]], boxes, atol=0.02)


@pytest.mark.exhaustive
def test_masks_have_the_size_of_the_picture(run_folders, pictures, tmp_path):
    workdir, path = run_folders("masks"), pictures / "turned_6.jpg"
    evaluate("predict", workdir, tmp_path, input=[str(path)])
    (found,) = Predictor(workdir)(path)
    assert found["masks"].shape == (len(found["objects"]), 310, 190) and found["masks"].any()
    assert found["masks"].dtype == bool
    coco = json.loads((tmp_path / "predictions" / "predictions.json").read_text())
    assert len(coco["annotations"]) == len(found["objects"]) > 0
    for one, mask in zip(coco["annotations"], found["masks"], strict=True):
        assert one["segmentation"]["size"] == [310, 190]
        counts = one["segmentation"] | {"counts": one["segmentation"]["counts"].encode()}
        assert (run_lengths.decode(counts) == mask).mean() > 0.999, "batches round otherwise"
    (line,) = lines_of(tmp_path / "predictions").values()
    assert [one["class"] for one in line["objects"]] == [one["class"] for one in found["objects"]]
    exported = evaluate("export", workdir, tmp_path)
    assert exported["reload_difference"] < 1e-5 and set(exported["outputs"]) > {"masks", "boxes"}


@pytest.mark.exhaustive
def test_clips_as_folders_videos_and_arrays(run_folders, tmp_path, capsys):
    pytest.importorskip("av", reason="PyAV is not installed: pip install av")
    workdir, clips = run_folders("clips"), tmp_path / "clips"
    clips.mkdir()
    folder = write_clip(clips / "walk")
    write_video(clips / "run.avi", [0, 40, 80, 120])
    (clips / "junk.avi").write_bytes(b"junk" * 500)
    with pytest.raises(ValueError, match="^1 clip is left out:") as error:
        evaluate("predict", workdir, tmp_path, input=[str(clips)])
    assert (
        "junk.avi: cannot be read (cannot be read as a video: damaged, or another kind of"
        in str(error.value)
    )
    lines = lines_of(tmp_path / "predictions")
    assert list(lines) == ["run.avi", "walk"]
    predictor = Predictor(workdir, batch_size=2)
    frames = [Image.open(path) for path in sorted(folder.iterdir(), key=lambda p: (len(p.name), p))]
    by_path, by_frames, by_pixels = predictor(
        [folder, frames, np.stack([np.asarray(frame) for frame in frames])]
    )
    np.testing.assert_array_equal(by_path["probabilities"], by_frames["probabilities"])
    np.testing.assert_allclose(by_path["probabilities"], by_pixels["probabilities"], atol=1e-6)
    for ours, theirs in zip(by_path["classes"], lines["walk"]["classes"], strict=True):
        assert ours["probability"] == pytest.approx(theirs["probability"], abs=2e-6)
    (slow,) = Predictor(workdir, fps=10.0)(clips / "run.avi")
    first = next(video_files.decoded(clips / "run.avi"))[1]
    (one,) = predictor([[first, first]])
    assert slow["probabilities"].shape == one["probabilities"].shape == (4,)
    with pytest.raises(ValueError, match="clip is a folder of numbered frames or a video"):
        predictor(folder / "frame_3.png")
