"""Segmentation heads of mmsegmentation and of CCNet, and the feature pyramid."""

from flax import nnx
from golden_harness import Fixture, Ours, channels_first, channels_last, module_case

from lambdanet.layers import FeaturePyramid, fpn
from models.segmentation import CrissCrossHead, DANetHead, ISAHead, SemanticFPNHead, UPerNetHead
from models.segmentation.criss_cross import OFFICIAL_NAMES


def _maps(inputs) -> list:
    return [channels_last(inputs[f"x{number}"]) for number in range(len(inputs))]


def _info(dims, strides=(4, 8, 16, 32)) -> list[dict]:
    return [dict(channels=dim, stride=stride) for dim, stride in zip(dims, strides, strict=True)]


def _openmm_head(fixture: Fixture, kind, dims, **options) -> Ours:
    """A head of mmsegmentation with one output."""
    config = fixture.config

    def build():
        info = _info(dims, (4, 8, 16, 32)[: len(dims)])
        own = dict(channels=config["channels"], **options)
        return kind(info, config["num_classes"], **own, rngs=nnx.Rngs(0))

    rules = nnx.eval_shape(build).torch_names["mmsegmentation"]
    return module_case(
        fixture, build, rules, lambda head, inputs: {"out/y": channels_first(head(_maps(inputs)))}
    )


def upernet(fixture: Fixture) -> Ours:
    config = fixture.config
    return _openmm_head(
        fixture,
        UPerNetHead,
        config["in_channels"],
        pool_sizes=tuple(config["pool_scales"]),
        align_corners=config["align_corners"],
    )


def semantic_fpn(fixture: Fixture) -> Ours:
    """The head alone; its pyramid is another fixture."""
    config = fixture.config
    assert config["feature_strides"] == [4, 8, 16, 32]
    return _openmm_head(
        fixture,
        SemanticFPNHead,
        config["in_channels"],
        neck_channels=None,
        align_corners=config["align_corners"],
    )


def isa(fixture: Fixture) -> Ours:
    config = fixture.config
    return _openmm_head(
        fixture,
        ISAHead,
        [config["in_channels"]],
        key_dim=config["isa_channels"],
        group_size=tuple(config["down_factor"]),
        value_bias=True,
    )


def danet(fixture: Fixture) -> Ours:
    """y0: fused, y1: position, y2: channel."""
    config = fixture.config
    channels = config["channels"]

    def build():
        return DANetHead(
            _info([config["in_channels"]], [8]),
            config["num_classes"],
            channels=channels,
            reduction=channels // config["pam_channels"],
            rngs=nnx.Rngs(0),
        )

    def call(head, inputs):
        fused, extra = head(_maps(inputs), return_auxiliary=True)
        found = (fused, extra["position"], extra["channel"])
        return {f"out/y{number}": channels_first(y) for number, y in enumerate(found)}

    return module_case(fixture, build, nnx.eval_shape(build).torch_names["mmsegmentation"], call)


def rcca(fixture: Fixture) -> Ours:
    """RCCAModule, and what it gives inside and after one pass."""
    config = fixture.config

    def build():
        return CrissCrossHead(
            _info([config["in_channels"]], [8]),
            config["num_classes"],
            channels=config["inter_channels"],
            dim_out=config["out_channels"],
            recurrence=config["recurrence"],
            activation="leaky_relu_0.01",
            rngs=nnx.Rngs(0),
        )

    def call(head, inputs):
        x = channels_last(inputs["x"])
        reduced = head.reduce(x)
        outputs = {"out/y": head([x]), "out/conva": reduced, "out/cca_r2": head.attention(reduced)}
        head.attention.recurrence = 1  # a module made for this call
        outputs |= {"out/y_r1": head([x]), "out/cca_r1": head.attention(reduced)}
        return {key: channels_first(array) for key, array in outputs.items()}

    assert config["recurrence"] == 2
    return module_case(fixture, build, OFFICIAL_NAMES, call)


def pyramid(fixture: Fixture) -> Ours:
    """FPN of mmsegmentation and mmdetection."""
    config = fixture.config
    dims, start = config["in_channels"], config.get("start_level", 0)

    def build():
        return FeaturePyramid(
            dims,
            config["out_channels"],
            num_levels=config["num_outs"],
            start=start,
            extra=config.get("add_extra_convs", "pool"),
            rngs=nnx.Rngs(0),
        )

    def call(neck, inputs):
        levels = neck(_maps(inputs))
        return {f"out/y{number}": channels_first(level) for number, level in enumerate(levels)}

    return module_case(fixture, build, fpn.torch_names(len(dims) - start), call)


FAMILIES = {
    "upernet_head": upernet,
    "semantic_fpn_head": semantic_fpn,
    "isa_mmseg_head": isa,
    "danet_mmseg_head": danet,
    "criss_cross_rcca": rcca,
    "fpn_neck": pyramid,
}
