"""Your own pictures with boxes, or boxes and masks: a small network from random weights.

    python -m lambdanet.data.prepare coco PICTURES ANNOTATIONS.json SET      (or: ... voc ROOT SET)
    python train.py --config=configs/own_objects.py --config.data.data_dir=SET --workdir=runs/boxes
    python eval.py --mode=accuracy --workdir=runs/boxes
    python eval.py --mode=predict --workdir=runs/boxes --input=FOLDER

Argument: a preset of models/detection ('small_retinanet' by default; 'small_mask_rcnn' for masks;
`python eval.py --mode=describe --name='small_*'`, or 'mask_rcnn_swin_tiny' with
train.init_weights and the data.mean and data.std of these weights, which configs/finetune.py sets
to ImageNet's); ',smoke' as last part runs ten steps on synthetic images.

The classes are those of SET. Pictures are fitted into 192 x 192. What to set, by your pictures:
    data.image_size            so large that the smallest objects have 8 pixels or more
    data.scale_range           how much larger or smaller they are made in training
    detection.max_objects      as many as the fullest picture has
    detection.metric           'voc' for the AP50 of Pascal VOC as the headline; the best checkpoint
                               is that of box_ap all the same: train.keep_best='voc_ap50' with it
    model.anchor_scale         the smallest objects' side in strides of the first level
    train.steps                enough that the score of validation has stopped rising
    --config.data.test_split=  where SET has no split 'test', as `prepare` says in its last line
"""

from ml_collections import ConfigDict

from configs import base


def get_config(arg: str = "small_retinanet") -> ConfigDict:
    """Returns the recipe; see the module's docstring for `arg`."""
    name, smoke = base.split_arg(arg)
    config = base.get_config()
    config.task = "detection"
    config.model.name = name = base.check_detector(name or "small_retinanet")
    config.detection.masks = masks = base.uses_masks(name)

    config.data.source, config.data.data_dir = "tfds", "data/own_objects"
    config.data.image_size, config.data.channels = (192, 192), 3
    config.data.crop, config.data.scale_range = "scale_crop", (0.7, 1.4)
    config.data.flip, config.data.photometric_distortion = 0.5, True

    config.optim.name = "adamw"
    config.optim.lr, config.optim.weight_decay = 1e-3, 0.05
    config.optim.schedule, config.optim.warmup_epochs = "cosine", 1.0
    config.optim.clip_norm = 5.0

    config.train.batch_size = 8
    config.train.steps = 1500
    config.train.eval_every = config.train.save_every = 10.0
    config.train.keep_best = "mask_ap" if masks else "box_ap"
    return base.apply_smoke(config) if smoke else config
