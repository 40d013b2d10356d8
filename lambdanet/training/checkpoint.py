"""Checkpoints of (state, data position, config) together: asynchronous, atomic, checked on the way
back.

Layout: <workdir>/checkpoints/<step>/{state, meta, metrics}. A folder without a suffix is complete;
a killed save leaves <step>.orbax-checkpoint-tmp, which the next start removes. Orbax does not
notice flipped bits in array data (tried), so `meta` holds a checksum of every array.
"""

from __future__ import annotations

import difflib
import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from lambdanet.training.state import TrainState, flatten_names, unflatten_names

FOLDER = "checkpoints"
UNFINISHED = ".orbax-checkpoint-tmp"  # ending of a save that was killed

# Config keys that may differ between a run and its continuation; everything else would silently
# make it another run.
MAY_CHANGE = (
    r"train\.(epochs|steps|eval_every|eval_batch_size|save_every|keep_last|keep_best|log_every|tensorboard|report|cache_dir)",
    r"data\.(data_dir|num_workers|num_threads|prefetch|on_error|eval_split|test_split|eval_crop|eval_keep_aspect)",
    r"mesh\..*",
    r"model\.remat",
)


NO_PROGRESS: Mapping[str, Any] = {"seconds": 0.0, "window": {}}
"""Seconds of training so far, and `metrics.Window.sums`."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be written, read or continued; the message says which, where and
    what to do.
    """


def changed_keys(
    saved: Mapping[str, Any], config: Mapping[str, Any], defaults: Mapping[str, Any] | None = None
) -> list[str]:
    """Lists 'key: old -> new' of every config value that differs and is not in `MAY_CHANGE`.

    A key that `saved` lacks, being older than the key, counts as set to its value in `defaults`,
    outside the section `model`: new keys come with defaults that change nothing.
    """

    def leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
        flat = {}
        for key, value in tree.items():
            flat |= (
                leaves(value, f"{prefix}{key}.")
                if isinstance(value, Mapping)
                else {prefix + key: value}
            )
        return flat

    older = {key: value for key, value in (defaults or {}).items() if key != "model"}
    before, after = (leaves(json.loads(json.dumps(tree))) for tree in (saved, config))
    before = leaves(json.loads(json.dumps(older))) | before
    absent = "(not set)"
    return [
        f"{key}: {before.get(key, absent)!r} -> {after.get(key, absent)!r}"
        for key in sorted(before | after)
        if before.get(key, absent) != after.get(key, absent)
        and not any(re.fullmatch(p, key) for p in MAY_CHANGE)
    ]


def check_continues(
    workdir: str | Path,
    step: int,
    total_steps: int,
    saved: Mapping[str, Any],
    config: Mapping[str, Any],
    defaults: Mapping[str, Any] | None = None,
) -> None:
    """Checks that a run with `config` may go on from a checkpoint with the config `saved`.

    Args:
        workdir: for the message.
        step: of the checkpoint.
        total_steps: length of the run now.
        saved: the checkpoint's config as plain values.
        config: today's.
        defaults: see `changed_keys`.

    Raises:
        CheckpointError: lists every changed key that `MAY_CHANGE` does not allow; or the run is now
            shorter than `step`.
    """
    changed = changed_keys(saved, config, defaults)
    if changed:
        raise CheckpointError(
            f"{workdir} holds step {step} of a run with another config. Changed (old -> new):\n  "
            + "\n  ".join(changed)
            + "\n"
            "Undo this to continue that run, or name another workdir for a new one."
        )
    if step > total_steps:
        raise CheckpointError(
            f"{workdir} holds step {step}, but this run has only {total_steps} steps; raise "
            "train.epochs or train.steps"
        )


@jax.jit
def _checksums(flat: dict[str, jax.Array]) -> jax.Array:
    """Returns uint32 [n], the sum of each array's bit patterns modulo 2^32: exact, so the same on
    any mesh.
    """

    def total(leaf: jax.Array) -> jax.Array:
        bits = (
            leaf.astype(jnp.uint8)
            if leaf.dtype == bool
            else jax.lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{leaf.dtype.itemsize * 8}"))
        )
        return jnp.sum(bits.astype(jnp.uint32), dtype=jnp.uint32)

    return jnp.stack([total(flat[name]) for name in sorted(flat)])


