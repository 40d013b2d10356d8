"""How evaluation makes a picture what a network reads, as plain values: what goes with an exported
program. `lambdanet.data.decode` and `lambdanet.data.geometry` do what is said here.
"""

from __future__ import annotations

from typing import Any

from lambdanet.data import geometry


def describe(data: Any, *, fit: str) -> dict[str, Any]:
    """Returns how pictures are prepared.

    Args:
        data: the config's section, with the canvas of evaluation as its image_size.
        fit: 'crop', the centred crop of `geometry.centred`, or 'pad', `geometry.fitted`.

    Returns:
        size (height, width), channels, interpolation, exif_orientation, background of transparent
        pictures, fit; for 'crop' also crop (output over resized side), keep_aspect and resize_first
        (the whole picture, before it is cropped), for 'pad' padding, the colour of what is below or
        on the right of the picture; and mean and std, which are applied inside the program.
    """
    found = {
        "size": list(data.image_size),
        "channels": data.channels,
        "fit": fit,
        "interpolation": geometry.evaluation_filter(data),
        "exif_orientation": data.exif_orientation,
        "background": 255,
        "mean": list(data.mean),
        "std": list(data.std),
        "normalisation": "inside the program: it takes uint8",
    }
    if fit == "crop":
        own = {"crop": data.eval_crop, "keep_aspect": data.eval_keep_aspect}
        return found | own | {"resize_first": data.eval_resize_first}
    return found | {"padding": list(geometry.mean_colour(data))}
