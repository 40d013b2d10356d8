"""The registry object and what presets share, so that model files and the package can both import
them.
"""

from lambdanet.registry import Registry

registry = Registry("model", listed_by="python -m models")

DIGITS = dict(in_channels=1, image_size=(8, 8), num_classes=10)
"""What the forms `*_digits` of all families have in common: grey digits of 8x8."""
