"""Every configuration key with its default: the schema that recipes and the command line are
checked against.

A recipe (`configs/<name>.py`) starts from `get_config()` here and changes values only.
`lambdanet.config.validate` compares the final config with this one: a key that does not stand here,
or a value of another type, is an error. The one open section is `model`: apart from `name` it holds
the options of that model, checked against the model's own signature.
"""

from collections.abc import Iterable

from ml_collections import ConfigDict

from configs.smoke import apply_smoke
from lambdanet.registry import suggest


def get_config(arg: str = "") -> ConfigDict:
    """Returns the base config; `arg` is '' or 'smoke' (10 tiny CPU steps, see `apply_smoke`)."""
    config = ConfigDict()
    # what is learnt: a module of lambdanet/tasks; its own keys are in the section of its name
    config.task = "classification"
    config.seed = 0  # seeds initialisation, data order, augmentation and dropout

    # Model: `name` from models.list_models(); every further key is an option of that model (`python
    # eval.py --mode=describe`).
    config.model = ConfigDict()
    config.model.name = "lambda_resnet_digits"

    # Data.
    config.data = data = ConfigDict()
    # 'digits' | 'cued_digits', 'digit_scenes', 'moving_digits' (image_size is their canvas) |
    # 'tfds' | 'image_folder' | 'synthetic'
    data.source = "digits"
    # digits and the three with a canvas: where they are prepared on first use; tfds, image_folder:
    # the prepared directory itself
    data.data_dir = "data"
    data.train_split = "train"  # TFDS split text: 'train', 'train+validation', 'train[:90%]'
    data.eval_split = (
        "validation"  # evaluated while training; 'best' checkpoints are chosen on it; '' = none
    )
    data.test_split = "test"  # evaluated once, after the last step; '' = none
    data.image_size = (8, 8)  # (height, width) fed to the model
    data.channels = 1  # 1 (grey) or 3 (RGB)
    data.mean = (0.5,)  # per channel, of images scaled to [0, 1]; one value serves all channels
    data.std = (0.5,)  # per channel, likewise
    # turn photos as their camera says they were taken; False: pixels as they lie in the file
    data.exif_orientation = True
    # corrupt record, or one whose label map does not fit: 'raise' (names it) or 'skip' (replaced by
    # the next record, counted, reported)
    data.on_error = "raise"
    data.num_workers = 0  # reader processes; 0 = threads of this process only
    data.num_threads = (
        4  # reader threads of this process (num_workers = 0) or of each worker; each builds a batch
    )
    data.prefetch = 4  # batches read ahead (by each worker when num_workers > 0)
    data.synthetic_records = 1024  # source 'synthetic': number of records
    data.synthetic_classes = 10  # source 'synthetic': number of classes
    # Augmentation on the host, per record, in this order.
    # 'none' (resize) | 'shift' (zero-pad and crop) | 'random_resized' | 'scale_crop' (resize by a
    # random factor, then a window of image_size, padded where the picture is smaller)
    data.crop = "none"
    data.shift = 0  # crop 'shift': most pixels of shift per axis
    data.crop_scale = (0.08, 1.0)  # crop 'random_resized': area range, as a fraction of the image
    data.crop_ratio = (0.75, 4 / 3)  # crop 'random_resized': aspect ratio range
    data.scale_range = (0.5, 2.0)  # crop 'scale_crop': range of the factor
    # crop 'scale_crop': the factor is relative to the picture with this short side; 0 = as it is.
    # Of tasks of boxes it is relative to the picture fitted into image_size, and this stays 0
    data.scale_base = 0
    # crop 'scale_crop': most that one class may have of a window's labels, or another is tried; 1 =
    # any
    data.cat_max_ratio = 1.0
    data.flip = 0.0  # probability of a left-right flip
    data.rand_augment = (0, 0.0)  # (operations per image, magnitude 0..30); 0 operations = off
    data.color_jitter = (0.0, 0.0, 0.0)  # brightness, contrast, saturation strength
    # brightness, contrast, saturation, hue, as mmsegmentation changes them
    data.photometric_distortion = False
    data.random_erasing = 0.0  # probability
    # evaluation of classes and clips: resize the short side to image_size / eval_crop, then centre
    # crop; the other tasks evaluate whole pictures, and this and the next two stay as they are
    data.eval_crop = 1.0
    # False: both sides are resized to image_size / eval_crop, whatever the picture's shape
    data.eval_keep_aspect = True
    # evaluation of classes: decode the whole picture and resize it before it is cropped, to the
    # pixel as timm and torchvision do; False: the crop alone in one step, from a JPEG decoded at a
    # part of its size where that suffices, which is faster
    data.eval_resize_first = False
    # antialiased 'bilinear' | 'bicubic' | 'random' (either of them; evaluation bicubic)
    data.interpolation = "bilinear"
    # Second, pseudo-labelled source mixed into training (semi-supervised); off while
    # `pseudo_labels` is ''.
    data.pseudo_labels = ""  # file written by `eval.py --mode=pseudo_label`
    data.pseudo_split = "train_unlabelled"  # split of the same source that the file labels
    data.pseudo_fraction = (
        0.5  # fraction of each training batch that is pseudo-labelled, in expectation
    )

    # Optimisation.
    config.optim = optim = ConfigDict()
    optim.name = "adamw"  # 'sgd' (momentum) | 'adamw' | 'lamb' | 'rmsprop'
    optim.lr = 4e-3  # peak learning rate
    optim.weight_decay = (
        0.05  # sgd, rmsprop: coupled (L2, added to the gradient); adamw, lamb: decoupled
    )
    optim.momentum = 0.9  # sgd, rmsprop
    optim.nesterov = False  # sgd
    optim.betas = (
        0.9,
        0.999,
    )  # adamw, lamb: both; rmsprop: the second is the decay of the squared gradient
    optim.eps = 1e-8  # adamw, lamb, rmsprop
    optim.clip_norm = 0.0  # clip the gradient to this global norm; 0 = off
    optim.schedule = (
        "cosine"  # 'constant' | 'cosine' | 'step' | 'poly' | 'exponential', after the warm-up
    )
    optim.warmup_epochs = 1.0  # linear, up to the peak
    optim.warmup_start = 0.0  # first value of the warm-up as a fraction of the peak
    optim.warmup_overlaps = (
        False  # True: the schedule begins with the run, and the warm-up hides its first part
    )
    optim.cooldown_epochs = (
        0.0  # cosine, poly: epochs at the last value, at the end of train.epochs
    )
    optim.final_lr = 0.0  # cosine, poly: last value as a fraction of the peak
    optim.step_epochs = (30, 60, 80)  # step: epochs at which lr is multiplied by decay_rate
    optim.decay_rate = 0.1  # step, exponential: factor
    optim.decay_epochs = (
        3.0  # exponential: lr is multiplied by decay_rate once every so many epochs (staircase)
    )
    optim.poly_power = 1.0  # poly: exponent
    optim.no_decay = (
        r".*(bias|scale|embedding|gamma)$",
    )  # regexes on 'a/b/c' parameter paths (full match): no weight decay
    # regexes: parameters that are never updated, and batch norms (paths 'a/b/mean' and 'a/b/var')
    # that use their stored statistics and keep them; r'stem/.*' stops both
    optim.frozen = ()
    optim.lr_multipliers = ()  # pairs (regex, factor); the first match counts
    # factor of the learning rate from each block of the backbone to the one before it: the head has
    # 1, the last block this, the stem the smallest; 1 = off
    optim.layer_decay = 1.0
    # with train.init_weights: for so many epochs only the head learns (of a model with a backbone,
    # all but the backbone) and the norms of the rest keep their statistics; then everything does
    optim.frozen_epochs = 0.0

    # Training.
    config.train = train = ConfigDict()
    train.batch_size = 64  # global, over all processes and devices
    train.epochs = 40.0
    train.steps = 0  # > 0 overrides epochs
    # with epochs: least and most steps, whatever the size of the data; where one of them decides,
    # all that is given in epochs stretches with the run; 0 = none
    train.min_steps = 0
    train.max_steps = 0
    # start from these weights: a file (ours or PyTorch's: .safetensors, .npz, .pth), a folder with
    # one, the workdir of a run (its newest checkpoint), or a repository of the hub,
    # 'hf:OWNER/NAME[@REVISION][/FILE]'; '' = from the initialisers
    train.init_weights = ""
    # with init_weights: 'load' all | 'new': what depends on the classes stays as initialised |
    # 'propagation': what carries features from frame to frame does | 'backbone': the file is of a
    # backbone, all else does (segmentation)
    train.init_head = "load"
    # with init_weights that hold both: 'ema' (averaged, as timm) | 'live'
    train.init_average = "ema"
    train.accumulate = 1  # micro-batches per step, scanned inside the step
    # pairs (name, weight) of the model's auxiliary terms, added to the loss; LaViT has some
    train.auxiliary_losses = ()
    train.ema_decay = 0.0  # exponential moving average of the weights; 0 = off
    train.ema_warmup = True  # decay at step t is min(ema_decay, (1 + t) / (10 + t))
    train.eval_every = 1.0  # epochs between evaluations on eval_split; 0 = only after the last step
    train.eval_batch_size = 0  # 0 = batch_size
    train.save_every = 1.0  # epochs between checkpoints; 0 = only after the last step
    train.keep_last = 2  # checkpoints kept, beside the best one
    # a metric of the task on eval_split ('accuracy' | 'top5' | 'loss' of images and of clips,
    # 'mean_iou' | 'pixel_accuracy' | 'loss' in segmentation, 'box_ap' | 'mask_ap' | 'voc_ap50' and
    # more in detection), or one of the averaged weights ('ema_accuracy', ...); '' = keep none
    train.keep_best = "accuracy"
    train.log_every = 10  # steps between records in metrics.jsonl
    train.tensorboard = False  # also write TensorBoard event files
    train.report = True  # write report.png and report.md after the last step
    train.cache_dir = ".cache/jax"  # persistent compilation cache; '' = off
    # the newest checkpoint is damaged: 'refuse' (says what to do) | 'fall_back' to the one before
    train.damaged = "refuse"

    # Tasks 'classification' and 'clips': one class for each.
    config.classification = classification = ConfigDict()
    classification.label_smoothing = 0.1
    # of the loss: 'none' | 'balanced' (rare classes count more, so that each class weighs the same)
    classification.class_weights = "none"
    classification.mixup_alpha = 0.0  # Beta(alpha, alpha); 0 = off
    classification.cutmix_alpha = 0.0  # with both on, a fair coin picks one for each batch

    # Task 'segmentation': label maps hold class numbers, 255 = ignored.
    config.segmentation = segmentation = ConfigDict()
    # label 0 is ignored, too, and label n + 1 is class n (ADE20K)
    segmentation.reduce_zero_label = False
    # the cross entropy is divided by: 'valid' labelled pixels | 'all' pixels (mmsegmentation)
    segmentation.loss_mean = "valid"
    segmentation.class_weights = ()  # of the cross entropy, one per class; () = all 1
    # hard examples only, by the true class's probability: 'none' | 'ccnet' | 'ocnet' | 'mmseg'
    segmentation.ohem = "none"
    segmentation.ohem_threshold = 0.7  # pixels below are hard
    segmentation.ohem_min_kept = 100_000  # pixels kept at least, per batch (mmseg: per image)
    segmentation.auxiliary_weight = 0.4  # of the auxiliary head's loss
    segmentation.branch_weight = 1.0  # of the losses of a head's further outputs (DANet has two)
    segmentation.category_consistent = 0.0  # weight of CCNet's category-consistent loss; 0 = off
    # (height, width) that whole pictures are fitted into for evaluation; () = data.image_size
    segmentation.eval_size = ()
    segmentation.inference = "whole"  # 'whole' | 'slide': windows whose logits are averaged
    segmentation.slide_crop = ()  # (height, width) of the windows; () = data.image_size
    segmentation.slide_stride = ()  # steps between windows; () = two thirds of them
    segmentation.eval_scales = (1.0,)  # sizes whose probabilities are averaged
    segmentation.eval_flip = False  # each also mirrored

    # Task 'detection': boxes with classes, perhaps masks. Thresholds of the detector itself are
    # options of the model.
    config.detection = detection = ConfigDict()
    # places for the objects of a picture; of more, training takes the largest, evaluation refuses
    detection.max_objects = 100
    detection.masks = False  # instance segmentation: 'mask_rcnn'
    detection.mask_bytes = 65536  # places for the true masks of a picture, as run lengths
    # headline: 'coco' (box_ap, mean over IoU 0.5 to 0.95) | 'voc' (voc_ap50, COCO's beside it)
    detection.metric = "coco"
    # from which score on detections are drawn, and counted as confusions in the report
    detection.shown_score = 0.5

    # Task 'clips': videos with one class each, of which training and evaluation see some frames.
    config.clips = clips = ConfigDict()
    clips.frames = 8  # of a clip that the model sees
    clips.frame_stride = 1  # stored frames from one of them to the next
    # training: most stored frames that each of them is moved by; at most half of frame_stride
    clips.jitter = 0
    # a stored clip is too short: 'loop' (begin again at its first frame) | 'refuse' (as corrupt)
    clips.short = "loop"
    # evaluation averages the probabilities of so many clips, evenly over the stored one (1: its
    # middle), times so many crops along the longer side (1: the centre)
    clips.eval_clips = 1
    clips.eval_crops = 1

    # Tasks 'video_segmentation' and 'video_detection': features carried from frame to frame; losses
    # and classes are those of the sections 'segmentation' and 'detection'.
    config.propagation = propagation = ConfigDict()
    # training: the key frame is up to so many frames before the current one, uniform, 0 included;
    # `others` are up to so many before or behind it
    propagation.max_distance = 9
    # training of a propagation that reads many frames: how many it is given; 0 = pairs (key frame,
    # current frame), for all that read one key frame
    propagation.others = 0
    # evaluation: a key frame every so many frames; for a propagation from many frames the step
    # between those that it reads
    propagation.interval = 10
    # evaluation of a propagation from many frames: frames that it reads on each side
    propagation.reach = 9
    # evaluation: consecutive frames from the middle of each stored sequence
    propagation.eval_frames = 10

    # Devices: the mesh is ('data', 'fsdp'); the batch is split over both, parameters over 'fsdp'.
    config.mesh = mesh = ConfigDict()
    mesh.data = -1  # -1 = all devices that fsdp leaves
    mesh.fsdp = 1
    mesh.fsdp_min_size = 2**18  # parameters with fewer elements stay replicated

    return apply_smoke(config) if arg == "smoke" else config


