"""Name tables of hierarchical Transformers: what PyTorch checkpoints call the parameters of
`models.hierarchical`.

A family has one table per grammar, `official` for the authors' code, `timm` for timm where that
differs, for Swin also `mmseg` (mmsegmentation, mmdetection) and `transformers`. Norms on the output
maps (`output_norm`) are those of the authors' code for dense tasks. Which table a file follows is
found by `lambdanet.interop.names.choose_table`. A table is for every member of the family, its
Slide form included: a stage with slide attention has the names of the public Slide-Swin code, for
the other families, too, of which no Slide code is public. Some keys therefore stand in several
rules; the model has the target of one of them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lambdanet.attention import cross_shaped_window, neighborhood, slide, spatial_reduction, window
from lambdanet.interop.names import CONV, LAYER_NORM, LINEAR, Rule, prefixed

Table = tuple[Rule, ...]

_STAGES = range(
    8
    # more than any of these networks has; their numbers differ from ours, so every stage has its
    # own rules
)


def _table(array: np.ndarray) -> np.ndarray:
    """[1, n, c] -> [n, c]: positions or a token, stored with an axis for the batch."""
    if array.ndim != 3 or array.shape[0] != 1:
        raise ValueError(
            f"a table of positions has the shape (1, positions, channels), this has {array.shape}"
        )
    return array[0]


def _class_first(array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[1, 1 + n, c] -> [1, c] and [n, c]: the class's position stands before those of the map."""
    table = _table(array)
    return table[:1], table[1:]


def _class_dropped(array: np.ndarray) -> np.ndarray:
    """[1, 1 + n, c] -> [n, c]."""
    return _class_first(array)[1]


def without_class_token(rules: Table, last: int) -> Table:
    """Returns a table for a network without class token, which reads the positions of the map
    alone.

    Args:
        rules: the table.
        last: number of the stage, from 0, that has the token in the file's network.
    """
    positions = f"stages/{last}/position_embedding"
    return tuple(
        Rule(rule.pattern, positions, _class_dropped)
        if isinstance(rule.target, tuple) and positions in rule.target
        else rule
        for rule in rules
        if rule.target != positions
    )


def block_names(own: Table, slide_names: Table = (), *, attention: str = r"attn\.") -> Table:
    """Returns the table of a Transformer block.

    Args:
        own: table of the family's attention.
        slide_names: table of slide attention, whose keys begin with `attn.`.
        attention: pattern that the keys of the family's attention begin with.
    """
    rules = [Rule(r"attn_mask", None), *prefixed(own, attention, "attention")]
    # Where both have the prefix, one rule is enough for what both have, the joint projection and
    # the one at the end.
    shared = (
        {rule.target for rule in own if rule.target is not None} if attention == r"attn\." else ()
    )
    rules += prefixed(
        [rule for rule in slide_names if rule.target not in shared], r"attn\.", "attention"
    )
    for number in (1, 2):
        rules += prefixed(LAYER_NORM, rf"norm{number}\.", f"norm{number}")
        rules += prefixed(LINEAR, rf"mlp\.fc{number}\.", f"mlp/fc{number}")
        rules.append(Rule(rf"gamma{number}", f"layer_scale{number}/gamma"))
    return (*rules, *prefixed(CONV, r"mlp\.dwconv\.(?:dwconv\.)?", "mlp/depthwise"))


def _embed(torch: str, stage: int, *, conv: str = r"proj\.", norm: str = r"norm\.") -> Table:
    """A convolution and a norm at the start of a stage."""
    path = f"stages/{stage}/embed"
    return (
        *prefixed(CONV, torch + conv, f"{path}/conv"),
        *prefixed(LAYER_NORM, torch + norm, f"{path}/norm"),
    )


def _end(head: str = r"head\.", *, norm: str = r"norm\.") -> Table:
    return (*prefixed(LAYER_NORM, norm, "norm"), *prefixed(LINEAR, head, "head/fc"))


_OUTPUT_NORMS = prefixed(LAYER_NORM, r"norm(\d+)\.", r"output_norms/\1")


