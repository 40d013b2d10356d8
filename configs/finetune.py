"""Fine-tuning on your own pictures: public weights, or those of a file or of a run, and a new head.

    python -m lambdanet.data.prepare PHOTOS SET
    python train.py --config=configs/finetune.py:resnet50 --config.data.data_dir=SET
    --workdir=runs/tuned [--config.train.init_weights=SOURCE] [--config.data.test_split=]

`prepare` holds out no test pictures of a folder without splits: then the last option is needed, or
`--split=0.8,0.1,0.1` there; its last line has the options of splits that SET lacks.

Argument: a model, then the task: 'NAME', 'NAME,segmentation' or 'NAME,detection'; without a task
'classification'. NAME is one of models.list_models() that is made for the task (`python eval.py
--mode=describe`); ',smoke' as last part runs ten steps on synthetic images, from random weights.

Where public weights of NAME are on the hub (`python -m models --pretrained`; `pip install
'.[hub]'`), classification starts from them, and pictures are prepared as they were for
them. Every other start names a SOURCE: the workdir of a run, a file (what `python eval.py
--mode=export` writes, or a PyTorch checkpoint), a folder, or another repository; where public
weights fit the backbone of a segmenter or detector, the error that asks for a SOURCE names them.
Set data.mean and data.std to those of its pre-training: ImageNet's by default, in every task (a
run, or what it exports, knows its own, and training warns where they differ). Pictures of
classification have the size and the filter of the public weights of NAME (288 x 288, bicubic, for
resnet50), with a SOURCE of your own, too, and 224 x 224, bilinear, where there are none: set
data.image_size and data.interpolation to those of the SOURCE. Windows of segmentation have 128 x
128, and for detection pictures are fitted into 192 x 192: data.image_size. In classification all
but the classifier is taken (train.init_head='new'), in the other tasks the backbone ('backbone');
to go on with a segmenter or detector of other classes set --config.train.init_head=new.

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
    from models import pretrained  # here, so that reading a config alone starts no JAX

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
        public = pretrained.TABLE.get(base.backbone_of(name))
        of_imagenet = pretrained.MEAN, pretrained.STD
        config.data.mean, config.data.std = (public.mean, public.std) if public else of_imagenet
        config.train.steps, config.train.eval_every, config.train.save_every = 0, 1.0, 1.0
    optim, train = config.optim, config.train
    optim.lr, optim.warmup_epochs, optim.clip_norm = 5e-4, 1.0, 1.0
    optim.layer_decay, optim.frozen_epochs = 0.75, 2.0
    train.epochs, train.min_steps, train.max_steps = 20.0, 400, 20_000
    train.init_head = "new" if task == "classification" else "backbone"
    public = pretrained.TABLE.get(name)
    if task == "classification" and public and public.on_hub:
        train.init_weights = public.source
        config.data.update(pretrained.preprocessing(name))
    if smoke:
        config = base.apply_smoke(config)
        train.init_weights = ""
        optim.frozen_epochs, train.init_head = 0.0, "load"
    return config
