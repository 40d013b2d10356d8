"""OCNet.pytorch's object context modules."""

from flax import nnx
from golden_harness import Fixture, Ours, channels_first, channels_last, module_case

from lambdanet.attention.ocnet import TORCH_NAMES
from models.segmentation import OCNetHead


def _module(fixture: Fixture, variant: str, dim: int, **options) -> Ours:
    """The block of a head, which has it behind a 3x3."""

    def build():
        info = [dict(channels=32, stride=8)]
        return OCNetHead(
            info, 3, variant=variant, channels=dim, **options, rngs=nnx.Rngs(0)
        ).context

    def call(built, inputs):
        x = channels_last(inputs["x"])
        context = (
            {"out/context": channels_first(built.context(x))} if hasattr(built, "context") else {}
        )
        return {"out/y": channels_first(built(x)), **context}

    return module_case(fixture, build, TORCH_NAMES, call)


def base(fixture: Fixture) -> Ours:
    """BaseOC_Module(in_channels, out_channels, key_channels, value_channels, sizes); context: the
    units' sum.
    """
    arguments = fixture.config
    assert arguments["shared_query_key"]
    return _module(
        fixture,
        "base",
        arguments["in_channels"],
        sizes=tuple(arguments["sizes"]),
        key_dim=arguments["key_channels"],
        value_dim=arguments["value_channels"],
        dim_out=arguments["out_channels"],
    )


def pyramid(fixture: Fixture) -> Ours:
    """Pyramid_OC_Module(in_channels, out_channels, sizes), key_channels and value_channels from
    in_channels.
    """
    arguments = fixture.config
    return _module(
        fixture,
        "pyramid",
        arguments["in_channels"],
        sizes=tuple(arguments["sizes"]),
        key_dim=arguments["key_channels"],
        value_dim=arguments["value_channels"],
        dim_out=arguments["out_channels"],
    )


def asp(fixture: Fixture) -> Ours:
    """ASP_OC_Module(features, out_features, dilations): branches of out_features, output of twice
    as many channels.
    """
    arguments = fixture.config
    width = arguments["out_features"]
    assert 2 * width == arguments["features"]
    return _module(
        fixture,
        "asp",
        arguments["features"],
        sizes=tuple(arguments["dilations"]),
        dim_out=2 * width,
    )


FAMILIES = {"ocnet_baseoc": base, "ocnet_pyramid": pyramid, "ocnet_asp": asp}
