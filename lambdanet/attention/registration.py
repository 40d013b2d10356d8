"""The registry object alone, so that attention files and the package can both import it."""

from lambdanet.registry import Registry

_REPEATS = (1, 64)  # each is traced
_SIDES = (1, 1024)  # of windows; a map is padded to a multiple
_REACH = (0, 256)  # of taps and halos, around every position or window
_RATE = (0.0, 0.9999999)

BOUNDS: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("recurrence", "num_qk_convs", "order", "intra_depth"), _REPEATS),
    **dict.fromkeys(("block_size", "group_size", "pool", "pool_size", "sizes"), _SIDES),
    **dict.fromkeys(("stripe_width", "window_size", "kernel_size", "scope", "sr_ratio"), _SIDES),
    **dict.fromkeys(("dilation", "dilations", "halo_size"), _REACH),
    **dict.fromkeys(("dropout", "dropout_rate", "norm_momentum", "gate_momentum"), _RATE),
    **dict.fromkeys(("dim_out", "context_dim", "size"), (1, 2**20)),
    "norm_groups": (1, 2**16),
    "scale": (1e-6, 1e6),
}
"""Of the options of all blocks: the first and the last value of each number that makes sense at
all. What a block's own shapes allow, it says itself."""

registry = Registry("attention", bounds=BOUNDS, largest=2**20)