def _cells(array: np.ndarray) -> np.ndarray:
    """[..., 4 c] -> [..., 4 c]: the tokens of a 2x2 cell from the order of an unfolded map, channel
    by channel with the cell's four row by row, to token by token in the order of Swin's code.
    """
    cells = array.reshape(*array.shape[:-1], -1, 4).swapaxes(-1, -2)
    return cells[..., [0, 2, 1, 3], :].reshape(array.shape)


def _unfolded_merging(torch: str, path: str) -> Table:
    """Patch merging of mmsegmentation, which unfolds the map."""

    def kernel(array: np.ndarray) -> np.ndarray:
        return _cells(array).T

    return (
        *(
            Rule(rf"{torch}norm\.{theirs}", f"{path}/norm/{ours}", _cells)
            for theirs, ours in (("weight", "scale"), ("bias", "bias"))
        ),
        Rule(rf"{torch}reduction\.weight", f"{path}/reduction/kernel", kernel),
    )


def _swin(slide_names: Table, *, timm: bool) -> Table:
    rules = [*_embed(r"patch_embed\.", 0)]
    for stage in _STAGES[1:]:
        # The authors' code halves the map at the end of a stage, timm at the start of the next one.
        merging, path = (
            rf"layers\.{stage if timm else stage - 1}\.downsample\.",
            f"stages/{stage}/embed",
        )
        rules += prefixed(LAYER_NORM, merging + r"norm\.", f"{path}/norm")
        rules += prefixed(LINEAR, merging + r"reduction\.", f"{path}/reduction")
    block = block_names(window.TORCH_NAMES, slide_names)
    rules += prefixed(block, r"layers\.(\d+)\.blocks\.(\d+)\.", r"stages/\1/blocks/\2")
    return (*rules, *_OUTPUT_NORMS, *_end(r"head\.fc\." if timm else r"head\."))


def _swin_mmseg(slide_names: Table) -> Table:
    rules = [*_embed(r"patch_embed\.", 0, conv=r"projection\.")]
    for stage in _STAGES[1:]:
        rules += _unfolded_merging(rf"stages\.{stage - 1}\.downsample\.", f"stages/{stage}/embed")
    block = (
        *block_names(window.MMSEG_TORCH_NAMES, slide_names),
        *prefixed(LINEAR, r"ffn\.layers\.0\.0\.", "mlp/fc1"),
        *prefixed(LINEAR, r"ffn\.layers\.1\.", "mlp/fc2"),
    )
    rules += prefixed(block, r"stages\.(\d+)\.blocks\.(\d+)\.", r"stages/\1/blocks/\2")
    return (*rules, *_OUTPUT_NORMS, *_end())


def _swin_transformers(slide_names: Table) -> Table:
    """The files of transformers, and its modules from version 5 on; with the prefix `swin.` or
    without.
    """
    prefix = r"(?:swin\.)?"
    rules = [*_embed(rf"{prefix}embeddings\.", 0, conv=r"patch_embeddings\.projection\.")]
    for stage in _STAGES:
        merging, path = (
            rf"{prefix}encoder\.layers\.{stage}\.downsample\.",
            f"stages/{stage + 1}/embed",
        )
        rules += prefixed(LAYER_NORM, merging + r"norm\.", f"{path}/norm")
        rules += prefixed(LINEAR, merging + r"reduction\.", f"{path}/reduction")
        norm = rf"hidden_states_norms\.stage{stage + 1}\."
        rules += prefixed(LAYER_NORM, norm, f"output_norms/{stage}")
    block = (
        *prefixed(window.TRANSFORMERS_TORCH_NAMES, r"attention\.", "attention"),
        *prefixed(slide_names, r"attn\.", "attention"),
        *prefixed(LAYER_NORM, r"layernorm_before\.", "norm1"),
        *prefixed(LAYER_NORM, r"layernorm_after\.", "norm2"),
        *prefixed(LINEAR, r"(?:intermediate\.dense|mlp\.fc1)\.", "mlp/fc1"),
        *prefixed(LINEAR, r"(?:output\.dense|mlp\.fc2)\.", "mlp/fc2"),
    )
    rules += prefixed(
        block, prefix + r"encoder\.layers\.(\d+)\.blocks\.(\d+)\.", r"stages/\1/blocks/\2"
    )
    return (*rules, *_end(r"classifier\.", norm=rf"{prefix}layernorm\."))


