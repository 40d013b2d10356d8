"""Fixtures of timm's preprocessing: what its transform of evaluation makes of three pictures, and
its default configuration of every network of models/pretrained.py that has its weights.

    python tests/golden_preprocessing.py        (needs PyTorch, torchvision and timm)

writes tests/golden/preprocessing, which tests/models/test_preprocessing_fixtures.py reads.
"""

import io
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "tests" / "golden" / "preprocessing"
SIZES = ((500, 375), (97, 331), (301, 300))
"""Width and height of the pictures: a wide one, a narrow one, one that is nearly square."""
STRIDE = 9
"""Every so many rows and columns of a result are kept."""
FACTS = ("mean", "std", "crop_pct", "interpolation", "input_size", "crop_mode")


def picture(width: int, height: int) -> bytes:
    """Returns a PNG with slopes, edges and fine structure, of integers alone."""
    y, x = np.mgrid[:height, :width]
    channels = [
        (x * 255 // width + 40 * (x // 16 + y // 12 & 1)) % 256,
        (x * x + 3 * y * y) // 64 % 256,
        (37 * x + 91 * y + x * y) % 256,
    ]
    file = io.BytesIO()
    Image.fromarray(np.stack(channels, -1).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def key(facts: dict, size: tuple[int, int]) -> str:
    """Returns the name of a result: how the picture was prepared, and its width and height."""
    how = (facts["input_size"][1], facts["crop_pct"], facts["interpolation"], *size)
    return "_".join(map(str, how))


def main() -> None:
    """Writes the fixtures."""
    sys.path.insert(0, str(ROOT))
    import timm

    from models import pretrained

    facts, pictures = {}, {}
    for name, found in pretrained.TABLE.items():
        if not found.source.startswith("hf:timm/"):
            continue
        config = timm.get_pretrained_cfg(found.source.removeprefix("hf:timm/")).to_dict()
        resolved = timm.data.resolve_data_config(
            pretrained_cfg=config, use_test_size=True, verbose=False
        )
        own = facts[name] = {fact: resolved[fact] for fact in FACTS}
        transform = timm.data.create_transform(**own)
        mean, std = (np.reshape(own[which], (3, 1, 1)) for which in ("mean", "std"))
        for size in SIZES:
            opened = Image.open(io.BytesIO(picture(*size)))
            pixels = 255 * (transform(opened).numpy() * std + mean)
            exact = np.rint(pixels).astype(np.uint8)
            assert np.abs(pixels - exact).max() < 1e-3  # before the normalisation they were bytes
            pictures[key(own, size)] = np.moveaxis(exact, 0, -1)[::STRIDE, ::STRIDE]
    FOLDER.mkdir(exist_ok=True)
    np.savez_compressed(FOLDER / "pictures.npz", **pictures)
    text = json.dumps({"timm": timm.__version__, "networks": facts}).replace("}, ", "},\n")
    (FOLDER / "configs.json").write_text(f"{text}\n")


if __name__ == "__main__":
    main()