def split_arg(arg: str) -> tuple[str, bool]:
    """Splits 'row,smoke' into ('row', True): every recipe takes `smoke` as the last part of its
    argument.
    """
    parts = [p for p in arg.split(",") if p]
    return ",".join(p for p in parts if p != "smoke"), "smoke" in parts


def check_argument(name: str, allowed: Iterable[str]) -> None:
    """Raises ValueError with the allowed names, and the nearest, if `name` is none of them."""
    known = list(allowed)
    if name not in known:
        raise ValueError(f"argument {name!r}; allowed: {', '.join(known)}.{suggest(name, known)}")


def check_classifier(name: str) -> str:
    """Returns the name of a network that gives an image one class; raises ValueError with all of
    them.
    """
    from models import registry  # here, so that reading a config alone starts no JAX

    others = ("outputs", "detect", "takes_clips", "clip_outputs")
    known = [
        n for n in registry.names() if not any(hasattr(registry.lookup(n)[0], o) for o in others)
    ]
    check_argument(name, known)
    return name


def check_segmenter(name: str) -> str:
    """Returns the name of a preset of models/segmentation; raises ValueError with all of them."""
    return _check_kind(name, "outputs")


def check_detector(name: str) -> str:
    """Returns the name of a preset of models/detection; raises ValueError with all of them."""
    return _check_kind(name, "detect")


