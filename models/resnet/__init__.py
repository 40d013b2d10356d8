"""ResNets: plain, with lambda layers, and with context blocks; importing this registers them."""

from . import context_resnet as _context_resnet  # noqa: F401
from . import lambda_resnet as _lambda_resnet  # noqa: F401
from . import resnet_rs as _resnet_rs  # noqa: F401
from .resnet import ResNet

__all__ = ["ResNet"]
