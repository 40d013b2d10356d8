"""Videos by way of PyAV: frames are upright whatever the camera says, and are written as they are
shown.
"""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from lambdanet.data import clip_folders, video_files

av = pytest.importorskip("av", reason="PyAV is not installed: pip install av")

COLOURS = {(-1, -1): (230, 30, 30), (1, -1): (30, 230, 30), (-1, 1): (30, 30, 230)}
"""Of the quarters of the picture, by (x, y) of their middles; the last one is white."""
MATRICES = {
    "upright": (1, 0, 0, 1),
    "quarter turn clockwise": (0, 1, -1, 0),
    "half turn": (-1, 0, 0, -1),
    "quarter turn counter-clockwise": (0, -1, 1, 0),
    "mirrored": (-1, 0, 0, 1),
    "upside down": (1, 0, 0, -1),
    "transposed": (0, 1, 1, 0),
    "transposed and turned": (0, -1, -1, 0),
}


def quarters(height, width):
    """A picture of four quarters."""
    picture = np.full((height, width, 3), 230, np.uint8)
    for (x, y), colour in COLOURS.items():
        rows = slice(None, height // 2) if y < 0 else slice(height // 2, None)
        columns = slice(None, width // 2) if x < 0 else slice(width // 2, None)
        picture[rows, columns] = colour
    return picture


def write_turned(path, matrix, height=32, width=48):
    """Writes three frames of the quarters, and into the header of the track how to show them:
    (x, y) at (a x + c y, b x + d y).
    """
    frames = [(i / 25, quarters(height, width)) for i in range(3)]
    video_files.write(str(path), frames, 25.0)
    content = bytearray(path.read_bytes())
    a, b, c, d = matrix
    values = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    at = content.index(b"tkhd") + 4 + 40  # behind the name of the box, times, duration and volume
    assert content[at : at + 36] == struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    content[at : at + 36] = values
    path.write_bytes(content)


def check_turned(pixels, matrix):
    """Each quarter of the picture is where the matrix puts its middle."""
    a, b, c, d = matrix
    height, width = pixels.shape[:2]
    for (x, y), colour in COLOURS.items():
        column, row = a * x + c * y, b * x + d * y
        found = pixels[height // 4 * (2 + row), width // 4 * (2 + column)]
        assert np.abs(found.astype(int) - colour).max() < 30, (x, y, found)


@pytest.mark.parametrize("name", MATRICES)
def test_frames_are_upright(name, tmp_path):
    matrix = MATRICES[name]
    write_turned(tmp_path / "v.mp4", matrix)
    found = list(video_files.decoded(tmp_path / "v.mp4"))
    assert [seconds for seconds, _ in found] == pytest.approx([0, 0.04, 0.08])
    for _, picture in found:
        assert picture.size == ((48, 32) if matrix[0] else (32, 48))
        check_turned(np.asarray(picture), matrix)


def test_prepared_clips_are_upright(tmp_path):
    matrix = MATRICES["quarter turn clockwise"]
    write_turned(tmp_path / "v.mp4", matrix)
    frames = clip_folders.frames_of(tmp_path / "v.mp4", 0)
    assert len(frames) == 3
    for frame in frames:
        check_turned(np.asarray(Image.open(io.BytesIO(frame))), matrix)


@pytest.mark.parametrize("size", [(32, 48), (21, 26), (20, 27), (1, 1)])
def test_what_is_written_has_its_size_and_its_times(size, tmp_path):
    times = [0.5, 0.54, 0.58, 0.9, 0.94]
    pictures = [np.full((*size, 3), (40 * i + 20, 60, 60), np.uint8) for i in range(5)]
    video_files.write(str(tmp_path / "any.name"), zip(times, pictures, strict=True), 25.0)
    found = list(video_files.decoded(tmp_path / "any.name"))
    assert [t for t, _ in found] == pytest.approx(np.subtract(times, 0.5), abs=1e-4)
    for (_, picture), expected in zip(found, pictures, strict=True):
        assert np.abs(np.asarray(picture).astype(int) - expected).max() < 12
    assert "32" in video_files.why_no_video(tmp_path / "any.name", 0)  # 40 to 320 ms: not even


def test_frames_without_time_stamps_are_written_one_after_the_other(tmp_path):
    pictures = [(0.0, quarters(16, 16))] * 4
    video_files.write(str(tmp_path / "v.mp4"), pictures, 20.0)
    times = [seconds for seconds, _ in video_files.decoded(tmp_path / "v.mp4")]
    assert times == pytest.approx([0, 0.05, 0.1, 0.15], abs=1e-4)
