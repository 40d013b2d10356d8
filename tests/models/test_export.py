"""Every backbone exports with an open batch: `jax.export` with a symbolic batch dimension."""

import jax
import pytest
from covering import part
from flax import nnx
from jax import export

import models

DIGITS = models.list_models("*_digits")
RESNET = dict(
    blocks=(1, 1), widths=(8, 8), attention=(None, dict(name="lambda", num_heads=2, key_depth=2))
)
CASES = {
    **{name: (name, {}) for name in DIGITS},
    **{f"stem {stem}": ("resnet50", dict(RESNET, stem=stem)) for stem in ("resnet", "resnet_rs")},
    "stem tiered": ("resnet18", dict(RESNET, stem="tiered", shortcut="avg")),
    "pool avg2": ("resnet50", dict(RESNET, stem="cifar", pool="avg2")),
    "pvt_v2 linear": (
        "pvt_v2_b2_li",
        dict(blocks=(1, 1), widths=(8, 8), num_heads=(2, 2), mlp_ratios=(2, 2)),
    ),
    "pvt mean": ("pvt_digits", dict(pool="mean")),
    "swin padded patches": (
        "swin_tiny",
        dict(blocks=(2, 2), widths=(8, 8), num_heads=(2, 2), mlp_ratios=(2, 2), attention="mhsa"),
    ),
    "nat layer scale": ("nat_digits", dict(layer_scale=1e-5)),
    "lavit cls": ("lavit_digits", dict(pool="cls")),
    "lavit kron": ("lavit_digits", dict(transform="kron")),
}


@pytest.mark.parametrize("case", part(CASES, list(CASES)[::3]))
def test_exports_with_an_open_batch(case):
    name, options = CASES[case]
    build = models.model_builder(name, **{"image_size": (18, 18), "num_classes": 3, **options})
    model = nnx.eval_shape(lambda: build(rngs=nnx.Rngs(0)))
    view = nnx.view(model, deterministic=True, use_running_average=True, raise_if_not_found=False)
    graphdef, state = nnx.split(view)
    leaves, tree = jax.tree.flatten(state)

    def run(leaves, images):
        return nnx.merge(graphdef, jax.tree.unflatten(tree, leaves))(images)

    (batch,) = export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, 18, 18, model.in_channels), "float32")
    exported = export.export(jax.jit(run), platforms=["cpu"])(leaves, images)
    assert exported.out_avals[0].shape == (batch, 3)
