"""COCO: RetinaNet, Faster R-CNN and Mask R-CNN on any backbone, by the schedules 1x and 3x.

    python -m lambdanet.data.prepare coco train2017 instances_train2017.json DIR
    python train.py --config=configs/coco.py:mask_rcnn,lambda_resnet50 --workdir=runs/coco \\
        --config.data.data_dir=DIR --config.train.init_head=backbone \\
        --config.train.init_weights=lambda_resnet50.safetensors
    python eval.py --mode=accuracy --workdir=runs/coco

Argument: 'DETECTOR,BACKBONE': 'mask_rcnn,resnet50' (default), a preset of models/detection
(`python eval.py --mode=describe --name='mask_rcnn_*'`); 'DETECTOR' alone is that on resnet50; then
',3x' for the long schedule; ',smoke' as last part runs ten steps on synthetic images.

DIR is a prepared set, or for boxes alone TFDS's `coco` as it is. The backbone's weights are
train.init_weights (with init_head='backbone' a file of the backbone alone); from random ones nobody
reaches the published numbers in this time.

Recipes (mmdetection 3.3, and the code of Swin and PVT):
    schedule       1x: 12 epochs of 16 images, the rate times 0.1 after 8 and 11; 3x: 36, 27 and 33,
                   and pictures resized to between 0.6 and 1 of the canvas
    ResNets        SGD 0.02 (RetinaNet 0.01), momentum 0.9, weight decay 1e-4, warm-up of 500 steps
                   from 0.001 of the rate; stem and first stage stay as they are, and all norms of
                   the backbone keep their statistics
    transformers   AdamW 1e-4, weight decay 0.05, warm-up of 1000 steps; PVT: AdamW 2e-4 (RetinaNet
                   1e-4), weight decay 1e-4
Differences: every picture lies on one canvas of 1088 x 1088 that it just fits into, so that one
program serves all (theirs: short side 800, long side up to 1333; a picture of 4:3 has 1067 x 800
there and 1088 x 816 here); pictures without objects are trained on; in 3x Swin's code also crops.

None of the runs was made here (ten smoke steps in the tests only).
"""

from ml_collections import ConfigDict

from configs import base

TRAIN_IMAGES = 118_287
DETECTORS = ("retinanet", "faster_rcnn", "mask_rcnn")
SCHEDULES = {"1x": (12.0, (8, 11)), "3x": (36.0, (27, 33))}
"""Epochs in all, and those after which the rate falls."""
FROZEN = (r"backbone/(stem|stages/0)/.*", r"backbone/.*/(mean|var)")
"""Of ResNets: parameters of the first parts, statistics of every norm."""


def get_config(arg: str = "mask_rcnn,resnet50") -> ConfigDict:
    """Returns the recipe; see the module's docstring for `arg`."""
    rest, smoke = base.split_arg(arg)
    *parts, last = (rest or "mask_rcnn,resnet50").split(",")
    schedule = last if last in SCHEDULES else "1x"
    parts = parts if last in SCHEDULES else [*parts, last]
    parts = parts or ["mask_rcnn"]
    parts += ["resnet50"] * (parts[0] in DETECTORS and len(parts) == 1)
    config = base.get_config()
    config.task = "detection"
    name = "_".join(parts)
    name += "_mmdet" * (parts[-1] == "resnet50")
    config.model.name = base.check_detector(name)
    config.detection.masks = base.uses_masks(name)

    config.data.source, config.data.data_dir = "tfds", "data/coco"
    config.data.test_split = ""
    config.data.image_size, config.data.channels = (1088, 1088), 3
    config.data.mean, config.data.std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    config.data.flip, config.data.num_workers = 0.5, 8
    if schedule == "3x":
        config.data.crop, config.data.scale_range = "scale_crop", (0.6, 1.0)

    optim, train = config.optim, config.train
    train.batch_size = 16
    train.epochs, optim.step_epochs = SCHEDULES[schedule]
    optim.schedule, optim.decay_rate, optim.warmup_start = "step", 0.1, 1e-3
    warmup = 500
    if "resnet" in name:
        optim.name, optim.momentum, optim.weight_decay = "sgd", 0.9, 1e-4
        optim.lr = 0.01 if name.startswith("retinanet") else 0.02
        optim.no_decay, optim.frozen = (), FROZEN
    elif "pvt" in name:
        optim.name, optim.weight_decay = "adamw", 1e-4
        optim.lr = 1e-4 if name.startswith("retinanet") else 2e-4
    else:
        optim.name, optim.lr, optim.weight_decay = "adamw", 1e-4, 0.05
        warmup = 1000
    optim.warmup_epochs = warmup * train.batch_size / TRAIN_IMAGES
    train.eval_every = train.save_every = 1.0
    train.log_every, train.keep_best = 50, "mask_ap" if config.detection.masks else "box_ap"
    return base.apply_smoke(config) if smoke else config
