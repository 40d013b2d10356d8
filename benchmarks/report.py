"""Tables and pictures of docs/performance.md, from the measurements in benchmarks/results.

    python -m benchmarks.report

Each table stands between a line `<!-- table: NAME -->`, with a name of `TABLES`, and a line `<!--
end of the table -->`; what is between them is written anew, the rest of the document by hand.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks import blocks_suite
from benchmarks.arguments import read_lines
from lambdanet.analysis.text import markdown_table
from lambdanet.atomic import write_file

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT, RESULTS = ROOT / "docs" / "performance.md", ROOT / "benchmarks" / "results"
PICTURE = ROOT / "docs" / "images" / "performance.png"
BLOCKS_PICTURE = PICTURE.with_name("performance_blocks.png")
PICTURED = "time of the fastest PyTorch form / ours at its defaults (CPU, float32)"
MARKED = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end of the table -->)", re.DOTALL)
DIRECTIONS = {
    "fwd": "forward",
    "train": "forward + backward",
    "input_gradient": "gradient of the input",
}
COLORS = {"fwd": "#1f6feb", "train": "#d1570a"}

Record = Mapping[str, Any]


def read(path: Path) -> list[Record]:
    """Returns the records of a file of JSON lines; the last of each candidate."""
    keys = ("suite", "case", "direction", "framework", "impl")
    records = [
        {key: value for key, value in line.items() if value is not None}
        for line in read_lines(path, keys)
    ]
    return list({tuple(r[key] for key in keys): r for r in records}.values())


def groups(records: Iterable[Record]) -> dict[tuple[str, str], list[Record]]:
    """Returns the candidates that took turns, by (case, direction)."""
    found: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        found.setdefault((record["case"], record["direction"]), []).append(record)
    return found


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Returns a table; the first row is its head, the first column is aligned left."""
    head, *body = rows
    return "\n".join(markdown_table(head, body, left=(0,)))


def side_by_side(records: Sequence[Record]) -> str:
    """Returns one row per case and direction: ours at its defaults, the fastest lowering of ours,
    every PyTorch form.
    """
    head = ["case", "direction", "ours, ms", "CPU ms", "MiB", "GEMM", "copy"]
    rows = [[*head, "fastest lowering", "others"]]
    for (case, direction), candidates in groups(records).items():
        ours, _ = rivals(candidates)
        if "ms" not in ours:
            continue
        lowerings = [
            r for r in candidates if r["framework"] == "ours" and r is not ours and "ms" in r
        ]
        fastest = min(lowerings, key=lambda r: r["ms"], default=None)
        best = ""
        if (
            fastest is not None
            # the lowering that 'auto' chose is the same program: any difference is the spread of
            # the times
        ):
            ratio = (
                "chosen"
                if fastest["impl"] == ours.get("lowering")
                else f"{ours['ms'] / fastest['ms']:.2f}"
            )
            best = f"{fastest['impl']} {fastest['ms']:.2f} ({ratio})"
        chosen = f" ({ours['lowering']})" if "lowering" in ours else ""
        torch = sorted(
            (r for r in candidates if r["framework"] != "ours"),
            key=lambda r: r.get("ms", float("inf")),
        )
        others = [
            f"{r['impl']} {r['ms']:.2f} (**{r['ms'] / ours['ms']:.2f}x**)"
            if "ms" in r
            else f"{r['impl']}: {r['error']}"
            for r in torch
        ]
        shares = [
            f"{100 * ours[key]:.0f} %" if key in ours else ""
            for key in ("gemm_share", "copy_share")
        ]
        memory = f"{ours['temp_mib']:.1f}" if "temp_mib" in ours else ""
        numbers = [f"{ours['ms']:.2f}{chosen}", f"{ours['cpu_ms']:.2f}", memory, *shares]
        rows.append([f"`{case}`", DIRECTIONS[direction], *numbers, best, ", ".join(others)])
    return markdown(rows)


NOT_MEASURED = "not measured yet"


def all_blocks(records: Sequence[Record]) -> str:
    """Returns one row per measured block, map and direction of the suite `blocks`, with the fastest
    of PyTorch's forms, and the geometric means of how many times as fast ours is; then the names of
    those that are not measured.
    """
    rows = [["block", "map", "direction", "ours, ms", "CPU ms", "MiB", "PyTorch, ms", "ratio"]]
    found, ratios = groups(records), {direction: [] for direction in blocks_suite.DIRECTIONS}
    cases = [(name, *sizes) for name, block in blocks_suite.BLOCKS.items() for sizes in block.maps]
    missing = []
    for name, side, dim in cases:
        for direction, of_direction in ratios.items():
            key = blocks_suite.case_name(name, side, dim), direction
            if key not in found:
                missing.append(f"`{name}`")
                continue
            ours, theirs = rivals(found[key])
            cells = [_time(ours)]
            cells += [f"{ours[k]:.2f}" if k in ours else "" for k in ("cpu_ms", "temp_mib")]
            cells += [_time(theirs), ""]
            if "ms" in ours and "ms" in theirs:
                of_direction.append(theirs["ms"] / ours["ms"])
                cells[-2:] = f"{theirs['impl']} {cells[-2]}", f"**{of_direction[-1]:.2f}x**"
            rows.append([f"`{name}`", f"{side}x{side}x{dim}", DIRECTIONS[direction], *cells])
    for direction, measured in ratios.items():
        mean = f"**{statistics.geometric_mean(measured):.2f}x**" if measured else NOT_MEASURED
        label = f"geometric mean, {len(measured)} of {len(cases)}"
        rows.append([label, "", DIRECTIONS[direction], "", "", "", "", mean])
    picture = f"![{PICTURED}](images/{BLOCKS_PICTURE.name})\n\n" if any(ratios.values()) else ""
    left = f"Not measured yet, {len(missing)} of {2 * len(cases)} rows: "
    left = left + ", ".join(dict.fromkeys(missing)) + "." if missing else ""
    return "\n\n".join(filter(None, (picture + markdown(rows) if found else "", left)))


