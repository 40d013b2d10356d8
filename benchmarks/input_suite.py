"""Suite `input`: how many images a second the host reads, decodes, crops and flips.

The images are 500x375 JPEGs cut from scikit-learn's two photographs, with a little noise so that
the files have the size of ImageNet's. `items_per_cpu_s` is images per second and core.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_image

from benchmarks.harness import Case, Prepared
from configs import base
from lambdanet import data, tasks
from lambdanet.data import decode, image_folder, splitting

FILES, SIZE, OUTPUT = 24, (500, 375), (224, 224)


def jpegs() -> list[bytes]:
    """Returns `FILES` encoded images; mean size about 100 kB."""
    rng, photographs = (
        np.random.default_rng(0),
        [load_sample_image(n) for n in ("china.jpg", "flower.jpg")],
    )
    width, height = SIZE
    files = []
    for i in range(FILES):
        photograph = photographs[i % 2]
        top = rng.integers(photograph.shape[0] - height + 1)
        left = rng.integers(photograph.shape[1] - width + 1)
        pixels = photograph[top : top + height, left : left + width] + rng.normal(
            0, 5, (height, width, 3)
        )
        buffer = io.BytesIO()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=93)
        files.append(buffer.getvalue())
    return files


def train_config(**changes: Any) -> Any:
    """Returns the config of ImageNet training: random crops to 224, flips.

    Args:
        changes: of keys of the section `data`.
    """
    config = base.get_config()
    config.data.image_size, config.data.channels = OUTPUT, 3
    config.data.crop, config.data.flip = "random_resized", 0.5
    config.data.update(changes)
    return config


def stored(files: list[bytes]) -> list[data.Record]:
    """Returns the files as records of one class, as a source hands them to the task."""
    return [data.Record({"image": file, "label": 0}, i, f"{i}") for i, file in enumerate(files)]


def cases(threads: Sequence[int] = (0, 2, 4)) -> list[Case]:
    """Returns the cases of the suite; the pipeline once for each number of threads."""
    found = []
    for name, changes in (
        ("decode_crop_flip", {}),
        ("decode_crop_flip_bicubic", {"interpolation": "bicubic"}),
        ("decode_crop_flip_randaugment", {"rand_augment": (2, 15.0)}),
    ):
        found.append(
            Case(
                "input",
                name,
                "train",
                "pillow",
                lambda c=changes: prepare_transform(train_config(**c)),
            )
        )
    found.append(
        Case("input", "decode_centre_crop", "fwd", "pillow", lambda: prepare_eval(train_config()))
    )
    # Different names, so that they do not take turns: one would decode ahead during the other's
    # sample.
    for number in threads:
        found.append(
            Case(
                "input",
                f"pipeline_{number}_threads",
                "train",
                "grain",
                lambda t=number: prepare_pipeline(t),
            )
        )
    return found


def prepare_transform(config: Any) -> Prepared:
    """Decode, random resized crop, flip and what else `config` asks for, of all files, in this
    thread.
    """
    make = tasks.example_maker(config, data.DataInfo({}, ("any",)))
    records = stored(jpegs())

    def run():
        rng = np.random.default_rng(0)
        for record in records:
            make(record, rng)

    def check():
        for i, record in enumerate(records):
            array, again = (make(record, np.random.default_rng(i))["image"] for _ in range(2))
            assert array.shape == (*OUTPUT, 3) and array.dtype == np.uint8
            assert np.array_equal(array, again)
            if config.data.rand_augment[0] == 0:
                rng = np.random.default_rng(i)
                expected = reference(record.fields["image"], config.data, rng)
                assert np.abs(array.astype(float) - expected).mean() < 2.0

    return Prepared(run, check, items=FILES)


def reference(file: bytes, section: Any, rng: np.random.Generator) -> np.ndarray:
    """The same crop resampled by JAX, antialiased, from the fully decoded image."""
    import jax

    array = np.array(Image.open(io.BytesIO(file)), np.float32)
    box = decode.random_resized_box(
        *SIZE, scale=section.crop_scale, ratio=section.crop_ratio, rng=rng
    )
    left, top, right, bottom = box
    method = {"bilinear": "linear", "bicubic": "cubic"}[section.interpolation]
    resized = jax.image.resize(array[top:bottom, left:right], (*OUTPUT, 3), method, antialias=True)
    resized = np.clip(np.array(resized), 0, 255)
    return resized[:, ::-1] if rng.random() < section.flip else resized


def prepare_eval(config: Any) -> Prepared:
    """Decode, resize to 256 and centre crop of all files, in this thread."""
    config.data.eval_crop = 0.875
    make = tasks.example_maker(config, data.DataInfo({}, ("any",)))
    records = stored(jpegs())

    def run():
        for record in records:
            make(record, None)

    def check():
        for record in records:
            image = Image.open(io.BytesIO(record.fields["image"]))
            image = image.resize((341, 256), Image.Resampling.BILINEAR)
            expected = np.array(image.crop((58, 16, 282, 240)), float)
            difference = make(record, None)["image"] - expected
            # 8x8 means: the usual two steps round 341.3 pixels to 341, which shifts edges by a
            # fraction of a pixel
            assert np.abs(difference.reshape(28, 8, 28, 8, 3).mean((1, 3))).mean() < 3.0

    return Prepared(run, check, items=FILES)


def prepare_pipeline(threads: int, batch_size: int = 32, batches_per_call: int = 16) -> Prepared:
    """Training batches from a prepared image folder: reading, decoding, batching, `threads` batches
    ahead.

    Many batches per call, so that how many were ready at its start and its end matters little.
    """
    directory = tempfile.TemporaryDirectory()
    root = Path(directory.name)
    for i, file in enumerate(jpegs() * 4):
        path = root / "source" / str(i % 2) / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file)
    with contextlib.redirect_stderr(io.StringIO()):  # its progress
        everything = splitting.Division((1.0, 0.0, 0.0))
        image_folder.prepare(str(root / "source"), str(root / "prepared"), division=everything)

    def open_batches(threads: int) -> data.TrainBatches:
        config = train_config(
            source="image_folder",
            data_dir=str(root / "prepared"),
            num_threads=threads,
            prefetch=threads,
        )
        info = tasks.get(config.task).read(data.open_builder(config.data))
        parts = data.training_parts(config.data, info.features)
        make = tasks.example_maker(config, info)
        return data.train_batches(parts, make, config.data, batch_size=batch_size, seed=0)

    batches = open_batches(threads)

    def check():
        again = open_batches(0)
        first, second = next(batches), next(again)
        assert all(np.array_equal(first[key], second[key]) for key in second), (
            "batches depend on the threads"
        )
        again.close()

    def close():
        batches.close()
        directory.cleanup()

    def run():
        for _ in range(batches_per_call):
            next(batches)

    return Prepared(run, check, items=batch_size * batches_per_call, close=close)
