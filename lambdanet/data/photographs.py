"""The two photographs inside scikit-learn, cut so that no two splits share a pixel.

Both are under Creative Commons Attribution 2.0; whoever passes pictures on that hold parts of them
passes `ATTRIBUTION` on, too.
"""

from __future__ import annotations

import functools

import numpy as np

PART = {"train": (0.0, 0.6), "validation": (0.6, 0.8), "test": (0.8, 1.0)}
"""The part of each photograph's width that a split may use."""
NARROWEST = 128
"""Width in pixels of the narrowest part; all parts are at least as high."""
ATTRIBUTION = (
    "Photographs, changed (cut out, brightness, digits drawn on them), as shipped with "
    "scikit-learn (sklearn.datasets.load_sample_images), both under Creative Commons "
    "Attribution 2.0 (https://creativecommons.org/licenses/by/2.0/): "
    "china.jpg by danielbuechele "
    "(https://www.flickr.com/photos/danielbuechele/6061409035/), "
    "flower.jpg by vultilion "
    "(https://www.flickr.com/photos/vultilion/6056698931/; scikit-learn's list names "
    "danielbuechele beside this address)."
)


@functools.cache
def parts(split: str) -> tuple[np.ndarray, ...]:
    """Returns uint8 [h, w, 3] per photograph: the part of a split, 'train', 'validation' or
    'test'.
    """
    from sklearn.datasets import load_sample_images  # a second of imports that few runs need

    first, last = PART[split]
    photos = [np.array(photo) for photo in load_sample_images().images]
    return tuple(
        photo[:, round(first * photo.shape[1]) : round(last * photo.shape[1])] for photo in photos
    )
