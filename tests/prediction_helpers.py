"""Small runs of every task, and pictures of every kind, for the tests of predictions."""

import json
from types import SimpleNamespace

import numpy as np
from detector_helpers import RCNN, RETINANET
from PIL import Image
from saved_run import make_run
from video_helpers import detector_options

import eval as program

SEGMENTER = dict(
    backbone=dict(
        name="resnet18", blocks=(1, 1), widths=(4, 6), stem="strided", zero_init_last=False
    ),
    head=dict(name="fcn", channels=4, dropout=0.0),
    num_classes=4,
    image_size=(24, 32),
)
CLASSES = ("ankle boot", "Füße", "狗")
"""One less than the networks have: the last class has no name."""
RUNS = {
    "classification": (
        dict(
            name="resnet_digits", blocks=(1,), widths=(8,), num_classes=4, image_size=(20, 24),
            zero_init_last=False,
        ),
        {"data.eval_crop": 0.8, "data.interpolation": "bicubic"},
    ),
    "segmentation": (dict(name="segmenter", **SEGMENTER), {}),
    "detection": (
        dict(name="retinanet", **RETINANET | dict(num_classes=4)), {"detection.shown_score": 0.0},
    ),
    "masks": (
        dict(name="mask_rcnn", **RCNN | dict(num_classes=4)),
        {"detection.shown_score": 0.0, "detection.masks": True},
    ),
    "clips": (
        dict(
            name="small_i3d", blocks=(1,), widths=(8,), inflated_blocks=("all",), num_classes=4,
            image_size=(20, 24),
        ),
        {"clips.frames": 3, "clips.frame_stride": 2, "clips.eval_clips": 2, "clips.eval_crops": 2},
    ),
    "video_detection": (dict(name="video_detector", **detector_options("copy")), {}),
}  # fmt: skip


def run_of(task, workdir, *, classes=CLASSES):
    """Writes a run of a task; 'masks' is detection with masks."""
    model, settings = RUNS[task]
    task = "detection" if task == "masks" else task
    return make_run(workdir, dict(model), task, classes=classes, settings=settings)


FLAGS = dict(
    config=None, weights=None, step="latest", average=None, split=None, batch_size=0, input=[],
    top=None, fps=None, classes=None, every=None, reach=None, label_maps=None,
)  # fmt: skip


def evaluate(mode, workdir, output, *, overrides=None, **given):
    """Runs a mode as the command line would and returns what it wrote to its JSON file."""
    recipe = SimpleNamespace(path=None, overrides=overrides or {})
    flags = SimpleNamespace(**FLAGS | given, workdir=workdir, output=str(output))
    program.check_flags(mode, flags)
    program.run(mode, flags, recipe)
    return json.loads((output / f"{mode}.json").read_text())


def lines_of(folder):
    """What a prediction wrote, by the names of the files."""
    found = map(json.loads, (folder / "predictions.jsonl").read_text("utf-8").splitlines())
    return {line["file"].rsplit("/", 1)[-1]: line for line in found}


def picture(width, height, seed=0):
    """A smooth picture with details, which no crop leaves as it is."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (5, 6, 3), np.uint8))
    pixels = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC), np.int16)
    noise = rng.integers(-20, 21, pixels.shape)
    return Image.fromarray(np.clip(pixels + noise, 0, 255).astype(np.uint8))


def write_pictures(folder):
    """Writes pictures of every kind that is read; returns the names."""
    folder.mkdir(exist_ok=True)
    exif = Image.Exif()
    for turn in (1, 3, 6, 7, 8):  # large enough to be decoded at a part of their size
        exif[0x0112] = turn
        picture(310, 190, turn).save(folder / f"turned_{turn}.jpg", exif=exif, quality=90)
    plain = picture(61, 47, 9)
    plain.save(folder / "plain.png")
    plain.convert("L").save(folder / "grey.bmp")
    plain.convert("CMYK").save(folder / "print.jpg")
    plain.quantize(16).save(folder / "palette.gif")
    see_through = plain.convert("RGBA")
    see_through.putalpha(picture(61, 47, 5).convert("L"))
    see_through.save(folder / "see_through.png")
    keyed = plain.quantize(8)
    keyed.save(folder / "keyed.png", transparency=2)
    plain.save(folder / "pages.tif", save_all=True, append_images=[plain.rotate(90)])
    Image.fromarray(np.uint8([[7, 200], [90, 0], [30, 31]])).save(folder / "tiny.webp")
    return sorted(p.name for p in folder.iterdir())


def write_clip(folder, count=9, size=(50, 40)):
    """Writes a clip as a folder of frames."""
    folder.mkdir()
    for number in range(count):
        picture(*size, number).save(folder / f"frame_{number + 3}.png")
    return folder
