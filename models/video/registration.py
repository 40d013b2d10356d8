"""The registry of propagations, so that their files and the package can both import it."""

from lambdanet.registry import Registry

HANDED_IN = (
    "channels",
    "stride",
    "in_channels",
    "low_channels",
    "low_stride",
    "dtype",
    "param_dtype",
    "rngs",
)
"""What the network around it gives to a propagation that declares it."""

registry = Registry(
    "propagation",
    bounds={
        "width": (1 / 64, 8.0),
        "levels": (3, 6),
        "embedding_channels": (1, 2**14),
        "hidden_channels": (1, 2**14),
        "radius": (0, 31),
        "ring": (0, 31),
        "ring_step": (1, 31),
        "threshold": (-1e6, 1e6),
        "key_share": (0.0, 1.0),
    },
    handed_in=HANDED_IN,
)
