"""Hierarchical Transformers: PVT, PVTv2, Swin, CSWin and NAT; importing this registers them."""

from . import cswin as _cswin  # noqa: F401
from . import nat as _nat  # noqa: F401
from . import pvt as _pvt  # noqa: F401
from . import pvt_v2 as _pvt_v2  # noqa: F401
from . import swin as _swin  # noqa: F401
from .hierarchical import HierarchicalTransformer

__all__ = ["HierarchicalTransformer"]
