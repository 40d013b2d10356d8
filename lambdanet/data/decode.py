"""From the bytes of an image file to a cropped, resized image.

Pillow does both steps: its resampling filters widen when shrinking (antialiasing, as torchvision,
timm and `jax.image.resize` do), it refuses truncated files, and it releases the interpreter lock,
so reader threads scale.

Pictures are upright: the EXIF orientation that cameras store is applied, unless it is switched
off. Pictures are opaque: transparent ones (an alpha channel, a palette with alpha, PNG's
transparent colour) are laid on white, the paper of scans and drawings, before they are resampled.
"""

from __future__ import annotations

import dataclasses
import io
import math
import re

import numpy as np
from PIL import Image

from lambdanet.data import orientation

MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
"""Formats that are read; others (EPS runs a program) are never handed to their decoders."""
MAX_PIXELS = 300_000_000
"""Largest picture, width times height: 1.2 GB when decoded. Cameras reach 200 million."""
HEIF = re.compile(rb"....ftyp(heic|heix|heif|hevc|mif1|msf1|avif|avis)", re.DOTALL)
"""How HEIC and AVIF files begin, as phones write them: videos begin so with other names."""
HEIF_REASON = "HEIC or AVIF, which is not read: convert it, to JPEG for example"
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
WHITE = {"L": 255, "RGB": (255, 255, 255)}
Box = tuple[
    int | float, int | float, int | float, int | float
]  # left, top, right, bottom, in pixels

# Pillow warns above 89 and refuses above 179 million pixels, which single photographs have.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS


@dataclasses.dataclass(frozen=True)
class Picture:
    """An opened picture, whose pixels need not be decoded yet.

    Attributes:
        stored: as the file has it.
        turn: makes it upright.
        size: (width, height) of the upright picture; `stored` has another one as soon as a JPEG
            was decoded at a part of its size.
    """

    stored: Image.Image
    turn: orientation.Turn
    size: tuple[int, int]

    def load(self) -> Image.Image:
        """Returns the whole picture, decoded and upright, in its own mode.

        Raises:
            OSError: damaged or truncated pixel data.
        """
        self.stored.load()
        return orientation.upright(self.stored, self.turn)


def why_unsupported(mode: str) -> str:
    """Returns '' if images of this Pillow mode have 8 bits per channel, else the reason why they
    are refused.
    """
    return (
        ""
        if mode in MODES
        else f"pixel mode {mode!r} is not 8 bits per channel; convert the image first"
    )


def why_too_large(pixels: int) -> str:
    """Returns '' for at most `MAX_PIXELS`, else the reason why a picture is refused, which may be a
    few bytes that ask for all memory.
    """
    if pixels <= MAX_PIXELS:
        return ""
    return (
        f"{pixels / 1e6:.0f} megapixels; allowed: up to {MAX_PIXELS / 1e6:.0f}; scale it down or "
        "cut it into pieces"
    )


def read_header(file: io.BufferedIOBase, formats: tuple[str, ...] | None = None) -> Image.Image:
    """Opens an image file with Pillow; no pixel is decoded.

    Args:
        file: at its begin.
        formats: Pillow's names of those to try; all, if None.

    Raises:
        ValueError: HEIC or AVIF; the picture is too large, or has grey pixels of 16 bits or float
            pixels, which a plain conversion to 8 bits would clip.
        OSError: not an image of these formats, or unreadable.
    """
    if HEIF.match(file.read(12)):
        raise ValueError(HEIF_REASON)
    file.seek(0)
    try:
        image = Image.open(file, formats=formats)
    except Image.DecompressionBombError as error:  # beyond twice the limit; it says how large
        raise ValueError(why_too_large(int(re.search(r"\d+", str(error))[0]))) from error
    reason = why_too_large(image.width * image.height) or why_unsupported(image.mode)
    if reason:
        raise ValueError(reason)
    return image