def checksums(flat: Mapping[str, jax.Array]) -> dict[str, int]:
    """Returns the checksum of every array by name."""
    return dict(zip(sorted(flat), np.asarray(_checksums(dict(flat))).tolist(), strict=True))


class Checkpoints:
    """The checkpoints of one run; every process makes one and calls the same methods.

    Args:
        workdir: directory of the run.
        keep_last: newest checkpoints kept.
        keep_best: metric of which the best checkpoint is kept besides; '' = none. 'loss' is better
            when smaller.
        read_only: never write, create or clean anything.

    Raises:
        CheckpointError: the folder cannot be made, or what it holds cannot be listed.
    """

    def __init__(
        self,
        workdir: str | Path,
        keep_last: int = 2,
        keep_best: str = "accuracy",
        *,
        read_only: bool = False,
    ):
        self.directory = Path(workdir).absolute() / FOLDER
        self.keep_best = keep_best
        best = dict(
            best_fn=lambda metrics: metrics[keep_best],
            best_mode="min" if keep_best == "loss" else "max",
        )
        policies: list[Any] = [ocp.checkpoint_managers.LatestN(keep_last)]
        if keep_best:
            policies.append(
                ocp.checkpoint_managers.BestN(
                    get_metric_fn=best["best_fn"],
                    reverse=best["best_mode"] == "min",
                    n=1,
                    keep_checkpoints_without_metrics=False,
                )
            )
        options = ocp.CheckpointManagerOptions(
            read_only=read_only,
            create=not read_only,
            preservation_policy=ocp.checkpoint_managers.AnyPreservationPolicy(policies),
            **(best if keep_best else {}),
        )
        handlers = {"state": ocp.PyTreeCheckpointHandler(), "meta": ocp.JsonCheckpointHandler()}
        try:
            if not read_only:
                self.directory.mkdir(
                    parents=True, exist_ok=True
                )  # orbax itself takes a file in its place without a word
                if jax.process_index() == 0:
                    for leftover in self.directory.glob(
                        f"*{UNFINISHED}"
                    ):  # orbax would do it some time in the background
                        shutil.rmtree(leftover)
            self._manager = ocp.CheckpointManager(
                self.directory, options=options, item_handlers=handlers
            )
        except (
            Exception
        ) as error:  # orbax passes on whatever the file system or a broken file raised
            raise CheckpointError(
                f"the checkpoints in {self.directory} cannot be opened: {_first_line(error)}"
            ) from error

    def steps(self) -> list[int]:
        """The steps of all complete checkpoints, oldest first."""
        return sorted(self._manager.all_steps())

    def latest_step(self) -> int | None:
        """The newest complete step, or None."""
        return self._manager.latest_step()

    def best_step(self) -> int | None:
        """The step with the best `keep_best` metric, or None if no checkpoint has one."""
        return self._manager.best_step() if self.keep_best else None

    def save(
        self,
        step: int,
        state: TrainState,
        data_state: Mapping[str, Any],
        config: Mapping[str, Any],
        metrics: Mapping[str, float] | None = None,
        *,
        progress: Mapping[str, Any] | None = None,
    ) -> bool:
        """Starts writing a checkpoint and returns once the arrays have left the device, so the
        state may be donated.

        Args:
            step: the step; it names the folder.
            state: the state after that step.
            data_state: JSON-able position of the data iterator, to which the state belongs.
            config: the config as plain values.
            metrics: of an evaluation of this very state; they decide which checkpoint is best.
            progress: what else a continued run needs to know; see `NO_PROGRESS`.

        Returns:
            False if this step is already there (it holds the same state, as steps are
            deterministic), else True.

        Raises:
            CheckpointError: this save could not start, or the one before it failed.
        """
        if step in self._manager.all_steps():
            return False
        flat = flatten_names(state)
        meta = {"config": config, "data": data_state, "progress": progress or dict(NO_PROGRESS)}
        meta["checksums"] = checksums(flat)
        items = ocp.args.Composite(state=ocp.args.PyTreeSave(flat), meta=ocp.args.JsonSave(meta))
        score = (
            {k: float(v) for k, v in metrics.items()}
            if metrics and self.keep_best in metrics
            else None
        )
        try:
            saved = self._manager.save(step, args=items, metrics=score, force=True)
        except (
            Exception
        ) as error:  # disk full, no permission, an error of the previous background save
            raise CheckpointError(
                f"saving step {step} to {self.directory} failed: {_first_line(error)}"
            ) from error
        if not saved:
            raise CheckpointError(f"saving step {step} to {self.directory} was refused by orbax")
        return True

    def wait(self) -> None:
        """Waits until the checkpoint being written is complete; raises CheckpointError if that
        failed.
        """
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise CheckpointError(
                f"writing a checkpoint to {self.directory} failed: {_first_line(error)}"
            ) from error

    def close(self) -> None:
        """Waits for the last save and frees the background threads."""
        self.wait()
        self._manager.close()

    def meta(self, step: int | None = None) -> dict[str, Any]:
        """Returns {'config', 'data', 'checksums'} of a step (None = newest), without reading any
        array.
        """
        step = self._existing(step)
        meta = self._read(
            step,
            lambda: self._manager.restore(
                step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())
            ),
        )
        meta = dict(meta.meta)
        # Until 2026-11 the seconds stood with the position of the data.
        seconds = meta["data"].get("seconds", 0.0)
        meta.setdefault("progress", NO_PROGRESS | {"seconds": seconds})
        return meta

    def restore(
        self, abstract_state: TrainState, step: int | None = None
    ) -> tuple[TrainState, dict[str, Any], dict[str, Any], int]:
        """Reads a checkpoint onto the devices that the abstract state names.

        Args:
            abstract_state: tree of `jax.ShapeDtypeStruct`, with shardings.
            step: None = newest.

        Returns:
            (state, data_state, config, step).

        Raises:
            CheckpointError: there is none; it is damaged; it belongs to another model or optimiser.
        """
        step = self._existing(step)
        meta = self.meta(step)
        state = self._read_arrays(step, abstract_state, meta, exact=True)
        return state, meta["data"], meta["config"], step

    def read_part(self, step: int, abstract: Any) -> Any:
        """Reads only the arrays that the tree `abstract` names, for example {'params': ...,
        'stats': ...}.
        """
        return self._read_arrays(step, abstract, self.meta(step), exact=False)

    def _existing(self, step: int | None) -> int:
        steps = self.steps()
        if step is None:
            step = self.latest_step()
        if step is None or step not in steps:
            wanted = "no checkpoint" if step is None else f"no checkpoint of step {step}"
            raise CheckpointError(f"{wanted} in {self.directory}; steps there: {steps or 'none'}")
        return step

    def _read(self, step: int, read: Callable[[], Any]) -> Any:
        try:
            return read()
        except (
            Exception
        ) as error:  # any exception of the reader means that the files are not what was written
            raise self._damaged(step, _first_line(error)) from error

    def _damaged(self, step: int, cause: str) -> CheckpointError:
        others = [s for s in self.steps() if s != step]
        way = (
            f"to go on from step {max(others)}"
            if others
            else "to start from the beginning (no other step is left)"
        )
        return CheckpointError(
            f"checkpoint of step {step} is damaged: {self.directory / str(step)}\n  cause: "
            f"{cause}\n"
            f"  steps there: {self.steps()}. Restore the folder from a copy, or delete it {way}."
        )

    def _read_arrays(
        self, step: int, abstract: Any, meta: Mapping[str, Any], *, exact: bool
    ) -> Any:
        wanted = flatten_names(abstract)
        metadata = self._read(step, lambda: self._manager.item_metadata(step).state)
        if metadata is None:
            raise self._damaged(step, "its array index is missing")
        found = {name: tuple(leaf.shape) for name, leaf in metadata.tree.items()}
        difference = describe_difference(
            found, {n: tuple(a.shape) for n, a in wanted.items()}, exact=exact
        )
        if difference:
            raise CheckpointError(
                f"checkpoint of step {step} in {self.directory} belongs to another model or "
                f"optimiser:\n{difference}\n"
                "Use the config it was made with (config.json in its workdir), or another workdir."
            )
        restore_args = ocp.checkpoint_utils.construct_restore_args(wanted)
        request = ocp.args.PyTreeRestore(
            wanted, restore_args=restore_args, partial_restore=not exact
        )
        flat = self._read(
            step, lambda: self._manager.restore(step, args=ocp.args.Composite(state=request))
        ).state
        now = checksums(flat)
        wrong = [name for name in now if now[name] != meta["checksums"].get(name)]
        if wrong:
            raise self._damaged(
                step,
                f"checksum of {len(wrong)} of {len(now)} arrays is wrong, the first is {wrong[0]}",
            )
        return unflatten_names(flat, abstract)


