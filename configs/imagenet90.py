"""ImageNet, 90 epochs: the paper's ablation set-up on the plain ResNet-50 (Bello 2021, appendix
E.2).

    python train.py --config=configs/imagenet90.py:llll --workdir=runs/imagenet90_llll
    --config.data.data_dir=DIR

Argument: which of the stages c2 to c5 have lambda layers (l) or 3x3 convolutions (c): 'llll'
(default), 'cccc' (the baseline), 'lccc', 'llcc', 'lllc', 'clll', 'ccll', 'cccl', or 'llll_u4'
(intra-depth 4, scope 7); ',smoke' as last part runs ten steps on synthetic images. DIR is the
prepared TFDS set (the directory with dataset_info.json).

Numbers, from the paper: SGD momentum 0.9, batch 4096, weight decay 1e-4, lr 0.1 B / 256 after 5
linear warm-up epochs, cosine, BN decay 0.9999, averages of the weights with decay 0.9999, label
smoothing 0.1, random crop 224, flip. Its result: llll 78.4 % against 76.9 % of cccc. Ours: norms
and biases are not decayed (the paper is silent); bfloat16 activations. The tests run ten smoke
steps of llll and check the other rows; no whole run was made here.
"""

from ml_collections import ConfigDict

from configs import base

MODELS = {"cccc": "resnet50"} | {
    row: f"lambda_resnet50_{row}"
    for row in ("llll", "lccc", "llcc", "lllc", "clll", "ccll", "cccl", "llll_u4")
}


def get_config(arg: str = "llll") -> ConfigDict:
    """Returns the recipe; see the module's docstring for `arg`."""
    row, smoke = base.split_arg(arg)
    row = row or "llll"
    base.check_argument(row, MODELS)
    config = base.get_config()
    config.model.name = MODELS[row]
    config.model.norm_momentum = 0.9999
    config.model.dtype = "bfloat16"
    set_imagenet(config, size=224, epochs=90.0)
    config.optim.weight_decay = 1e-4
    # No setting was tuned on it, so the validation split may be watched; the last checkpoint
    # counts, not the best.
    config.data.train_split, config.data.eval_split, config.data.test_split = (
        "train",
        "validation",
        "",
    )
    config.train.keep_best = ""
    return base.apply_smoke(config) if smoke else config


def set_imagenet(config: ConfigDict, *, size: int, epochs: float) -> None:
    """Sets what the 90- and the 350-epoch set-up share."""
    optim, train = config.optim, config.train
    set_imagenet_data(config, size=size)

    optim.name, optim.momentum = "sgd", 0.9
    optim.schedule, optim.warmup_epochs = "cosine", 5.0
    optim.no_decay = (r".*(bias|scale)",)

    train.batch_size, train.epochs = 4096, epochs
    optim.lr = 0.1 * train.batch_size / 256
    config.classification.label_smoothing = 0.1
    train.ema_decay = 0.9999


def set_imagenet_data(config: ConfigDict, *, size: int) -> None:
    """Sets what all ImageNet recipes share: the data set, its statistics, crop and flip."""
    data = config.data
    data.source, data.data_dir = "tfds", "data/imagenet2012/5.1.0"
    data.image_size, data.channels = (size, size), 3
    data.mean, data.std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    data.crop, data.flip, data.eval_crop = "random_resized", 0.5, 0.875
    data.num_workers = 16
    config.train.log_every = 50
