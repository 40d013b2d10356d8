"""Kinetics-400: C2D and I3D, with and without non-local, CGNL and double-attention blocks.

    python -m lambdanet.data.prepare clips VIDEOS DIR
    python train.py --config=configs/kinetics.py:i3d_resnet50 --workdir=runs/i3d \\
        --config.data.data_dir=DIR --config.train.init_head=new \\
        --config.train.init_weights=resnet50.safetensors
    python eval.py --mode=accuracy --workdir=runs/i3d --config.data.image_size='(256, 256)' \\
        --config.data.eval_crop=1.0 --config.clips.eval_clips=10 --config.clips.eval_crops=3

Argument: a preset of models/video ('i3d_resnet50' by default; `python eval.py --mode=describe
--name='nl5_*'`); ',smoke' as last part runs ten steps on synthetic clips.

VIDEOS has a folder per split and in it one per class; DIR may be any TFDS directory with the
features frames and label. Networks of 32 frames see every second one, those of 8 every eighth. The
second command gives the papers' 30 views, of which the short side is 256; while training there is
one, of 224 x 224.

Weights of images are inflated; blocks that the file lacks (`nl_*`, `nl5_*`, `nl10_*`, `cgnl*`,
`a2_*`) begin as initialised.

Recipes, in epochs of 240,000 clips (the set shrinks as videos vanish):
    all            SGD with Nesterov momentum 0.9, weight decay 1e-4 but not of norms, dropout 0.5,
                   short side 256 to 320, crop 224, flip
    A2-Nets        batch 512, lr 0.04, 32,000 steps; times 0.1 after 37 and 55 epochs, in proportion
                   to the paper's smaller networks, since for this one it names no epochs
    slow_resnet50  SlowFast's code: batch 64, lr 0.1, cosine, 196 epochs, 34 of them warm-up from
                   0.01
    others         Wang et al. 2018, "Non-local Neural Networks": batch 64, lr 0.01, times 0.1 after
                   150,000 and 300,000 of 400,000 steps; for CGNL, too, whose video recipe is not
                   public. Other presets of the non-local block: `--config.model.context="(None,
                   {'name': 'nonlocal_paper', 'after': 'stage3.5'})"`
    128 frames     that paper goes on from the network of 32: `--config.clips.frames=128
                   --config.train.batch_size=16 --config.optim.lr=0.0025
                   --config.optim.frozen="('.*/(mean|var)',)" --config.train.init_weights=FILE`; how
                   many steps we do not know
Differences: the running statistics of norms are used as they are, where the authors compute them
anew before each test. None of the runs was made here (ten smoke steps in the tests only).
"""

from ml_collections import ConfigDict

from configs import base

TRAIN_CLIPS = 240_000


def get_config(arg: str = "i3d_resnet50") -> ConfigDict:
    """Returns the recipe; see the module's docstring for `arg`."""
    name, smoke = base.split_arg(arg)
    name = base.check_video_net(name or "i3d_resnet50")
    config = base.get_config()
    config.task = "clips"
    config.model.name = name
    config.clips.frames = base.frames_of(name)
    config.clips.frame_stride = 2 if config.clips.frames >= 32 else 8

    config.data.source, config.data.data_dir = "tfds", "data/kinetics"
    config.data.test_split = ""
    config.data.image_size, config.data.channels = (224, 224), 3
    config.data.mean, config.data.std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    config.data.crop, config.data.scale_base, config.data.scale_range = (
        "scale_crop",
        256,
        (1.0, 1.25),
    )
    config.data.flip, config.data.eval_crop, config.data.num_workers = 0.5, 0.875, 16

    optim, train = config.optim, config.train
    optim.name, optim.momentum, optim.nesterov = "sgd", 0.9, True
    optim.weight_decay, optim.no_decay = 1e-4, (r".*(bias|scale)",)
    optim.schedule, optim.decay_rate, optim.warmup_epochs = "step", 0.1, 0.0
    train.batch_size, optim.lr, train.epochs, optim.step_epochs = _schedule(name)
    if name.startswith("slow_"):
        optim.schedule, optim.warmup_epochs, optim.warmup_start = "cosine", 34.0, 0.1
        optim.warmup_overlaps = True
    config.classification.label_smoothing = 0.0
    train.eval_every = train.save_every = 1.0
    train.log_every = 50
    return base.apply_smoke(config) if smoke else config


def _schedule(name: str) -> tuple[int, float, float, tuple[int, ...]]:
    """Returns batch size, rate, epochs, and those after which the rate falls."""
    if name.startswith("a2_"):
        return 512, 0.04, 32_000 * 512 / TRAIN_CLIPS, (37, 55)
    if name.startswith("slow_"):
        return 64, 0.1, 196.0, ()
    return 64, 0.01, 400_000 * 64 / TRAIN_CLIPS, (40, 80)
