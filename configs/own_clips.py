"""Your own videos with one class each: a small network from random weights.

    python -m lambdanet.data.prepare clips VIDEOS SET
    python train.py --config=configs/own_clips.py --config.data.data_dir=SET --workdir=runs/clips
    python eval.py --mode=accuracy --workdir=runs/clips --config.clips.eval_clips=10

Argument: a preset of models/video ('small_i3d' by default; `python eval.py --mode=describe
--name='i3d_*'`); ',smoke' as last part runs ten steps on synthetic clips.

The classes are those of SET. Training sees 8 frames of 112 x 112. What to set, by your videos:
    clips.frames, clips.frame_stride   how many of the stored frames one clip sees, and how far
                                       apart: together long enough to tell the classes
    clips.short                        'refuse', where clips that are too short must not be looped
    data.eval_crop                     1.0 for the largest centred crop
    train.steps                        enough that the loss of validation has stopped falling
    --config.data.test_split=          where SET has no split 'test', as `prepare` says in its last
                                       line
"""

from ml_collections import ConfigDict

from configs import base


def get_config(arg: str = "small_i3d") -> ConfigDict:
    """Returns the recipe; see the module's docstring for `arg`."""
    name, smoke = base.split_arg(arg)
    config = base.get_config()
    config.task = "clips"
    config.model.name = base.check_video_net(name or "small_i3d")

    config.data.source, config.data.data_dir = "tfds", "data/own_clips"
    config.data.image_size, config.data.channels = (112, 112), 3
    config.data.crop, config.data.crop_scale = "random_resized", (0.4, 1.0)
    config.data.flip, config.data.eval_crop = 0.5, 0.875
    config.clips.frames, config.clips.frame_stride, config.clips.jitter = 8, 4, 1

    config.optim.name = "adamw"
    config.optim.lr, config.optim.weight_decay = 2e-3, 0.05
    config.optim.schedule, config.optim.warmup_epochs = "cosine", 1.0
    config.optim.clip_norm = 5.0

    config.train.batch_size = 8
    config.train.steps = 2000
    config.train.eval_every = config.train.save_every = 5.0
    return base.apply_smoke(config) if smoke else config
