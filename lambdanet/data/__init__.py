"""Images in, uint8 batches out: sources, decoding, augmentation and exactly resumable reading."""

from lambdanet.data import pseudo_labels
from lambdanet.data.pipeline import (
    DataInfo,
    EvalBatches,
    TrainBatches,
    check_resume,
    describe,
    eval_batches,
    train_batches,
)

__all__ = [
    "DataInfo",
    "EvalBatches",
    "TrainBatches",
    "check_resume",
    "describe",
    "eval_batches",
    "pseudo_labels",
    "train_batches",
]
