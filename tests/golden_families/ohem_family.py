"""mmsegmentation's sampler of hard pixels, and the two losses over what it keeps."""

import jax.numpy as jnp
from golden_harness import Fixture, Ours, channels_last

from lambdanet.ops.segmentation_loss import mmseg_kept, segmentation_loss
from lambdanet.ops.upsampled_pixels import pixel_cross_entropy


def ohem(fixture: Fixture) -> Ours:
    options = dict(threshold=fixture.config["thresh"], min_kept=fixture.config["min_kept"])
    ignored = fixture.config["ignore_index"]

    def run(params, inputs):
        logits = channels_last(inputs["logits"])
        labels = jnp.asarray(inputs["labels"][:, 0], jnp.int32)
        each = pixel_cross_entropy(logits, labels).cross_entropy
        kept = mmseg_kept(jnp.exp(-each), labels != ignored, **options)
        whole = segmentation_loss(logits, labels, ohem="mmseg", mean="all", **options).value
        # The official mean over kept pixels, of what this sampler keeps.
        relabelled = jnp.where(kept, labels, ignored)
        return {
            "out/weight": kept.astype(jnp.float32),
            "out/ce": each,
            "out/loss_mmseg": whole,
            "out/loss_kept_mean": segmentation_loss(logits, relabelled).value,
        }

    return Ours(run)


FAMILIES = {"ohem": ohem}
