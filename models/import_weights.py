"""Imports weights into a model and writes them as a safetensors file in our layout, saying what
went where.

    python -m models.import_weights swin_tiny_patch4_window7_224.pth --model swin_tiny
    --out swin_tiny.safetensors   # installed: python -m lambdanet.models.import_weights

SRC is a PyTorch checkpoint, safetensors or npz with PyTorch's names, or a file of ours; a folder
with one, the workdir of a run, or `hf:OWNER/NAME[@REVISION][/FILE]`. Nothing is converted unless it
is asked for: `--resize-tables`, `--warm-start-slide`, `--merge-slide`, `--split-slide`; what does
not fit is an error that lists all of it and names the flag that could help.

The file written is for `eval.py --weights=X.safetensors` and
`--config.train.init_weights=X.safetensors`, with the model and the options that are in its
metadata.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flax import nnx

from lambdanet.analysis.weight_import import Imported, import_weights
from lambdanet.interop import files
from lambdanet.interop.grids import Grid, grids_of

from . import create_model, registry

_SIZES = ("image_size", "attention")  # options on which the sizes of tables depend


def main(arguments: Sequence[str]) -> str | None:
    """Runs the program.

    Args:
        arguments: the command line.

    Returns:
        What went wrong, or None.
    """
    options = _parser().parse_args(arguments)
    try:
        _run(options)
    except (ValueError, OSError) as error:
        return f"import_weights: {error}"
    return None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m models.import_weights", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument(
        "source",
        metavar="SRC",
        help="PyTorch checkpoint, .safetensors or .npz; told by its content; or a folder, a "
        "workdir, or hf:OWNER/NAME[@REVISION][/FILE]",
    )
    parser.add_argument(
        "--model", required=True, metavar="NAME", help="our model; `python -m models` lists them"
    )
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an option of the model in place of its preset; VALUE is a Python literal, or else "
        "text; may be repeated",
    )
    parser.add_argument(
        "--source-option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an option in which the model that SRC was made with differs from --model and "
        "--option, for the height and width of its tables of positions where SRC does not say them "
        "(image_size, attention); may be repeated; without it, image_size and attention are taken "
        "to be the preset's",
    )
    parser.add_argument("--out", required=True, metavar="X.safetensors", help="the file to write")
    parser.add_argument("--overwrite", action="store_true", help="replace the file if it exists")
    parser.add_argument(
        "--resize-tables",
        action="store_true",
        help="resize tables of relative biases in windows (bicubic) and learned positions "
        "(bilinear) where their size differs",
    )
    parser.add_argument(
        "--warm-start-slide",
        action="store_true",
        help="start slide attention from the projections of the attention in the file; the rest "
        "keeps its initial value",
    )
    parser.add_argument("--seed", type=int, default=0, help="of these initial values (default: 0)")
    parser.add_argument(
        "--live",
        action="store_true",
        help="take the live weights of a checkpoint that has averaged ones (EMA) as well",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument(
        "--merge-slide",
        action="store_true",
        help="write slide attention in its merged form, for inference",
    )
    form.add_argument(
        "--split-slide",
        action="store_true",
        help="the file has slide attention merged: take the shifts off",
    )
    return parser


def _run(options: argparse.Namespace) -> None:
    out = Path(options.out)
    if out.suffix != ".safetensors":
        raise ValueError(f"--out is {options.out}; allowed: a name that ends in .safetensors")
    if out.exists() and not options.overwrite:
        raise ValueError(f"{out} exists; give another name, or --overwrite to replace it")
    if not out.absolute().parent.is_dir():
        raise ValueError(
            f"--out is {out}; its folder does not exist. Fix: make the folder, or give another name"
        )
    chosen = dict(_option(text) for text in options.option)

    theirs = dict(_option(text) for text in options.source_option)

    def build() -> nnx.Module:
        return create_model(options.model, rngs=nnx.Rngs(options.seed), **chosen)

    grids = grids_of(nnx.eval_shape(build))
    supposed = _supposed_grids(options.model, chosen, theirs) if grids else {}
    flags = {
        name: getattr(options, name)
        for name in ("resize_tables", "warm_start_slide", "merge_slide", "split_slide")
    }
    imported = import_weights(
        options.source, build, supposed=supposed, prefer_ema=not options.live, **flags
    )
    _, preset = registry.lookup(options.model)
    stored = {"name": options.model, **chosen}
    if options.merge_slide:
        stored["attention"] = _merged_spec(stored.get("attention", preset.get("attention")))
    files.save_safetensors(out, imported.arrays, files.export_metadata(stored, grids))
    print(report(imported, options.model))
    print(f"Written: {out}")
    if options.merge_slide:
        print(f"It is for the model with attention={stored['attention']!r}")


def _supposed_grids(
    name: str, chosen: Mapping[str, Any], theirs: Mapping[str, Any]
) -> dict[str, Grid]:
    """Returns the sizes of the tables of the model that a file was made with: by --source-option,
    or as the preset has them.
    """
    own = chosen if theirs else {k: v for k, v in chosen.items() if k not in _SIZES}
    try:
        return grids_of(
            nnx.eval_shape(lambda: create_model(name, rngs=nnx.Rngs(0), **{**own, **theirs}))
        )
    except ValueError:
        if theirs:
            raise
        return {}  # the preset's attention does not fit the other options


def _option(text: str) -> tuple[str, Any]:
    name, sign, value = text.partition("=")
    if not sign or not name:
        raise ValueError(f"--option is {text!r}; allowed: KEY=VALUE")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def _merged_spec(spec: Any) -> Any:
    """Returns an `attention` option in which every slide attention is merged."""
    if isinstance(spec, (list, tuple)):
        return tuple(map(_merged_spec, spec))
    own = {"name": spec} if isinstance(spec, str) else spec
    return {**own, "merged": True} if isinstance(own, Mapping) and own["name"] == "slide" else spec


def _size(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "-"


def report(imported: Imported, model: str) -> str:
    """Returns the table of what went where, and a last line with the counts."""
    rows = [("in the file", "shape", "in the model", "shape", "how")]
    rows += [
        (line.key, _size(line.key_shape), line.path, _size(line.shape), line.how)
        for line in imported.lines
    ]
    rows = [
        [" " if cell == "-" and i in (1, 3) else cell for i, cell in enumerate(row)] for row in rows
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    text = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, [*widths, 0], strict=True)).rstrip()
        for row in rows
    ]
    lines = imported.lines
    counts = {
        "dropped": sum(line.how == "dropped" for line in lines),
        "left out": sum(line.how.startswith("left out") for line in lines),
        "resized": sum("resized" in line.how for line in lines),
        "with their initial value": sum(line.how == "initial value" for line in lines),
    }
    numbers = sum(array.size for array in imported.arrays.values())
    keys = len({line.key for line in lines if line.key != "-"})
    said = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    total = (
        f"{model}: {len(imported.arrays)} arrays, {numbers:,} numbers, from {keys} keys "
        f"(names: {imported.grammar})"
    )
    return "\n".join([*text, total + (f"; {said}" if said else "")])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
