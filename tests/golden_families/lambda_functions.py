"""The paper's formulas on given queries, keys and values: functions, and the layer with projections
that only select.

Running the layer itself, not only its functions, also checks how its options choose among them.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from golden_harness import Fixture, Ours

from lambdanet.attention.lambda_layer import LambdaLayer
from lambdanet.ops.content_lambda import content_lambda, normalise_keys
from lambdanet.ops.position_lambda import position_lambdas
from lambdanet.ops.relative_table import dense_embeddings


def layer_output(q, keys, values, size, *, table=None, embeddings=None, **options) -> jax.Array:
    """Runs a LambdaLayer whose projections select given queries, keys and values out of the input's
    channels.

    Args:
      q: [b, h, n, k].
      keys: [b, m, g, u, k] with g = 1, or h for the multi-head layer.
      values: [b, m, g, u, v].
      size: map size of the queries.
      table: relative embeddings [*(2 * size - 1), u, k], for keys on the same map; with `scope` its
          centre is taken.
      embeddings: [n, m, k, u] for keys elsewhere.
      **options: of the layer.

    Returns:
      [b, n, h * v].
    """
    batch, heads, n, depth = q.shape
    queries = q.transpose(0, 2, 1, 3).reshape(batch, n, -1)
    pairs = [a.reshape(batch, a.shape[1], -1) for a in (keys, values)]
    own_context = embeddings is not None
    source = jnp.concatenate(pairs if own_context else [queries, *pairs], -1)
    x = (queries if own_context else source).reshape(batch, *size, -1)
    layer = LambdaLayer(
        x.shape[-1],
        num_heads=heads,
        key_depth=depth,
        intra_depth=values.shape[3],
        scope=options.pop("scope", None),
        dim_out=heads * values.shape[-1],
        context_dim=source.shape[-1],
        size=None if own_context else size,
        spatial_dims=len(size),
        norm_query_value=False,
        **options,
        rngs=nnx.Rngs(0),
    )
    layer.query.kernel[...] = jnp.eye(x.shape[-1], queries.shape[-1])
    select = jnp.eye(source.shape[-1])[:, source.shape[-1] - sum(a.shape[-1] for a in pairs) :]
    key_select, value_select = jnp.split(select, [pairs[0].shape[-1]], -1)
    layer.value.kernel[...] = value_select
    if layer.key is not None:
        layer.key.kernel[...] = key_select
    if layer.embedding is not None:
        cuts = [
            (full - taps) // 2
            for full, taps in zip(table.shape[-2 - len(size) : -2], layer.scope, strict=True)
        ]
        where = (..., *(slice(cut, -cut or None) for cut in cuts), slice(None), slice(None))
        layer.embedding[...] = table[where]
    context = {"context": source, "embeddings": embeddings} if own_context else {}
    return layer(x, **context).reshape(batch, n, -1)


def variants(fixture: Fixture) -> Ours:
    """Case a: every variant on one set of queries, keys and values."""
    size = tuple(fixture.config["HW"])

    def outputs(params, inputs):
        q, keys, values = (
            inputs["q_bhnk"],
            inputs["keys_bmk"][:, :, None],
            inputs["values_bmv"][:, :, None],
        )
        table = inputs["rel_emb"][..., None, :]
        embeddings = dense_embeddings(table, size)

        def layer(**options):
            return layer_output(
                q, keys[:, :, None], values[:, :, None], size, table=table, **options
            )

        return {
            "out/E_nmk": embeddings[..., 0],
            "out/content_lambda": content_lambda(normalise_keys(keys), values),
            "out/position_lambdas": position_lambdas(values, embeddings),
            "out/y": layer(),
            "out/y_content": layer(position=False),
            "out/y_position": layer(content=False),
            "out/y_local_r3": layer(scope=3),
            "out/y_local_r5": layer(scope=5),
            "out/y_softmax_q": layer(query_norm="softmax"),
            "out/y_l2_keys": layer(key_norm="l2"),
            "out/y_no_key_norm": layer(key_norm="none"),
            "out/y_causal_inclusive_renorm": layer(causal="inclusive"),
            "out/y_causal_strict_renorm": layer(causal="strict"),
            "out/y_causal_inclusive_sharednorm": layer(
                causal="inclusive", causal_key_norm="shared"
            ),
        }

    return Ours(outputs)


def shapes_of_context(fixture: Fixture) -> Ours:
    """Case b: intra-depth, multi-head, one and three spatial axes, and a context of its own."""
    config, case = fixture.config, fixture.case

    def outputs(params, inputs):
        if case == "cross":
            keys, values = (inputs[name][:, :, None, None] for name in ("keys", "values"))
            embeddings = inputs["E_nmk"][..., None]
            size = (inputs["q"].shape[2],)
            return {"out/y": layer_output(inputs["q"], keys, values, size, embeddings=embeddings)}
        table = inputs["rel_emb"]
        if case == "intra":
            size = config["intra"]["HW"]
            keys, values = (
                inputs[name].swapaxes(2, 3)[:, :, None] for name in ("keys_bmku", "values_bmvu")
            )
            table = table.swapaxes(-1, -2)
        elif case == "multihead":
            size = tuple(config["multihead"]["HW"])
            keys, values = (
                inputs[name].swapaxes(1, 2)[:, :, :, None] for name in ("keys_bhmk", "values_bhmv")
            )
            table = table[..., None, :]
            return {
                "out/y": layer_output(inputs["q"], keys, values, size, table=table, multi_head=True)
            }
        else:
            size = config[f"dims_{case}"]
            keys, values = (inputs[name][:, :, None, None] for name in ("keys", "values"))
            table = table[..., None, :]

        def layer(**options):
            return layer_output(inputs["q"], keys, values, tuple(size), table=table, **options)

        return {"out/y": layer(), "out/y_local_r3": layer(scope=3)}

    return Ours(outputs)


def build(fixture: Fixture) -> Ours:
    return shapes_of_context(fixture) if fixture.case else variants(fixture)


FAMILIES = {"lambda_paper_fn": build}