def check_video_net(name: str) -> str:
    """Returns the name of a preset of models/video; raises ValueError with all of them."""
    return _check_kind(name, "takes_clips")


def frames_of(name: str) -> int:
    """Returns how many frames the clips of a preset of models/video have."""
    from models import registry

    return registry.lookup(name)[1].get("frames", registry.parameters(name)["frames"].default)


VIDEO_RECIPES = {
    "video_segmenter": "configs/own_videos.py and configs/moving_digits.py:propagate train",
    "video_detector": "configs/moving_digits.py:detect trains",
}
"""Networks of videos, and who trains them: the checks of segmenters and detectors name it."""


def _check_kind(name: str, method: str) -> str:
    """Returns the name of a preset whose network has that method; raises ValueError with all of
    them.
    """
    from models import registry  # here, so that reading a config alone starts no JAX

    of_kind = {n: registry.lookup(n)[1] for n in registry.names()
               if hasattr(registry.lookup(n)[0], method)}  # fmt: skip
    # a detector or segmenter without a backbone is the network itself, and no preset of it
    presets = [
        n for n, preset in of_kind.items() if method == "takes_clips" or "backbone" in preset
    ]
    if name in of_kind and name not in presets:
        reason = "it names no backbone, which a preset does"
        if name in VIDEO_RECIPES:
            reason = f"a network of videos, which {VIDEO_RECIPES[name]}"
        raise ValueError(f"argument {name!r}: {reason}; allowed: {', '.join(presets)}")
    check_argument(name, presets)
    return name


def backbone_of(name: str) -> str:
    """Returns the name of the backbone of a preset of models/segmentation or models/detection."""
    from models import registry

    backbone = registry.lookup(name)[1]["backbone"]
    return backbone if isinstance(backbone, str) else backbone["name"]


def uses_masks(name: str) -> bool:
    """Returns whether a detector learns masks, by its preset."""
    from models import registry

    return bool(registry.lookup(name)[1].get("masks"))
