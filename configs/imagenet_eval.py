"""Published weights on ImageNet: which accuracy they have here.

    python eval.py --config=configs/imagenet_eval.py:resnet50 --config.data.data_dir=DIR

Argument: a model of `python -m models --pretrained` with weights of ImageNet ('resnet50' by
default); ',smoke' as last part evaluates or trains on synthetic images. DIR is the prepared TFDS
set imagenet2012 (the directory with dataset_info.json); its split 'validation' has the 50,000
pictures that numbers are published for.

The weights are those of the table, from the hub (`pip install '.[hub]'`); others by
--weights=SOURCE. Those of pvt_tiny, pvt_small, pvt_medium and pvt_large are not on the hub: without
--weights=FILE the message has the address to download the file from. Pictures are prepared as in
the table, which is as timm does: decoded whole, the short side resized to floor(size / crop)
pixels, the middle cut out at whole pixels; their EXIF orientation is not applied.
tests/models/test_preprocessing.py compares the pixels with timm's. The classes of TFDS are in the
order of the weights' outputs, that of the WordNet numbers.

Whether the published number comes out has not been tried here: neither ImageNet nor the published
weights could be had. What was tried is everything on the way: logits with random weights of timm's
networks, and the pixels.
"""

from ml_collections import ConfigDict

from configs import base


def get_config(arg: str = "resnet50") -> ConfigDict:
    """Returns the recipe; see the module's docstring for `arg`."""
    from lambdanet.registry import suggest
    from models import pretrained  # here, so that reading a config alone starts no JAX

    name, smoke = base.split_arg(arg)
    name = name or "resnet50"
    known = [n for n, found in pretrained.TABLE.items() if found.data == "ImageNet-1k"]
    if name not in known:
        raise ValueError(f"argument {name!r}; allowed: {', '.join(known)}.{suggest(name, known)}")
    config = base.get_config()
    config.model.name = name
    config.data.source, config.data.data_dir = "tfds", "data/imagenet2012/5.1.0"
    config.data.update(pretrained.preprocessing(name))
    config.data.eval_resize_first, config.data.exif_orientation = True, False
    config.data.eval_split, config.data.test_split = "validation", ""
    config.data.num_workers = 8
    config.train.eval_batch_size = 64
    if smoke:
        return base.apply_smoke(config)
    config.train.init_weights = pretrained.TABLE[name].source
    return config
