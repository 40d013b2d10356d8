"""Object detection and instance segmentation: RetinaNet, Faster R-CNN and Mask R-CNN on backbones;
importing this registers them.
"""

# Importing a detector registers it; the presets come last.
from . import presets as _presets  # noqa: F401
from .rcnn import RCNN
from .retinanet import RetinaNet

__all__ = ["RCNN", "RetinaNet"]
