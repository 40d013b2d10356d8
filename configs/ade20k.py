"""ADE20K (150 classes): UPerNet, Semantic FPN and the heads with attention, as published.

    python train.py --config=configs/ade20k.py:upernet_swin_tiny --workdir=runs/ade \\
        --config.data.data_dir=DIR --config.train.init_weights=swin_tiny.pth

Argument: a preset of models/segmentation (`python eval.py --mode=describe --name='upernet_*'`):
'upernet_swin_tiny' (default), 'semantic_fpn_pvt_small', 'ccnet_resnet50', ...; ',smoke' as last
part runs ten steps on synthetic images.

DIR is a prepared TFDS set: `scene_parse150` of TFDS, or what `python -m lambdanet.data.prepare
segmentation IMAGES MASKS DIR` makes of the images and index masks of SceneParse150, in which 0
means 'other' (segmentation.reduce_zero_label). The backbone's weights are train.init_weights; from
random ones nobody reaches the published numbers.

Recipes (mmsegmentation 1.2 and the PVT line), by the name's beginning and backbone:
    transformers with UPerNet   AdamW 6e-5, weight decay 0.01, linear to 0, warm-up of 1500 steps
                                from 1e-6 of the rate; 160,000 steps of 16 images
    PVT with Semantic FPN       AdamW 2e-4 (1e-4 times 2), weight decay 1e-4, poly 0.9 to 0; 40,000
                                steps of 32 images
    ResNets                     SGD 0.01, momentum 0.9, weight decay 5e-4, poly 0.9 to 1e-4; 80,000
                                steps of 16 images
Differences: the loss is the mean over labelled pixels, theirs over all (segmentation.loss_mean);
biases have no weight decay under AdamW, only Swin's norms and position tables have none there;
pictures are not bounded to a long side of 2048; evaluation fits each picture into 683 x 683 and
counts there.

None of the runs was made here (ten smoke steps in the tests only).
"""

from ml_collections import ConfigDict

from configs import base

TRAIN_IMAGES = 20_210


def get_config(arg: str = "upernet_swin_tiny") -> ConfigDict:
    """Returns the recipe; see the module's docstring for `arg`."""
    name, smoke = base.split_arg(arg)
    config = base.get_config()
    config.task = "segmentation"
    config.model.name = name = base.check_segmenter(name or "upernet_swin_tiny")

    config.data.source, config.data.data_dir = "tfds", "data/scene_parse150/1.0.0"
    config.data.eval_split, config.data.test_split = "test", ""  # their validation set
    config.data.image_size, config.data.channels = (512, 512), 3
    config.data.mean, config.data.std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    config.data.crop, config.data.scale_base = "scale_crop", 512
    config.data.scale_range, config.data.cat_max_ratio = (0.5, 2.0), 0.75
    config.data.flip, config.data.photometric_distortion = 0.5, True
    config.data.num_workers = 8

    config.segmentation.reduce_zero_label = True
    config.segmentation.eval_size = (683, 683)

    optim, train = config.optim, config.train
    optim.schedule = "poly"
    train.batch_size, train.keep_best = 16, "mean_iou"
    if "resnet" in name:
        optim.name, optim.lr, optim.momentum, optim.weight_decay = "sgd", 0.01, 0.9, 5e-4
        optim.no_decay = ()
        optim.poly_power, optim.final_lr, optim.warmup_epochs = 0.9, 0.01, 0.0
        train.steps = 80_000
    elif name.startswith("semantic_fpn"):
        optim.name, optim.lr, optim.weight_decay = "adamw", 2e-4, 1e-4
        optim.poly_power, optim.warmup_epochs = 0.9, 0.0
        train.batch_size, train.steps = 32, 40_000
    else:
        optim.name, optim.lr, optim.weight_decay = "adamw", 6e-5, 0.01
        optim.poly_power, optim.warmup_start = 1.0, 1e-6
        optim.warmup_epochs = 1500 * train.batch_size / TRAIN_IMAGES
        train.steps = 160_000
    if name.partition("_")[0] in ("ccnet", "danet", "ocnet", "isanet", "nonlocal"):
        config.model.align_corners = False  # their presets are for crops of 769 x 769
    train.eval_every = train.save_every = 8000 * train.batch_size / TRAIN_IMAGES
    train.log_every = 50
    return base.apply_smoke(config) if smoke else config
