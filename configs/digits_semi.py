"""Semi-supervised digits: a teacher learns from a tenth of the labels, a student from those and the
teacher's pseudo-labels.

    python train.py --config=configs/digits_semi.py:teacher --workdir=runs/teacher
    python eval.py --mode=pseudo_label --workdir=runs/teacher --output=runs/teacher --threshold=0.5
    python train.py --config=configs/digits_semi.py:student --workdir=runs/student \\
        --config.data.pseudo_labels=runs/teacher/pseudo_labels.json

Argument: 'teacher' (default) | 'student'; ',smoke' as last part runs ten steps on synthetic images
(the student's without labels of a teacher). Both have the same network, the same number of steps
and start from scratch, so they differ in the data alone.

Numbers: the scheme is that of Noisy Student (Xie et al. 2020) as the lambda paper uses it on
ImageNet with 130 M further images: confident, class-balanced pseudo-labels, mixed with the labelled
images in every batch. The settings are our own, those of digits.py as far as they apply. The
threshold 0.5 is the best of 0.9, 0.7, 0.5 and 0.3 on validation (label smoothing 0.1 keeps
confidences below about 0.91). Measured results: docs/digits.md.
"""

from ml_collections import ConfigDict

from configs import base

ROLES = ("teacher", "student")


def get_config(arg: str = "teacher") -> ConfigDict:
    """Returns the recipe; see the module's docstring for `arg`."""
    role, smoke = base.split_arg(arg)
    role = role or "teacher"
    base.check_argument(role, ROLES)
    config = base.get_config()
    config.model.name = "lambda_resnet_digits"
    config.data.train_split = "train_labelled"
    config.data.crop, config.data.shift = "shift", 1
    if role == "student":
        config.data.pseudo_labels = "" if smoke else "runs/teacher/pseudo_labels.json"
        config.data.pseudo_split = "train_unlabelled"
        config.data.pseudo_fraction = 0.75

    config.optim.name, config.optim.lr, config.optim.weight_decay = "adamw", 4e-3, 0.05
    config.optim.schedule = "cosine"

    # 108 labelled images are 1.7 batches, with pseudo-labels an epoch is about ten times longer:
    # hence steps, not epochs.
    config.train.batch_size = 64
    config.train.steps = 340
    long_epochs = role == "student"
    config.optim.warmup_epochs = 2.0 if long_epochs else 20.0
    config.train.eval_every = config.train.save_every = 2.0 if long_epochs else 20.0
    config.classification.label_smoothing = 0.1
    return base.apply_smoke(config) if smoke else config
