"""What video recognition is made of: warping along a flow, the mean of frames."""

import jax.numpy as jnp
from golden_harness import Fixture, Ours, channels_first, channels_last

from lambdanet.ops.frame_mean import frame_mean
from lambdanet.ops.warp import warp


def warped(fixture: Fixture) -> Ours:
    """The flow's gradient is compared where it is smooth, as the fixture asks."""

    def run(params, inputs):
        features, flow, scale = (channels_last(inputs[key]) for key in ("feat", "flow", "scale"))
        y = warp(features, flow)
        return {
            "out/y": channels_first(y),
            "out/y_mxnet": channels_first(y),
            "out/y_scaled": channels_first(y * scale),
        }

    smooth = fixture.arrays["in/smooth_mask"]
    return Ours(
        run,
        input_of={"x": "feat", "flow_mxnet": "flow"},
        counted={"grad/in/flow": smooth, "grad/in/flow_mxnet": smooth},
    )


def aggregated(fixture: Fixture) -> Ours:
    """Frames for batches of one."""
    place = fixture.config["reference_frame"]

    def run(params, inputs):
        features, embedding = (channels_last(inputs[key])[:, None] for key in ("feat", "embed"))
        y, weights = frame_mean(lambda frame: frame, (features, embedding), embedding[place])
        y = channels_first(y)
        return {"out/y": y, "out/y_mxnet": y, "out/weights": jnp.asarray(weights)}

    return Ours(run)


FAMILIES = {"flow_warp": warped, "fgfa_aggregate": aggregated}
