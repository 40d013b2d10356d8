"""The page of `python -m benchmarks gpu`, and its tables on the console."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from benchmarks import fit_cost_model, gpu_plot, harness, micro_lambda, reading, report
from benchmarks.gpu_equality import ARITHMETICS
from benchmarks.gpu_journal import Journal
from benchmarks.gpu_parts import DTYPES, PARTS
from benchmarks.gpu_sizes import FULL, TINY
from lambdanet.analysis.text import markdown_text
from lambdanet.atomic import write_file
from lambdanet.ops import cost_model

Record = Mapping[str, Any]
COMMAND = "python -m benchmarks gpu"
HEADINGS = {
    "equality": "Equality of the lowerings",
    "constants": "Constants of the cost model",
    "lambda": "Lambda core",
    "fused": "The fused kernel against XLA",
    "attention": "Softmax attention over all pairs",
    "networks": "Training steps",
    "host": "Host pipeline",
}
INTRODUCTIONS = {
    "equality": (
        "Largest norm of an error, of the output or of a gradient, relative to the norm of what it "
        "should be: the literal lowering in float64 on the CPU. float32 with products at JAX's "
        "precision 'highest', bfloat16, float32 at the default precision; allowed: {allowed}."
    ),
    "constants": (
        "Products of square matrices, a copy, a call that does next to nothing (it is in every "
        "time below), and an operation inside a program that waits for the one before (by a chain "
        "of small products); beside it what `cost_model.DEVICES` has."
    ),
    "lambda": (
        "The cases of docs/performance.md, k = 16; float32 where the name has no dtype. `GEMM` and "
        "`copy`: shares of the rates above. Others: PyTorch's forms on the same device."
    ),
    "fused": (
        "`ours`: what `impl='auto'` takes; the fastest lowering: the kernel of "
        "`lambdanet.experimental.fused_lambda`, if its name stands there."
    ),
    "attention": (
        "`ours`: as blocks run it. Lowerings: `all`, the logits of all pairs at once; `chunk_N`, "
        "those of N queries at a time; `cudnn`, the kernel of cuDNN. Others: PyTorch's "
        "`scaled_dot_product_attention`."
    ),
    "networks": (
        "The step of train.py (AdamW, donated state) in bfloat16, images of {side} x {side}; batch "
        "sizes double until the memory says no. timm: the same network, batch size and optimiser, "
        "eager, autocast to bfloat16."
    ),
    "host": "The cases of docs/performance.md on the cores of this host.",
}


def read_reading(document: Path) -> str:
    """Returns the hand-written part of the page; ValueError if its marks are broken."""
    return reading.read(document, COMMAND)


def console_table(records: Sequence[Record], known: Journal) -> Table:
    """Returns the records of a part as a table."""
    return harness.table(_with_shares(records, constants(known.records)))


def write(known: Journal, document: Path) -> None:
    """Writes the page from what is known; what is not measured yet is not on it.

    Raises:
        ValueError: the marks of the hand-written part are broken.
    """
    machine = known.machine
    title = "# Performance on a GPU\n" if not machine["miniature"] else "# A miniature\n"
    parts = [title, _device(machine), _state(known)]
    parts += [f"{reading.begin(COMMAND)}\n{read_reading(document)}\n{reading.END}\n"]
    rates, of = constants(known.records), collections.defaultdict(list)
    for record in known.records:
        of[record["part"]].append(record)
    tables = {
        "equality": _equality,
        "constants": lambda found: _constants(rates, machine["backend"]),
        "lambda": lambda found: _beside(found, of["torch"], rates) + _choices(known, rates),
        "fused": lambda found: _beside(found, [], rates),
        "attention": lambda found: _beside(found, of["torch"], rates),
        "networks": lambda found: _networks(found, of["torch"], rates),
        "host": lambda found: report.rates([r for r in found if "items_per_s" in r]),
    }
    allowed = ", ".join(f"{a.allowed:.0e}" for a in ARITHMETICS.values())
    side = (TINY if machine["miniature"] else FULL).image[0]
    for part, heading in HEADINGS.items():
        if of[part]:
            text = INTRODUCTIONS[part].format(allowed=allowed, side=side)
            parts += [f"## {heading}\n", text + "\n", tables[part](of[part]) + "\n"]
        if part == "networks" and (timed := [r for r in of[part] if "ms" in r]):
            title = f"training steps in bfloat16, {side} x {side}, {machine['device']}"
            title += " (a miniature: says nothing)" if machine["miniature"] else ""
            picture = document.parent / "images" / "performance_gpu.png"
            picture.parent.mkdir(exist_ok=True)
            gpu_plot.draw(timed, title, picture)
            parts.append("![images per second](images/performance_gpu.png)\n")
    write_file(document, "\n".join(parts))


def _device(machine: Record) -> str:
    words = [f"{machine['device']} ({machine['backend']}), {machine['devices']} there, 1 used"]
    if machine["memory_gib"] is not None:
        words.append(f"{machine['memory_gib']} GiB that JAX takes by default")
    if "compute_capability" in machine:
        words.append(f"compute capability {machine['compute_capability']}")
    words += [f"{machine['cores']} cores of the host", f"Python {machine['python']}"]
    words += [f"jax {machine['jax']}", machine["platform"]]
    said = (
        f"Device: {markdown_text(', '.join(words))}. Written by `{COMMAND}` from what it measured."
    )
    if machine["miniature"]:
        return (
            f"{said} Made in miniature, which shows that the command works: **no number here says "
            "anything about a GPU**, nor about this device.\n"
        )
    return f"{said} Times are the best round; each candidate was checked before its time counts.\n"


def _state(known: Journal) -> str:
    """What is missing and what failed."""
    lines = [
        f"- Not finished: {part}"
        + (f", {known.left[part]} of its units are left." if part in known.left else ".")
        for part in PARTS
        if known.left.get(part) != 0
    ]
    for (part, unit), errors in known.errors.items():
        said = "; ".join(markdown_text(error) for error in errors)
        lines.append(f"- **Failed**: {part}, {markdown_text(unit)}: {said}")
    for record in known.records:
        if "skipped" in record:
            said = markdown_text(record["skipped"])
            lines.append(f"- Left out: {record['part']}, {said}.")
    return "\n".join(lines or ["Every part is measured, nothing failed."]) + "\n"


def constants(records: Sequence[Record]) -> dict[str, float]:
    """Returns what was measured of: `gemm_<arithmetic>` operations per second, `copy` bytes per
    second, `call` and `launch` seconds.
    """
    found, chains = {}, {}
    for record in records:
        if record["part"] != "constants" or "ms" not in record:
            continue
        seconds = record["ms"] / 1e3
        if record["case"] == "call":
            found["call"] = seconds
        elif "products" in record:
            chains[record["products"]] = seconds
        else:
            found[record["case"]] = record.get("flops", record.get("bytes")) / seconds
    if len(chains) == 2:
        (few, short), (many, long) = sorted(chains.items())
        found["launch"] = (long - short) / (many - few)
    return found


def _with_shares(records: Sequence[Record], rates: Mapping[str, float]) -> list[dict[str, Any]]:
    """Returns the records with the shares of the measured rates that they reach."""
    gemm = {"float32": rates.get("gemm_float32_default"), "bfloat16": rates.get("gemm_bfloat16")}
    found = []
    for record in map(dict, records):
        seconds = record.get("ms", 0) / 1e3
        most, copied = gemm.get(record.get("dtype")), rates.get("copy")
        if seconds and most and "flops" in record:
            record["gemm_share"] = record["flops"] / seconds / most
        if seconds and copied and "bytes" in record:
            record["copy_share"] = record["bytes"] / seconds / copied
        found.append(record)
    return found


def _equality(records: Sequence[Record]) -> str:
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for record in records:
        arithmetic = max((a for a in ARITHMETICS if record["case"].endswith(f"_{a}")), key=len)
        core = record["case"].removesuffix(f"_{arithmetic}")
        said = f"{record['off']:.1e}" if "off" in record else f"**{record['error']}**"
        rows.setdefault((core, record["impl"]), {})[arithmetic] = said
    head = ["core", "lowering", *ARITHMETICS]
    body = [
        [f"`{core}`", impl, *(cells.get(arithmetic, "") for arithmetic in ARITHMETICS)]
        for (core, impl), cells in rows.items()
    ]
    return report.markdown([head, *body])


def _constants(rates: Mapping[str, float], backend: str) -> str:
    (macs, _, beyond, launch), *_ = cost_model.device_of(backend).rates["fwd"].values()
    assumed = {"copy": f"{1e-9 / beyond:.0f}", "launch": f"{1e6 * launch:.1f}", "call": ""}
    units = {"launch": "microseconds per operation", "call": "microseconds per call"}
    rows = [["constant", "measured", f"assumed for '{backend}'", "unit"]]
    for name, rate in rates.items():
        if name in units:
            rows.append([name, f"{1e6 * rate:.2f}", assumed[name], units[name]])
        elif name == "copy":
            rows.append([name, f"{rate / 1e9:.1f}", assumed[name], "GB/s read and written"])
        else:
            rows.append([name, f"{rate / 1e12:.2f}", "", "TFLOP/s"])
    return report.markdown(rows)


def _beside(records: Sequence[Record], theirs: Sequence[Record], rates: Mapping[str, float]) -> str:
    """Ours and, under the same names, PyTorch's."""
    names = {record["case"] for record in records}
    chosen = [*records, *(r for r in theirs if r["case"] in names)]
    return report.side_by_side([r for r in _with_shares(chosen, rates) if "skipped" not in r])


