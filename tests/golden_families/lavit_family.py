"""LaViT: a less-attention layer, the attention residual between stages, the diagonality-preserving
loss.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from golden_harness import Fixture, Ours, module_case

from lambdanet.attention import attention_residual, less_attention
from lambdanet.attention.diagonality_loss import VARIANTS, diagonality_loss


def layer(fixture: Fixture) -> Ours:
    """One layer with the full transform, on a list of tokens; its softmax is read from the captured
    map.
    """
    config = fixture.config
    grid, heads = tuple(config["grid"]), config["num_heads"]
    assert config["v_bias"] and config["proj_bias"]  # ours always have them
    options = dict(num_heads=heads, size=grid, transform_bias=config["transform_bias"])

    def call(module, inputs):
        shown = nnx.view(module, capture=True)
        (y, logits), sown = nnx.capture(shown, nnx.Intermediate)(
            inputs["x"], inputs["attn_prev"], grid=grid
        )
        weights = nnx.to_pure_dict(sown)["attention_map"][0]
        return {
            "out/y": y,
            "out/attn_logits": logits,
            "out/attn_probs": weights.reshape(logits.shape),
        }

    def build():
        return less_attention.LessAttention(config["dim"], **options, rngs=nnx.Rngs(0))

    return module_case(fixture, build, less_attention.TORCH_NAMES, call)


def residual(fixture: Fixture) -> Ours:
    """The down-sampled logits, each step of it, and what they become as an addition."""
    config = fixture.config
    grid = tuple(config["grid_in"])
    assert tuple(config["grid_out"]) == tuple(n // 2 for n in grid)
    options = dict(class_token_in=config["cls_in"], class_token_out=config["cls_out"])

    def call(module, inputs):
        down = module.downsample(inputs["attn_last"], grid)
        normed = module.normalise(down)
        steps = {"out/dwconv": down, "out/norm": normed, "out/attn_init": module.project(normed)}
        total = inputs["attn_va"] + module(inputs["attn_last"], grid)
        return {key: jnp.moveaxis(a, -1, 1) for key, a in steps.items()} | {
            "out/attn_va_new": total,
            "out/y": total,
        }

    def build():
        heads = config["heads_in"], config["heads_out"]
        return attention_residual.AttentionResidual(*heads, **options, rngs=nnx.Rngs(0))

    return module_case(fixture, build, attention_residual.TORCH_NAMES, call)


def loss(fixture: Fixture) -> Ours:
    """Every term of every variant per layer, their totals, and the gradients of the variants."""
    pieces = {
        "sym_sum": ("paper", 0),
        "diag_paper_sum": ("paper", 1),
        "sym_mean": ("norm_flipped", 0),
        "diag_flipped_mean": ("norm_flipped", 1),
        "hinge_agg": ("norm_hinge_agg", 1),
        "hinge_pair": ("norm_hinge_pair", 1),
    }

    def mean_loss(logits, variant, on):
        return sum(diagonality_loss(logits, variant, on)).mean()

    def outputs(params, inputs):
        arrays = {}
        for on in ("logits", "probs"):
            totals = {}
            for name, logits in inputs.items():
                terms = {
                    term: diagonality_loss(logits, variant, on)[i]
                    for term, (variant, i) in pieces.items()
                }
                terms |= {
                    variant: sum(diagonality_loss(logits, variant, on)) for variant in VARIANTS
                }
                arrays |= {f"out/{on}/{name}/{term}": value for term, value in terms.items()}
                for term, value in terms.items():
                    totals[term] = totals.get(term, 0.0) + value.mean()
                for variant in VARIANTS:
                    arrays[f"grad/{on}/{name}/{variant}"] = jax.grad(mean_loss)(logits, variant, on)
            arrays |= {f"out/{on}/total/{term}": value for term, value in totals.items()}
        return arrays

    return Ours(outputs)


FAMILIES = {"lavit_la": layer, "lavit_ar": residual, "lavit_dploss": loss}
