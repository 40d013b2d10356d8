"""Clips of digits on a panning photograph, drawn from what is inside scikit-learn: all digits move
with it but one, and its class is the label; no frame alone says which.

    python train.py --config=configs/moving_digits.py:reader --workdir=runs/reader
    python eval.py --mode=export --workdir=runs/reader
    python train.py --config=configs/moving_digits.py:clip --workdir=runs/clip \\
        --config.train.init_head=new \\
        --config.train.init_weights=runs/reader/eval/model.safetensors
    python train.py --config=configs/moving_digits.py:propagate --workdir=runs/per_frame
    python train.py --config=configs/moving_digits.py:detect --workdir=runs/boxes_per_frame

Argument: 'clip' (default), then ',BLOCK' of `BLOCKS`, with three axes in the second stage ('none'
by default): context blocks stand after it, the lambda layer in place of a convolution; 'frame', the
same network on one frame, which cannot do better than to guess among the three digits that it sees;
'reader', the same network on images as the backbone of a segmenter of digit_scenes, which starts
the other two, as ImageNet starts I3D. From random weights neither leaves chance in this time: one
label per clip, right for one digit of three, teaches nobody to read.
'propagate', then ',PROPAGATION' of `PROPAGATIONS`: the class of every pixel of every frame, with
features that are carried from key frames ('none' by default: frame by frame); how to start one from
another's weights: docs/video.md. 'detect', then ',PROPAGATION' likewise: the boxes of the digits.
',smoke' as last part runs ten steps on synthetic clips.
Numbers: our own, chosen on the validation split; docs/moving_digits.md has what they reach.
"""

from ml_collections import ConfigDict

from configs import base

CONTEXT = ("nonlocal", "cgnl", "double_attention", "criss_cross")
BLOCKS = {
    "none": {},
    **{name: {"context": {"name": name, "after": "stage2.1"}} for name in CONTEXT},
    "lambda": {
        "attention": (None, {"name": "lambda", "spatial_dims": 3, "scope": (3, 7, 7)}, None)
    },
}
"""Argument -> options of the model."""
KINDS = ("clip", "frame", "reader", "propagate", "detect")

FLOW = dict(width=1 / 8, levels=3, half=False)
EMBEDDING = dict(hidden_channels=32, embedding_channels=64)
PROPAGATIONS = {
    "none": {},
    "copy": {},
    "deep_feature_flow": FLOW,
    "flow_guided_aggregation": {**FLOW, **EMBEDDING},
    "neighborhood_propagation": dict(embedding_channels=32, radius=4),
    "sparse_recursion": {**FLOW, **EMBEDDING},
}
"""Argument -> options of the propagation."""


def get_config(arg: str = "clip") -> ConfigDict:
    """Returns the recipe; see the module's docstring for `arg`."""
    rest, smoke = base.split_arg(arg)
    kind, _, block = (rest or "clip").partition(",")
    base.check_argument(kind, KINDS)
    if kind in ("propagate", "detect"):
        recipe = _propagate if kind == "propagate" else _detect
        config = recipe(block or "none")
        return base.apply_smoke(config) if smoke else config
    known = BLOCKS if kind == "clip" else {"none": {}}
    base.check_argument(block or "none", known)
    config = base.get_config()
    config.data.image_size, config.data.channels = (64, 64), 3
    config.data.num_threads = 1  # more readers take the cores away that the small steps need
    config.optim.name = "adamw"
    config.optim.schedule, config.optim.warmup_epochs = "cosine", 0.5
    config.optim.clip_norm = 5.0
    config.train.eval_every = config.train.save_every = 1.0
    if kind == "reader":
        _read(config)
    else:
        config.model.update(known[block or "none"])
        _classify(config, frames=4 if kind == "clip" else 1)
    return base.apply_smoke(config) if smoke else config