def _choices(known: Journal, rates: Mapping[str, float]) -> str:
    """What `impl='auto'` loses to the fastest lowering, with the rates as they are and fitted."""
    shapes = {
        shape.name if dtype == "float32" else f"{shape.name}_{dtype}": (
            micro_lambda.geometry(shape, dtype)
        )
        for shape in (TINY if known.machine["miniature"] else FULL).lambdas
        for dtype in DTYPES
    }
    times, theirs = fit_cost_model.times_of(known.records, shapes)
    needed = ("gemm_float32_default", "gemm_bfloat16", "copy", "launch")
    if not all(times.values()) or not all(name in rates for name in needed):
        return ""
    device = cost_model.device_of(known.machine["backend"])
    slower = {**device.slower, 2: rates["gemm_float32_default"] / rates["gemm_bfloat16"]}
    measured = dataclasses.replace(device, slower=slower)
    least = np.array(
        [2 / rates["gemm_float32_default"], 0.25 / rates["copy"], 1 / rates["copy"], 0.0]
    )
    fitted = fit_cost_model.fit(times, measured, {"fwd": least, "train": 3 * least})
    names = {geometry: name for name, geometry in shapes.items()}
    before = fit_cost_model.losses(times, theirs, names, device)
    after = fit_cost_model.losses(times, theirs, names, fitted)
    rows = [
        ["case", "direction", "auto", "auto / fastest", "fitted", "fitted / fastest", "fastest"]
    ]
    for now, then in zip(before, after, strict=True):
        cells = [now["chosen"], f"{now['ratio']:.2f}", then["chosen"], f"{then['ratio']:.2f}"]
        rows.append(
            [f"`{now['case']}`", report.DIRECTIONS[now["direction"]], *cells, now["fastest"]]
        )
    lines = [
        f"    {direction}: {name} {', '.join(f'{rate:.3g}' for rate in of)}"
        for direction, found in fitted.rates.items()
        for name, of in found.items()
    ]
    return (
        "\n\nThe choice of `impl='auto'`, and that of rates fitted to these times (seconds per "
        "multiply-add, per byte in the cache, per byte beyond it, per step; the first at a dtype "
        f"of 2 bytes times {slower[2]:.2f}):\n\n"
        + "\n".join(lines)
        + "\n\n"
        + report.markdown(rows)
    )


def _networks(
    records: Sequence[Record], theirs: Sequence[Record], rates: Mapping[str, float]
) -> str:
    rows = [["network", "batch", "needs, GiB", "of", "ms", "images/s", "GEMM", "timm, images/s"]]
    other = {r["case"]: r for r in theirs}
    for record in _with_shares(records, rates):
        if "network" not in record:  # it failed
            continue
        needs = (
            f"{record['needs_mib'] / 1024:.3g}" if "needs_mib" in record else "more than there is"
        )
        cells = [f"`{record['network']}`", str(record["batch"]), needs]
        cells.append(f"{record['limit_mib'] / 1024:.3g}")
        if "ms" in record:
            share = f"{100 * record['gemm_share']:.0f} %" if "gemm_share" in record else ""
            cells += [f"{record['ms']:.1f}", f"{record['items_per_s']:.0f}", share]
        else:
            cells += ["does not fit" if not record["fits"] else record["error"], "", ""]
        timm = other.get(record["case"], {})
        said = f"{timm['items_per_s']:.0f}" if "items_per_s" in timm else timm.get("error", "")
        rows.append([*cells, said])
    return report.markdown(rows)
