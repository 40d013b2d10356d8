"""Networks of clips; importing this registers them."""

from . import presets as _presets  # noqa: F401
from .video_resnet import VideoResNet

__all__ = ["VideoResNet"]
