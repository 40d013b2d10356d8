"""What the study trains, in which order, by which recipes."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.study_records import recipe_digest
from benchmarks.training_runs import ROOT, Run, make_run
from configs import attention_zoo, study

BASE = "none"
"""What every network is compared with."""
PROGRAM = ("-m", "benchmarks.study_run")
RECIPES = {"photos": "configs/study.py:", "cued": "configs/attention_zoo.py:cued,"}
"""By task; the network's name is added."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is trained and measured.

    Attributes:
        nets: shell patterns by task; a network takes part if one matches.
        seeds: of every task.
        rounds: samples of each step time.
        options: overrides of the config by task, as text.
    """

    nets: Mapping[str, Sequence[str]]
    seeds: Sequence[int]
    rounds: int = 15
    options: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)

    def names(self, task: str) -> list[str]:
        """Returns the networks of a task, in the order in which they are trained."""
        known = study.NETS if task == "photos" else attention_zoo.variants()
        return [
            name
            for name in known
            if any(fnmatch.fnmatchcase(name, pattern) for pattern in self.nets[task])
        ]


FULL = Plan(nets={"photos": ("*",), "cued": ("*",)}, seeds=(0, 1, 2))
QUICK = Plan(
    nets={"photos": (BASE, "se", "lambda", "pvt"), "cued": (BASE, "se")},
    seeds=(0,),
    rounds=5,
    options={"photos": {"train.steps": "60"}, "cued": {"train.steps": "50"}},
)


def all_runs(plan: Plan, directory: Path) -> list[Run]:
    """Returns all runs of a plan in the order in which they are trained; `directory` is for them
    and for the photographs.
    """
    photos, nets = directory / "photos", directory / "nets"
    if photos.is_relative_to(ROOT):  # for the commands in the records
        photos = photos.relative_to(ROOT)
    # One seed of everything; then the other seeds of the shorter runs, the cued task's.
    order = [(plan.seeds[0], task) for task in plan.nets]
    order += [(seed, task) for task in reversed(plan.nets) for seed in plan.seeds[1:]]
    found = []
    for seed, task in order:
        own = {"data.data_dir": str(photos)} if task == "photos" else {}
        own |= plan.options.get(task, {})
        found += [
            make_run(task, name, seed, nets, f"{RECIPES[task]}{name}", own, PROGRAM)
            for name in plan.names(task)
        ]
    return found


@dataclasses.dataclass(frozen=True)
class Scope:
    """What a document is about.

    Attributes:
        recipes: today's digest by task and network; see `study_records.current`.
        expected: networks by task.
        seeds: of every task.
    """

    recipes: Mapping[tuple[str, str], str]
    expected: Mapping[str, Sequence[str]]
    seeds: Sequence[int]


def scope_of(plan: Plan) -> Scope:
    """Returns what the document of a plan is about."""
    once = all_runs(dataclasses.replace(plan, seeds=plan.seeds[:1]), Path())
    recipes = {(run.task, run.variant): recipe_digest(run.task, run.config) for run in once}
    return Scope(recipes, {task: plan.names(task) for task in plan.nets}, plan.seeds)
