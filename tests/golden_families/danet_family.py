"""DANet's position and channel attention."""

from flax import nnx
from golden_harness import Fixture, Ours, channels_first, channels_last, module_case

from lambdanet.attention.danet import TORCH_NAMES, ChannelAttention, PositionAttention


def position(fixture: Fixture) -> Ours:
    dim = fixture.config["in_dim"]
    return module_case(
        fixture,
        lambda: PositionAttention(dim, reduction=dim // fixture.config["qk_dim"], rngs=nnx.Rngs(0)),
        TORCH_NAMES,
        lambda module, inputs: {"out/y": channels_first(module(channels_last(inputs["x"])))},
    )


def channel(fixture: Fixture) -> Ours:
    def call(module, inputs):
        y, sown = nnx.capture(nnx.view(module, capture=True), nnx.Intermediate)(
            channels_last(inputs["x"])
        )
        (attention,) = nnx.to_pure_dict(sown)["channel_map"]
        return {"out/y": channels_first(y), "out/attention": attention}

    return module_case(
        fixture,
        lambda: ChannelAttention(fixture.config["in_dim"], rngs=nnx.Rngs(0)),
        TORCH_NAMES,
        call,
    )


FAMILIES = {"danet_pam": position, "danet_cam": channel}
