"""Video: networks of clips, and features carried from key frames to the frames between them;
importing this registers both.
"""

# Importing a propagation registers it; the network comes last.
from . import presets as _presets  # noqa: F401
from . import small as _small  # noqa: F401
from .aggregation import FlowGuidedAggregation
from .feature_flow import FROZEN, DeepFeatureFlow
from .flownet import FlowNetS, Motion
from .frames import Copy, Frame, PerFrame, Propagation
from .neighborhood import NeighborhoodPropagation
from .recursion import SparseRecursion
from .registration import registry
from .video_detector import VideoDetector
from .video_resnet import VideoResNet
from .video_segmenter import VideoSegmenter

__all__ = [
    "FROZEN",
    "Copy",
    "DeepFeatureFlow",
    "FlowGuidedAggregation",
    "FlowNetS",
    "Frame",
    "Motion",
    "NeighborhoodPropagation",
    "PerFrame",
    "Propagation",
    "SparseRecursion",
    "VideoDetector",
    "VideoResNet",
    "VideoSegmenter",
    "registry",
]
