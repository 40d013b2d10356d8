"""Cityscapes (19 classes): the heads with attention on dilated ResNets, as published.

    python train.py --config=configs/cityscapes.py:ccnet_resnet101 --workdir=runs/city \\
        --config.data.data_dir=DIR --config.train.init_weights=resnet101.pth

Argument: a preset of models/segmentation: 'ccnet_resnet101' (default), 'danet_resnet101',
'ocnet_base_resnet101', 'isanet_resnet50', 'fcn_resnet50', 'upernet_resnet50', ...; ',smoke' as last
part runs ten steps on synthetic images.

DIR is what `python -m lambdanet.data.prepare segmentation IMAGES MASKS DIR` makes of leftImg8bit
and the masks gtFine *_labelTrainIds.png (19 classes, 255 = ignored). TFDS's own `cityscapes` holds
the 34 raw ids, which are no classes.

Recipe (the code of CCNet and OCNet; augmentation and evaluation of mmsegmentation): SGD 0.01,
momentum 0.9, weight decay 5e-4, poly 0.9, batch 8, 40,000 steps (CCNet's best: 60,000), random
scale 0.5 to 2 (CCNet, OCNet: 0.7 to 2.1), crops of 769 x 769, mirror, photometric distortion;
evaluation by windows of 769 in steps of 513. DANet (PyTorch-Encoding): 240 epochs at 0.004 per 16
images, the heads at ten times that, weight decay 1e-4. OHEM, on the main head only:

    --config.segmentation.ohem=ccnet

OCNet's class weights are `OCNET_WEIGHTS`, for --config.segmentation.class_weights. Difference:
images are normalised by ImageNet's mean and deviation, the official code subtracts a mean only.

None of the runs was made here (ten smoke steps in the tests only).
"""

from ml_collections import ConfigDict

from configs import base

TRAIN_IMAGES = 2975
OCNET_WEIGHTS = (
    *(0.8373, 0.918, 0.866, 1.0345, 1.0166, 0.9969, 0.9754, 1.0489, 0.8786, 1.0023),
    *(0.9539, 0.9843, 1.1116, 0.9037, 1.0865, 1.0955, 1.0865, 1.1529, 1.0507),
)


def get_config(arg: str = "ccnet_resnet101") -> ConfigDict:
    """Returns the recipe; see the module's docstring for `arg`."""
    name, smoke = base.split_arg(arg)
    config = base.get_config()
    config.task = "segmentation"
    config.model.name = name = base.check_segmenter(name or "ccnet_resnet101")
    config.model.align_corners = True

    config.data.source, config.data.data_dir = "tfds", "data/cityscapes"
    config.data.test_split = ""
    config.data.image_size, config.data.channels = (769, 769), 3
    config.data.mean, config.data.std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    official = name.startswith(("ccnet", "ocnet"))
    config.data.crop = "scale_crop"
    config.data.scale_range = (0.7, 2.1) if official else (0.5, 2.0)
    config.data.cat_max_ratio, config.data.flip = 0.75, 0.5
    config.data.photometric_distortion = True
    config.data.num_workers = 8

    config.segmentation.eval_size, config.segmentation.inference = (1024, 2048), "slide"
    config.segmentation.slide_crop, config.segmentation.slide_stride = (769, 769), (513, 513)

    optim, train = config.optim, config.train
    optim.name, optim.lr, optim.momentum, optim.weight_decay = "sgd", 0.01, 0.9, 5e-4
    optim.no_decay = ()
    optim.schedule, optim.poly_power, optim.warmup_epochs = "poly", 0.9, 0.0
    train.batch_size, train.steps = 8, 40_000
    if name.startswith("danet"):
        optim.lr, optim.weight_decay = 0.004 * train.batch_size / 16, 1e-4
        optim.lr_multipliers = ((r"(head|auxiliary)/.*", 10.0),)
        train.steps, train.epochs = 0, 240.0

    train.eval_batch_size, train.keep_best = 8, "mean_iou"
    train.eval_every = train.save_every = 4000 * train.batch_size / TRAIN_IMAGES
    train.log_every = 50
    return base.apply_smoke(config) if smoke else config
