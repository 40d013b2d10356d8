"""The table of models: `python -m models [pattern] [image side]` prints name, parameters and MACs,
as Markdown where it does not go to a terminal.
"""

import argparse
import signal
import sys
from collections.abc import Iterator, Sequence

import jax
from flax import nnx
from rich.console import Console
from rich.table import Table

from . import create_model, list_models, registry

COLUMNS = ("model", "parameters", "GMACs", "image")


def main(arguments: Sequence[str]) -> str | None:
    """Prints one row per model; returns what went wrong, or None."""
    parser = argparse.ArgumentParser(prog="python -m models", description=__doc__)
    parser.add_argument("pattern", nargs="?", default="*", help="such as 'lambda_*'; default all")
    parser.add_argument("side", nargs="?", default="", help="in place of each model's image size")
    given = parser.parse_args(arguments)
    names = list_models(given.pattern)
    if not names:
        return f"no model matches {given.pattern!r}; known: {', '.join(list_models())}"
    if given.side and not (given.side.isdecimal() and int(given.side)):
        return f"image side {given.side!r}; allowed: a number of pixels, at least 1"
    try:
        show(names, given.side)
    except ValueError as error:  # the model cannot be made for this side
        return f"image side {given.side}: {error}"
    return None


def show(names: list[str], side: str) -> None:
    """Prints the table; `side` in pixels replaces the size that a model is made for."""
    if sys.stdout.isatty():
        table = Table()
        for column in COLUMNS:
            table.add_column(column, justify="right" if column in COLUMNS[1:3] else "left")
        for row in rows(names, side):
            table.add_row(*row)
        Console().print(table)
        return
    print(f"| {' | '.join(COLUMNS)} |\n|---|---:|---:|---|")
    for row in rows(names, side):
        print(f"| {' | '.join(row)} |", flush=True)


def rows(names: list[str], side: str) -> Iterator[tuple[str, str, str, str]]:
    """Yields the cells of `COLUMNS` for every model, none of which is allocated."""
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
