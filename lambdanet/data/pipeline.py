"""Batches for training and evaluation, exactly repeatable at any position.

Training is one endless list of record numbers g = 0, 1, 2, ...; batch i is the records [i B, (i +
1) B) for global batch size B. Which stored record stands at g, and every random number of its
augmentation, are pure functions of (seed, g). So a position is just the number of batches consumed:
a resume builds the pipeline anew and starts there, and threads, worker processes and JAX processes
(each reads its own rows of every global batch) may change at will.

Each run of len(train) numbers holds every record once, in a new order per run. Batches straddle
these epochs: none is short and no record is dropped.
"""

from __future__ import annotations

import functools
import gc
import os
import signal
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any

import grain
import numpy as np
from absl import flags

from lambdanet.data import examples, pseudo_labels

Batch = dict[str, np.ndarray]


class ProcessRows(grain.MapDataset):
    """The records of this process: rows [p b, (p + 1) b) of every global batch, b = batch size /
    processes.

    The random map stands before it and so sees (and seeds by) global record numbers, whatever the
    process count.
    """

    def __init__(
        self, parent: grain.MapDataset, batch_size: int, process_index: int, process_count: int
    ):
        super().__init__(parent)
        if batch_size < 1 or batch_size % process_count:
            raise ValueError(
                f"batch size {batch_size} must be a positive multiple of the {process_count} "
                "processes"
            )
        if not 0 <= process_index < process_count:
            raise ValueError(f"process index is {process_index}; allowed: 0 to {process_count - 1}")
        self.batch_size, self.rows = batch_size, batch_size // process_count
        self.first_row = process_index * self.rows

    def __len__(self) -> int:
        return len(self._parent) // self.batch_size * self.rows

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.slice(index)
        batch, row = divmod(index, self.rows)
        return self._parent[batch * self.batch_size + self.first_row + row]


class TrainBatches:
    """Endless iterator over training batches; made by `train_batches`. Readers start with the first
    batch.
    """

    def __init__(self, dataset: grain.MapDataset, config: Any, state: dict[str, Any]):
        self._dataset, self._config, self._state = dataset, config, state
        self._readers: list[
            Any
        ] = []  # the running Grain iterator, once the first batch was asked for
        self._closed = False
        # also at exit, when nobody called close
        weakref.finalize(self, _stop_readers, self._readers, config)

    def __iter__(self) -> TrainBatches:
        return self

    def __next__(self) -> Batch:
        if self._closed:
            raise ValueError("these training batches were closed")
        if not self._readers:
            self._readers.append(_start_readers(self._dataset, self._config))
        batch = _owned(next(self._readers[0]), self._config)
        self._state["batches"] += 1
        return batch

    def state(self) -> dict[str, Any]:
        """Returns the position as plain values: `batches` consumed, and what must stay the same for
        a resume.
        """
        return dict(self._state)

    def close(self) -> None:
        """Stops threads and worker processes; no batch can be read afterwards."""
        self._closed = True
        _stop_readers(self._readers, self._config)