def open_image(data: bytes | np.ndarray | Image.Image, *, exif_orientation: bool = True) -> Picture:
    """Reads the header of an encoded image; the pixels are decoded later, by `crop_and_resize`.

    A PNG may name its orientation behind the pixels, so that they are decoded here already.

    Args:
        data: an image file's bytes, or decoded pixels: uint8 [h, w, 1 or 3]; or an image of Pillow,
            which stays as it is.
        exif_orientation: turn the picture as its EXIF data say. TIFF files are turned in any case,
            by Pillow.

    Raises:
        ValueError: more than `MAX_PIXELS`; 16-bit or float pixels.
        OSError: not an image, or a damaged PNG.
    """
    if isinstance(data, np.ndarray):
        image = Image.fromarray(data[:, :, 0] if data.shape[2] == 1 else data)
        return Picture(image, orientation.TURNS[1], image.size)
    if isinstance(data, Image.Image):
        if reason := why_too_large(data.width * data.height) or why_unsupported(data.mode):
            raise ValueError(reason)
        image, given = data.copy(), data
    else:
        image = given = read_header(io.BytesIO(data), FORMATS)
        _scale_transparent_colour(image)
    turn = orientation.read(given) if exif_orientation else orientation.TURNS[1]
    return Picture(image, turn, image.size[::-1] if turn.sideways else image.size)


def further_frames(data: bytes | Image.Image) -> int:
    """Returns how many frames or pages a picture has behind the first one, which is the one that is
    read; 0 for the second picture in a phone's JPEG (MPO).

    Args:
        data: bytes of a file that `open_image` opens, or an image of Pillow.
    """
    try:
        image = data if isinstance(data, Image.Image) else read_header(io.BytesIO(data), FORMATS)
        return 0 if image.format == "MPO" else getattr(image, "n_frames", 1) - 1
    except Exception:  # what follows the first frame may be damaged, which is none of its business
        return 0


def _scale_transparent_colour(image: Image.Image) -> None:
    """Gives a PNG's transparent colour the scale of its pixels: Pillow brings samples of 2, 4 and
    16 bits to 8, but not the colour they are compared with. Of 16 bits the upper 8 are compared.
    """
    colour = image.info.get("transparency")
    if image.format != "PNG" or colour is None:
        return
    samples = image.tile[0].args
    if samples in ("L;2", "L;4"):
        image.info["transparency"] = colour * {"L;2": 85, "L;4": 17}[samples]
    elif samples == "RGB;16B":
        image.info["transparency"] = tuple(value >> 8 for value in colour)


def _opaque(image: Image.Image, mode: str) -> Image.Image:
    """Decodes and converts to 'L' or 'RGB', a transparent picture on white."""
    if not image.has_transparency_data:
        return image if image.mode == mode else image.convert(mode)
    alpha = image if image.mode in ("LA", "PA", "RGBA") else image.convert("RGBA")
    alpha = alpha.getchannel("A")
    colours = image
    if "transparency" in image.info:  # which Pillow would try to carry along, with a warning
        colours = image.copy()
        del colours.info["transparency"]
    colours = colours.convert(mode)
    if alpha.getextrema()[0] == 255:
        return colours
    canvas = Image.new(mode, image.size, WHITE[mode])
    canvas.paste(colours, mask=alpha)
    return canvas


def random_resized_box(
    width: int,
    height: int,
    *,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    rng: np.random.Generator,
) -> Box:
    """Draws a crop by area and aspect ratio (Szegedy et al. 2015, "Going deeper with
    convolutions").

    Ten tries: area uniform in `scale` times the image's, width / height log-uniform in `ratio`,
    position uniform. If none fits, the largest centred crop within `ratio`.
    """
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        aspect = np.exp(rng.uniform(np.log(ratio[0]), np.log(ratio[1])))
        w, h = round(float(np.sqrt(area * aspect))), round(float(np.sqrt(area / aspect)))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, top, left + w, top + h
    aspect = min(max(width / height, ratio[0]), ratio[1])
    w, h = min(width, round(height * aspect)), min(height, round(width / aspect))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def covering_size(
    width: int, height: int, *, size: tuple[int, int], fraction: float, keep_aspect: bool = True
) -> tuple[int, int]:
    """Returns the (width, height) in whole pixels that evaluation resizes a picture to before the
    centred crop: the side that decides floor(size / fraction), the other one rounded down; see
    `centre_box`.
    """
    rows, columns = (math.floor(side / fraction) for side in size)
    if not keep_aspect:
        return columns, rows
    if rows * width >= columns * height:
        return rows * width // height, rows
    return columns, columns * height // width


