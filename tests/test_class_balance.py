"""Classes of unlike size: weights in the loss, and results by class."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from sklearn import metrics as sklearn_metrics
from step_helpers import make_train_step

from configs import base
from lambdanet import data, tasks
from lambdanet.data.record import DataInfo
from lambdanet.tasks import class_balance, classification, classification_classes
from lambdanet.training import state as state_lib


class Logits(nnx.Module):
    """Logits that are the image's first pixels times a parameter."""

    def __init__(self):
        self.scale = nnx.Param(jnp.ones(3))

    def __call__(self, x, *, rngs=None):
        return x[:, 0, :3, 0] * self.scale[...]


def config_of(**own):
    config = base.get_config()
    config.data.mean, config.data.std = (0.0,), (1.0,)
    config.classification.update(own)
    return config


def batch_of(weights=(0.5, 2.0, 1.0)):
    images = np.random.default_rng(0).integers(0, 256, (6, 3, 3, 1)).astype(np.uint8)
    label = np.array([0, 1, 2, 1, 1, 0], np.int32)
    batch = {"image": images, "label": label, "weight": np.float32(weights)[label]}
    return {name: jnp.asarray(value) for name, value in batch.items()}


def log_probabilities(batch, image=None):
    image = batch["image"] if image is None else image
    return np.asarray(jax.nn.log_softmax(image[:, 0, :3, 0].astype(jnp.float32) / 255))


def test_the_loss_is_the_weighted_mean_of_pytorch():
    batch = batch_of()
    value, terms = classification.loss(Logits(), batch, config_of(label_smoothing=0.0), nnx.Rngs(0))
    weight = np.asarray(batch["weight"])
    own = -log_probabilities(batch)[np.arange(6), np.asarray(batch["label"])]
    np.testing.assert_allclose(value, (weight * own).sum() / weight.sum(), rtol=1e-6)
    np.testing.assert_allclose(terms["loss"], (value * weight.sum(), weight.sum()), rtol=1e-6)
    assert float(terms["accuracy"][1]) == 6


def test_weights_of_one_change_nothing():
    batch, config = batch_of((1.0, 1.0, 1.0)), config_of()
    weighted = classification.loss(Logits(), batch, config, nnx.Rngs(0))
    del batch["weight"]
    plain = classification.loss(Logits(), batch, config, nnx.Rngs(0))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), weighted, plain)


def test_each_label_of_a_mixed_image_has_its_own_weight():
    config = config_of(label_smoothing=0.0, mixup_alpha=1.0)
    batch = classification.mix(batch_of(), jax.random.key(1), config)
    value, _ = classification.loss(Logits(), batch, config, nnx.Rngs(0))
    share = float(batch["mixture"][0, 0])
    image = share * batch["image"] + (1 - share) * batch["partner_image"].astype(jnp.float32)
    found, total = 0.0, 0.0
    for name, part in (("", share), ("partner_", 1 - share)):
        weight = part * np.asarray(batch[f"{name}weight"])
        own = -log_probabilities(batch, image)[np.arange(6), np.asarray(batch[f"{name}label"])]
        found, total = found + (weight * own).sum(), total + weight.sum()
    np.testing.assert_allclose(value, found / total, rtol=1e-5)


def test_micro_batches_give_the_step_of_the_whole_batch():
    after = []
    for accumulate in (1, 3):
        config = config_of()
        config.train.accumulate = accumulate
        graphdef, params, stats = state_lib.split_model(Logits())
        tx = optax.sgd(0.1)
        state = state_lib.TrainState(jnp.zeros((), int), params, stats, tx.init(params), {})
        step = jax.jit(make_train_step(graphdef, tx, config))
        after.append(step(state, batch_of())[0].params["scale"])
    np.testing.assert_allclose(*after, rtol=1e-6)
    assert np.abs(after[0] - 1).min() > 1e-4


def test_balanced_weights():
    weights = class_balance.balanced_weights(np.array([10, 0, 30, 60]))
    np.testing.assert_allclose(weights, [100 / 30, 1, 100 / 90, 100 / 180])
    assert (weights * [10, 0, 30, 60]).sum() == pytest.approx(100)


def test_the_weights_of_a_prepared_set_reach_its_examples(tmp_path):
    config = base.get_config()
    config.data.data_dir, config.classification.class_weights = str(tmp_path), "balanced"
    config.data.train_split = "train[:37]"
    data.prepare_embedded(config.data)
    info = tasks.read_for_training(config)
    source = data.open_source(config.data, config.data.train_split, info.features)
    labels = [int(source.read(i).fields["label"]) for i in range(37)]
    counts = np.bincount(labels, minlength=10)
    np.testing.assert_array_equal(info.class_weights, class_balance.balanced_weights(counts))
    make = tasks.example_maker(config, info)
    drawn = make(source.read(0), np.random.default_rng(0))
    assert drawn["weight"] == np.float32(info.class_weights[labels[0]])
    assert "weight" not in make(source.read(0), None)


def test_one_class_alone_is_refused(tmp_path):
    with pytest.raises(ValueError, match="one class, 'cat'; training needs two or more"):
        classification.check_data(DataInfo({}, ("cat",)), base.get_config())
    config = base.get_config()
    config.data.data_dir, config.classification.class_weights = str(tmp_path), "balanced"
    config.data.train_split = "train[:1]"
    data.prepare_embedded(config.data)
    with pytest.raises(ValueError, match=r"all records of 'train\[:1\]' are of class '\d'"):
        tasks.read_for_training(config)


def test_metrics_by_class_are_those_of_scikit_learn():
    draw = np.random.default_rng(0)
    labels, predictions = draw.integers(0, 5, 200), draw.integers(0, 5, 200)
    predictions[:120] = labels[:120]
    found = classification_classes.class_metrics(labels, predictions, 5)
    wanted = sklearn_metrics.precision_recall_fscore_support(labels, predictions)
    for ours, theirs in zip((found[1], found[2], found[3], found[0]), wanted, strict=True):
        np.testing.assert_allclose(ours, theirs)


def test_the_table_of_classes():
    rows = {"label": np.array([0, 0, 0, 2]), "prediction": np.array([0, 0, 2, 2])}
    info = DataInfo({}, ("cat", "dog"))
    columns, lines, remark = classification.class_table({}, rows, info, base.get_config())
    assert columns == ("class", "images", "precision %", "recall %", "F1 %")
    assert lines == [
        ("cat", "3", "100.0", "66.7", "80.0"),
        ("dog", "0", "nan", "nan", "nan"),
        ("class 2", "1", "50.0", "100.0", "66.7"),
    ]
    assert "recall (balanced accuracy) 83.3 %" in remark
    columns, lines = classification.confusions({}, rows, info, base.get_config())
    assert columns == ("true", "predicted", "images", "of the true class")
    assert lines == [("cat", "class 2", "1", "33.3 %")]
