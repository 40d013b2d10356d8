"""Fine-tuning on your own pictures: weights of a file or of a run, a new head.

    python -m lambdanet.data.prepare PHOTOS SET
    python train.py --config=configs/finetune.py:resnet50 --config.data.data_dir=SET
    --config.train.init_weights=FILE --workdir=runs/tuned

Argument: a model, then the task: 'NAME', 'NAME,segmentation' or 'NAME,detection'; without a task
'classification'. NAME is one of models.list_models() that is made for the task (`python eval.py
--mode=describe`); ',smoke' as last part runs ten steps on synthetic images, from random weights.

FILE is what `python eval.py --mode=export` writes of a run, or a PyTorch checkpoint. In
classification all but the classifier is taken from it (train.init_head='new'), in the other tasks
the backbone ('backbone'); to go on with a segmenter or detector of other classes set
--config.train.init_head=new. data.image_size, mean and std have to be those of the pre-training:
224 x 224 and ImageNet's by default.

Numbers: our own, for some hundred to some ten thousand pictures; docs/fine-tuning.md says what of
them was measured.
- train.epochs passes, but at least train.min_steps, as few pictures need more passes, and at most
  train.max_steps, as many need fewer.
- optim.layer_decay: early layers fit any picture, and each keeps more of what it has learnt.
- optim.frozen_epochs: the new head starts at random, and its first gradients would spoil what the
  backbone knows; so the head learns first, alone.
- A rate below that of configs/photos.py, since the weights are to be kept.
- Very few pictures: --config.optim.frozen="('(?!head/).*',)" trains the head alone.
- Classes of unlike size: --config.classification.class_weights=balanced.
"""

from ml_collections import ConfigDict

from configs import base, own_masks, own_objects, photos

TASKS = ("classification", "segmentation", "detection")


def get_config(arg: str = "resnet50") -> ConfigDict:
    """Returns the recipe; see the module's docstring for `arg`."""
    rest, smoke = base.split_arg(arg)
    name, _, task = (rest or "resnet50").partition(",")
    task = task or "classification"
    base.check_argument(task, TASKS)
    if task == "classification":
        config = base.get_config()
        config.model.name = base.check_classifier(name)
        photos.set_photos(config)
        config.data.image_size = (224, 224)
        config.train.batch_size = 32
    else:
        config = (own_masks if task == "segmentation" else own_objects).get_config(name)
        config.train.steps, config.train.eval_every, config.train.save_every = 0, 1.0, 1.0
    optim, train = config.optim, config.train
    optim.lr, optim.warmup_epochs, optim.clip_norm = 5e-4, 1.0, 1.0
    optim.layer_decay, optim.frozen_epochs = 0.75, 2.0
    train.epochs, train.min_steps, train.max_steps = 20.0, 400, 20_000
    train.init_head = "new" if task == "classification" else "backbone"
    if smoke:
        config = base.apply_smoke(config)
        optim.frozen_epochs, train.init_head = 0.0, "load"
    return config
