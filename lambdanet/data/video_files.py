"""Video files, by way of PyAV, which is an optional extra: whether they can be read, their frames,
upright, and the way back.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from lambdanet.data import orientation

MISSING = (
    "a video file, and PyAV, which decodes them, is not installed: `pip install av` (or "
    "'lambdanet[video]'), or give a folder of frames for each clip"
)
QUALITY = 95  # of the JPEG that a frame becomes
UNEVEN = 1.5  # times the median step that a step may have in a video of constant rate
ROUNDING = 5e-4  # seconds, of time stamps
TEXTS = ("ansi", "bintext", "idf", "xbin")  # decoders of FFmpeg that draw text files
COVER_ART = 0x400  # FFmpeg's AV_DISPOSITION_ATTACHED_PIC: the picture in an audio file
TICKS = 90_000  # per second, in which a written frame's time is counted: exact for the usual rates
ENCODER = "libx264"
CRF = 18  # of what is written: constant quality, hardly to be told from the original


def installed() -> bool:
    """Whether PyAV can be imported."""
    try:
        import av  # noqa: F401
    except ImportError:
        return False
    return True


def why_no_video(file: Path, fps: float) -> str:
    """Returns '' for a video whose frames can be taken, else the reason why not.

    Args:
        file: the file; see `look_at`.
        fps: frames per second to take; 0 = all of them, which must be evenly apart.
    """
    reason, times = look_at(file)
    return reason or ("" if fps else why_uneven(times))


def look_at(file: Path) -> tuple[str, list[float]]:
    """Returns '' or why a file is no video, and the seconds at which its frames are shown.

    All packets are looked at, and the first frame is decoded.
    """
    import av

    try:
        if not file.is_file():
            return "neither a file nor a link to one", []
        if file.stat().st_size == 0:
            return "an empty file", []
        with av.open(str(file)) as container:
            stream = _stream(container)
            if stream is None:
                audio = bool(container.streams.audio)
                return "no video in it, only audio" if audio else "no video in it", []
            times = sorted(
                float(packet.pts * packet.time_base)
                for packet in container.demux(stream)
                if packet.pts is not None and packet.size
            )
        if not times or next(decoded(file), None) is None:
            return "a video without frames", []
    except Exception as error:  # PyAV has an exception for each of FFmpeg's errors
        said = f"PyAV says {type(error).__name__}: {error}"
        return f"cannot be read as a video: damaged, or another kind of file ({said})", []
    return "", times


def why_uneven(times: list[float]) -> str:
    """Returns '' if frames shown at these seconds are evenly apart, else what to do."""
    steps = np.diff(times)
    if not len(steps):
        return ""
    usual = float(np.median(steps))
    if steps.max() <= UNEVEN * usual and steps.min() >= usual / UNEVEN:
        return ""
    low, high = 1000 * steps.min(), 1000 * steps.max()
    return (
        f"a variable frame rate, frames are {low:.0f} to {high:.0f} ms apart; take them at even "
        "times with --fps"
    )


def jpegs(file: Path, fps: float) -> Iterator[bytes]:
    """Yields the frames of a video as JPEG files.

    Args:
        file: the file.
        fps: frames per second to take, at every time the one that is shown then; 0 = every frame
            once.
    """
    for image in evenly(decoded(file), fps):
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=QUALITY)
        yield buffer.getvalue()


def evenly(frames: Iterator[tuple[float, Any]], fps: float) -> Iterator[Any]:
    """Yields the frames shown at even times, from the first one on.

    Args:
        frames: (seconds, frame), in order.
        fps: how many per second; 0 = every frame once.
    """
    if not fps:
        yield from (frame for _, frame in frames)
        return
    start, taken, last = None, 0, None
    for seconds, frame in frames:
        start = seconds if start is None else start
        # what was shown until now
        while last is not None and start + taken / fps < seconds - ROUNDING:
            yield last[1]
            taken += 1
        last = seconds, frame
    if last is not None and start + taken / fps <= last[0] + ROUNDING:
        yield last[1]


def decoded(file: Path) -> Iterator[tuple[float, Image.Image]]:
    """Yields (seconds, upright picture) of the frames in the order in which they are shown; one is
    in memory at a time.
    """
    import av

    with av.open(str(file)) as container:
        stream = _stream(container)
        for frame in container.decode(stream):
            yield float(frame.time or 0.0), orientation.upright(frame.to_image(), _turn(frame))


def _stream(container: Any) -> Any:
    """Returns the first stream of moving pictures, or None."""
    for stream in container.streams.video:
        cover = int(getattr(stream, "disposition", 0) or 0) & COVER_ART
        if not cover and stream.codec_context.name not in TEXTS:
            return stream
    return None


def _turn(frame: Any) -> orientation.Turn:
    """Returns what makes a frame upright. FFmpeg decodes pictures as they are stored and says how
    to show them by a matrix: (x, y) goes to (a x + c y, b x + d y), up to a shift.
    """
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return orientation.TURNS[1]
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()
    if abs(b) + abs(c) > abs(a) + abs(d):
        return orientation.TURNS[{(0, 0): 5, (1, 0): 6, (1, 1): 7, (0, 1): 8}[c < 0, b < 0]]
    return orientation.TURNS[{(0, 0): 1, (1, 0): 2, (1, 1): 3, (0, 1): 4}[a < 0, d < 0]]


def why_not_written() -> str:
    """Returns '' if this PyAV can encode what `write` does, else the reason why not."""
    import av

    if ENCODER in av.codecs_available:
        return ""
    return (
        f"a video, and this PyAV has no encoder {ENCODER}, by which the overlay would be written; "
        "install the one of PyPI (`pip install av`), or give a folder of frames"
    )


def write(path: str, frames: Iterable[tuple[float, UInt8[np.ndarray, "h w 3"]]], rate: float):
    """Writes pictures of one size as an MP4 video without sound.

    Args:
        path: the file, whatever its name ends with.
        frames: (seconds, picture) in order; each is shown at its time after the first one.
        rate: frames per second, about: the encoder plans with it.
    """
    import av

    with av.open(path, "w", format="mp4") as container:
        stream, start, last = None, 0.0, -1
        for seconds, picture in frames:
            if stream is None:
                start, (height, width) = seconds, picture.shape[:2]
                planned = Fraction(rate).limit_denominator(10_000)
                stream = container.add_stream(ENCODER, rate=planned)
                stream.options = {"crf": str(CRF)}
                stream.height, stream.width = height, width
                # of 2 x 2 pixels one colour, which all players know, where the sides are even
                stream.pix_fmt = "yuv444p" if height % 2 or width % 2 else "yuv420p"
                stream.codec_context.time_base = Fraction(1, TICKS)
            at = round((seconds - start) * TICKS)
            last = at if at > last else last + round(TICKS / rate)  # frames without a time stamp
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = last, Fraction(1, TICKS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
