"""Checkpoints of (state, data position, config) together: asynchronous, atomic, checked on the way
back.

Layout: <workdir>/checkpoints/<step>/{state, meta} and, where an evaluation came later, score.json.
A folder without a suffix is complete; a killed save leaves <step>.orbax-checkpoint-tmp, which the
next start removes; <step>.damaged was set aside. Orbax does not notice flipped bits in array data
(tried), so `meta` holds a checksum of every array.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from absl import logging

from lambdanet.interop.sources import RUN_FOLDER
from lambdanet.training.checkpoint_arrays import checksums, describe_difference
from lambdanet.training.checkpoint_meta import (
    NO_PROGRESS,
    CheckpointError,
    DamagedError,
    best_of,
    check_meta,
    default_mode,
    make_meta,
    read_score,
    usable_score,
    write_score,
)
from lambdanet.training.held_folder import HeldFolder
from lambdanet.training.plain_path import plain_path
from lambdanet.training.signals import any_process
from lambdanet.training.state import TrainState, flatten_names, unflatten_names

FOLDER = RUN_FOLDER
UNFINISHED = ".orbax-checkpoint-tmp"  # ending of a save that was killed
ON_DAMAGE = ("refuse", "fall_back")  # train.damaged
NOT_DAMAGE = (MemoryError, PermissionError)  # a checkpoint that raises these may still be whole
NOT_DAMAGE_WORDS = ("RESOURCE_EXHAUSTED", "PERMISSION_DENIED")  # JAX's and TensorStore's


class Restored(NamedTuple):
    """A checkpoint that was read back: its step, the state, and `meta`."""

    step: int
    state: TrainState
    meta: dict[str, Any]


class _Preserved:
    """Orbax's preservation policy: the newest checkpoints, and the one that `best` names."""

    def __init__(self, keep_last: int, best: Callable[[Sequence[int]], int | None]):
        self.keep_last, self.best = keep_last, best

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Returns for each of the checkpoints, oldest first, whether it stays."""
        steps = [checkpoint.step for checkpoint in checkpoints]
        kept = {*steps[-self.keep_last :], self.best(steps)}
        return [step in kept for step in steps]


class _Manager(ocp.CheckpointManager):
    """Orbax's manager without its scores: it would refuse to start at one that cannot be read."""

    def metrics(self, step: int) -> None:
        """Returns None; see `checkpoint_meta.read_score`."""
        del step


