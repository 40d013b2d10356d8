"""The table of models: `python -m models [pattern] [image side]` prints name, parameters and MACs,
and `python -m models --pretrained [pattern]` public weights, as Markdown where it does not go to a
terminal.
"""

import argparse
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence

import jax
from flax import nnx
from rich.console import Console
from rich.table import Table

from lambdanet.registry import suggest

from . import create_model, list_models, registry
from .pretrained import TABLE

COLUMNS = ("model", "parameters", "GMACs", "image")
NUMBERS = ("parameters", "GMACs", "crop", "published")
"""Columns on the right."""
PUBLIC = (
    *("model", "weights", "trained on", "image", "crop", "filter", "mean", "std"),
    *("metric", "published", "read in"),
)


def main(arguments: Sequence[str]) -> str | None:
    """Prints the table; returns what went wrong, or None."""
    parser = argparse.ArgumentParser(prog="python -m models", description=__doc__)
    parser.add_argument("pattern", nargs="?", default="*", help="such as 'lambda_*'; default all")
    parser.add_argument("side", nargs="?", default="", help="in place of each model's image size")
    parser.add_argument(
        "--pretrained", action="store_true", help="models with public weights, and these"
    )
    given = parser.parse_args(arguments)
    names = list_models(given.pattern)
    if not names:
        nearest = suggest(given.pattern, list_models())
        known = f"known: those that `python -m models` lists.{nearest}"
        return f"no model matches {given.pattern!r}; {known}"
    if given.pretrained:
        if given.side:
            return f"image side {given.side!r}: not with --pretrained, whose sizes are published"
        show(PUBLIC, public_rows(names))
        return None
    if given.side and not (given.side.isdecimal() and int(given.side)):
        return f"image side {given.side!r}; allowed: a number of pixels, at least 1"
    try:
        show(COLUMNS, rows(names, given.side))
    except ValueError as error:  # the model cannot be made for this side
        return f"image side {given.side}: {error}"
    return None


def show(columns: Sequence[str], lines: Iterable[Sequence[str]]) -> None:
    """Prints a table, row by row where it does not go to a terminal."""
    if sys.stdout.isatty():
        table = Table()
        for column in columns:
            table.add_column(column, justify="right" if column in NUMBERS else "left")
        for line in lines:
            table.add_row(*line)
        Console().print(table)
        return
    rules = ("---:" if column in NUMBERS else "---" for column in columns)
    print(f"| {' | '.join(columns)} |\n|{'|'.join(rules)}|")
    for line in lines:
        print(f"| {' | '.join(line)} |", flush=True)


def public_rows(names: list[str]) -> Iterator[tuple[str, ...]]:
    """Yields the cells of `PUBLIC` for every model that public weights are known of."""
    for name, found in TABLE.items():
        if name in names:
            yield (
                *(name, found.source, found.data, f"{found.image_size[0]}x{found.image_size[1]}"),
                *(f"{found.crop:g}", found.interpolation),
                *(" ".join(f"{value:g}" for value in values) for values in (found.mean, found.std)),
                *(found.metric, "" if found.value is None else f"{100 * found.value:.5g} %"),
                found.cited,
            )


def rows(names: list[str], side: str) -> Iterator[tuple[str, str, str, str]]:
    """Yields the cells of `COLUMNS` for every model, none of which is allocated; `side` in pixels
    replaces the size that a model is made for.
    """
    for name in names:
        default = registry.lookup(name)[1].get(
            "image_size", registry.parameters(name)["image_size"].default
        )
        size = (int(side), int(side)) if side else default
        model = nnx.eval_shape(
            lambda name=name, size=size: create_model(name, image_size=size, rngs=nnx.Rngs(0))
        )
        count = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
        yield name, f"{count:,}", f"{model.macs(*size) / 1e9:.3f}", f"{size[0]}x{size[1]}"


if __name__ == "__main__":
    if hasattr(signal, "SIGPIPE"):  # `| head` ends this as it ends every other program
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sys.exit(main(sys.argv[1:]))
