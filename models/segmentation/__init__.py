"""Semantic segmentation: heads by name, and the segmenter that puts them on backbones; importing
this registers them.
"""

# Importing a head registers it; the presets come last.
from . import context as _context  # noqa: F401
from . import presets as _presets  # noqa: F401
from .criss_cross import CrissCrossHead
from .danet import DANetHead
from .fcn import FCNHead
from .isa import ISAHead
from .ocnet import OCNetHead
from .registration import registry
from .segmenter import Segmenter
from .semantic_fpn import SemanticFPNHead
from .upernet import UPerNetHead

__all__ = [
    "CrissCrossHead",
    "DANetHead",
    "FCNHead",
    "ISAHead",
    "OCNetHead",
    "Segmenter",
    "SemanticFPNHead",
    "UPerNetHead",
    "registry",
]
