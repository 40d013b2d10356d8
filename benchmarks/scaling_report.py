"""Tables and picture of docs/scaling.md, from the records alone."""

from __future__ import annotations

import collections
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks import scaling_law as law
from benchmarks.report import MARKED, markdown
from benchmarks.scaling_law import LAYOUTS, Found, mesh_sizes
from lambdanet.atomic import write_file

MIB, GIB = 2**20, 2**30
COLORS = {"data": "#24292f", "fsdp": "#1f6feb", "both": "#d1570a"}
RATES = (250, 500, 1000, 2000, 4000)  # images per second and device
SHOWN = (1, 8, 64, 256, 1024)
HBM = 16 * GIB
HOST = 4  # devices


class Model:
    """What the records say of one model.

    Args:
        name: of the model.
        states: of the job 'states'.
        programs: sizes (data, fsdp) -> of the jobs 'program'.
        checkpoint: of the job 'checkpoint_times'.
        batch: images per device of all programs.
    """

    def __init__(
        self,
        name: str,
        states: Found,
        programs: Mapping[tuple[int, int], Found],
        checkpoint: Found,
        batch: int,
    ):
        self.name, self.checkpoint, self.batch = name, checkpoint, batch
        self.parameters = states["parameters"]
        self.states = {
            (layout, s["data"] * s["fsdp"]): s
            for layout, found in states["layouts"].items()
            for s in found
        }
        self.one = programs[1, 1]
        self.programs = {
            layout: {
                at: p
                for at, p in sorted(programs.items())
                if math.prod(at) > 1 and mesh_sizes(layout, math.prod(at)) == at
            }
            for layout in LAYOUTS
        }

    def base(self, layout: str) -> tuple[tuple[int, int], Found]:
        """The smallest mesh that was compiled, and its program."""
        return min(self.programs[layout].items(), key=lambda item: math.prod(item[0]))

    def others(self, layout: str) -> dict[tuple[int, int], Found]:
        """All other meshes that were compiled."""
        sizes, _ = self.base(layout)
        return {at: p for at, p in self.programs[layout].items() if at != sizes}

    def moved(self, layout: str, devices: int) -> law.Moved:
        """What a step moves by the law."""
        sizes, program = self.base(layout)
        split = self.states[layout, devices]["split_params"]
        return law.total(law.predicted(program, sizes, mesh_sizes(layout, devices), split))

    def temporary(self, layout: str, devices: int) -> int:
        """Bytes of temporary memory by the law."""
        return (self.one if devices == 1 else self.base(layout)[1])["temporary"]


def mib(size: float) -> str:
    """Returns bytes as MiB, with three digits at least."""
    value = size / MIB
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}" if value else "0"


def table_state(models: Sequence[Model]) -> str:
    """Returns the bytes of the parts of the state on one device that has all of it."""
    rows = [["model", "parameters", "params", "moments", "averages", "statistics", "all, MiB"]]
    for m in models:
        whole = m.states["data", 1]
        parts = [mib(whole[part]) for part in ("params", "opt_state", "ema", "stats")]
        rows.append([f"`{m.name}`", f"{m.parameters:,}", *parts, mib(law.held(whole))])
    return markdown(rows)


def table_devices(models: Sequence[Model]) -> str:
    """Returns the state's bytes on one device for meshes of some numbers of devices."""
    rows = [["model", "mesh", *(f"{n}" for n in SHOWN), "temporary"]]
    for m in models:
        for layout in LAYOUTS:
            held = [mib(law.held(m.states[layout, n])) for n in SHOWN]
            temporary = mib(m.base(layout)[1]["temporary"])
            rows.append([f"`{m.name}`", layout, *held, temporary])
    return markdown(rows)


