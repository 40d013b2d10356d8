"""The form of every recipe that runs anywhere in seconds: ten steps of a tiny model on synthetic
images.
"""

from ml_collections import ConfigDict


def apply_smoke(config: ConfigDict) -> ConfigDict:
    """Shrinks a recipe to ten CPU steps on synthetic images, leaving optimiser, schedule and
    augmentation as they are.

    The model, or the backbone of a segmenter or detector, gets one block per stage and narrow
    stages: four, or where it has options for each stage, such as heads, as many as its preset has.
    """
    from models import registry  # here, so that reading a config alone starts no JAX

    config.data.source = "synthetic"
    config.data.synthetic_records = 64
    config.data.synthetic_classes = 10
    config.data.image_size = (32, 32)
    config.data.scale_base = min(config.data.scale_base, 32)
    config.data.num_workers = 0
    config.data.train_split, config.data.eval_split, config.data.test_split = (
        "train",
        "validation",
        "",
    )
    if {"backbone", "detector"} & set(registry.parameters(config.model.name)):
        config.model.update(_small_parts(config.model.to_dict()))
    else:
        config.model.update(_small_stages(config.model.name))
    segmentation = config.segmentation
    segmentation.eval_size = segmentation.slide_crop = segmentation.slide_stride = ()
    segmentation.class_weights = ()
    config.detection.max_objects = 8
    config.clips.frames, config.clips.frame_stride, config.clips.jitter = 4, 1, 0
    config.clips.eval_clips = config.clips.eval_crops = 1
    config.propagation.eval_frames = min(config.propagation.eval_frames, 4)
    config.propagation.max_distance = min(config.propagation.max_distance, 4)
    config.train.batch_size = 8
    config.train.steps = 10
    config.train.eval_every = config.train.save_every = 0.0
    config.train.log_every = 1
    config.train.report = False
    config.mesh.data, config.mesh.fsdp = -1, 1
    return config


def _small_stages(name: str, stages: int = 4) -> dict:
    from models import registry

    preset = registry.lookup(name)[1]
    if {"num_heads", "inflated_blocks"} & set(registry.parameters(name)):
        stages = len(preset["blocks"])
    return {"blocks": (1,) * stages, "widths": (8, 16, 24, 32)[:stages]}


SMALL_DETECTOR = {
    **dict(channels=8, fc_channels=16, mask_channels=8, num_convs=1, mask_convs=1),
    **dict(proposals_before=(64, 64), proposals_after=(32, 32), rpn_samples=32, roi_samples=16),
    **dict(candidates=64, before_nms=64, max_detections=16),
}
"""Options of detectors in smoke runs, those that a model has."""


def _small_parts(model: dict) -> dict:
    from models import registry
    from models.segmentation import registry as heads

    parts = {**registry.lookup(model["name"])[1], **model}
    if "detector" in parts:
        return {"detector": {**parts["detector"], **_small_parts(parts["detector"])}}
    declared = registry.parameters(model["name"])
    is_detector = "head" not in declared
    small = {k: v for k, v in SMALL_DETECTOR.items() if is_detector and k in declared}
    for part in ("backbone", "head", "auxiliary"):
        spec = parts.get(part)
        spec = {"name": spec} if isinstance(spec, str) else dict(spec or {})
        if part == "backbone":
            stages = len(spec.get("blocks", (1,) * 4))
            small[part] = {**spec, **_small_stages(spec["name"], stages)}
        elif spec:
            declared = heads.parameters(spec["name"])
            narrow = {k: 8 for k in ("channels", "neck_channels", "dim_out") if k in declared}
            small[part] = {**spec, **narrow}
    return small
