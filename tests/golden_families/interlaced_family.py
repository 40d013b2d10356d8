"""openseg.pytorch's interlaced sparse attention."""

from flax import nnx
from golden_harness import Fixture, Ours, channels_first, channels_last, module_case

from lambdanet.attention.interlaced import TORCH_NAMES, InterlacedSparseAttention


def module(fixture: Fixture) -> Ours:
    """ISA_Module(in_channels, key_channels, value_channels, out_channels, down_factors); blockN:
    output of pair N.
    """
    arguments = fixture.config

    def build():
        return InterlacedSparseAttention(
            arguments["in_channels"],
            group_size=tuple(map(tuple, arguments["down_factors"])),
            key_dim=arguments["key_channels"],
            value_dim=arguments["value_channels"],
            dim_out=arguments["out_channels"],
            rngs=nnx.Rngs(0),
        )

    def call(built, inputs):
        x = channels_last(inputs["x"])
        blocks = {
            f"out/block{number}": channels_first(block(x))
            for number, block in enumerate(built.blocks)
        }
        return {"out/y": channels_first(built(x)), **blocks}

    return module_case(fixture, build, TORCH_NAMES, call)


FAMILIES = {"isa": module, "isa_multi": module}
