"""What `eval.py --mode=video` does: a clip through a network of key frames, and what it finds there
drawn over the clip.
"""

from __future__ import annotations

import collections
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from PIL import Image

from lambdanet.analysis.clip_input import Clip, open_clip
from lambdanet.analysis.console import check_least, say, show_table
from lambdanet.analysis.result_folder import check_replaceable, replaced
from lambdanet.analysis.subject import Subject
from lambdanet.analysis.video_drawing import Drawing, drawing_of
from lambdanet.analysis.video_runner import VideoRunner, check_model
from lambdanet.atomic import write_file
from lambdanet.data import video_files
from lambdanet.data.image_folder import progress_bars
from lambdanet.tasks.segmentation_files import save_png

SOURCE = "clip.txt"  # names the clip of a folder of results
READING, KEYS, BETWEEN, WRITING = "reading", "key frames", "frames between", "drawing and writing"


def run_video(
    subject: Subject,
    folder: Path,
    source: str,
    *,
    every: int | None = None,
    reach: int | None = None,
    label_maps: bool | None = None,
) -> dict[str, Any]:
    """Runs a clip by key frames and writes it with what is found drawn on it: a folder of frames as
    PNG files in <folder>/NAME/overlays, a video as <folder>/NAME/overlay.mp4, with the same time
    stamps and without sound.

    Of a segmenter these are the pictures, at their size, under the colours of their classes;
    legend.png is beside them, and in <folder>/NAME/labels are index PNGs, whose values are the
    classes. Of a detector they are the pictures with boxes, small pictures enlarged;
    predictions.json is beside them, COCO's annotations with score.

    NAME is that of the folder or of the video's file. All is written beside <folder>/NAME first and
    takes its place when it is complete, so that a clip that breaks leaves what was there, and a
    shorter one no frames of a longer one. What stands there of another clip is kept, and refused.

    Args:
        subject: of `load_subject`; a `video_segmenter` or a `video_detector`.
        folder: where to.
        source: the clip, see `open_clip`. Frames are segmented at their own size, or with
            data.scale_base at the size where their short side is that; objects are sought in frames
            fitted into data.image_size.
        every: see `VideoRunner`; None is the config's propagation.interval.
        reach: see `VideoRunner`; None is the config's propagation.reach. Only for a propagation
            from many frames.
        label_maps: whether index PNGs are written; None: those of a folder. Only for a segmenter.

    Returns:
        What the table shows: parts with frames and seconds, and where things are.

    Raises:
        ValueError: another kind of model, a clip that cannot be read, options that do not fit.
    """
    config, abstract = subject.config, nnx.eval_shape(subject.build)
    check_model(abstract, subject.name)
    _check_options(abstract, subject, every, reach, label_maps)
    alone = not abstract.propagation.key_needs
    every = (1 if alone else config.propagation.interval) if every is None else every
    reach = config.propagation.reach if reach is None else reach
    check_least("every", every, 1)
    check_least("reach", reach, 0)
    clip = open_clip(source)
    if clip.times and (reason := video_files.why_not_written()):
        raise ValueError(f"--input={source}: {reason}")
    size = clip.size(exif_orientation=config.data.exif_orientation)
    target = folder / clip.name
    check_replaceable(target, SOURCE, str(clip.path.resolve()))
    weights, origin = subject.load_weights()
    runner = VideoRunner(nnx.merge(subject.graphdef, *weights), config, every=every, reach=reach)
    with replaced(target) as fresh:
        passage = _write(subject, clip, runner, fresh, size, label_maps)
    return _report(passage, f"{subject.name} from {origin}", target)


def _write(
    subject: Subject,
    clip: Clip,
    runner: VideoRunner,
    folder: Path,
    size: tuple[int, int],
    label_maps: bool | None,
) -> _Passage:
    """Runs the clip and writes all of it into a new folder."""
    write_file(folder / SOURCE, f"{clip.path.resolve()}\n")
    config, abstract = subject.config, nnx.eval_shape(subject.build)
    info = subject.known_info
    keep = bool(clip.files) if label_maps is None else label_maps
    shown = dict(info=info, config=config, label_maps=keep, files=clip.files)
    drawing = drawing_of(abstract, folder, **shown)
    passage = _Passage(clip, runner, drawing, size)
    with progress_bars() as bars:
        overlays = bars.track(passage.overlays(), total=clip.count, description=clip.name)
        if clip.files:
            for number, (_, picture) in enumerate(overlays):
                name = f"{clip.frame_name(number)}.png"
                save_png(folder / "overlays" / name, Image.fromarray(picture))
        else:
            written = folder / "overlay.mp4"
            write_file(written, lambda name: video_files.write(name, overlays, clip.rate))
    drawing.finish()
    return passage


