"""Neighborhood attention of NAT."""

from flax import nnx
from golden_harness import Fixture, Ours, module_case

from lambdanet.attention import neighborhood


def nat1(fixture: Fixture) -> Ours:
    """NeighborhoodAttention2D(dim, num_heads, kernel_size, dilation, rel_pos_bias); maps channels
    last.
    """
    config = fixture.config
    assert config["layout"] == "x: (B, H, W, C)"
    options = dict(
        kernel_size=config["kernel_size"],
        dilation=config["dilation"],
        relative_bias=config["rel_pos_bias"],
    )

    def build():
        return neighborhood.NeighborhoodAttention(
            config["dim"], num_heads=config["num_heads"], **options, rngs=nnx.Rngs(0)
        )

    return module_case(
        fixture,
        build,
        neighborhood.TORCH_NAMES,
        lambda layer, inputs: {"out/y": layer(inputs["x"])},
    )


FAMILIES = {"nat1": nat1}
