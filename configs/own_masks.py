"""Your own pictures with masks: a small network from random weights.

    python -m lambdanet.data.prepare segmentation PICTURES MASKS SET --classes names.txt
    python train.py --config=configs/own_masks.py --config.data.data_dir=SET --workdir=runs/masks
    python eval.py --mode=accuracy --workdir=runs/masks
    python eval.py --mode=predict --workdir=runs/masks --input=FOLDER

Argument: a preset of models/segmentation ('small_semantic_fpn' by default; `python eval.py
--mode=describe --name='small_*'`, or 'upernet_swin_tiny' with train.init_weights and the data.mean
and data.std of these weights, which configs/finetune.py sets to ImageNet's); ',smoke' as last part
runs ten steps on synthetic images.

The classes are those of SET. Training sees windows of 128 x 128. What to set, by your pictures:
    data.scale_base            the short side to resize them to, 0 = as they are: so that one window
                               shows enough to tell the classes
    segmentation.eval_size     (height, width) that whole pictures are fitted into for evaluation:
                               their own size, or that after scale_base
    segmentation.class_weights one number per class, where a rare one matters
    train.steps                enough that the loss of validation has stopped falling
    --config.data.test_split=  where SET has no split 'test', as `prepare` says in its last line
Numbers on two public sets: docs/segmentation.md.
"""

from ml_collections import ConfigDict

from configs import base


def get_config(arg: str = "small_semantic_fpn") -> ConfigDict:
    """Returns the recipe; see the module's docstring for `arg`."""
    name, smoke = base.split_arg(arg)
    config = base.get_config()
    config.task = "segmentation"
    config.model.name = base.check_segmenter(name or "small_semantic_fpn")

    config.data.source, config.data.data_dir = "tfds", "data/own_masks"
    config.data.image_size, config.data.channels = (128, 128), 3
    config.data.crop, config.data.scale_range = "scale_crop", (0.75, 1.5)
    config.data.flip, config.data.photometric_distortion = 0.5, True

    config.optim.name = "adamw"
    config.optim.lr, config.optim.weight_decay = 2e-3, 0.05
    config.optim.schedule, config.optim.poly_power = "poly", 0.9
    config.optim.warmup_epochs, config.optim.clip_norm = 1.0, 1.0

    config.train.batch_size = 8
    config.train.steps = 1200
    config.train.eval_every = config.train.save_every = 10.0
    config.train.keep_best = "mean_iou"
    return base.apply_smoke(config) if smoke else config