def table_collectives(models: Sequence[Model]) -> str:
    """Returns what one step moves on the smallest mesh that was compiled, by kind."""
    rows = [["model", "mesh", "collective", "number", "MiB", "sent, MiB", "combined by the CPU's"]]
    for m in models:
        for layout in LAYOUTS:
            (data, fsdp), program = m.base(layout)
            kinds: dict[str, law.Moved] = collections.defaultdict(law.Moved)
            for (kind, sliced), part in law.measured(program).items():
                kinds[f"{kind}, sliced" if sliced else kind] += part
            for kind, part in sorted(kinds.items(), key=lambda item: -item[1].bytes):
                done = program["combined"].get(kind, "")
                numbers = [f"{part.number:.0f}", mib(part.bytes), mib(part.sent_scattered)]
                rows.append([f"`{m.name}`", f"{data} x {fsdp}", kind, *numbers, str(done)])
    return markdown(rows)


def table_law(models: Sequence[Model]) -> str:
    """Returns how far the law is off at the meshes that it was not taken from."""
    rows = [["model", "mesh", "from", "for", "number", "MiB", "sent", "temporary"]]
    for m in models:
        for layout in LAYOUTS:
            sizes, program = m.base(layout)
            for at, found in law.errors(program, sizes, m.others(layout)).items():
                values = [f"{100 * value:+.2f} %" for value in found.values()]
                meshes = ["{} x {}".format(*each) for each in (sizes, at)]
                rows.append([f"`{m.name}`", layout, *meshes, *values])
    return markdown(rows)


def table_extrapolated(models: Sequence[Model]) -> str:
    """Returns state, temporary memory and traffic of one device for 1 to 1024 devices."""
    columns = [f"{layout}: {what}" for layout in LAYOUTS for what in ("held", "sent")]
    rows = [["model", "devices", *columns]]
    for m in models:
        for devices in sorted({n for _, n in m.states}):
            cells = []
            for layout in LAYOUTS:
                held = law.held(m.states[layout, devices]) + m.temporary(layout, devices)
                cells += [mib(held), mib(m.moved(layout, devices).sent_scattered)]
            rows.append([f"`{m.name}`", f"{devices}", *cells])
    return markdown(rows)