def centre_box(
    width: int, height: int, *, size: tuple[int, int], fraction: float, keep_aspect: bool = True
) -> Box:
    """Returns the centred crop of evaluation: resizing until the image covers size / fraction, then
    cropping `size`.

    The resized picture has whole pixels (`covering_size`) and is cropped at a whole pixel, a half
    rounded to the even one: so the box is that of torchvision and timm for square outputs.

    Args:
        width, height: of the image.
        size: (height, width) of the output.
        fraction: output side over resized side, in (0, 1]; 224 / 256 = 0.875 is the classic value.
        keep_aspect: False resizes each side by itself to size / fraction, so that the crop is the
            middle of both sides.
    """
    if not keep_aspect:
        return tuple(
            side * (1 + sign * fraction) / 2 for sign in (-1, 1) for side in (width, height)
        )
    columns, rows = covering_size(width, height, size=size, fraction=fraction)
    top, left = round((rows - size[0]) / 2), round((columns - size[1]) / 2)
    box = (left, top, left + size[1], top + size[0])
    scales = (width / columns, height / rows) * 2
    return tuple(
        min(edge * scale, side)
        for edge, scale, side in zip(box, scales, (width, height) * 2, strict=True)
    )


def crop_and_resize(
    picture: Picture,
    box: Box,
    *,
    size: tuple[int, int],
    channels: int,
    interpolation: str,
    whole: tuple[int, int] | None = None,
) -> Image.Image:
    """Decodes a picture and resamples `box` to `size` in one antialiased step; call it once.

    A JPEG whose crop is at least twice the output in both directions is decoded at 1/2, 1/4 or 1/8
    of its size, which its block transform gives almost for free; never below the output's
    resolution. Pixels just outside the box enter the filter at its border. The small result is
    turned, not the picture.

    Args:
        picture: from `open_image`.
        box: the crop in pixels of the full-size, upright picture.
        size: (height, width) of the output.
        channels: 1 gives mode 'L', 3 gives 'RGB'; other modes are converted, transparent ones laid
            on white.
        interpolation: 'bilinear' or 'bicubic'.
        whole: (width, height) that the picture, decoded whole, is resized to before it is cropped,
            as timm and torchvision do; the same box comes out but for rounding (Pillow rounds
            between rows and columns, in an order that depends on the sizes). None for one step.

    Returns:
        A decoded, upright image of `size`.

    Raises:
        OSError: damaged or truncated pixel data.
    """
    mode = "L" if channels == 1 else "RGB"
    image, turn = picture.stored, picture.turn
    if whole is not None:
        image = orientation.upright(_opaque(image, mode), turn).resize(
            whole, FILTERS[interpolation]
        )
        left, top = (
            round(edge * new / old)
            for edge, new, old in zip(box, whole, picture.size, strict=False)
        )
        return image.crop((left, top, left + size[1], top + size[0]))
    box = orientation.stored_box(box, image.size, turn)
    height, width = size[::-1] if turn.sideways else size
    if image.format in ("JPEG", "MPO"):
        box = _draft(image, box, (height, width), mode)
    image = _opaque(image, mode)
    if box == (0, 0, *image.size) and image.size == (width, height):
        image.load()
    else:
        image = image.resize((width, height), FILTERS[interpolation], box=box)
    return orientation.upright(image, turn)


def _draft(image: Image.Image, box: Box, size: tuple[int, int], mode: str) -> Box:
    """Sets a JPEG to be decoded at the smallest size that covers the output; returns the box in
    it.
    """
    left, top, right, bottom = box
    width, height = image.size
    wanted = (
        int(np.ceil(width * size[1] / (right - left))),
        int(np.ceil(height * size[0] / (bottom - top))),
    )
    reduced = image.draft("L" if mode == "L" else None, wanted)
    if reduced is None:
        return box
    x, y = reduced[1][2] / width, reduced[1][3] / height
    return left * x, top * y, right * x, bottom * y


def to_array(image: Image.Image) -> np.ndarray:
    """Returns a writable uint8 array [h, w, c]."""
    array = np.array(image)
    return array[:, :, None] if array.ndim == 2 else array
