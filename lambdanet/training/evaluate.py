"""Evaluation over a split: exact sums over all processes, and every prediction."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lambdanet.training.mesh import batch_sharding, put_batch

SUMS = ("loss_sum", "correct_sum", "top5_sum", "count")


def eval_shardings(mesh: Mesh) -> dict[str, NamedSharding]:
    """Returns the `out_shardings` of an evaluation step: sums on every device, rows where their
    images are.
    """
    rows = {k: batch_sharding(mesh) for k in ("prediction", "confidence", "logits")}
    return rows | {k: NamedSharding(mesh, PartitionSpec()) for k in SUMS}


def _to_host(array: jax.Array) -> np.ndarray:
    """Fetches a global array, from all processes if its rows lie on several."""
    if array.is_fully_addressable:
        return np.asarray(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def evaluate(
    eval_step: Callable[[dict, dict, dict], dict],
    params: dict,
    stats: dict,
    batches: Iterable[dict[str, np.ndarray]],
    *,
    sharding: NamedSharding | None = None,
) -> dict[str, Any]:
    """Runs the evaluation step over all batches; every process must call it with the same number of
    batches.

    Args:
        eval_step: jitted function of `make_eval_step`.
        params: live or averaged parameters.
        stats: the batch-norm statistics that belong to them.
        batches: dicts with image, label, id and mask, of one fixed shape; rows with mask 0 do not
            count.
        sharding: of `mesh.batch_sharding`; None = one device.

    Returns:
        accuracy, top5, loss (means as floats), count (int), skipped_records (int; only if some were
        damaged and data.on_error='skip' passed over them), and NumPy arrays over the counted
        records of all processes: predictions int32 [n], their confidences float32 [n] (softmax),
        labels int32 [n], ids int64 [n].

    Raises:
        ValueError: no record was counted.
    """
    sums = collections.Counter()
    rows: list[dict[str, np.ndarray]] = []
    pending: collections.deque = collections.deque()

    def fetch() -> None:
        batch, out = pending.popleft()
        for name in SUMS:
            sums[name] += float(out[name])
        rows.append(
            {
                k: _to_host(v)
                for k, v in (batch | {k: out[k] for k in ("prediction", "confidence")}).items()
            }
        )

    for batch in batches:
        # int64 ids travel as pairs of int32, since devices keep 32 bits by default.
        ids = np.ascontiguousarray(batch["id"], dtype=np.int64).view(np.int32).reshape(-1, 2)
        host = {"image": batch["image"], "label": batch["label"], "mask": batch["mask"], "id": ids}
        device = (
            put_batch(host, sharding)
            if sharding is not None
            else jax.tree.map(jax.numpy.asarray, host)
        )
        out = eval_step(params, stats, {k: device[k] for k in ("image", "label", "mask")})
        pending.append(({k: device[k] for k in ("label", "mask", "id")}, out))
        if len(pending) > 2:  # the device works on the next batches while this one is fetched
            fetch()
    while pending:
        fetch()
    if not sums["count"]:
        raise ValueError(
            "evaluation counted no record: the split is empty or every record was skipped"
        )
    keep = np.concatenate([r["mask"] for r in rows]) > 0
    joined = {
        k: np.concatenate([r[k] for r in rows])[keep]
        for k in ("prediction", "confidence", "label", "id")
    }
    skipped = getattr(batches, "num_records", int(sums["count"])) - int(sums["count"])
    return {
        **({"skipped_records": skipped} if skipped else {}),
        "accuracy": sums["correct_sum"] / sums["count"],
        "top5": sums["top5_sum"] / sums["count"],
        "loss": sums["loss_sum"] / sums["count"],
        "count": int(sums["count"]),
        "predictions": joined["prediction"],
        "confidences": joined["confidence"],
        "labels": joined["label"],
        "ids": np.ascontiguousarray(joined["id"]).view(np.int64).reshape(-1),
    }
