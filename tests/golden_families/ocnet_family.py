"""OCNet.pytorch's object context modules."""

from flax import nnx
from golden_harness import Fixture, Ours, channels_first, channels_last, module_case

from lambdanet.attention.ocnet import (
    TORCH_NAMES,
    AspObjectContext,
    ObjectContext,
    PyramidObjectContext,
)

ACTIVATION = dict(activation="leaky_relu_0.01")  # that of the in-place norms


def _module(fixture: Fixture, kind, dim: int, **options) -> Ours:
    def call(built, inputs):
        x = channels_last(inputs["x"])
        context = (
            {"out/context": channels_first(built.context(x))} if hasattr(built, "context") else {}
        )
        return {"out/y": channels_first(built(x)), **context}

    return module_case(
        fixture, lambda: kind(dim, **options, **ACTIVATION, rngs=nnx.Rngs(0)), TORCH_NAMES, call
    )


def base(fixture: Fixture) -> Ours:
    """BaseOC_Module(in_channels, out_channels, key_channels, value_channels, sizes); context: the
    units' sum.
    """
    arguments = fixture.config
    assert arguments["shared_query_key"]
    return _module(
        fixture,
        ObjectContext,
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
        PyramidObjectContext,
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
    return _module(
        fixture,
        AspObjectContext,
        arguments["features"],
        width=width,
        dilations=tuple(arguments["dilations"]),
        dim_out=2 * width,
    )


FAMILIES = {"ocnet_baseoc": base, "ocnet_pyramid": pyramid, "ocnet_asp": asp}
