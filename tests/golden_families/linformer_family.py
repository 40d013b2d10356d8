"""Linformer as lucidrains, fairseq (the authors) and tatp22 have it."""

from dataclasses import replace

import jax
import numpy as np
from flax import nnx
from golden_harness import Arrays, Fixture, Ours, module_case

from lambdanet.attention.linformer import TORCH_NAMES, Linformer
from lambdanet.interop.names import LAYER_NORM, LINEAR, Rule, prefixed
from lambdanet.layers.token_compression import TokenCompression


def lucidrains(fixture: Fixture) -> Ours:
    """LinformerSelfAttention(dim, seq_len, k, heads, dim_head, one_kv_head, share_kv); [b, tokens,
    channels].
    """
    arguments = dict(fixture.config["args"])
    assert arguments.pop("dropout") == 0
    dim, share = arguments.pop("dim"), arguments.pop("share_kv")
    options = dict(
        max_length=arguments.pop("seq_len"),
        num_projected=arguments.pop("k"),
        num_heads=arguments.pop("heads"),
        head_dim=arguments.pop("dim_head"),
        one_kv_head=arguments.pop("one_kv_head"),
        share_kv=share,
        sharing="key_value" if share else "headwise",
    )
    assert not arguments, f"constructor arguments without a counterpart here: {arguments}"

    def call(layer, inputs):
        return {"out/y": layer(inputs["x"], context=inputs.get("context"))}

    return module_case(
        fixture, lambda: Linformer(dim, **options, rngs=nnx.Rngs(0)), TORCH_NAMES, call
    )


def fairseq(fixture: Fixture) -> Ours:
    """MultiheadLinearAttention(embed_dim, num_heads, compressed, max_seq_len,
    shared_kv_compressed); [tokens, b, channels].
    """
    arguments = dict(fixture.config["args"])
    assert arguments.pop("self_attention") and fixture.config["input_layout"] == "(T, B, C)"
    dim, length = arguments.pop("embed_dim"), arguments.pop("max_seq_len")
    options = dict(
        max_length=length,
        num_projected=length // arguments.pop("compressed"),
        num_heads=arguments.pop("num_heads"),
        sharing="key_value" if arguments.pop("shared_kv_compressed") else "headwise",
        order="compress_then_project",
        qkv_bias=True,
    )
    assert not arguments, f"constructor arguments without a counterpart here: {arguments}"

    def call(layer, inputs):
        x = inputs["x"].swapaxes(0, 1)
        y, sown = nnx.capture(nnx.view(layer, capture=True), nnx.Intermediate)(x)
        weights = nnx.to_pure_dict(sown)["attention_map"][0]  # [b, heads, tokens, k]
        return {"out/y": y.swapaxes(0, 1), "out/attn": weights.swapaxes(0, 1)}

    return module_case(
        fixture, lambda: Linformer(dim, **options, rngs=nnx.Rngs(0)), TORCH_NAMES, call
    )


