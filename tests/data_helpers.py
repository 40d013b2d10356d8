"""Functions shared by the data tests."""

import io
import struct
import zlib
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image
from rich import progress

from configs import base
from lambdanet import data, tasks
from lambdanet.data import class_search, class_sets, image_folder, splitting, storage


def jpeg(colour, size=(12, 10), quality=95):
    """Bytes of a JPEG of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def png(depth, colour_type, row, *, transparent):
    """A PNG of one row of 4 pixels, with a transparent colour, in any bit depth."""

    def chunk(name, content):
        crc = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", 4, 1, depth, colour_type, 0, 0, 0)
    parts = [(b"IHDR", header), (b"tRNS", transparent), (b"IDAT", zlib.compress(b"\0" + row))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in [*parts, (b"IEND", b"")])


def prepare_unchecked(source, directory):
    """Prepares class folders, all for training, as they are: damaged images too."""
    everything = splitting.Division((1.0, 0.0, 0.0))
    folder = class_sets.settle(class_search.list_folder(source), everything)
    bars = progress.Progress(disable=True)
    storage.prepare_atomically(
        lambda scratch: image_folder.PreparedFolder(folder, bars, data_dir=scratch), directory
    )


def same(first, second):
    """True if two lists of batches are equal in every array and bit."""
    return len(first) == len(second) and all(
        a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)
        for a, b in zip(first, second, strict=True)
    )


def take(batches, count):
    """Reads `count` batches, closes the iterator and returns them."""
    try:
        return [next(batches) for _ in range(count)]
    finally:
        batches.close()


def whole(section):
    """The whole config with this section `data`."""
    config = base.get_config()
    with config.ignore_type():
        config.data = section
    return config


def describe(section, num_classes=None):
    """What classification finds in the data, cut to some classes if a number is given."""
    info = tasks.get("classification").read(data.open_builder(section))
    return info if num_classes is None else data.DataInfo(info.features, info.classes[:num_classes])


def sizes(section):
    """Records of every stored split."""
    builder = data.open_builder(section)
    return {name: split.num_examples for name, split in builder.info.splits.items()}


def train_batches(section, *, num_classes=None, **options):
    """Training batches of classification."""
    info = describe(section, num_classes)
    make = tasks.example_maker(whole(section), info)
    return data.train_batches(data.training_parts(section, info.features), make, section, **options)


def eval_batches(section, split, *, num_classes=None, **options):
    """Evaluation batches of classification."""
    return tasks.eval_batches(whole(section), describe(section, num_classes), split, **options)


def open_source(section, split):
    """A split with the fields that classification reads."""
    return data.open_source(section, split, describe(section).features)


def write_video(path, times, *, audio_only=False):
    """Writes a small video whose frames, of rising red, are shown at these milliseconds."""
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        if audio_only:
            stream = container.add_stream("pcm_s16le", rate=8000)
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
            frame.sample_rate = 8000
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
            return
        stream = container.add_stream("mpeg4", rate=1000)
        stream.width, stream.height, stream.pix_fmt = 32, 16, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for i, time in enumerate(times):
            picture = np.full((16, 32, 3), (20 * i + 20, 60, 60), np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
