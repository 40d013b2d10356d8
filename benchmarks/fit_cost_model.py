"""Fits the cost model of the position lambdas to measured times, and tells what its choice loses.

    python -m benchmarks.fit_cost_model FILE.jsonl [--fit] [--json OUT]

FILE holds records of `python -m benchmarks micro` (cases `lambda_*`). Printed per shape and
direction: the lowering that `impl='auto'` chooses, the fastest measured one and the ratio of their
times; and, where PyTorch was measured beside, how many times longer its fastest form and its
convolution of r x r x 1 take than the choice. With --fit, rates for `cost_model.DEVICES['cpu']` are
fitted first, printed, and used for the table: per lowering and direction least squares of the
relative error with no rate below a floor, then small changes of all rates as long as the choice
gets better. --json writes the table, one object per line.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from benchmarks import micro_lambda
from benchmarks.arguments import file_to_write, read_lines
from lambdanet.analysis.text import console, console_table
from lambdanet.atomic import write_file
from lambdanet.ops import cost_model

# No rate below what two cores and their memory can do, so that a term that the shapes do not show
# is not free elsewhere.
FLOOR = {"fwd": np.array([8e-12, 1e-11, 2.5e-11, 0.0])}
FLOOR["train"] = 3 * FLOOR["fwd"]

Times = dict[
    str, dict[cost_model.Geometry, dict[str, float]]
]  # direction -> shape -> candidate -> ms


def read(path: str) -> tuple[Times, Times, dict[cost_model.Geometry, str]]:
    """Returns `times_of` a file of JSON lines, and every shape's name."""
    shapes = {shape.name: micro_lambda.geometry(shape) for shape in micro_lambda.SHAPES}
    ours, theirs = times_of(read_lines(path, keys=("case", "impl", "framework")), shapes)
    return ours, theirs, {geometry: name for name, geometry in shapes.items()}


def times_of(
    records: Iterable[Mapping[str, Any]], shapes: Mapping[str, cost_model.Geometry]
) -> tuple[Times, Times]:
    """Returns the best times of our lowerings and of PyTorch's forms.

    Args:
        records: of any suite.
        shapes: what to look for, by name of the case.
    """
    ours, theirs = ({direction: {} for direction in cost_model.DIRECTIONS} for _ in range(2))
    for record in records:
        if record["case"] in shapes and record.get("ms") and record["impl"] != "auto":
            times = ours if record["framework"] == "ours" else theirs
            found = times[record["direction"]].setdefault(shapes[record["case"]], {})
            found[record["impl"]] = record["ms"]
    return ours, theirs


def fit(
    times: Times, device: cost_model.Device, least: Mapping[str, np.ndarray] = FLOOR
) -> cost_model.Device:
    """Returns the device with rates for every measured lowering; for 'conv' only if it had some.

    Args:
        times: as `times_of` gives them.
        device: whose rates are to be replaced.
        least: by direction the lowest rates that can be.
    """
    rates = {}
    for direction, shapes in times.items():
        names = [
            name
            for name in cost_model.GRID_IMPLS
            if (name != "conv" or name in device.rates[direction])
            and any(name in found for found in shapes.values())
        ]
        amounts = {name: {g: _amounts(g, name, device) for g in shapes} for name in names}
        start = {}
        for name in names:
            measured = [g for g in shapes if name in shapes[g]]
            relative = np.stack([amounts[name][g] / (shapes[g][name] / 1e3) for g in measured])
            floor = least[direction]
            start[name] = floor + _least_squares(
                relative, np.ones(len(measured)) - relative @ floor
            )
        rates[direction] = _refine(start, amounts, shapes, least[direction])
    rounded = {
        d: {n: tuple(float(f"{x:.3g}") for x in r) for n, r in found.items()}
        for d, found in rates.items()
    }
    return dataclasses.replace(device, rates=rounded)


def _amounts(geometry: cost_model.Geometry, impl: str, device: cost_model.Device) -> np.ndarray:
    t = cost_model.terms(geometry, impl, device)
    return np.array([t.macs * device.slower[geometry.itemsize], t.cached, t.beyond, t.steps])


