"""The command line of the programs that draw samples of an embedded data set."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable


def run(
    argv: list[str] | None,
    name: str,
    about: str,
    size: tuple[int, int],
    check_size: Callable[[tuple[int, int]], None],
    picture: Callable[[str, tuple[int, int]], None],
) -> int:
    """Parses `argv`, draws the picture and returns the exit status.

    Args:
        argv: arguments; None = the process's.
        name: the module below `lambdanet.data`.
        about: what it draws, a line.
        size: (height, width) of the canvas if none is given.
        check_size: raises ValueError for a canvas that does not do.
        picture: writes the picture for a file name and a canvas.
    """
    parser = argparse.ArgumentParser(prog=f"python -m lambdanet.data.{name}", description=about)
    parser.add_argument("picture", metavar="FILE", help="the picture to write")
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        default=size,
        metavar=("H", "W"),
        help=f"canvas; default {size[0]} {size[1]}",
    )
    args = parser.parse_args(argv)
    try:
        check_size(tuple(args.size))
        picture(args.picture, tuple(args.size))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(args.picture)
    return 0
