"""CCNet: the criss-cross block, its head, its 3-D variant and the category-consistent loss."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from golden_harness import Fixture, Ours, channels_first, channels_last, module_case

from lambdanet.attention.criss_cross import TORCH_NAMES, CrissCross
from lambdanet.ops.category_consistent_loss import category_consistent_loss


def block(fixture: Fixture) -> Ours:
    """CrissCrossAttention; its two softmax pieces are read from the captured map."""
    dim = fixture.config["in_dim"]

    def call(module, inputs):
        x = channels_last(inputs["x"])
        y, sown = nnx.capture(nnx.view(module, capture=True), nnx.Intermediate)(x)
        (full,) = nnx.to_pure_dict(sown)["attention_map"]
        own = jnp.eye(x.shape[1])[
            :, None
        ]  # [row, 1, row]: the own position counts in the row alone
        column = jnp.einsum("bijgj->bijg", full[:, 0]) * (1 - own)
        row = jnp.einsum("bijih->bijh", full[:, 0])
        return {"out/y": channels_first(y), "out/att_H": column, "out/att_W": row}

    return module_case(
        fixture,
        lambda: CrissCross(dim, reduction=dim // fixture.config["qk_dim"], rngs=nnx.Rngs(0)),
        TORCH_NAMES,
        call,
    )


def block_3d(fixture: Fixture) -> Ours:
    """CrissCrossAttention3D: ours is y_recommended; the two others are the released code's faults,
    redone here.
    """
    dim = fixture.config["in_dim"]

    def call(module, inputs):
        x = channels_last(inputs["x"])
        fixed, official = (
            _released_3d(module.passes[0], x, scrambled) for scrambled in (False, True)
        )
        outputs = {
            "out/y_recommended": module(x),
            "out/y_fixed_axes": fixed,
            "out/y_official": official,
        }
        return {key: channels_first(array) for key, array in outputs.items()}

    return module_case(fixture, lambda: CrissCross(dim, rngs=nnx.Rngs(0)), TORCH_NAMES, call)


def _released_3d(weights, x, scrambled: bool):
    """The own voxel counts in the width and in the depth; `scrambled`: the width's weights are also
    read in wrong order.
    """
    q, k, v = weights.query(x), weights.key(x), weights.value(x)
    height, width, depth = x.shape[1:4]
    logits = [
        jnp.where(
            jnp.eye(height, dtype=bool)[:, None, None],
            -jnp.inf,
            jnp.einsum("bhwdc,bgwdc->bhwdg", q, k),
        ),
        jnp.einsum("bhwdc,bhgdc->bhwdg", q, k),
        jnp.einsum("bhwdc,bhwgc->bhwdg", q, k),
    ]
    pieces = jax.nn.softmax(jnp.concatenate(logits, -1), -1)
    along_h, along_w, along_d = jnp.split(pieces, [height, height + width], -1)
    if scrambled:  # laid out as [h, key, query, d], then taken for [h, d, query, key]
        along_w = (
            along_w.transpose(0, 1, 4, 2, 3)
            .reshape(len(x), height, depth, width, width)
            .transpose(0, 1, 3, 2, 4)
        )
    context = jnp.einsum("bhwdg,bgwdc->bhwdc", along_h, v)
    context += jnp.einsum("bhwdg,bhgdc->bhwdc", along_w, v) + jnp.einsum(
        "bhwdg,bhwgc->bhwdc", along_d, v
    )
    return x + weights.gamma[...] * context


def loss(fixture: Fixture) -> Ours:
    """The number of classes is free: those not present add nothing."""
    config, labels = fixture.config, fixture.arrays["in/labels"]
    # The fixture names its gradient grad/in/x, its input in/h, and leaves out that the loss is the
    # total alone.
    fixture.arrays.update(
        {"in/x": fixture.arrays["in/h"], "cotangent/total": np.ones((), np.float32)}
    )
    options = dict(
        num_classes=int(np.max(labels[labels != config["ignore_index"]])) + 2,
        ignore_label=config["ignore_index"],
        variance_margin=config["delta_v"],
        distance_margin=config["delta_d"],
        variance_weight=config["alpha"],
        distance_weight=config["beta"],
        regularisation_weight=config["gamma"],
    )

    def outputs(params, inputs):
        terms = category_consistent_loss(channels_last(inputs["x"]), inputs["labels"], **options)
        return {
            "out/var": terms.variance,
            "out/dis": terms.distance,
            "out/reg": terms.regularisation,
            "out/total": terms.total,
        }

    return Ours(outputs)


FAMILIES = {
    "criss_cross": block,
    "criss_cross_h1": block,
    "criss_cross3d": block_3d,
    "category_consistent_loss": loss,
}
