"""Video: features carried from key frames to the frames between them; importing this registers the
propagations and the network that holds them.
"""

# Importing a propagation registers it; the network comes last.
from .aggregation import FlowGuidedAggregation
from .feature_flow import FROZEN, DeepFeatureFlow
from .flownet import FlowNetS, Motion
from .frames import Copy, Frame, PerFrame, Propagation
from .neighborhood import NeighborhoodPropagation
from .recursion import SparseRecursion
from .registration import registry
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
    "VideoSegmenter",
    "registry",
]