def _classify(config: ConfigDict, *, frames: int) -> None:
    config.task, config.data.source = "clips", "moving_digits"
    config.model.name = "small_i3d"
    config.clips.frames, config.clips.frame_stride = frames, 2
    config.clips.eval_clips = min(frames, 2)
    config.data.crop, config.data.shift = "shift", 6
    config.data.color_jitter = (0.3, 0.3, 0.3)
    config.optim.lr, config.optim.weight_decay = 3e-3, 0.05
    config.train.batch_size, config.train.epochs = 16, 12.0
    config.classification.label_smoothing = 0.0


def _read(config: ConfigDict) -> None:
    config.task, config.data.source = "segmentation", "digit_scenes"
    config.segmentation.class_weights = (1.0, *(2.0,) * 10)  # most pixels are background
    # The network of `small_i3d`, its last stage dilated.
    config.model.name = "segmenter"
    config.model.backbone = dict(
        name="resnet18",
        stem="strided",
        blocks=(1, 1, 1),
        widths=(16, 32, 64),
        output_stride=4,
        zero_init_last=False,
    )
    config.model.head = dict(name="fcn", channels=64, dropout=0.0)
    config.model.classifier_std = 0.15
    config.optim.lr, config.optim.weight_decay = 6e-3, 0.1
    config.train.batch_size, config.train.epochs = 8, 6.0
    config.train.keep_best = "mean_iou"


def _propagate(name: str) -> ConfigDict:
    """The recipe of `propagate`, with the propagation of that name."""
    base.check_argument(name, PROPAGATIONS)
    config, many = base.get_config(), name == "flow_guided_aggregation"
    config.task = "video_segmentation"
    # Strokes are 2 to 8 pixels wide: features have a cell for 4 x 4. The flow network costs a tenth
    # of the rest.
    config.model.name = "video_segmenter"
    config.model.backbone = dict(
        name="resnet18",
        stem="strided",
        blocks=(1, 1, 1, 1),
        widths=(16, 32, 64, 64),
        output_stride=4,
        zero_init_last=False,
    )
    config.model.head = dict(name="fcn", channels=64, dropout=0.0)
    config.model.classifier_std = 0.15
    config.model.propagation = dict(name=name, **PROPAGATIONS[name])
    config.segmentation.class_weights = (1.0, *(2.0,) * 10)  # nearly all is background
    config.propagation.max_distance = 7  # of eight frames
    config.propagation.others = 2 if many else 0
    config.propagation.interval, config.propagation.reach = 1 if many else 5, 2
    config.propagation.eval_frames = 8

    config.data.source = "moving_digits"
    config.data.image_size, config.data.channels = (64, 64), 3
    config.data.num_threads = 1  # more readers take the cores away that the small steps need

    config.optim.name = "adamw"
    config.optim.lr, config.optim.weight_decay = 6e-3, 0.1
    config.optim.schedule, config.optim.warmup_epochs = "cosine", 0.5
    config.optim.clip_norm = 5.0
    if name == "deep_feature_flow":
        config.optim.frozen = (r"propagation/flow_net/scale/bias",)

    config.train.batch_size = 8
    config.train.epochs = 6.0
    config.train.eval_every = config.train.save_every = 2.0
    config.train.keep_best = "mean_iou"
    return config


def _detect(name: str) -> ConfigDict:
    """The recipe of `detect`, with the propagation of that name."""
    config = _propagate(name)
    config.task = "video_detection"
    # Boxes are about 11 x 16 pixels. Heads and flow network run on every frame, so they cost less
    # than the backbone.
    config.model = dict(
        name="video_detector",
        detector=dict(
            name="small_retinanet",
            backbone=dict(
                name="resnet18",
                stem="strided",
                blocks=(1, 1, 2, 1),
                widths=(16, 48, 96, 128),
                output_stride=8,
                zero_init_last=False,
            ),
            first_stage=4,
            num_levels=1,
            anchor_scale=1.5,
            anchor_octaves=3,
        ),
        propagation=config.model.propagation,
    )
    config.detection.max_objects = 3  # as many as a clip has
    config.segmentation.class_weights = ()
    config.optim.lr, config.optim.weight_decay = 4e-3, 0.05
    config.train.keep_best = "box_ap50"
    return config
