"""Images in, uint8 batches out: sources, decoding, augmentation and exactly resumable reading."""

from lambdanet.data.examples import MakeExample, Part, attributes, training_parts
from lambdanet.data.info_file import keep as keep_info
from lambdanet.data.pipeline import (
    EvalBatches,
    TrainBatches,
    check_resume,
    eval_batches,
    train_batches,
)
from lambdanet.data.record import CorruptRecordError, DataInfo, Record, UnusableRecordError
from lambdanet.data.sources import open_builder, open_source, prepare_embedded

__all__ = [
    "CorruptRecordError",
    "DataInfo",
    "EvalBatches",
    "MakeExample",
    "Part",
    "Record",
    "TrainBatches",
    "UnusableRecordError",
    "attributes",
    "check_resume",
    "eval_batches",
    "keep_info",
    "open_builder",
    "open_source",
    "prepare_embedded",
    "train_batches",
    "training_parts",
]
