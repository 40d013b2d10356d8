"""Your own videos with a mask for every frame: a small network from random weights, and features
that are carried from key frames to the frames between.

    python -m lambdanet.data.prepare frames SEQUENCES SET --masks MASKS --classes names.txt \
        --split=0.6,0.2,0.2
    python train.py --config=configs/own_videos.py --config.data.data_dir=SET --workdir=runs/frames
    python eval.py --mode=export --workdir=runs/frames
    python train.py --config=configs/own_videos.py:deep_feature_flow --workdir=runs/flow \
        --config.data.data_dir=SET --config.train.init_head=propagation \
        --config.train.init_weights=runs/frames/eval/model.safetensors

Argument: a name of `PROPAGATIONS` ('none' by default: frame by frame, which is where to start);
',smoke' as last part runs ten steps on synthetic frames.

The classes are those of SET. Training sees windows of 128 x 128 of two frames. What to set, by your
videos:
    data.scale_base            the short side to resize frames to, 0 = as they are
    segmentation.eval_size     (height, width) that whole frames are fitted into for evaluation
    propagation.max_distance   training: frames from the key frame to the current one, at most; as
                               many as there will be between two key frames
    propagation.interval       evaluation: a key frame every so many frames
    propagation.eval_frames    evaluation: frames of each sequence, from its middle
    train.eval_every, save_every, optim.warmup_epochs   one epoch is one example of each sequence
    --config.data.test_split=  and what else `prepare` says in its last line, where SET has not all
                               three splits
Numbers on a public set: docs/video.md.
"""

from ml_collections import ConfigDict

from configs import base

FLOW = dict(width=1 / 8, levels=4)
EMBEDDING = dict(hidden_channels=32, embedding_channels=64)
PROPAGATIONS = {
    "none": {},
    "copy": {},
    "deep_feature_flow": FLOW,
    "flow_guided_aggregation": {**FLOW, **EMBEDDING},
    "neighborhood_propagation": dict(embedding_channels=32, radius=4, ring=4, ring_step=2),
    "sparse_recursion": {**FLOW, **EMBEDDING},
}
"""Argument -> options of the propagation."""


def get_config(arg: str = "none") -> ConfigDict:
    """Returns the recipe; see the module's docstring for `arg`."""
    rest, smoke = base.split_arg(arg)
    name = rest or "none"
    base.check_argument(name, PROPAGATIONS)
    config, many = base.get_config(), name == "flow_guided_aggregation"
    config.task = "video_segmentation"
    config.model.name = "video_segmenter"
    config.model.backbone = dict(
        name="resnet18",
        stem="strided",
        blocks=(1, 1, 1, 1),
        widths=(12, 32, 64, 96),
        output_stride=8,
        zero_init_last=False,
    )
    config.model.head = dict(name="fcn", channels=64, dropout=0.0)
    config.model.classifier_std = 0.15
    config.model.propagation = dict(name=name, **PROPAGATIONS[name])
    config.segmentation.eval_size = (160, 288)
    config.propagation.others = 2 if many else 0
    config.propagation.interval, config.propagation.reach = 1 if many else 5, 2
    config.propagation.eval_frames = 30

    config.data.source, config.data.data_dir = "tfds", "data/own_videos"
    config.data.image_size, config.data.channels = (128, 128), 3
    config.data.crop, config.data.scale_range = "scale_crop", (0.75, 1.5)
    config.data.scale_base = 160
    config.data.flip, config.data.photometric_distortion = 0.5, True

    config.optim.name = "adamw"
    config.optim.lr, config.optim.weight_decay = 2e-3, 0.05
    config.optim.schedule, config.optim.poly_power = "poly", 0.9
    config.optim.warmup_epochs, config.optim.clip_norm = 20.0, 1.0  # of few records each
    if name == "deep_feature_flow":
        config.optim.frozen = (r"propagation/flow_net/scale/bias",)

    config.train.batch_size, config.train.eval_batch_size = 8, 1
    config.train.steps = 1200
    config.train.eval_every = config.train.save_every = 100.0
    config.train.keep_best = "mean_iou"
    return base.apply_smoke(config) if smoke else config
