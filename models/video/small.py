"""A small I3D for clips of 64 x 64 pixels, as in configs/moving_digits.py."""

from __future__ import annotations

from ..registration import registry
from .video_resnet import VideoResNet

registry.register(
    "small_i3d",
    VideoResNet,
    blocks=(1, 1, 1),
    widths=(16, 32, 64),
    block="basic",
    frames=4,
    image_size=(64, 64),
    stem="strided",
    stem_frame_stride=1,
    pooling="space",
    inflation="3x3x3",
    inflated_blocks=((), "all", "all"),
    image_weights="centre",
    zero_init_last=False,
    dropout_rate=0.0,
)
