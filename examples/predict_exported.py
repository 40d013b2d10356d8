"""Predicts with an exported network, without the project: needs what
`pip install jax flatbuffers pillow` brings, and nothing else.

    python predict_exported.py runs/clothing/eval photo.jpg other.png

The folder is what `python eval.py --mode=export` wrote. Of it, model.stablehlo is the network, and
export.json says how pictures are prepared and what the classes are called. Printed is one JSON
object for each picture (of clips: for each folder of numbered frames), with the numbers that
`eval.py --mode=predict` writes to predictions.jsonl. A folder stands for the pictures below it.
With --output=FOLDER the label maps of a segmenter are written as PNG files, whose values are the
classes. What cannot be read is named on standard error, and the exit code is 1 then.
"""

import argparse
import json
import math
import re
import sys
from pathlib import Path

import jax
import jax.export
import numpy as np
from PIL import Image

Turn = Image.Transpose
TURNS = {  # by EXIF orientation: how to turn, sides change places, x from the right, y from below
    1: (None, False, False, False),
    2: (Turn.FLIP_LEFT_RIGHT, False, True, False),
    3: (Turn.ROTATE_180, False, True, True),
    4: (Turn.FLIP_TOP_BOTTOM, False, False, True),
    5: (Turn.TRANSPOSE, True, False, False),
    6: (Turn.ROTATE_270, True, False, True),
    7: (Turn.TRANSVERSE, True, True, True),
    8: (Turn.ROTATE_90, True, True, False),
}
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
OTHERS = (  # read if their content is of a format that is, and named if not
    *(".heic", ".heif", ".hif", ".avif", ".jxl", ".jp2", ".j2k", ".jpf", ".jpx", ".jpe", ".jif"),
    *(".jfif", ".mpo", ".apng", ".dib", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".psd", ".svg"),
    *(".exr", ".hdr", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf"),
)
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
HEIF = re.compile(rb"....ftyp(heic|heix|heif|hevc|mif1|msf1|avif|avis)", re.DOTALL)
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")  # 8 bits per channel


# ---- Pictures ------------------------------------------------------------------------------------


def open_picture(path, how):
    """Returns the image, how to turn it upright, and its (width, height) when it is."""
    image = Image.open(path, formats=FORMATS)
    if image.mode not in MODES:
        raise ValueError(f"{path}: pixel mode {image.mode!r} is not 8 bits per channel")
    if image.format == "PNG":
        odd = image.tile[0][3] in ("L;2", "L;4", "RGB;16B")
        if odd and image.info.get("transparency") is not None:
            raise ValueError(f"{path}: a transparent colour of other than 8 bits; convert it first")
        image.load()  # its orientation may stand behind the pixels
    turned = how["exif_orientation"] and image.format != "TIFF"  # which Pillow turns
    turn = TURNS.get(image.getexif().get(0x0112, 1) if turned else 1, TURNS[1])
    return image, turn, image.size[::-1] if turn[1] else image.size


def opaque(image, mode, background):
    """Returns the image as 'L' or 'RGB', a transparent one on the background."""
    if not image.has_transparency_data:
        return image if image.mode == mode else image.convert(mode)
    alpha = image if image.mode in ("LA", "PA", "RGBA") else image.convert("RGBA")
    alpha, colours = alpha.getchannel("A"), image.copy()
    colours.info.pop("transparency", None)
    canvas = Image.new(mode, image.size, (background,) * len(mode))
    canvas.paste(colours.convert(mode), mask=alpha)
    return canvas


def resample(path, box_of, size_of, how, whole_of=None):
    """Returns pixels uint8 [h, w, c] of a box (left, top, right, bottom) of the upright picture,
    resampled in one step, or with `whole_of` cut out of the picture at that (width, height); and
    the picture's (width, height).
    """
    image, (turn, sideways, from_right, from_bottom), upright = open_picture(path, how)
    box, size, mode = box_of(*upright), size_of(*upright), "L" if how["channels"] == 1 else "RGB"
    if whole_of is not None:
        image, whole = opaque(image, mode, how["background"]), whole_of(*upright)
        image = (image if turn is None else image.transpose(turn)).resize(
            whole, FILTERS[how["interpolation"]]
        )
        left, top = (round(e * n / o) for e, n, o in zip(box[:2], whole, upright, strict=True))
        image = image.crop((left, top, left + size[1], top + size[0]))
        return np.asarray(image).reshape(*size, how["channels"]), upright
    x, y = (box[1::2], box[0::2]) if sideways else (box[0::2], box[1::2])  # as it is stored
    x = (image.width - x[1], image.width - x[0]) if from_right else x
    y = (image.height - y[1], image.height - y[0]) if from_bottom else y
    width, height = size if sideways else size[::-1]
    if image.format in ("JPEG", "MPO"):  # decoded at 1/2, 1/4 or 1/8 where that is enough
        whole, wanted = image.size, (width / (x[1] - x[0]), height / (y[1] - y[0]))
        wanted = [int(np.ceil(side * w)) for side, w in zip(whole, wanted, strict=True)]
        if reduced := image.draft("L" if mode == "L" else None, wanted):
            x, y = (
                tuple(edge * reduced[1][2 + axis] / whole[axis] for edge in edges)
                for axis, edges in enumerate((x, y))
            )
    image = opaque(image, mode, how["background"])
    if image.size != (width, height) or (x, y) != ((0, image.width), (0, image.height)):
        box = (x[0], y[0], x[1], y[1])
        image = image.resize((width, height), FILTERS[how["interpolation"]], box=box)
    image = image if turn is None else image.transpose(turn)
    return np.asarray(image).reshape(*size, how["channels"]), upright


def crop(path, how, place=None):
    """Returns the centred crop of a picture, or one that lies elsewhere along its longer side."""
    size, fraction = how["size"], how["crop"]

    def covering(width, height):  # the size in whole pixels that the picture is resized to
        rows, columns = (math.floor(side / fraction) for side in size)
        if not how["keep_aspect"]:
            return columns, rows
        if rows * width >= columns * height:
            return rows * width // height, rows
        return columns, columns * height // width

    def box(*upright):
        width, height = upright
        if not how["keep_aspect"]:
            found = [side * (1 + sign * fraction) / 2 for sign in (-1, 1) for side in upright]
        else:  # cropped at a whole pixel of it
            columns, rows = covering(width, height)
            top, left = round((rows - size[0]) / 2), round((columns - size[1]) / 2)
            edges = (left, top, left + size[1], top + size[0])
            scales = (width / columns, height / rows) * 2
            found = [min(e * s, w) for e, s, w in zip(edges, scales, upright * 2, strict=True)]
        if place is not None:
            sides = np.subtract(found[2:], found[:2])
            free = np.subtract(upright, sides)
            axis = int(np.argmax(free))
            found[axis], found[axis + 2] = place * free[axis], place * free[axis] + sides[axis]
        return tuple(map(float, found))

    whole_of = covering if how["resize_first"] else None
    return resample(path, box, lambda *_: tuple(size), how, whole_of)[0]


def fit(path, how):
    """Returns a picture fitted into the canvas, padded below and on the right; (height, width) of
    its part of the canvas; and its own.
    """
    height, width = how["size"]

    def size(w, h):
        factor = min(width / w, height / h)
        return tuple(
            min(max(1, int(side * factor + 0.5)), most) for side, most in ((h, height), (w, width))
        )

    pixels, upright = resample(path, lambda w, h: (0, 0, w, h), size, how)
    canvas = np.empty((height, width, how["channels"]), np.uint8)
    canvas[:] = how["padding"]
    canvas[: pixels.shape[0], : pixels.shape[1]] = pixels
    return canvas, pixels.shape[:2], upright[::-1]


def cut(folder, how):
    """Returns the views of a clip, uint8 [views, frames, h, w, c]; a folder of numbered frames."""
    own, numbered = how["clips"], []
    for path in Path(folder).iterdir():
        if not path.name.startswith("."):
            numbered.append((int(re.findall(r"\d+", path.stem)[-1]), path))
    files = [path for _, path in sorted(numbered)]
    span = (own["frames"] - 1) * own["frame_stride"] + 1
    if own["short"] == "refuse" and len(files) < span:
        raise ValueError(f"{folder}: {len(files)} frames; needed: {span}")
    spare = max(len(files) - span, 0)
    clips = np.linspace(0, 1, own["eval_clips"]) if own["eval_clips"] > 1 else [0.5]
    crops = np.linspace(0, 1, own["eval_crops"]) if own["eval_crops"] > 1 else [None]
    views = []
    for start in np.floor(np.asarray(clips) * spare + 0.5).astype(int):
        numbers = (start + own["frame_stride"] * np.arange(own["frames"])) % len(files)
        views += [[crop(files[i], how, place) for i in numbers] for place in crops]
    return np.array(views)


# ---- Answers -------------------------------------------------------------------------------------


def best(logits, names, top):
    """Returns the most probable classes."""
    shifted = np.exp(logits.astype(np.float64) - logits.max())
    probabilities = shifted / shifted.sum()
    return [
        {"class": names[i], "number": int(i), "probability": round(float(probabilities[i]), 6)}
        for i in np.argsort(-probabilities, kind="stable")[:top]
    ]


def label_map(labels, part, size):
    """Returns the labels of the canvas at the size of the picture."""
    rows, columns = (
        np.clip(np.floor((np.arange(n) + 0.5) * (p / n)).astype(int), 0, p - 1)
        for p, n in zip(part, size, strict=True)
    )
    return labels[rows[:, None], columns]


def objects(found, part, size, names, least):
    """Returns the objects with at least that score, boxes in pixels of the picture."""
    whole = np.tile(np.float32(size[::-1]), 2)
    boxes = np.clip(found["boxes"] * (whole / np.tile(np.float32(part[::-1]), 2)), 0, whole)
    return [
        {
            "class": names[number], "number": int(number), "score": round(float(score), 6),
            "box": [round(float(edge), 2) for edge in box],
        }
        for box, number, score, valid in zip(
            boxes, found["classes"], found["scores"], found["valid"], strict=True
        )
        if valid and score >= least
    ]  # fmt: skip


def prepare(path, about):
    """Returns what the program takes of a picture or a clip, one array for each of its inputs;
    (height, width) of the picture's part of the canvas, and of the picture.
    """
    how = about["preprocessing"]
    if about["task"] == "clips":
        return [cut(path, how)], None, None
    if how["fit"] == "crop":
        return [crop(path, how)], None, None
    pixels, part, size = fit(path, how)
    shapes = [np.array(part, np.int32)] if "image_shape" in about["inputs"] else []
    return [pixels, *shapes], part, size


def answer(found, part, size, about, top=5):
    """Returns what is written of a picture, or of a clip, and its label map, if there is one."""
    names = about["classes"]
    if part is None:
        return {"classes": best(found, names, top)}, None
    about_size = {"width": size[1], "height": size[0]}
    if isinstance(found, dict):
        least = about["preprocessing"]["shown_score"]
        return about_size | {"objects": objects(found, part, size, names, least)}, None
    labels = label_map(found[: part[0], : part[1]], part, size)
    counts = np.bincount(labels.ravel(), minlength=len(names))
    shares = [
        {"class": names[i], "number": int(i), "share": round(float(counts[i] / labels.size), 6)}
        for i in np.argsort(-counts, kind="stable")
        if counts[i]
    ]
    return about_size | {"classes": shares}, labels


def is_picture(path):
    """Whether a file in a folder is a picture, by its ending, or without one by its content."""
    if not path.is_file() or path.suffix:
        return path.is_file() and path.suffix.lower() in PICTURES + OTHERS
    try:
        with open(path, "rb") as file:
            if HEIF.match(file.read(12)):
                return True
            file.seek(0)
            return bool(Image.open(file, formats=FORMATS))
    except Exception:  # what is no picture raises many types
        return False


def search(paths, task):
    """Yields the paths, in place of a folder that is no clip the pictures below it."""
    for path in paths:
        if task == "clips" or not Path(path).is_dir():
            yield path
            continue
        below = (p for p in Path(path).rglob("*") if not p.name.startswith("."))
        shown = sorted(filter(is_picture, below))
        if not shown:
            raise ValueError(f"{path}: no picture in this folder; looked for {', '.join(PICTURES)}")
        yield from shown


def predict(folder, paths, top=5, failed=None):
    """Yields path, what is written of it, and its label map; in batches of one size, as predict.
    What cannot be read is handed to `failed` with the error, without which it is raised.
    """
    about = json.loads(Path(folder, "export.json").read_text(encoding="utf-8"))
    program = bytearray(Path(folder, "model.stablehlo").read_bytes())
    network = jax.jit(jax.export.deserialize(program).call)
    paths = list(search(paths, about["task"]))
    count = min(about["batch_size"], 1 << (len(paths) - 1).bit_length())
    for start in range(0, len(paths), count):
        given = []
        for path in paths[start : start + count]:
            try:
                given.append((path, *prepare(path, about)))
            except Exception as error:  # damaged files raise many types
                if failed is None:
                    raise
                failed(path, error)
        if not given:
            continue
        filled = given + given[-1:] * (count - len(given))
        batch = [np.stack(arrays) for arrays in zip(*(one[1] for one in filled), strict=True)]
        found = jax.device_get(network(*batch))
        for row, (path, _, part, size) in enumerate(given):
            own = jax.tree.map(lambda array, row=row: array[row], found)
            yield path, *answer(own, part, size, about, top)


def main():
    """Reads the arguments and prints the answers; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="what eval.py --mode=export wrote")
    parser.add_argument("input", nargs="+", help="pictures or folders, or of clips one folder each")
    parser.add_argument("--top", type=int, default=5, help="classes to print")
    parser.add_argument("--output", help="folder for label maps, made if needed")
    given = parser.parse_args()
    if not Path(given.folder, "export.json").is_file():
        parser.error(f"{given.folder}: no export.json there; eval.py --mode=export writes one")
    names, failures = set(), []

    def failed(path, error):
        failures.append(path)
        print(f"{path}: cannot be read ({error})", file=sys.stderr)

    try:
        for path, found, labels in predict(given.folder, given.input, given.top, failed):
            line = {"file": str(path), **found}
            if labels is not None and given.output:
                output = Path(given.output).expanduser()  # which shells leave behind a `=`
                output.mkdir(parents=True, exist_ok=True)
                stem = Path(path).stem  # which pictures of several folders may share
                tried = (f"{stem}{f'_{n}' * (n > 1)}_labels.png" for n in range(1, len(names) + 2))
                name = next(name for name in tried if name not in names)
                names.add(name)
                Image.fromarray(labels).save(output / name)
                line["drawn"] = {"labels": name}
            print(json.dumps(line, ensure_ascii=False))
    except (ValueError, OSError) as error:
        parser.error(str(error))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