class _Passage:
    """A clip on its way through the model, with the time that each part takes."""

    def __init__(self, clip: Clip, runner: VideoRunner, drawing: Drawing, size: tuple[int, int]):
        self.clip, self.runner, self.drawing, self.size = clip, runner, drawing, size
        self.spent = {part: 0.0 for part in (READING, KEYS, BETWEEN, WRITING)}
        self.keys: list[int] = []
        self.count = 0
        self._waiting: collections.deque = collections.deque()

    def overlays(self) -> Iterator[tuple[float, np.ndarray]]:
        """Yields (seconds, picture with what is found on it). What is done with a picture before
        the next one is asked for counts as writing.
        """
        found = self.runner.run(self._prepared(), self.drawing.size(self.size))
        for number, shown in enumerate(found):
            self.spent[KEYS if shown.is_key else BETWEEN] += shown.seconds
            self.keys += [number] if shown.is_key else []
            start = time.perf_counter()
            seconds, picture = self._waiting.popleft()
            yield seconds, self.drawing.draw(self.clip.frame_name(number), picture, shown.result)
            self.spent[WRITING] += time.perf_counter() - start
            self.count = number + 1

    def _prepared(self) -> Iterator[np.ndarray]:
        """Yields the frames as the model reads them; keeps the pictures until they are shown."""
        pictures, number = self.clip.pictures(), 0
        while True:
            start = time.perf_counter()
            try:
                found = next(pictures, None)
                if found is None:
                    return
                picture, frame = self.drawing.prepare(found[1])
            except Exception as error:  # damaged files raise many types
                where = f"{self.clip.path}, frame {self.clip.frame_name(number)}"
                raise ValueError(f"{where}: cannot be read ({error})") from error
            if picture.shape[:2] != self.size:
                where = f"{self.clip.path}, frame {self.clip.frame_name(number)}"
                raise ValueError(
                    f"{where}: {picture.shape[1]} x {picture.shape[0]}, and the first frame is "
                    f"{self.size[1]} x {self.size[0]}; allowed: frames of one size"
                )
            self._waiting.append((found[0], picture))
            number += 1
            self.spent[READING] += time.perf_counter() - start
            yield frame


def _check_options(
    model: nnx.Module,
    subject: Subject,
    every: int | None,
    reach: int | None,
    label_maps: bool | None,
) -> None:
    """Raises ValueError for options that do not fit the model, all of them, and for views of
    evaluation that features are not carried between.
    """
    problems, finds_boxes = [], hasattr(model, "detections")
    own = subject.config.model.get("propagation", type(model.propagation).__name__)
    name = own if isinstance(own, str) else own.get("name")
    if every not in (None, 1) and not model.propagation.key_needs:
        problems.append(
            f"--every={every}: the propagation is {name!r}, every frame by itself; leave it out, "
            "or take another propagation"
        )
    if reach is not None and not model.propagation.many:
        problems.append(
            f"--reach={reach}: the propagation {name!r} reads no more than one other frame; leave "
            "it out: it is for propagations from many frames"
        )
    if label_maps is not None and finds_boxes:
        problems.append(
            f"--label_maps={label_maps}: {subject.name!r} finds boxes; leave it out: it is for "
            "segmenters"
        )
    own = subject.config.segmentation
    wanted = {"inference": "whole", "eval_scales": (1.0,), "eval_flip": False}
    for name, value in () if finds_boxes else wanted.items():
        given = tuple(own[name]) if isinstance(value, tuple) else own[name]
        if given != value:
            problems.append(
                f"segmentation.{name}={given!r}: a video is segmented whole and in one view; set "
                f"--config.segmentation.{name}={value!r}"
            )
    if problems:
        raise ValueError("; ".join(problems))


def _report(passage: _Passage, title: str, folder: Path) -> dict[str, Any]:
    """Prints the table and returns what it shows."""
    count, keys = passage.count, len(passage.keys)
    frames = {READING: count, KEYS: keys, BETWEEN: count - keys, WRITING: count}
    total = sum(passage.spent.values())
    parts = [*((part, frames[part], seconds) for part, seconds in passage.spent.items())]
    rows = [
        (part, number, f"{seconds:.2f}", f"{number / seconds:.1f}" if number else "")
        for part, number, seconds in (*parts, ("total", count, total))
    ]
    show_table(f"{title}: {passage.clip.path}", ("part", "frames", "seconds", "frames/s"), rows)
    say(f"Compilation took {passage.runner.compile_seconds:.1f} s more, once for this size.")
    if count < passage.clip.count:
        say(f"Only {count} of the {passage.clip.count} frames that the file lists can be decoded.")
    say(f"Written: {folder}")
    return {
        "clip": str(passage.clip.path),
        "source": title,
        "every": passage.runner.every,
        "frames": count,
        "key_frames": passage.keys,
        "parts": {part: {"frames": n, "seconds": seconds} for part, n, seconds in parts},
        "frames_per_second": count / total,
        "compile_seconds": passage.runner.compile_seconds,
        "written": str(folder),
    }
