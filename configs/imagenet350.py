"""ImageNet, 350 epochs: the LambdaResNet family of the paper's speed-accuracy curve (Bello 2021,
table 13 and appendix E.2).

    python train.py --config=configs/imagenet350.py:152@224 --workdir=runs/imagenet350_152_224
    --config.data.data_dir=DIR

Argument: 'depth@size', a row of the table below (default '50@128'); ',smoke' as last part runs ten
steps on synthetic images. These pairs are the paper's scaling rule. DIR is the prepared TFDS set
(the directory with dataset_info.json).

Numbers, from the paper: as the 90-epoch set-up (imagenet90.py) with weight decay 4e-5, RandAugment
with 2 operations, dropout and stochastic depth as in the table; evaluation at the training size;
settings tuned on 20 of 1024 training shards, here the first 2 %, on which also the best checkpoint
is chosen. The paper does not restate optimiser and lr: the 90-epoch rule is taken. Ours: norms and
biases are not decayed; bfloat16 activations. The deepest rows need `--config.model.remat=block` or
more devices than the paper's 32 to 64 TPUv3 cores had memory for. The tests run ten smoke steps of
two rows and check the others; no whole run was made.
"""

from ml_collections import ConfigDict

from configs import base
from configs.imagenet90 import set_imagenet

# depth@size: RandAugment magnitude, dropout, stochastic depth rate (and the paper's top-1
# accuracy).
ROWS = {
    "50@128": (10, 0.2, 0.0),  # 77.4 %
    "50@160": (10, 0.2, 0.0),  # 79.2 %
    "101@160": (10, 0.3, 0.0),  # 80.8 %
    "101@192": (15, 0.2, 0.0),  # 81.9 %
    "152@192": (15, 0.3, 0.0),  # 82.5 %
    "152@224": (15, 0.3, 0.1),  # 83.2 %
    "152@256": (15, 0.3, 0.1),  # 83.8 %
    "152@288": (15, 0.3, 0.1),  # only given with pseudo-labels, 86.7 %
    "270@256": (15, 0.3, 0.1),  # 84.2 %
    "350@256": (15, 0.3, 0.2),  # 84.4 %
    "350@288": (15, 0.3, 0.2),  # 84.5 %
    "350@320": (15, 0.3, 0.2),  # 84.7 %
    "420@320": (15, 0.3, 0.2),  # 84.9 %
}


def get_config(arg: str = "50@128") -> ConfigDict:
    """Returns the recipe; see the module's docstring for `arg`."""
    row, smoke = base.split_arg(arg)
    row = row or "50@128"
    base.check_argument(row, ROWS)
    depth, size = row.split("@")
    magnitude, dropout, drop_path = ROWS[row]
    config = base.get_config()
    config.model.name = f"lambda_resnet{depth}"
    config.model.norm_momentum = 0.9999
    config.model.dtype = "bfloat16"
    config.model.dropout_rate = dropout
    config.model.drop_path_rate = drop_path
    set_imagenet(config, size=int(size), epochs=350.0)
    config.data.rand_augment = (2, float(magnitude))
    config.data.train_split, config.data.eval_split, config.data.test_split = (
        "train[2%:]",
        "train[:2%]",
        "validation",
    )
    config.optim.weight_decay = 4e-5
    config.train.keep_best = "ema_accuracy"
    return base.apply_smoke(config) if smoke else config
