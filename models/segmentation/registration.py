"""The registry of heads, so that the files of heads and the package can both import it."""

from lambdanet.registry import Registry

HANDED_IN = ("feature_info", "num_classes", "dtype", "param_dtype", "rngs")
"""What the segmenter gives to every head."""

registry = Registry(
    "segmentation head",
    bounds={
        "channels": (1, 2**16),
        "neck_channels": (1, 2**16),
        "dim_out": (1, 2**16),
        "embedding_channels": (0, 2**16),
        "num_convs": (1, 64),
        "recurrence": (1, 64),
        "reduction": (1, 2**16),
        "kernel_size": (1, 31),
        "stage": (1, 100),
        "pool_sizes": (1, 1024),
        "group_size": (1, 1024),
        "sizes": (1, 1024),
        "dilations": (1, 1024),
        "dropout": (0.0, 0.9999999),
        "block_dropout": (0.0, 0.9999999),
        "norm_momentum": (0.0, 0.9999999),
    },
    handed_in=HANDED_IN,
)