def core_rates(records: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Returns the images per second and core of the measured input pipeline, as measured and with
    RandAugment, whose own seconds are added.

    Args:
        records: of the suite `input`.
    """
    rate = {r["case"]: r["items_per_cpu_s"] for r in records}
    plain = rate["pipeline_4_threads"]
    more = 1 / rate["decode_crop_flip_randaugment"] - 1 / rate["decode_crop_flip"]
    return plain, 1 / (1 / plain + more)


def table_input(records: Sequence[Mapping[str, Any]], image_bytes: int) -> str:
    """Returns the cores that devices of some rates need, and what goes to them."""
    plain, augmented = core_rates(records)
    head = ["images/s and device", "cores and device", "with RandAugment"]
    head += [
        f"cores and host of {HOST} devices",
        "MiB/s to a device",
        "images/s for 64",
        "for 1024",
    ]
    rows = [head]
    for rate in RATES:
        cores = [rate / plain, rate / augmented, HOST * rate / augmented]
        rows.append([f"{rate}", *(f"{c:.1f}" for c in cores), f"{rate * image_bytes / MIB:.0f}",
                     f"{64 * rate:,}", f"{1024 * rate:,}"])  # fmt: skip
    return markdown(rows)


def table_checkpoint(models: Sequence[Model]) -> str:
    """Returns the bytes and seconds of checkpoints."""
    head = ["model", "arrays, MiB", "on disk, MiB", "handed over, s", "written, s", "MiB/s"]
    rows = [[*head, "read and checked, s", "MiB/s"]]
    for m in models:
        c = m.checkpoint
        sizes, rates = (c["bytes"], c["on_disk"]), (c["bytes"] / c[t] for t in ("written", "read"))
        written, read = map(mib, rates)
        rows.append([f"`{m.name}`", *map(mib, sizes), f"{c['handed_over']:.2f}",
                     f"{c['written']:.2f}", written, f"{c['read']:.2f}", read])  # fmt: skip
    return markdown(rows)


def table_fits(models: Sequence[Model]) -> str:
    """Returns how many images fit into 16 GiB, and which batch and devices follow from it."""
    head = ["model", "px", "MiB and image", "images, state whole", "images, fsdp over 64"]
    rows = [[*head, "recipe's batch", "devices at least"]]
    for m in models:
        each, batch = m.one["temporary"] / m.batch, m.one["global_batch"]
        whole, split = (
            int((HBM - law.held(m.states[at])) // each) for at in (("data", 1), ("fsdp", 64))
        )
        row = [f"`{m.name}`", f"{m.one['image_size'][0]}", f"{each / MIB:.1f}", f"{whole}"]
        rows.append([*row, f"{split}", f"{batch}", f"{math.ceil(batch / whole)}"])
    return markdown(rows)


def table_larger(larger: Mapping[str, Found]) -> str:
    """Returns the state's bytes of larger networks and how often it goes into 16 GiB.

    Args:
        larger: name -> of the job 'states'.
    """
    rows = [["model", "parameters", "bytes and parameter", "state, MiB", "of 16 GiB",
             "fsdp over 8, MiB", "over 64"]]  # fmt: skip
    for name, found in larger.items():
        held = {s["fsdp"]: law.held(s) for s in found["layouts"]["fsdp"]}
        each = held[1] / found["parameters"]
        rows.append([f"`{name}`", f"{found['parameters']:,}", f"{each:.1f}", mib(held[1]),
                     f"{100 * held[1] / HBM:.1f} %", mib(held[8]), mib(held[64])])  # fmt: skip
    return markdown(rows)


def fill(document: Path, tables: Mapping[str, Callable[[], str]]) -> str:
    """Returns the text of a document with its tables written anew.

    Raises:
        ValueError: it has a table that is not known, or lacks one.
    """
    text = document.read_text()
    there = [name for _, name, _ in MARKED.findall(text)]
    if sorted(there) != sorted(tables):
        raise ValueError(
            f"{document}: has the tables {', '.join(there) or 'none'}; must have each of "
            f"{', '.join(tables)} once"
        )

    def table(match: re.Match) -> str:
        return f"{match[1]}{tables[match[2]]()}\n{match[3]}"

    return MARKED.sub(table, text)


def draw(models: Sequence[Model], path: Path) -> None:
    """Draws bytes on a device and bytes that it sends, against the number of devices."""
    figure = Figure(figsize=(9, 3.4 * len(models)), layout="constrained", facecolor="white")
    panels = figure.subplots(len(models), 2, squeeze=False)
    for row, m in zip(panels, models, strict=True):
        counts = sorted({n for _, n in m.states})
        for layout, color in COLORS.items():
            state = [law.held(m.states[layout, n]) / MIB for n in counts]
            sent = [m.moved(layout, n).sent_scattered / MIB for n in counts]
            row[0].plot(counts, state, color=color, lw=1.6, label=f"{layout}: state")
            row[1].plot(counts[1:], sent[1:], color=color, lw=1.6, label=layout)
            compiled = sorted((d * f, p) for (d, f), p in m.programs[layout].items())
            at = [n for n, _ in compiled]
            row[0].plot(at, [law.held(p["state"]) / MIB for _, p in compiled], "o", color=color)
            row[1].plot(at, [law.total(law.measured(p)).sent_scattered / MIB for _, p in compiled],
                        "o", color=color)  # fmt: skip
        temporary = m.base("data")[1]["temporary"] / MIB
        row[0].axhline(temporary, color="#8c959f", ls=":", label=f"temporary, {m.batch} images")
        titles = ("MiB on a device", "MiB that a device sends in a step")
        for axes, title in zip(row, titles, strict=True):
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.set_xticks(counts, [f"{n}" for n in counts], fontsize=8)
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.yaxis.set_minor_formatter(
                lambda value, _: f"{value:g}" if f"{value:.0e}"[0] in "257" else ""
            )
            axes.tick_params(labelsize=8, which="both")
            axes.set_xlabel("devices", fontsize=9)
            axes.set_title(f"{m.name}: {title}", fontsize=10, loc="left")
            axes.grid(alpha=0.3, which="both")
            axes.spines[["top", "right"]].set_visible(False)
        row[0].set_ylim(top=4 * temporary)
        row[0].legend(frameon=False, fontsize=8, ncols=2, loc="upper right")
        row[1].legend(frameon=False, fontsize=8, loc="lower right")
    path.parent.mkdir(exist_ok=True)
    write_file(path, lambda file: figure.savefig(file, dpi=130, format="png"))
