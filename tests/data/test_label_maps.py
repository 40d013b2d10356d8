"""Label maps out of files: what is a class number, what is refused, and where they are found."""

import io
import types

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from lambdanet.data import label_maps
from lambdanet.data.record import CorruptRecordError


def encoded(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, options.pop("format", "PNG"), **options)
    return buffer.getvalue()


def read(value, classes=4, **options):
    return label_maps.read_label_map(value, classes, name="record 7, file a.png", **options)


LABELS = np.array([[0, 1, 2], [3, 255, 1]], np.uint8)


def palette(labels):
    image = Image.fromarray(labels, "P")
    image.putpalette(list(range(255, -1, -1)) * 3)
    return image


def test_grey_palette_and_arrays_are_read_alike():
    grey = Image.fromarray(LABELS)
    forms = [encoded(grey), encoded(palette(LABELS)), encoded(grey, format="TIFF")]
    forms += [encoded(Image.fromarray(LABELS.astype(np.uint16)))]  # 16 bits
    forms += [encoded(grey.convert("RGB")), encoded(grey.convert("RGBA"))]  # equal channels
    for value in [*forms, LABELS, LABELS[..., None], LABELS.astype(np.int64)]:
        found = read(value)
        assert found.dtype == np.int32 and np.array_equal(found, LABELS)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_samples_of_few_bits_are_their_numbers(bits):
    """Pillow spreads grey samples over 0 to 255: a 2-bit 1 would be class 85."""
    labels = np.arange(2**bits, dtype=np.uint8)[None]
    image = palette(labels)
    value = bytearray(encoded(image, bits=bits))
    assert np.array_equal(read(bytes(value), 16), labels)  # with a palette
    grey = bytes(png(labels, bits))
    assert np.array_equal(read(grey, 16), labels)
    assert Image.open(io.BytesIO(grey)).mode == ("1" if bits == 1 else "L")


def png(labels, bits):
    """A grey PNG of one row with few bits per sample, which Pillow cannot write."""
    import struct
    import zlib

    packed = np.packbits(np.unpackbits(labels[..., None], axis=-1)[..., -bits:].reshape(-1))
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", labels.shape[1], 1, bits, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"\0" + packed.tobytes())),
        (b"IEND", b""),
    ]
    chunks = [
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in parts
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def test_ignored_values_and_reduced_zero_label():
    reduced = read(LABELS, 3, reduce_zero_label=True)
    assert reduced.tolist() == [[255, 0, 1], [2, 255, 0]]
    assert read(np.array([[0, 1, 9]]), 2, ignore=9).tolist() == [[0, 1, 255]]
    both = read(np.array([[0, 1, 9]]), 1, ignore=9, reduce_zero_label=True)
    assert both.tolist() == [[255, 0, 255]]


@pytest.mark.parametrize(
    "value, options, message",
    [
        (
            LABELS,
            {"classes": 3},
            "record 7, file a.png: label 3 at row 1, column 0; allowed: 0 to 2",
        ),
        (LABELS, {"ignore": 0}, "label 255 at row 1, column 1"),
        (np.array([[0, 5], [5, 5]]), {}, "label 5 at row 0, column 1, and 2 such pixels more"),
        (np.array([[-1]]), {}, "label -1 at row 0, column 0"),
        (LABELS, {"classes": 2, "reduce_zero_label": True}, "label 3 at .*allowed: 1 to 2"),
        (LABELS, {"size": (2, 3)}, "3 x 2 pixels, its picture 2 x 3.*orientation"),
        (LABELS, {"size": (3, 3)}, "3 x 2 pixels, its picture 3 x 3"),
        (np.stack([LABELS] * 2 + [LABELS * 0], -1), {}, "a colour picture where a label map"),
        (LABELS / 2, {}, "float64 values"),
    ],
)
def test_what_is_refused_names_file_value_and_place(value, options, message):
    with pytest.raises(CorruptRecordError, match=message):
        read(value, options.pop("classes", 4), **options)


def test_files_that_are_no_label_maps():
    colour = Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 4, 3), np.uint8))
    with pytest.raises(CorruptRecordError, match="a.png: a colour picture.*--colours"):
        read(encoded(colour))
    with pytest.raises(CorruptRecordError, match="format JPEG, which changes values; allowed: PNG"):
        read(encoded(Image.fromarray(LABELS), format="JPEG"))
    clear = Image.fromarray(np.dstack([LABELS] * 3 + [LABELS * 0]))
    with pytest.raises(CorruptRecordError, match="transparent"):
        read(encoded(clear))
    with pytest.raises(CorruptRecordError, match="a.png: cannot decode the label map .OSError"):
        read(encoded(Image.fromarray(np.resize(LABELS, (50, 50))))[:-60])


def builder(**features):
    return types.SimpleNamespace(info=types.SimpleNamespace(features=features), data_dir="where")


def test_masks_are_found_by_name_labels_or_alone():
    image = tfds.features.Image(shape=(None, None, 3))
    mask = tfds.features.Image(shape=(None, None, 1))
    labelled = tfds.features.LabeledImage(labels=["a", "b"], shape=(None, None, 1))
    find = label_maps.find_mask
    assert find(builder(image=image, annotation=mask), "image") == ("annotation", ())
    assert find(builder(image=image, other=mask), "image") == ("other", ())
    assert find(builder(image=image, depth=mask, classes=labelled), "image") == (
        "classes",
        ("a", "b"),
    )
    assert find(builder(image=image, depth=mask, segmentation_mask=mask), "image")[0] == (
        "segmentation_mask"
    )
    for wrong in (builder(image=image), builder(image=image, one=mask, two=mask)):
        with pytest.raises(ValueError, match="where needs an image feature 'segmentation_mask'"):
            find(wrong, "image")
