"""Suite `input`: how many images a second the host reads, decodes, crops and flips.

The images are 500x375 JPEGs cut from scikit-learn's two photographs, with a little noise so that
the files have the size of ImageNet's. `items_per_cpu_s` is images per second and core.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_image

from benchmarks.harness import Case, Prepared
from configs import base
from lambdanet import data
from lambdanet.data import decode, image_folder, records

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
    """Returns the config section `data` of ImageNet training: random crops to 224, flips."""
    config = base.get_config().data
    config.image_size, config.channels = OUTPUT, 3
    config.crop, config.flip = "random_resized", 0.5
    config.update(changes)
    return config


def cases() -> list[Case]:
    """Returns the cases of the suite."""
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
    for threads in (0, 2, 4):
        found.append(
            Case(
                "input",
                f"pipeline_{threads}_threads",
                "train",
                "grain",
                lambda t=threads: prepare_pipeline(t),
            )
        )
    return found


def prepare_transform(config: Any) -> Prepared:
    """Decode, random resized crop, flip and what else `config` asks for, of all files, in this
    thread.
    """
    transform = records.transform_from_config(records.TrainTransform, config)
    files = jpegs()

    def run():
        rng = np.random.default_rng(0)
        for file in files:
            transform(decode.open_image(file), rng)

    def check():
        for i, file in enumerate(files):
            array = transform(decode.open_image(file), np.random.default_rng(i))
            again = transform(decode.open_image(file), np.random.default_rng(i))
            assert (
                array.shape == (*OUTPUT, 3)
                and array.dtype == np.uint8
                and np.array_equal(array, again)
            )
            if transform.rand_augment[0] == 0:
                expected = reference(file, transform, np.random.default_rng(i))
                assert np.abs(array.astype(float) - expected).mean() < 2.0

    return Prepared(run, check, items=FILES)


def reference(
    file: bytes, transform: records.TrainTransform, rng: np.random.Generator
) -> np.ndarray:
    """The same crop resampled by JAX, antialiased, from the fully decoded image."""
    import jax

    array = np.array(Image.open(io.BytesIO(file)), np.float32)
    box = decode.random_resized_box(
        *SIZE, scale=transform.crop_scale, ratio=transform.crop_ratio, rng=rng
    )
    left, top, right, bottom = box
    method = {"bilinear": "linear", "bicubic": "cubic"}[transform.interpolation]
    resized = jax.image.resize(array[top:bottom, left:right], (*OUTPUT, 3), method, antialias=True)
    resized = np.clip(np.array(resized), 0, 255)
    return resized[:, ::-1] if rng.random() < transform.flip else resized


def prepare_eval(config: Any) -> Prepared:
    """Decode, resize to 256 and centre crop of all files, in this thread."""
    config.eval_crop = 0.875
    transform = records.transform_from_config(records.EvalTransform, config)
    files = jpegs()

    def run():
        for file in files:
            transform(decode.open_image(file))

    def check():
        for file in files:
            image = Image.open(io.BytesIO(file)).resize((341, 256), Image.Resampling.BILINEAR)
            expected = np.array(image.crop((58, 16, 282, 240)), float)
            difference = transform(decode.open_image(file)) - expected
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
        image_folder.prepare(str(root / "source"), str(root / "prepared"), val_fraction=0.0)
    source = dict(source="image_folder", data_dir=str(root / "prepared"))
    options = dict(batch_size=batch_size, num_classes=2, seed=0)
    batches = data.train_batches(
        train_config(**source, num_threads=threads, prefetch=threads), **options
    )

    def check():
        again = data.train_batches(train_config(**source, num_threads=0, prefetch=0), **options)
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
