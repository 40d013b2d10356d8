"""Functions shared by the data tests."""

import io

import numpy as np
from PIL import Image


def jpeg(colour, size=(12, 10), quality=95):
    """Bytes of a JPEG of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


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