def _pvt(slide_names: Table, *, second: bool) -> Table:
    """The authors' code of both versions, whose stages count from 1."""
    rules, block = [], block_names(spatial_reduction.TORCH_NAMES, slide_names)
    for stage in _STAGES:
        path = f"stages/{stage}"
        rules += _embed(rf"patch_embed{stage + 1}\.", stage)
        rules += prefixed(block, rf"block{stage + 1}\.(\d+)\.", rf"{path}/blocks/\1")
        if second:
            rules += prefixed(LAYER_NORM, rf"norm{stage + 1}\.", f"{path}/norm")
        else:
            key, positions = rf"pos_embed{stage + 1}", f"{path}/position_embedding"
            rules += [
                Rule(key, positions, _table),
                Rule(key, (f"{path}/class_position", positions), _class_first),
            ]
            rules.append(Rule(r"cls_token", f"{path}/class_token", _table))
    return (*rules, *_end())


def _pvt_v2_timm(slide_names: Table) -> Table:
    rules = [*_embed(r"patch_embed\.", 0)]
    for stage in _STAGES[1:]:
        rules += _embed(rf"stages\.{stage}\.downsample\.", stage)
    block = block_names(spatial_reduction.TORCH_NAMES, slide_names)
    rules += prefixed(block, r"stages\.(\d+)\.blocks\.(\d+)\.", r"stages/\1/blocks/\2")
    return (
        *rules,
        *prefixed(LAYER_NORM, r"stages\.(\d+)\.norm\.", r"stages/\1/norm"),
        *prefixed(LINEAR, r"head\.", "head/fc"),
    )


def _cswin(slide_names: Table) -> Table:
    rules = [*_embed(r"stage1_conv_embed\.", 0, conv=r"0\.", norm=r"2\.")]
    block = block_names(cross_shaped_window.TORCH_NAMES, slide_names, attention="")
    for stage in _STAGES:
        rules += prefixed(block, rf"stage{stage + 1}\.(\d+)\.", rf"stages/{stage}/blocks/\1")
        rules += prefixed(LAYER_NORM, rf"norm{stage + 1}\.", f"output_norms/{stage}")
        rules += _embed(rf"merge{stage}\.", stage, conv=r"conv\.") if stage else ()
    return (*rules, *_end())


def _nat(slide_names: Table) -> Table:
    rules = []
    for number in (1, 2):
        rules += prefixed(
            CONV, rf"patch_embed\.proj\.{number - 1}\.", f"stages/0/embed/conv{number}"
        )
    rules += prefixed(LAYER_NORM, r"patch_embed\.norm\.", "stages/0/embed/norm")
    for stage in _STAGES[1:]:
        rules += _embed(rf"levels\.{stage - 1}\.downsample\.", stage, conv=r"reduction\.")
    block = block_names(neighborhood.TORCH_NAMES, slide_names)
    return (
        *rules,
        *prefixed(block, r"levels\.(\d+)\.blocks\.(\d+)\.", r"stages/\1/blocks/\2"),
        *_OUTPUT_NORMS,
        *_end(),
    )


_GRAMMARS: dict[str, dict[str, Callable[[Table], Table]]] = {
    "swin": {
        "official": lambda names: _swin(names, timm=False),
        "timm": lambda names: _swin(names, timm=True),
        "mmseg": _swin_mmseg,
        "transformers": _swin_transformers,
    },
    "pvt": {"official": lambda names: _pvt(names, second=False)},
    "pvt_v2": {"official": lambda names: _pvt(names, second=True), "timm": _pvt_v2_timm},
    "cswin": {"official": _cswin},
    "nat": {"official": _nat},
}


def _tables(slide_names: Table) -> dict[str, dict[str, Table]]:
    return {
        family: {name: make(slide_names) for name, make in grammars.items()}
        for family, grammars in _GRAMMARS.items()
    }


TORCH_NAMES = _tables(slide.TORCH_NAMES)
"""Family -> grammar -> table."""

MERGED_TORCH_NAMES = _tables(slide.MERGED_TORCH_NAMES)
"""The same for networks whose slide attention is merged: the files hold one convolution with the
sums, `dep_conv`.
"""
