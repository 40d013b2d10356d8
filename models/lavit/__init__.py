"""LaViT: attention made from that of the layer before; importing this registers its models."""

from .lavit import LaViT

__all__ = ["LaViT"]