def describe_difference(
    found: Mapping[str, tuple[int, ...]],
    wanted: Mapping[str, tuple[int, ...]],
    *,
    exact: bool,
    most: int = 8,
) -> str:
    """Compares name -> shape tables; returns '' if they agree, otherwise lines with the first
    `most` of each kind.

    Args:
        found: what the checkpoint holds.
        wanted: what the model needs.
        exact: also report arrays that only the checkpoint has.
        most: lines per kind.
    """
    missing = sorted(set(wanted) - set(found))
    extra = sorted(set(found) - set(wanted)) if exact else []
    shapes = sorted(n for n in wanted if n in found and wanted[n] != found[n])

    def near(name: str) -> str:
        close = difflib.get_close_matches(name, extra, n=1, cutoff=0.8)
        return f" (the checkpoint has {close[0]})" if close else ""

    groups = [
        (
            "the checkpoint lacks",
            [f"{n} {wanted[n]}{near(n)}" for n in missing[:most]],
            len(missing),
        ),
        ("only the checkpoint has", [f"{n} {found[n]}" for n in extra[:most]], len(extra)),
        (
            "shapes differ:",
            [f"{n}: checkpoint {found[n]}, model {wanted[n]}" for n in shapes[:most]],
            len(shapes),
        ),
    ]
    lines = []
    for title, items, count in groups:
        if count:
            more = [f"    ... and {count - most} more"] if count > most else []
            lines += [f"  {title}", *(f"    {item}" for item in items), *more]
    return "\n".join(lines)


