"""From a folder of pictures and weights to a classifier, in Python.

    PYTHONPATH=. python examples/finetune_folder.py PHOTOS WEIGHTS WORKDIR [NAME]

PHOTOS has one folder of pictures per class. WEIGHTS is what `python eval.py --mode=export` wrote of
a run, a PyTorch checkpoint, or anything else that `train.init_weights` takes; NAME is the model it
is of ('resnet50' by default). Run it from the repository's root, where train.py, eval.py and
configs/ are; the same by commands: docs/fine-tuning.md.
"""

import sys
from pathlib import Path

import eval as evaluation
import train
from configs import finetune
from lambdanet.data import prepare


def main(photos: str, weights: str, workdir: str, name: str = "resnet50", **overrides) -> float:
    """Prepares, trains and returns the accuracy on the validation split.

    Args:
        photos: one folder of pictures per class.
        weights: for train.init_weights.
        workdir: of the run; the prepared set goes beside it.
        name: the model that the weights are of.
        overrides: further keys of the config, as in `{"train.max_steps": 100}`.
    """
    prepared = Path(workdir).with_name(Path(workdir).name + "_data")
    if not prepared.exists() and prepare.main([photos, str(prepared), "--split", "0.8,0.2"]):
        raise SystemExit(1)  # what is wrong was said
    config = finetune.get_config(name)
    config.data.data_dir, config.data.test_split = str(prepared), ""
    config.train.init_weights = weights
    config.update_from_flattened_dict(overrides)
    train.run(config, workdir)  # the same call goes on with a run that was interrupted
    subject = evaluation.load_subject(workdir=workdir)
    return evaluation.accuracy(subject, split="validation")["live"]["accuracy"]


if __name__ == "__main__":
    print(f"validation accuracy {main(*sys.argv[1:]):.4f}")
