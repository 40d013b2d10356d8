"""Detectors whose outputs go by the numbers of a set's categories, as torchvision's do for COCO."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from detector_helpers import build, detector, images, loud, targets
from flax import nnx

import models
from configs import base
from lambdanet.analysis import subject
from lambdanet.data import info_file
from lambdanet.data.objects import COCO_ABSENT
from lambdanet.data.record import DataInfo
from lambdanet.interop import files, sources
from lambdanet.tasks import detection, detection_files
from lambdanet.training import state, weights

NUMBERS = (2, 9, 5)  # of three classes; outputs are more
SHAPES, CANVAS = ((64, 64), (40, 56)), (64, 64)
COCO_NUMBERS = tuple(n for n in range(1, 91) if n not in COCO_ABSENT)
COCO = DataInfo(
    {"boxes": "objects/bbox", "masks": "objects/mask"},
    ("person", *(f"c{n}" for n in COCO_NUMBERS[1:])),
    COCO_NUMBERS,
)


def pair(name, first):
    """A detector of ten outputs, by numbers and plain, with the same weights."""
    options = dict(num_classes=10, score_threshold=0.002)
    plain = loud(build(name, **options))
    numbered = build(name, **options, numbered_from=first, class_numbers=NUMBERS)
    nnx.update(numbered, nnx.state(plain))
    return numbered, plain, np.array(NUMBERS) - first


@pytest.mark.parametrize(("name", "first"), [("retinanet", 0), ("mask_rcnn", 1)])
def test_detections_are_of_the_datas_classes(name, first):
    numbered, plain, outputs = pair(name, first)
    assert numbered.num_classes == 3 and numbered.class_numbers == NUMBERS
    pictures = images(SHAPES, CANVAS)
    found, expected = (
        jax.tree.map(np.asarray, detector(model)[0](pictures, SHAPES))
        for model in (numbered, plain)
    )
    known = 0
    for i in range(len(SHAPES)):
        kept = expected["valid"][i] & np.isin(expected["classes"][i], outputs)
        count = kept.sum()
        known += count
        np.testing.assert_array_equal(found["valid"][i], np.arange(len(kept)) < count)
        classes = [list(outputs).index(n) for n in expected["classes"][i][kept]]
        np.testing.assert_array_equal(found["classes"][i][:count], classes)
        for key in set(found) - {"classes", "valid"}:
            np.testing.assert_array_equal(found[key][i][:count], expected[key][i][kept])
            assert not found[key][i][count:].any()
    assert 0 < known < expected["valid"].sum()


@pytest.mark.parametrize(("name", "first"), [("retinanet", 0), ("faster_rcnn", 1)])
def test_losses_are_those_of_the_outputs(name, first):
    numbered, plain, outputs = pair(name, first)
    given = targets((3, 2))
    moved = {**given, "classes": jnp.asarray(outputs)[given["classes"]]}
    sides = jnp.asarray(SHAPES, jnp.int32)

    @nnx.jit
    def losses(model, given):
        return model.losses(images(SHAPES, CANVAS), sides, given, rngs=nnx.Rngs(dropout=0))

    found, expected = losses(numbered, given), losses(plain, moved)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_what_the_numbers_may_be():
    for options, said in (
        (dict(class_numbers=(1, 11)), r"class_numbers is \(1, 11\); allowed: different numbers fr"),
        (
            dict(class_numbers=(0, 1)),
            "from 1 to 10, which its 10 outputs stand for; leave num_clas",
        ),
        (dict(class_numbers=(1, 1)), "num_classes=10 out, and the model has an output for each of"),
        (dict(class_numbers=()), r"class_numbers is \(\); allowed: None, or whole numbers"),
        (dict(class_numbers=(1.0,)), "allowed: None, or whole numbers"),
        (dict(numbered_from=2), "numbered_from is 2; allowed: None, 0, 1"),
    ):
        options = dict(num_classes=10, numbered_from=1) | options
        with pytest.raises(ValueError, match=said):
            nnx.eval_shape(lambda options=options: build("retinanet", **options))
    # as many outputs as classes: in their order
    own = build("retinanet", num_classes=3, numbered_from=1, class_numbers=(4, 7, 9))
    assert own.class_outputs is None and own.num_classes == 3


@pytest.mark.parametrize(
    ("name", "outputs"), [("retinanet", 91), ("faster_rcnn", 90), ("mask_rcnn", 90)]
)
def test_torchvisions_detectors_have_cocos_numbers(name, outputs):
    config = base.get_config()
    config.task, config.model.name = "detection", f"{name}_resnet50_torchvision"
    config.data.channels, config.detection.masks = 3, name == "mask_rcnn"

    def model(**options):
        made = models.builder_from_config(config, options)
        return nnx.eval_shape(lambda: made(rngs=nnx.Rngs(0)))

    own = model(**detection.model_options(COCO, config))
    assert own.num_classes == own.num_outputs == 80 and own.class_outputs is None
    config.model.num_classes = outputs
    scored = model(**detection.model_options(COCO, config))
    assert (scored.num_outputs, scored.num_classes) == (outputs, 80)
    # torchvision's labels: outputs of RetinaNet; of R-CNNs the background is 0
    labels = np.array(scored.class_outputs) + (name != "retinanet")
    assert labels.tolist() == list(COCO_NUMBERS)
    # of weights that name no classes, where there are no data
    alone = model()
    info = DataInfo({}, (), alone.class_numbers)
    names, numbers = detection_files.classes_of(info, alone.num_classes)
    person = int(name == "retinanet")
    assert (names[person], numbers[person]) == ("class 1", 1) and numbers[-1] == 90


def test_other_detectors_take_outputs_in_order():
    config = base.get_config()
    config.task, config.model.name = "detection", "small_retinanet"
    config.model.num_classes = 91
    made = models.builder_from_config(config, detection.model_options(COCO, config))
    model = nnx.eval_shape(lambda: made(rngs=nnx.Rngs(0)))
    assert model.num_classes == 91 and model.class_outputs is None


def test_it_is_said_by_what_outputs_are_taken(tmp_path, capsys):
    path = tmp_path / "of_others.safetensors"
    files.save_safetensors(path, {"a": np.zeros(1)})
    numbered = dict(num_classes=91, numbered_from=0, class_numbers=COCO_NUMBERS)
    for options, said in (
        (numbered, "by the numbers of the data's, 1 person, 2 c2, 3 c3, ..."),
        ({}, "in the order of the data's, person, c2, c3, ..."),
    ):
        model = nnx.eval_shape(lambda options=options: build("retinanet", **options))
        subject.say_order(sources.resolve(path), COCO, model)
        assert said in capsys.readouterr().out


def test_outputs_by_numbers_do_not_mind_the_order_of_the_data(tmp_path, capsys):
    turned = DataInfo({}, COCO.classes[::-1], COCO.class_ids[::-1])
    info_file.keep(turned, tmp_path, begins=True)
    numbered = dict(num_classes=91, numbered_from=0, class_numbers=COCO_NUMBERS)
    subject.check_classes(tmp_path, None, COCO, lambda: build("retinanet", **numbered))
    assert (
        "The data has other classes than the weights were trained with" in capsys.readouterr().out
    )
    with pytest.raises(ValueError, match="under other numbers"):
        subject.check_classes(tmp_path, None, COCO, lambda: build("retinanet", num_classes=80))


def test_a_file_of_torchvision_says_which_number_of_classes_it_has(tmp_path):
    whole = build("retinanet", num_classes=91, numbered_from=0)
    path = tmp_path / "model.safetensors"
    arrays = {
        name: np.asarray(array)
        for tree in state.split_model(whole)[1:]
        for name, array in state.flatten_names(tree).items()
    }
    files.save_safetensors(path, arrays, files.export_metadata({"name": "retinanet"}))
    data_classes = dict(num_classes=80, numbered_from=0)

    def read(**options):
        model = nnx.eval_shape(lambda: build("retinanet", **options))
        return weights.read_weights(path, model, *state.split_model(model)[1:])

    with pytest.raises(ValueError, match="its outputs go by the numbers of COCO.*num_classes=91 t"):
        read(**data_classes)
    with pytest.raises(ValueError, match="init_head=new") as error:
        read(num_classes=80)
    assert "COCO" not in str(error.value)
    read(num_classes=91, numbered_from=0, class_numbers=COCO_NUMBERS)
