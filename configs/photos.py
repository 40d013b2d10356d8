"""Your own photos in class folders: small networks from random weights, by hardware.

    python -m lambdanet.data.prepare PHOTOS SET
    python train.py --config=configs/photos.py:cpu --config.data.data_dir=SET --workdir=runs/photos
    python eval.py --mode=accuracy --workdir=runs/photos

Argument: what there is to compute on; ',smoke' as last part runs ten steps on synthetic images.

    cpu        two cores or more: 64 x 64, a lambda network of 0.3 M parameters, minutes
    small_gpu  8 GB and more: 160 x 160, lambda_resnet26t (11 M parameters), bfloat16
    big        40 GB and more, or several devices: 224 x 224, lambda_resnet50 (19 M), bfloat16

The length follows the size of SET: train.epochs passes over it, but at least train.min_steps, since
a few hundred photos learn nothing in a few dozen steps, and at most train.max_steps, since of a
million photos a tenth of the passes do. Where one of the two decides, warm-up, evaluations and
checkpoints stretch with the run.

Numbers: our own.
- Running statistics of the norms with momentum 0.9: they follow within 20 steps. The 0.9999 of the
  ImageNet recipes needs tens of thousands, and before that the network is evaluated with statistics
  that it never had.
- AdamW, since one learning rate suits most networks and batches; warm-up of two epochs.
- Blocks that start with all their norms (zero_init_last=False): with zero norms a short training
  gets half as far (docs/digit_scenes.md).
- Crops of a quarter to the whole picture: those of ImageNet (from 8 %) often miss the object of a
  photo that somebody took of it. No mixup below 'big': short trainings do not gain by it.
- Classes of unlike size: --config.classification.class_weights=balanced.
Where SET has no split 'test': --config.data.test_split= (`prepare` says so in its last line).
With few photos start from weights instead: configs/finetune.py.
"""

from ml_collections import ConfigDict

from configs import base

HARDWARE = ("cpu", "small_gpu", "big")
"""Arguments, the smallest first."""


def get_config(arg: str = "cpu") -> ConfigDict:
    """Returns the recipe; see the module's docstring for `arg`."""
    name, smoke = base.split_arg(arg)
    name = name or "cpu"
    base.check_argument(name, HARDWARE)
    config = base.get_config()
    model, train = config.model, config.train
    set_photos(config)
    model.norm_momentum = 0.9
    model.zero_init_last = False
    if name == "cpu":
        model.name = "resnet18"
        model.blocks, model.widths = (1, 1, 1, 1), (24, 48, 96, 192)
        model.attention = dict(name="lambda", key_depth=16, num_heads=4, scope=7)
        model.attention_blocks = ((), (), "all", "all")
        config.data.image_size = (64, 64)
        train.batch_size, config.optim.lr = 32, 2e-3
        train.epochs, train.min_steps, train.max_steps = 40.0, 600, 6000
    elif name == "small_gpu":
        model.name, model.dtype = "lambda_resnet26t", "bfloat16"
        config.data.image_size, config.data.num_workers = (160, 160), 4
        train.batch_size, config.optim.lr = 64, 1e-3
        train.epochs, train.min_steps, train.max_steps = 60.0, 2000, 50_000
    else:
        model.name, model.dtype = "lambda_resnet50", "bfloat16"
        config.data.image_size, config.data.num_workers = (224, 224), 16
        train.batch_size, config.optim.lr = 256, 2e-3
        train.epochs, train.min_steps, train.max_steps = 100.0, 4000, 200_000
        # Enough passes for what slows learning down and ends higher.
        config.classification.mixup_alpha, config.classification.cutmix_alpha = 0.2, 1.0
        model.drop_path_rate = 0.1
    return base.apply_smoke(config) if smoke else config


def set_photos(config: ConfigDict) -> None:
    """Sets what all trainings on class folders share: data, augmentation, optimiser."""
    data, optim, train = config.data, config.optim, config.train
    data.source, data.data_dir = "image_folder", "prepared/photos"
    data.channels = 3
    data.mean, data.std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    data.crop, data.crop_scale, data.flip = "random_resized", (0.25, 1.0), 0.5
    data.color_jitter = (0.2, 0.2, 0.2)
    data.eval_crop = 0.95

    optim.name, optim.weight_decay = "adamw", 0.05
    optim.schedule, optim.warmup_epochs, optim.clip_norm = "cosine", 2.0, 1.0

    config.classification.label_smoothing = 0.1
    train.eval_every = train.save_every = 1.0