class Encoder(nnx.Module):
    """tatp22's encoder: attention and a two-layer perceptron in turn, x = norm(x + f(x)) around
    each.
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        depth: int,
        shared: dict | None,
        options: dict,
        *,
        rngs: nnx.Rngs,
    ):
        self.compression = None if shared is None else TokenCompression(**shared, rngs=rngs)
        self.attention = nnx.List([Linformer(dim, **options, rngs=rngs) for _ in range(depth)])
        self.expand = nnx.List([nnx.Linear(dim, hidden, rngs=rngs) for _ in range(depth)])
        self.reduce = nnx.List([nnx.Linear(hidden, dim, rngs=rngs) for _ in range(depth)])
        self.norms = nnx.List(
            [nnx.LayerNorm(dim, epsilon=1e-5, rngs=rngs) for _ in range(2 * depth)]
        )

    def __call__(self, x):
        for i, (attention, expand, reduce) in enumerate(
            zip(self.attention, self.expand, self.reduce, strict=True)
        ):
            x = self.norms[2 * i](x + attention(x, compression=self.compression))
            x = self.norms[2 * i + 1](x + reduce(jax.nn.gelu(expand(x), approximate=False)))
        return x


ENCODER_NAMES = (
    *(
        rule
        for i in range(4)  # attention is seq.0, seq.2, ..., the perceptrons stand between
        for rule in (
            *prefixed(LINEAR, rf"seq\.{2 * i}\.fn\.to_q\.", f"attention/{i}/query"),
            *prefixed(LINEAR, rf"seq\.{2 * i}\.fn\.to_k\.", f"attention/{i}/key"),
            *prefixed(LINEAR, rf"seq\.{2 * i}\.fn\.to_v\.", f"attention/{i}/value"),
            *prefixed(LINEAR, rf"seq\.{2 * i}\.fn\.w_o\.", f"attention/{i}/output"),
            *prefixed(LINEAR, rf"seq\.{2 * i + 1}\.fn\.w_1\.", f"expand/{i}"),
            *prefixed(LINEAR, rf"seq\.{2 * i + 1}\.fn\.w_2\.", f"reduce/{i}"),
            Rule(
                rf"seq\.{2 * i}\.E\.(kernel|window_kernel|bias)", rf"attention/{i}/compress_key/\1"
            ),
            Rule(
                rf"seq\.{2 * i}\.F\.(kernel|window_kernel|bias)",
                rf"attention/{i}/compress_value/\1",
            ),
        )
    ),
    Rule(r"E\.(kernel|window_kernel|bias)", r"compression/\1"),
    *prefixed(LAYER_NORM, r"seq\.(\d+)\.norm\.", r"norms/\1"),
)


def tatp22(fixture: Fixture) -> Ours:
    """Linformer(input_size, channels, dim_k, dim_ff, nhead, depth, parameter_sharing, method, ...):
    an encoder.
    """
    arguments = dict(fixture.config["args"])
    assert (
        arguments.pop("dropout") == arguments.pop("dropout_ff") == 0
        and arguments.pop("activation") == "gelu"
    )
    sharing = arguments.pop("parameter_sharing")
    method = {"learnable": "linear", "convolution": "convolution"}[
        arguments.pop("method", "learnable")
    ]
    dim, heads, length, slots = (
        arguments.pop(name) for name in ("channels", "nhead", "input_size", "dim_k")
    )
    hidden, depth = arguments.pop("dim_ff"), arguments.pop("depth")
    assert not arguments, f"constructor arguments without a counterpart here: {arguments}"
    options = dict(
        max_length=length,
        num_projected=slots,
        num_heads=heads,
        sharing={"kv": "key_value"}.get(sharing, sharing),
        projection=method,
        compress_bias=sharing != "layerwise",
    )
    shared = None
    if sharing == "layerwise":
        shared = dict(
            length=length, slots=slots, projection=method, bias=True, features=dim // heads
        )

    def build():
        return Encoder(dim, hidden, depth, shared, options, rngs=nnx.Rngs(0))

    def call(encoder, inputs):
        return {"out/y": encoder(inputs["x"])}

    def one_key_per_array(named: Arrays) -> dict[str, np.ndarray]:
        return _one_key_per_array(named, sharing, method)

    weights = one_key_per_array(fixture.under("param/"))
    ours = module_case(fixture, build, ENCODER_NAMES, call, weights=weights)
    return replace(ours, to_ours=lambda named: ours.to_ours(one_key_per_array(named)))


def _one_key_per_array(named: Arrays, sharing: str, method: str) -> dict[str, np.ndarray]:
    """Joins the heads, which have parameters of their own there, and drops further names of a
    shared E or F.

    Only the first name of a shared array has a gradient.
    """
    heads: dict[str, dict[int, np.ndarray]] = {}
    joined = {}
    for key, array in named.items():
        parts = key.split(".")
        if parts[3:4] == ["heads"]:  # seq.0.fn.heads.1.E.weight
            _, layer, _, _, head, which, kind = parts
            if kind == "weight":
                kind = "kernel" if method == "linear" else "window_kernel"
                array = np.moveaxis(
                    array, (0, 1), (-1, -2)
                )  # [k, n] -> [n, k]; [out, in, window] -> [window, in, out]
            if sharing == "none":
                heads.setdefault(f"seq.{layer}.{which}.{kind}", {})[int(head)] = array
            else:
                name = {
                    "headwise": f"seq.{layer}.{which}",
                    "kv": f"seq.{layer}.E",
                    "layerwise": "E",
                }[sharing]
                joined.setdefault(f"{name}.{kind}", array)
        elif len(parts) == 6:  # seq.0.fn.to_q.1.weight [d, channels]
            heads.setdefault(".".join((*parts[:4], parts[5])), {})[int(parts[4])] = array
        else:
            joined[key] = array
    for name, arrays in heads.items():
        ordered = [arrays[head] for head in sorted(arrays)]
        joined[name] = np.concatenate(ordered) if ".fn." in name else np.stack(ordered)
    return joined


FAMILIES = {
    "linformer": lucidrains,
    "linformer_fairseq": fairseq,
    "linformer_sharing_none": tatp22,
    "linformer_sharing_headwise": tatp22,
    "linformer_sharing_kv": tatp22,
    "linformer_sharing_layerwise": tatp22,
    "linformer_method_convolution": tatp22,
}