def train_batches(
    parts: list[examples.Part],
    make: examples.MakeExample,
    data: Any,
    *,
    batch_size: int,
    seed: int,
    start: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> TrainBatches:
    """Returns an endless iterator over this process's part of the training batches.

    Args:
        parts: of `examples.training_parts`.
        make: the task's `example`, a function of record and generator that pickles.
        data: the section `data` of the config.
        batch_size: global, over all processes.
        seed: of order and augmentation, >= 0.
        start: number of batches to pass over, `state()['batches']` of the run to continue.
        process_index, process_count: which rows of each global batch this process reads.

    Returns:
        Iterator of dicts with the arrays of the task's examples [b, ...] and id int64 [b]; with
        on_error='skip' also skipped, a scalar int32: damaged records replaced in this batch.
        b = batch_size / process_count.

    Raises:
        ValueError: wrong arguments. Damaged records and wrong labels raise when they are read.
    """
    if start < 0 or seed < 0:
        raise ValueError(f"start is {start} and seed is {seed}; both must be >= 0")
    seeds = [int(s) for s in np.random.SeedSequence(seed).generate_state(3)]
    first = len(parts[0])
    order = grain.MapDataset.range(first).shuffle(seed=seeds[0]).repeat()
    state = dict(
        batches=start, batch_size=batch_size, seed=seed, source=data.source, split=data.train_split
    )
    state |= dict(records=first)
    if len(parts) == 2:
        pseudo = grain.MapDataset.range(first, first + len(parts[1])).shuffle(seed=seeds[1])
        shares = [1 - data.pseudo_fraction, data.pseudo_fraction]
        order = grain.MapDataset.mix([order, pseudo.repeat()], shares)
        state |= dict(
            pseudo_labels=pseudo_labels.digest(data.pseudo_labels),
            pseudo_split=data.pseudo_split,
            pseudo_fraction=data.pseudo_fraction,
        )
    numbered = examples.TrainExamples(parts, make, data.on_error)
    rows = ProcessRows(
        order.random_map(numbered, seed=seeds[2]), batch_size, process_index, process_count
    )
    batches = rows.batch(rows.rows, drop_remainder=True)
    if data.on_error == "skip":
        batches = batches.map(_sum_skipped)
    return TrainBatches(batches[start:] if start else batches, data, state)


def _sum_skipped(batch: Batch) -> Batch:
    return batch | {"skipped": batch["skipped"].sum(dtype=np.int32)}


RESUME_REASONS = {
    "batch_size": "the same number of batches covers other records",
    "seed": "order and augmentation follow from it",
    "source": "these are other records",
    "split": "these are other records",
    "records": "the order is a permutation of that many records",
    "pseudo_labels": "the pseudo-labelled records or their labels changed",
    "pseudo_split": "these are other records",
    "pseudo_fraction": "the mixture has another order",
}


def check_resume(saved: dict[str, Any], current: dict[str, Any]) -> None:
    """Compares two `TrainBatches.state()`s before a resume; changed threads, workers and processes
    are no difference.

    Args:
        saved: from the checkpoint.
        current: of the pipeline as it is configured now.

    Raises:
        ValueError: names everything that changed so that the data order cannot be continued.
    """
    problems = [
        f"{key} was {saved.get(key, 'unset')!r} and is now {current.get(key, 'unset')!r} ({reason})"
        for key, reason in RESUME_REASONS.items()
        if saved.get(key) != current.get(key)
    ]
    if not isinstance(saved.get("batches"), int):
        problems.append("the number of batches consumed is missing")
    if problems:
        raise ValueError(
            "cannot continue the data order of the checkpoint: "
            + "; ".join(problems)
            + ". Restore the old values, or "
            "start in a new workdir"
        )


class EvalBatches:
    """Finite iterable over evaluation batches; made by `eval_batches`, may be iterated again and
    again.

    Attributes:
        num_records: records of the split, over all processes; those of them that the batches mask
            were damaged.
    """

    def __init__(self, dataset: grain.MapDataset, config: Any, num_records: int):
        self._dataset, self._config, self.num_records = dataset, config, num_records

    def __len__(self) -> int:
        return len(self._dataset)

    def __iter__(self) -> Iterator[Batch]:
        readers = [_start_readers(self._dataset, self._config)]
        try:
            for batch in readers[0]:
                yield _owned(batch, self._config)
        finally:
            _stop_readers(readers, self._config)


def eval_batches(
    part: examples.Part,
    make: examples.MakeExample,
    blank: examples.Example,
    data: Any,
    *,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
) -> EvalBatches:
    """Returns this process's part of one pass over a split, in stored order and in batches of one
    fixed shape.

    Args:
        part: the split.
        make: the task's `example`, which is called without a generator.
        blank: the task's blank example.
        data: the section `data` of the config.
        batch_size: global, over all processes.
        process_index, process_count: which rows of each global batch this process reads.

    Returns:
        Iterable of dicts with the arrays of the task's examples [b, ...], id int64 [b] and mask
        float32 [b]. The last batch is padded; padding and, with on_error='skip', damaged records
        are blank, with mask 0 and id -1. Every process gets the same number of batches.

    Raises:
        ValueError: as `train_batches`.
    """
    padded = -(-len(part) // batch_size) * batch_size
    numbered = examples.EvalExamples(part, make, blank, data.on_error)
    rows = ProcessRows(
        grain.MapDataset.range(padded).map(numbered), batch_size, process_index, process_count
    )
    return EvalBatches(rows.batch(rows.rows, drop_remainder=True), data, len(part))


def _start_readers(batches: grain.MapDataset, config: Any) -> Any:
    """Reads batches ahead, each built by one thread, here or in workers that take turns."""
    workers = min(config.num_workers, len(batches))
    ahead = config.num_threads if workers else config.prefetch
    dataset = batches.to_iter_dataset(
        grain.ReadOptions(num_threads=config.num_threads, prefetch_buffer_size=ahead)
    )
    if workers:
        if (
            not flags.FLAGS.is_parsed()
        ):  # Grain reads absl flags when it starts workers; outside absl.app nobody parses
            flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(
            num_workers=workers, per_worker_buffer_size=config.prefetch
        )
        dataset = dataset.mp_prefetch(
            options, worker_init_fn=functools.partial(_start_worker, os.getpid())
        )
    return iter(dataset)


def _stop_readers(readers: list[Any], config: Any) -> None:
    if readers:
        readers[0].close()
        readers.clear()
        if config.num_workers:
            # Grain's iterators are reference cycles, and theirs hold blocks of workers' shared
            # memory; looking for cycles takes a tenth to a fifth of a second, so not without need
            gc.collect()


def _owned(batch: Batch, config: Any) -> Batch:
    """Copies arrays that live in a worker's shared memory, whose blocks must be gone before the
    interpreter exits.
    """
    return {key: np.array(value) for key, value in batch.items()} if config.num_workers else batch


def _start_worker(parent: int, worker: int, workers: int) -> None:
    """Runs first in each worker: only the parent stops it, and it does not outlive a parent that
    was killed.
    """
    del worker, workers  # Grain passes which of how many this is
    # Terminals and schedulers signal the whole process group; the parent still needs batches while
    # it shuts down.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def watch():
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
