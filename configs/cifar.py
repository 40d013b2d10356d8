"""CIFAR-10 with a LambdaResNet-18 (3x3 stem of stride 1, no pooling in the stem; k = 16, h = 4, u =
4, r = 7).

    python train.py --config=configs/cifar.py --workdir=runs/cifar10 --config.data.data_dir=DIR

Argument: 'lambda' (default) | 'conv'; ',smoke' as last part runs ten steps on synthetic images. DIR
is the prepared TFDS set (the directory with dataset_info.json); for CIFAR-100 give its directory,
the classes follow.

Numbers: the lambda sizes are those with which a public PyTorch port reports 94.2 % on CIFAR-10
(leaderj1001/LambdaNetworks, issue 1); optimiser and augmentation are the usual CIFAR ones for
ResNet-18, not that port's. The result of a whole run was not measured here (ten smoke steps in the
tests only). `data.test_split` is read once; choices are made on a tenth of the training set.
"""

from ml_collections import ConfigDict

from configs import base

ATTENTION = {
    "lambda": dict(name="lambda", key_depth=16, num_heads=4, intra_depth=4, scope=7),
    "conv": None,
}


def get_config(arg: str = "lambda") -> ConfigDict:
    """Returns the recipe; see the module's docstring for `arg`."""
    name, smoke = base.split_arg(arg)
    name = name or "lambda"
    base.check_argument(name, ATTENTION)
    config = base.get_config()
    config.model.name = "resnet18"
    config.model.stem = "cifar"
    config.model.attention = ATTENTION[name]

    config.data.source, config.data.data_dir = "tfds", "data/cifar10/3.0.2"
    config.data.train_split, config.data.eval_split, config.data.test_split = (
        "train[10%:]",
        "train[:10%]",
        "test",
    )
    config.data.image_size, config.data.channels = (32, 32), 3
    config.data.mean, config.data.std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    config.data.crop, config.data.shift, config.data.flip = "shift", 4, 0.5

    config.optim.name, config.optim.momentum, config.optim.nesterov = "sgd", 0.9, True
    config.optim.lr, config.optim.weight_decay = 0.1, 5e-4
    config.optim.schedule, config.optim.warmup_epochs = "cosine", 5.0

    config.train.batch_size = 128
    config.train.epochs = 200.0
    config.classification.label_smoothing = 0.1
    config.train.eval_every = config.train.save_every = 5.0
    config.train.log_every = 100
    return base.apply_smoke(config) if smoke else config