class Checkpoints:
    """The checkpoints of one run; every process makes one and calls the same methods.

    Args:
        workdir: directory of the run.
        keep_last: newest checkpoints kept.
        keep_best: metric of which the best checkpoint is kept besides; '' = none.
        mode: 'max' or 'min': which of its values is better; '' = 'min' for losses.
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
        mode: str = "",
        read_only: bool = False,
    ):
        self.directory = Path(workdir).absolute() / FOLDER
        self.keep_best, self.mode = keep_best, mode or default_mode(keep_best)
        self._scores: dict[int, float | None] = {}
        self._written: int | None = None
        self._held: HeldFolder | None = None
        options = ocp.CheckpointManagerOptions(
            read_only=read_only,
            create=not read_only,
            preservation_policy=_Preserved(keep_last, self._best_of),
            # In the background, a folder that cannot be made is told after a wait of ten minutes.
            async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
        )
        handlers = {"state": ocp.PyTreeCheckpointHandler(), "meta": ocp.JsonCheckpointHandler()}
        try:
            if not read_only:
                # orbax itself takes a file in its place without a word
                self.directory.mkdir(parents=True, exist_ok=True)
                self._held = HeldFolder(self.directory)
                if jax.process_index() == 0:
                    # orbax would do it some time in the background
                    for leftover in self.directory.iterdir():
                        if leftover.name.endswith(UNFINISHED):
                            shutil.rmtree(leftover)
            where = plain_path(self.directory)
            self._manager = _Manager(where, options=options, item_handlers=handlers)
            for step in self.steps():
                self._scores[step] = read_score(self.directory / str(step), keep_best)
        except Exception as error:  # whatever the file system or a broken file raised
            raise CheckpointError(
                f"the checkpoints in {self.directory} cannot be opened: {_first_line(error)}"
            ) from error

    def kept(self) -> str:
        """Returns where the checkpoints are and of which steps, for messages."""
        return f"{self.directory}: {self.steps() or 'none'}"

    def steps(self) -> list[int]:
        """The steps of all complete checkpoints, oldest first."""
        return sorted(self._manager.all_steps())

    def latest_step(self) -> int | None:
        """The newest complete step, or None."""
        return max(self.steps(), default=None)

    def best_step(self) -> int | None:
        """The step with the best `keep_best` metric, or None if no checkpoint has one."""
        return self._best_of(self.steps())

    def _best_of(self, steps: Sequence[int]) -> int | None:
        return best_of(self._scores, steps, smaller=self.mode == "min")

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
        self.wait()  # as orbax would; an error of the save before is told as such
        self._check_present()
        if step in self._manager.all_steps():
            return False
        flat = flatten_names(state)
        score = usable_score(step, metrics, self.keep_best)
        meta = make_meta(
            step,
            config=config,
            data=data_state,
            progress=progress or NO_PROGRESS,
            checksums=checksums(flat),
            mode=self.mode,
            score=None if score is None else {self.keep_best: score},
        )
        self._scores[step] = score
        items = ocp.args.Composite(state=ocp.args.PyTreeSave(flat), meta=ocp.args.JsonSave(meta))
        try:
            saved = self._manager.save(step, args=items, force=True)
        except Exception as error:  # disk full, no permission, a failed background save before it
            raise CheckpointError(
                f"saving step {step} to {self.directory} failed: {_first_line(error)}"
            ) from error
        if not saved:
            raise CheckpointError(f"saving step {step} to {self.directory} was refused by orbax")
        self._written = step
        return True

    def add_score(self, step: int, metrics: Mapping[str, float] | None) -> None:
        """Gives a complete checkpoint the evaluation that was due when it was written.

        Args:
            step: the checkpoint's.
            metrics: of its state; without a usable `keep_best` among them nothing changes.
        """
        score = usable_score(step, metrics, self.keep_best)
        if score is None or step not in self.steps():
            return
        self._scores[step] = score
        if jax.process_index() == 0:
            write_score(self.directory / str(step), {self.keep_best: score})

    def wait(self) -> None:
        """Waits until the checkpoint being written is complete; raises CheckpointError if that
        failed.
        """
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            self._written = None  # it never was
            raise CheckpointError(
                f"writing a checkpoint to {self.directory} failed: {_first_line(error)}. Good ones "
                f"there: {self.steps() or 'none'}"
            ) from error
        if self._written is not None:
            self._check_present()

    def _check_present(self) -> None:
        """Raises CheckpointError if what this run wrote is not there any more."""
        gone = self.directory if self._held and not self._held.is_there() else None
        written = self._written
        if gone is None and written is not None and not self._manager.is_saving_in_progress():
            folder = self.directory / str(written)
            gone = folder if not folder.is_dir() else None
        if gone is not None:
            raise CheckpointError(
                f"{gone} is gone: it was moved, removed or replaced while the run went on. Put it "
                "back and start the same command again, or begin in a new workdir"
            )

    def close(self) -> None:
        """Waits for the last save and frees the background threads."""
        try:
            self.wait()
        finally:
            # After a failed save orbax tells the same error again, in other words.
            with contextlib.suppress(Exception):
                self._manager.close()
            if self._held:
                self._held.release()

    def meta(self, step: int | None = None) -> dict[str, Any]:
        """Returns {'config', 'data', 'progress', 'checksums', ...} of a step (None = newest),
        checked, without reading any array.
        """
        step = self._existing(step)

        def read() -> dict[str, Any]:
            found = self._manager.restore(
                step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())
            )
            return check_meta(step, found.meta)

        return self._read(step, read)

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

    def resume(
        self,
        abstract_state: TrainState,
        check: Callable[[int, Mapping[str, Any]], None],
        *,
        damaged: str = "refuse",
    ) -> Restored | None:
        """Reads the newest checkpoint that is whole.

        Args:
            abstract_state: tree of `jax.ShapeDtypeStruct`, with shardings.
            check: is called with step and config before the arrays are read; raises if the run
                cannot go on from there.
            damaged: one of `ON_DAMAGE`: 'refuse' raises at a damaged one; 'fall_back' goes on from
                the one before, and once that is found whole renames the damaged to <step>.damaged.

        Returns:
            What was read; None if there is no checkpoint.

        Raises:
            CheckpointError: a damaged one with 'refuse', none that is whole with 'fall_back';
                another model or optimiser.
        """
        problems: dict[int, DamagedError] = {}
        for step in reversed(self.steps()):
            try:
                meta = self.meta(step)
                check(step, meta["config"])
                state = self._read_arrays(step, abstract_state, meta, exact=True)
            except DamagedError as error:
                problems[step] = error
            if not any_process(step in problems):
                self._set_aside(problems)
                return Restored(step, state, meta)
            problems.setdefault(step, DamagedError(f"another process found step {step} damaged"))
            if damaged != "fall_back":
                raise problems[step]
        if problems:
            raise CheckpointError(
                f"no checkpoint in {self.directory} is whole, so there is none to fall back to; "
                "nothing was renamed. Restore a folder from a copy, or begin in a new workdir. The "
                f"newest: {next(iter(problems.values()))}"
            )
        return None

    def _set_aside(self, problems: Mapping[int, DamagedError]) -> None:
        """Renames the folders of damaged steps, and says so; nothing is deleted."""
        for step, problem in problems.items():
            aside, number = self.directory / f"{step}.damaged", 1
            while aside.exists():
                number += 1
                aside = self.directory / f"{step}.damaged{number}"
            logging.warning("%s\n  set aside as %s (train.damaged='fall_back')", problem, aside)
            if jax.process_index() == 0:
                (self.directory / str(step)).rename(aside)
        if problems:
            any_process(False)  # all wait for the renames
            self._manager.reload()

    def index(self, step: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns name -> shape and type of every array of a step; none is read."""
        metadata = self._read(step, lambda: self._manager.item_metadata(step).state)
        if metadata is None:
            raise self._damaged(step, "its array index is missing")
        leaves = metadata.tree.items()
        return {n: jax.ShapeDtypeStruct(tuple(leaf.shape), leaf.dtype) for n, leaf in leaves}

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
        except Exception as error:
            # Any exception of the reader means that the files are not what was written, but for
            # those that say that they could not be read.
            cause = _first_line(error)
            if isinstance(error, NOT_DAMAGE) or any(word in cause for word in NOT_DAMAGE_WORDS):
                raise CheckpointError(
                    f"checkpoint of step {step} cannot be read: {self.directory / str(step)}: "
                    f"{cause}"
                ) from error
            raise self._damaged(step, cause) from error

    def _damaged(self, step: int, cause: str) -> DamagedError:
        others = [s for s in self.steps() if s != step]
        way = "to start from the beginning (no other step is left)."
        if others:
            way = f"to go on from step {max(others)}; train.damaged='fall_back' sets it aside."
        return DamagedError(
            f"checkpoint of step {step} is damaged: {self.directory / str(step)}\n  cause: "
            f"{cause}\n  steps there: {self.steps()}. Restore the folder from a copy, or delete it "
            f"{way}"
        )

    def _read_arrays(
        self, step: int, abstract: Any, meta: Mapping[str, Any], *, exact: bool
    ) -> Any:
        wanted = flatten_names(abstract)
        found = {name: tuple(leaf.shape) for name, leaf in self.index(step).items()}
        if found.keys() != meta["checksums"].keys():
            raise self._damaged(step, "its array index names other arrays than were written")
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
            meta = checkpoints.meta()
            train = meta["config"]["train"]
            checkpoints.close()
            best = dict(keep_best=train["keep_best"], mode=meta.get("mode", ""))
            checkpoints = Checkpoints(workdir, **best, read_only=True)
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
    steps = [int(p.name) for p in folder.iterdir() if p.name.isdecimal()] if folder.is_dir() else []
    return max(steps, default=0)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