def rivals(candidates: Sequence[Record]) -> tuple[Record, Record]:
    """Returns the records of ours at its defaults and of the fastest PyTorch form, or empty ones; a
    form without a time only if none has one.
    """
    ours = [r for r in candidates if r["framework"] == "ours" and r["impl"] == "auto"]
    torch = [r for r in candidates if r["framework"] == "torch"]
    fastest = min(torch, key=lambda r: r.get("ms", float("inf")), default={})
    return (ours[0] if ours else {}), fastest


def _time(record: Record) -> str:
    return f"{record['ms']:.2f}" if "ms" in record else record.get("error", NOT_MEASURED)


def rates(records: Sequence[Record]) -> str:
    """Returns one row per case of the suite `input`."""
    rows = [["case", "images/s", "images per CPU second"]]
    rows += [
        [f"`{r['case']}`", f"{r['items_per_s']:.0f}", f"{r['items_per_cpu_s']:.0f}"]
        for r in records
    ]
    return markdown(rows)


def facts(records: Sequence[Record]) -> str:
    """Returns one row per record: its times, if it has any, and whatever else is a number."""
    known = {"suite", "case", "direction", "framework", "impl", "cpu_ms", "flops", "bytes"}
    known |= {"gemm_share", "copy_share"}
    columns = list(
        dict.fromkeys(
            key
            for r in records
            for key, v in r.items()
            if key not in known and not isinstance(v, list)
        )
    )
    rows = [["case", "direction", *(column.replace("_", " ") for column in columns)]]
    for r in records:
        cells = [
            f"{r[c]:.4g}" if isinstance(r.get(c), (int, float)) else str(r.get(c, ""))
            for c in columns
        ]
        rows.append([f"`{r['case']}`", DIRECTIONS[r["direction"]], *cells])
    return markdown(rows)


def dispatch(records: Sequence[Record]) -> str:
    """Returns one row per case of the suite `dispatch`."""
    rows = [["case", "ms", "median", "CPU ms"]]
    for r in records:
        rows.append([f"`{r['case']}`", *(f"{r[key]:.2f}" for key in ("ms", "median_ms", "cpu_ms"))])
    return markdown(rows)


TABLES = {
    "micro_lambda": ("micro_lambda", side_by_side),
    "micro_local": ("micro_local", side_by_side),
    "micro_attention": ("micro_attention", side_by_side),
    "blocks": ("blocks", all_blocks),
    "ops": ("ops", side_by_side),
    "model": ("model", side_by_side),
    "dispatch": ("dispatch", dispatch),
    "input": ("input", rates),
    "scale": ("scale", facts),
}
"""Name of a table: file, and how it is written."""


def draw(records: Sequence[Record], path: Path) -> None:
    """Draws how many times as fast as the fastest PyTorch form ours is, per case and direction;
    nothing where nothing has both times.
    """
    bars = []
    for (case, direction), candidates in groups(records).items():
        ours, torch = rivals(candidates)
        if "ms" in ours and "ms" in torch:
            bars.append((case, direction, torch["ms"] / ours["ms"]))
    if not bars:
        return
    cases = list(dict.fromkeys(case for case, _, _ in bars))
    figure = Figure(figsize=(8.5, 1.2 + 0.34 * len(cases)), layout="constrained", facecolor="white")
    axes = figure.subplots()
    for number, direction in enumerate(COLORS):
        mine = [(cases.index(case), ratio) for case, each, ratio in bars if each == direction]
        at = [place + 0.2 * (2 * number - 1) for place, _ in mine]
        axes.barh(
            at,
            [r - 1 for _, r in mine],
            0.36,
            left=1,
            color=COLORS[direction],
            label=DIRECTIONS[direction],
        )
        for y, (_, ratio) in zip(at, mine, strict=True):
            axes.annotate(
                f"{ratio:.1f}",
                (ratio, y),
                (3 if ratio >= 1 else -3, 0),
                textcoords="offset points",
                # fmt: skip
                ha="left" if ratio >= 1 else "right",
                va="center",
                fontsize=7,
            )
    axes.set_yticks(range(len(cases)), cases, fontsize=8)
    axes.invert_yaxis()
    axes.axvline(1, color="#24292f", lw=0.8)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}x")
    axes.xaxis.set_minor_formatter(
        lambda value, _: f"{value:g}x" if f"{value:.0e}"[0] in "25" else ""
    )
    axes.set_title(PICTURED, fontsize=10, loc="left")
    axes.margins(x=0.1, y=0.01)
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    path.parent.mkdir(exist_ok=True)
    write_file(path, lambda file: figure.savefig(file, dpi=130, format="png"))


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the document's tables and the pictures; returns the exit status."""
    argparse.ArgumentParser(
        prog="python -m benchmarks.report", description=__doc__.split("\n")[0]
    ).parse_args(argv)

    def table(match: re.Match) -> str:
        if match[2] not in TABLES:
            raise ValueError(f"{DOCUMENT}: no table {match[2]!r}; known: {', '.join(TABLES)}")
        file, write = TABLES[match[2]]
        return f"{match[1]}{write(read(RESULTS / f'cpu_{file}.jsonl'))}\n{match[3]}"

    try:
        text = MARKED.sub(table, DOCUMENT.read_text())
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    write_file(DOCUMENT, text)
    for path, files in ((PICTURE, ("micro_lambda", "micro_local")), (BLOCKS_PICTURE, ("blocks",))):
        draw([r for name in files for r in read(RESULTS / f"cpu_{name}.jsonl")], path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
