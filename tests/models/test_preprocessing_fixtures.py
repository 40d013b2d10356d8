"""Pictures are prepared for public weights as timm does, and the table says of them what timm's
configurations do: by fixtures that timm has written (tests/golden_preprocessing.py).
"""

import json

import numpy as np
import pytest
from golden_preprocessing import FOLDER, SIZES, STRIDE, key, picture

from configs import imagenet_eval
from lambdanet.data import decode, geometry
from lambdanet.ops.images import normalise
from models import pretrained

NETWORKS = json.loads((FOLDER / "configs.json").read_text())["networks"]
WAYS = {key(facts, SIZES[0]): name for name, facts in NETWORKS.items()}
"""One network for each way to prepare a picture."""


def test_the_table_says_what_timms_configurations_do():
    assert set(NETWORKS) == {
        name for name, found in pretrained.TABLE.items() if found.source.startswith("hf:timm/")
    }
    for name, facts in NETWORKS.items():
        found = pretrained.TABLE[name]
        assert facts == {
            "mean": list(found.mean),
            "std": list(found.std),
            "crop_pct": found.crop,
            "interpolation": found.interpolation,
            "input_size": [3, *found.image_size],
            "crop_mode": "center",
        }, name


@pytest.mark.parametrize("name", WAYS.values())
def test_pixels_are_timms(name):
    facts, data = NETWORKS[name], imagenet_eval.get_config(name).data
    with np.load(FOLDER / "pictures.npz") as pictures:
        expected = {size: pictures[key(facts, size)] for size in SIZES}
    for size, theirs in expected.items():
        opened = decode.open_image(picture(*size), exif_orientation=data.exif_orientation)
        drawn = geometry.centred(opened.size, data)
        ours = decode.to_array(geometry.warp_image(opened, drawn, 3))[::STRIDE, ::STRIDE]
        assert ours.shape == theirs.shape
        assert np.abs(ours.astype(int) - theirs).max() <= 1, size  # of 255
        normal = (theirs / 255 - facts["mean"]) / facts["std"]
        tolerance = 1.01 / 255 / min(facts["std"])
        np.testing.assert_allclose(
            np.asarray(normalise(ours, data.mean, data.std)), normal, atol=tolerance, rtol=0
        )