def load_weights(
    workdir: str | Path, which: str, step: str | int, abstract_params: Any, abstract_stats: Any
) -> tuple[dict, dict, int]:
    """Reads the weights of a run for evaluation; works while the run is still going on.

    Args:
        workdir: directory of the run.
        which: 'live' or 'ema'.
        step: 'latest', 'best' (by the run's train.keep_best) or a number.
        abstract_params: tree of `jax.ShapeDtypeStruct`.
        abstract_stats: likewise.

    Returns:
        (params, stats, step).

    Raises:
        CheckpointError: no such checkpoint, no averages in it, damage, or another model.
    """
    if which not in ("live", "ema"):
        raise CheckpointError(f"which={which!r}; allowed: 'live', 'ema'")
    if not (Path(workdir) / FOLDER).is_dir():
        raise CheckpointError(
            f"{Path(workdir).absolute()} holds no folder '{FOLDER}'; name the workdir of a run"
        )
    checkpoints = Checkpoints(workdir, keep_best="", read_only=True)
    try:
        if step == "best":
            train = checkpoints.meta()["config"]["train"]
            checkpoints.close()
            checkpoints = Checkpoints(workdir, keep_best=train["keep_best"], read_only=True)
            step = checkpoints.best_step()
            if step is None:
                raise CheckpointError(
                    f"no checkpoint in {checkpoints.directory} has the metric "
                    f"{train['keep_best']!r}, so none is the best "
                    "(the run did not evaluate before saving); use 'latest' or one of "
                    f"{checkpoints.steps()}"
                )
        elif step == "latest":
            step = checkpoints._existing(None)
        weights = {"params": abstract_params, "stats": abstract_stats}
        if which == "live":
            weights = checkpoints.read_part(step, weights)
        else:
            if not checkpoints.meta(step)["config"]["train"]["ema_decay"]:
                raise CheckpointError(
                    f"the run in {workdir} kept no moving average (train.ema_decay=0); use the "
                    "live weights"
                )
            weights = checkpoints.read_part(step, {"ema": weights})["ema"]
        return weights["params"], weights["stats"], step
    finally:
        checkpoints.close()


def newest_step(workdir: str | Path) -> int:
    """Returns the newest complete step in a workdir, 0 if there is none; opens nothing."""
    folder = Path(workdir) / FOLDER
    steps = [int(p.name) for p in folder.iterdir() if p.name.isdigit()] if folder.is_dir() else []
    return max(steps, default=0)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
