"""Pictures are prepared for public weights as timm does, pixel by pixel. Needs timm."""

import io

import numpy as np
import pytest
from PIL import Image

from configs import imagenet_eval
from lambdanet.data import decode, geometry
from lambdanet.ops.images import normalise
from models import pretrained

torch = pytest.importorskip(
    "torch", reason="PyTorch is not installed; requirements-dev.txt lists it"
)
timm = pytest.importorskip("timm", reason="timm is not installed; requirements-dev.txt lists it")

PREPARED = {
    (found.image_size, found.crop, found.interpolation): name
    for name, found in pretrained.TABLE.items()
    if found.data == "ImageNet-1k"
}
"""One model per way to prepare a picture."""
SIZES = ((500, 375), (375, 500), (640, 480), (97, 331), (288, 288), (301, 300), (2000, 1503))


def picture(width, height, kind):
    """Bytes of a picture with edges and noise."""
    draw = np.random.default_rng(width * height)
    coarse = Image.fromarray(draw.integers(0, 256, (12, 16, 3), np.uint8))
    array = np.asarray(coarse.resize((width, height), Image.Resampling.NEAREST), np.int16)
    array = np.clip(array + draw.integers(-20, 21, array.shape), 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(array).save(file, kind, **({"quality": 90} if kind == "JPEG" else {}))
    return file.getvalue()


@pytest.mark.parametrize("name", PREPARED.values())
def test_pixels_are_timms(name):
    found, data = pretrained.TABLE[name], imagenet_eval.get_config(name).data
    transform = timm.data.create_transform(
        input_size=(3, *found.image_size), is_training=False, mean=found.mean, std=found.std,
        crop_pct=found.crop, interpolation=found.interpolation, crop_mode="center",
    )  # fmt: skip
    equal = []
    for size in SIZES:
        for kind in ("JPEG", "PNG"):
            encoded = picture(*size, kind)
            theirs = transform(Image.open(io.BytesIO(encoded)).convert("RGB")).numpy()
            opened = decode.open_image(encoded, exif_orientation=data.exif_orientation)
            ours = decode.to_array(
                geometry.warp_image(opened, geometry.centred(opened.size, data), 3)
            )
            mean, std = (np.reshape(v, (3, 1, 1)) for v in (found.mean, found.std))
            pixels = 255 * (theirs * std + mean)
            difference = np.abs(np.moveaxis(ours, -1, 0) - pixels)
            assert difference.max() < 1.001, (size, kind, difference.max())
            equal.append((difference < 0.01).all())
            normal = np.moveaxis(np.asarray(normalise(ours, data.mean, data.std)), -1, 0)
            np.testing.assert_allclose(normal, theirs, atol=1.001 / 255 / min(found.std), rtol=0)
    assert all(equal)  # indeed none differs
