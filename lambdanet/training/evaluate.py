"""Evaluation over a split: exact sums over all processes, and every row, for several sets of
weights in one pass over the data.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterable, Mapping

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding

from lambdanet.training.mesh import batch_sharding, put_batch, replicated
from lambdanet.training.state import TrainState

MAX_EXAMPLES, MAX_EXAMPLE_BYTES = 512, 64 * 2**20  # kept for pictures
Rows = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What one pass over a split gave.

    Attributes:
        sums: prefix of the weights' names ('' live, 'ema_' averaged) -> the task's sums, float64.
        rows: likewise -> the task's rows of the counted records of all processes, in stored order,
            with `id` int64 [n].
        count: records.
        skipped: damaged records that data.on_error='skip' passed over.
        examples: the batches' arrays of the first counted records of this process, with `id`.
    """

    sums: dict[str, Rows]
    rows: dict[str, Rows]
    count: int
    skipped: int
    examples: Rows

    def metrics(self, finish: Callable[[Rows, Rows], dict[str, float]]) -> dict[str, float]:
        """Returns what a task's `finish` makes of it, the names with the weights' prefix."""
        return {
            prefix + name: value
            for prefix, sums in self.sums.items()
            for name, value in finish(sums, self.rows[prefix]).items()
        }


def weights_of(state: TrainState) -> dict[str, tuple[dict, dict]]:
    """Returns a state's live weights and, if they are kept, the averaged ones, by prefix."""
    averaged = {"ema_": (state.ema["params"], state.ema["stats"])} if state.ema else {}
    return {"": (state.params, state.stats)} | averaged


def eval_shardings(mesh: Mesh) -> tuple[NamedSharding, NamedSharding]:
    """Returns the `out_shardings` of an evaluation step: sums on every device, rows where their
    examples are.
    """
    return replicated(mesh), batch_sharding(mesh)


def _to_host(array: jax.Array) -> np.ndarray:
    """Fetches a global array, from all processes if its rows lie on several."""
    if array.is_fully_addressable:
        return np.asarray(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def evaluate(
    eval_step: Callable[[dict, dict, dict], tuple[dict, dict]],
    weights: Mapping[str, tuple[dict, dict]],
    batches: Iterable[Rows],
    *,
    sharding: NamedSharding | None = None,
) -> Evaluation:
    """Runs the evaluation step over all batches; every process must call it with the same number of
    batches.

    Args:
        eval_step: jitted function of `make_eval_step`.
        weights: prefix of the metrics' names -> (params, batch-norm statistics).
        batches: dicts with the task's arrays, id and mask, of one fixed shape; rows with mask 0 do
            not count.
        sharding: of `mesh.batch_sharding`; None = one device.

    Raises:
        ValueError: no record was counted.
    """
    sums: dict[str, Rows] = {prefix: {} for prefix in weights}
    rows: dict[str, list[Rows]] = {prefix: [] for prefix in weights}
    marks: list[Rows] = []
    kept: list[Rows] = []
    room = [MAX_EXAMPLES, MAX_EXAMPLE_BYTES]
    pending: collections.deque = collections.deque()

    def fetch() -> None:
        mark, found = pending.popleft()
        marks.append({k: _to_host(v) for k, v in mark.items()})
        for prefix, (batch_sums, batch_rows) in found.items():
            for name, value in batch_sums.items():
                sums[prefix][name] = sums[prefix].get(name, 0.0) + np.asarray(value, np.float64)
            rows[prefix].append({k: _to_host(v) for k, v in batch_rows.items()})

    for batch in batches:
        _keep(kept, batch, room)
        # int64 ids travel as pairs of int32, since devices keep 32 bits by default.
        ids = np.ascontiguousarray(batch["id"], dtype=np.int64).view(np.int32).reshape(-1, 2)
        host = {**batch, "id": ids}
        device = put_batch(host, sharding) if sharding else jax.tree.map(jax.numpy.asarray, host)
        given = {k: v for k, v in device.items() if k != "id"}
        found = {prefix: eval_step(*pair, given) for prefix, pair in weights.items()}
        pending.append(({k: device[k] for k in ("mask", "id")}, found))
        if len(pending) > 2:  # the device works on the next batches while this one is fetched
            fetch()
    while pending:
        fetch()
    keep = _join(marks)["mask"] > 0 if marks else np.zeros(0, bool)
    if not keep.any():
        raise ValueError(
            "evaluation counted no record: the split is empty or every record was skipped"
        )
    count = int(keep.sum())
    ids = np.ascontiguousarray(_join(marks)["id"][keep]).view(np.int64).reshape(-1)
    found_rows = {
        prefix: {k: v[keep] for k, v in _join(parts).items()} | {"id": ids}
        for prefix, parts in rows.items()
    }
    skipped = getattr(batches, "num_records", count) - count
    return Evaluation(sums, found_rows, count, skipped, _join(kept))


def _join(parts: list[Rows]) -> Rows:
    return {k: np.concatenate([p[k] for p in parts]) for k in parts[0]} if parts else {}


def _keep(kept: list[Rows], batch: Rows, room: list[int]) -> None:
    """Adds the counted rows of a batch to `kept`, as many as there is room for (rows, bytes)."""
    counted = np.flatnonzero(np.asarray(batch["mask"]) > 0)
    size = sum(np.asarray(a)[:1].nbytes for a in batch.values())
    counted = counted[: max(min(room[0], room[1] // max(size, 1)), 0)]
    if len(counted) and room[0] > 0:
        kept.append({k: np.asarray(a)[counted] for k, a in batch.items()})
        room[0] -= len(counted)
        room[1] -= len(counted) * size