def _least_squares(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Non-negative least squares by trying every set of columns: there are four."""
    best, answer = float(np.sum(b**2)), np.zeros(a.shape[1])
    for count in range(1, a.shape[1] + 1):
        for columns in itertools.combinations(range(a.shape[1]), count):
            scale = np.abs(a[:, columns]).max(0)
            if (scale == 0).any():
                continue
            found = np.linalg.lstsq(a[:, columns] / scale, b, rcond=None)[0] / scale
            error = np.sum((a[:, columns] @ found - b) ** 2)
            if (found >= 0).all() and error < best:
                best, answer = error, np.zeros(a.shape[1])
                answer[list(columns)] = found
    return answer


def _refine(
    start: dict[str, np.ndarray], amounts: dict, shapes: dict, floor: np.ndarray
) -> dict[str, np.ndarray]:
    """Random small steps from the least-squares rates while the worst choice, then the sum of all
    losses, gets smaller.
    """

    def loss(rates):
        lost = []
        for g, found in shapes.items():
            choice = min(
                (name for name in rates if name in found),
                key=lambda name: float(amounts[name][g] @ rates[name]),
            )
            lost.append(math.log(found[choice] / min(found.values())))
        away = sum(
            float(np.sum(np.log((rates[n] + 1e-300) / (start[n] + 1e-300)) ** 2)) for n in rates
        )
        return max(lost) + sum(lost) + 1e-3 * away

    rng, best = np.random.default_rng(0), dict(start)
    least = loss(best)
    for _ in range(4000):
        trial = {
            n: np.maximum(r * np.exp(rng.normal(scale=0.1, size=r.shape)), floor)
            for n, r in best.items()
        }
        if (value := loss(trial)) < least:
            best, least = trial, value
    return best


def losses(
    times: Times, theirs: Times, names: dict[cost_model.Geometry, str], device: cost_model.Device
) -> list[dict]:
    """Returns per shape and direction the choice, the fastest lowering, the ratio of their times,
    PyTorch's times in ours.
    """
    table = []
    for geometry, name in names.items():
        for direction in cost_model.DIRECTIONS:
            found = times[direction].get(geometry)
            if not found or not found.keys() & device.rates[direction].keys():
                continue
            estimate = functools.partial(
                cost_model.estimate, geometry, device=device, direction=direction
            )
            chosen = min(
                (n for n in found if n in device.rates[direction]),
                key=lambda n: estimate(n).seconds,
            )
            fastest = min(found, key=found.get)
            row = dict(
                case=name,
                direction=direction,
                chosen=chosen,
                fastest=fastest,
                ratio=round(found[chosen] / found[fastest], 3),
            )
            row |= dict(chosen_ms=round(found[chosen], 3), fastest_ms=round(found[fastest], 3))
            if torch := theirs[direction].get(geometry):
                best = min(torch, key=torch.get)
                row |= dict(
                    torch=best,
                    torch_ms=round(torch[best], 3),
                    torch_ratio=round(torch[best] / found[chosen], 2),
                )
                if "conv_rr1" in torch:
                    row["torch_conv_rr1_ratio"] = round(torch["conv_rr1"] / found[chosen], 2)
            table.append(row)
    return table


def main(argv: list[str] | None = None) -> None:
    """Prints the fitted rates, if asked for, and the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fit_cost_model", description=__doc__.split("\n")[0]
    )
    parser.add_argument("file")
    parser.add_argument("--fit", action="store_true", help="fit new rates first")
    parser.add_argument(
        "--json", type=file_to_write, metavar="OUT", help="write the table, one object per line"
    )
    args = parser.parse_args(argv)
    try:
        times, theirs, names = read(args.file)
    except ValueError as error:
        parser.error(str(error))
    device = cost_model.DEVICES["cpu"]
    if args.fit:
        device = fit(times, device)
        for direction, rates in device.rates.items():
            print(f"{direction!r}: {{")
            for name, values in rates.items():
                print(f'    "{name}": ({", ".join(f"{value:.3g}" for value in values)}),')
            print("},")
    table = losses(times, theirs, names, device)
    ratios = ("ratio", "torch_ratio", "torch_conv_rr1_ratio")
    columns = ("case", "direction", "chosen", "fastest", *ratios)
    rows = [
        [f"{row[c]:.2f}" if c in ratios and c in row else row.get(c, "") for c in columns]
        for row in table
    ]
    console(130).print(console_table(columns, rows, right=range(4, 7)))
    if args.json:
        write_file(args.json, "".join(json.dumps(row) + "\n" for row in table))


if __name__ == "__main__":
    main()
