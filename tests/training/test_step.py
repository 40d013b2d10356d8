"""The steps: mixing, smoothing, accumulation, averages, frozen parameters, evaluation sums, names
of the state.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from covering import part
from flax import nnx
from step_helpers import make_eval_step, make_train_step

from configs import base
from lambdanet.data.record import DataInfo
from lambdanet.ops.images import normalise
from lambdanet.tasks import classification, mixing
from lambdanet.training import evaluate, optimizer, schedule, state, step

CLASSES = 7


@pytest.fixture(scope="module", autouse=True)
def quick_compilation():
    """Compiles without optimisation: these programs run once."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


class TinyNet(nnx.Module):
    """Convolution, optional batch norm, dropout, global pooling, linear head."""

    def __init__(self, *, norm: bool = True, dropout: float = 0.0, dtype=None, rngs: nnx.Rngs):
        self.conv = nnx.Conv(3, 8, (3, 3), dtype=dtype, rngs=rngs)
        self.norm = nnx.BatchNorm(8, dtype=dtype, rngs=rngs) if norm else None
        self.layers = nnx.List([nnx.Linear(8, 8, dtype=dtype, rngs=rngs)])
        self.dropout = nnx.Dropout(dropout)
        self.head = nnx.Linear(8, CLASSES, rngs=rngs)

    def __call__(self, x, *, rngs=None):
        x = self.conv(x)
        x = nnx.relu(self.norm(x) if self.norm is not None else x)
        x = self.dropout(nnx.relu(self.layers[0](x)), rngs=rngs)
        return self.head(x.mean((1, 2)))


def make_batch(size=12, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "image": jnp.asarray(rng.integers(0, 256, (size, 8, 8, 3)), jnp.uint8),
        "label": jnp.asarray(rng.integers(0, CLASSES, size), jnp.int32),
    }


MADE = {}


def set_up(train=None, optim=None, own=None, **net):
    """(config, state at the start, step, evaluation's graphdef), made once for all tests."""
    key = repr((train, optim, own, net))
    if key not in MADE:
        MADE[key] = made(train, optim, own, **net)
    return MADE[key]


def made(train, optim, own, **net):
    config = base.get_config()
    config.classification.label_smoothing = 0.0
    config.classification.update(own or {})
    config.train.update(train or {})
    config.optim.update(
        dict(
            name="sgd",
            lr=0.1,
            schedule="constant",
            warmup_epochs=0.0,
            weight_decay=0.0,
            no_decay=(),
        )
    )
    config.optim.update(optim or {})

    def build():
        return TinyNet(rngs=nnx.Rngs(0), **net)

    graphdef, graphdef_eval = state.views(build)
    lr = schedule.make_schedule(config.optim, total_steps=10, steps_per_epoch=5)
    tx = optimizer.make_optimizer(config.optim, lr, state.abstract_weights(build)[0])
    start = jax.jit(state.make_init(build, tx, ema=config.train.ema_decay > 0))()
    train_step = jax.jit(make_train_step(graphdef, tx, config, seed=3, schedule=lr))
    return config, start, train_step, graphdef_eval


def close(a, b, **tolerance):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, **(dict(rtol=1e-5, atol=1e-6) | tolerance)),
        a,
        b,
    )


def test_normalise():
    image = jnp.asarray([[[[0, 255, 51]]]], jnp.uint8)
    expected = [[[[-0.5 / 0.25, 0.4 / 0.5, 0.2 / 1.0]]]]
    close(normalise(image, (0.5, 0.6, 0.0), (0.25, 0.5, 1.0)), jnp.asarray(expected))


@pytest.mark.parametrize("small", [0, 20, 2**14])  # arrays joined for the norms: none, some, all
def test_step_is_one_sgd_step_on_the_smoothed_loss(monkeypatch, small):
    monkeypatch.setattr("lambdanet.training.step.SMALL", small)
    config, start, train_step, _ = set_up(own=dict(label_smoothing=0.2), norm=False)
    sizes = [leaf.size for leaf in jax.tree.leaves(start.params)]
    assert min(sizes) <= 20 < max(sizes) <= 2**14
    batch = make_batch()

    graphdef = nnx.graphdef(nnx.eval_shape(lambda: TinyNet(norm=False, rngs=nnx.Rngs(0))))

    @jax.jit
    @jax.value_and_grad
    def loss(params):
        logits = nnx.merge(graphdef, params)(batch["image"] / 127.5 - 1.0)
        target = 0.8 * jax.nn.one_hot(batch["label"], CLASSES) + 0.2 / CLASSES
        return -(target * jax.nn.log_softmax(logits)).sum(-1).mean()

    value, grads = loss(start.params)
    after, metrics = train_step(start, batch)
    norm = jax.jit(optax.tree.norm)
    moved = jax.tree.map(lambda p, g: np.asarray(p) - 0.1 * np.asarray(g), start.params, grads)
    close(after.params, moved)
    close(metrics["loss"], value)
    close(metrics["grad_norm"], norm(grads))
    close(metrics["update_norm"], 0.1 * norm(grads))
    close(metrics["param_norm"], norm(after.params))
    assert int(after.step) == 1 and float(metrics["lr"]) == pytest.approx(0.1)
    assert all(m.dtype == jnp.float32 and m.shape == () for m in metrics.values())


@pytest.mark.parametrize("mixing", part([False, True], [True]))
def test_accumulation_equals_the_full_batch_without_batch_norm(mixing):
    own = dict(mixup_alpha=0.8, cutmix_alpha=1.0) if mixing else {}
    batch = make_batch()
    _, start, whole, _ = set_up(own=own, norm=False)
    _, _, split, _ = set_up(own=own, train=dict(accumulate=3), norm=False)
    one, metrics = whole(start, batch)
    other, metrics_split = split(start, batch)
    close(one.params, other.params)
    close(metrics, metrics_split)


def test_batch_statistics_pass_through_all_micro_batches():
    batch = make_batch()
    _, start, split, _ = set_up(train=dict(accumulate=3))
    after, _ = split(start, batch)
    # Micro-batch i holds the rows i, i + 3, ...: three updates with momentum 0.99 each.
    conv = nnx.eval_shape(lambda: nnx.Conv(3, 8, (3, 3), rngs=nnx.Rngs(0)))
    nnx.update(conv, start.params["conv"])
    maps = np.asarray(jax.jit(lambda x: conv(normalise(x, (0.5,), (0.5,))))(batch["image"]))
    mean = np.zeros(8)
    for i in range(3):
        mean = 0.99 * mean + 0.01 * maps[i::3].mean((0, 1, 2))
    close(after.stats["norm"]["mean"], mean)


def test_ema_averages_weights_and_statistics_with_warmup():
    config, now, train_step, _ = set_up(train=dict(ema_decay=0.5, ema_warmup=True))
    expected = {"params": now.params, "stats": now.stats}
    for t in range(12):
        now, _ = train_step(now, make_batch(seed=t))
        decay = min(0.5, (1 + t) / (10 + t))
        live = {"params": now.params, "stats": now.stats}
        expected = jax.tree.map(lambda e, p, d=decay: d * e + (1 - d) * p, expected, live)
    close(now.ema, expected)
    assert float(step.ema_decay_at(jnp.asarray(0), 0.5, False)) == 0.5


def test_averages_that_are_off_take_no_memory():
    assert set_up()[1].ema == {}


def test_frozen_parameters_stay_and_leave_the_gradient_norm():
    batch = make_batch()
    _, start, train_step, _ = set_up(optim=dict(frozen=(r"(conv|layers|head)/.*",)))
    after, metrics = train_step(start, batch)
    for name in ("conv", "layers", "head"):
        jax.tree.map(np.testing.assert_array_equal, after.params[name], start.params[name])
    assert (after.params["norm"]["bias"] != start.params["norm"]["bias"]).any()
    close(metrics["grad_norm"], metrics["update_norm"] / 0.1)


def test_steps_depend_on_seed_and_step_only():
    _, start, train_step, _ = set_up(own=dict(mixup_alpha=0.2), dropout=0.5)
    batch = make_batch()
    first, again, later = (
        train_step(start, batch),
        train_step(start, batch),
        train_step(start.replace(step=start.step + 1), batch),
    )
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert float(first[1]["loss"]) != float(later[1]["loss"])


def test_bfloat16_keeps_float32_state_and_comes_close():
    batch = make_batch()
    _, start, exact, _ = set_up(norm=True)
    _, start16, fast, _ = set_up(norm=True, dtype=jnp.bfloat16)
    (_, metrics), (after16, metrics16) = exact(start, batch), fast(start16, batch)
    assert {leaf.dtype for leaf in jax.tree.leaves((after16.params, after16.stats))} == {
        jnp.dtype("float32")
    }
    close(metrics16["loss"], metrics["loss"], rtol=1e-2)


@pytest.mark.parametrize(
    ("alphas",), part([((1.0, 0.0),), ((0.0, 1.0),), ((0.4, 1.0),)], [((0.4, 1.0),)])
)
def test_mixing_maps(alphas):
    keys = jax.random.split(jax.random.key(0), 400)

    @jax.jit
    @jax.vmap
    def draw(key):
        options = dict(mixup_alpha=alphas[0], cutmix_alpha=alphas[1])
        return mixing.mixture_map(mixing.draw_mixture(key, 9, 13, **options), 9, 13)

    maps = np.asarray(draw(keys))
    assert maps.shape == (400, 9, 13) and maps.min() >= 0 and maps.max() <= 1
    flat = np.ptp(maps, axis=(1, 2)) == 0
    binary = np.isin(maps, (0.0, 1.0)).all((1, 2))
    if alphas[1] == 0:
        assert flat.all()
        assert (
            abs(maps.mean() - 0.5) < 0.05 and abs(maps[:, 0, 0].std() - 12**-0.5) < 0.03
        )  # Beta(1, 1) is uniform
    elif alphas[0] == 0:
        assert binary.all()
        inside = maps == 0
        boxes = [inside[i].any(1).sum() * inside[i].any(0).sum() for i in range(400)]
        assert list(inside.sum((1, 2))) == boxes  # one rectangle each
        assert 0.15 < inside.mean() < 0.4  # E[1 - lambda] = 1/2 before clipping at the border
    else:
        assert 0.4 < (flat & ~binary).mean() < 0.6  # the coin


def test_images_and_labels_are_mixed_with_the_neighbour_by_the_same_shares(monkeypatch):
    weights = (
        jnp.zeros((8, 8)).at[:3, 2:].set(1.0).at[3:, :4].set(0.25)
    )  # not a map that either method draws: any will do
    monkeypatch.setattr(mixing, "mixture_map", lambda *_: weights)
    _, start, train_step, _ = set_up(own=dict(cutmix_alpha=1.0, label_smoothing=0.1), norm=False)
    batch = make_batch(size=4)
    _, metrics = train_step(start, batch)
    image, label = np.asarray(batch["image"]) / 127.5 - 1.0, np.asarray(batch["label"])
    onehot, share = np.eye(CLASSES)[label], float(weights.mean())
    rows = [3, 0, 1, 2]  # row i meets row i - 1
    mixed = (
        np.asarray(weights)[..., None] * image + (1 - np.asarray(weights)[..., None]) * image[rows]
    )
    target = 0.9 * (share * onehot + (1 - share) * onehot[rows]) + 0.1 / CLASSES
    graphdef = nnx.graphdef(nnx.eval_shape(lambda: TinyNet(norm=False, rngs=nnx.Rngs(0))))

    @jax.jit
    def loss(params, image):
        logits = nnx.merge(graphdef, params)(image)
        return -(target * jax.nn.log_softmax(logits)).sum(-1).mean()

    close(metrics["loss"], loss(start.params, mixed.astype(np.float32)))


def test_evaluation_counts_unmasked_rows_only():
    config, start, _, graphdef = set_up()
    eval_step = make_eval_step(graphdef, config)
    batches, rows = [], 0
    for i, valid in enumerate((6, 6, 2)):
        batch = jax.tree.map(np.array, make_batch(6, seed=i))
        batch["mask"] = (np.arange(6) < valid).astype(np.float32)
        batch["label"][valid:] = -1  # what padding carries is nobody's business
        batch["id"] = np.arange(rows, rows + 6, dtype=np.int64) + 2**40
        batches.append(batch)
        rows += valid

    class Split(list):
        num_records = 16

    pair = (start.params, start.stats)
    found = evaluate.evaluate(eval_step, {"": pair, "ema_": pair}, Split(batches))
    assert (found.count, found.skipped) == (14, 2)
    result = found.metrics(
        lambda sums, rows: classification.finish(sums, rows, DataInfo({}, ()), config)
    )
    assert {f"ema_{k}": result[k] for k in classification.METRICS}.items() <= result.items()
    image = np.concatenate([b["image"] for b in batches])[:14]
    label = np.concatenate([b["label"] for b in batches])[:14]
    run = jax.jit(lambda params, x: nnx.merge(graphdef, params, start.stats)(x / 127.5 - 1.0))
    logits = np.asarray(run(start.params, image))
    order = np.argsort(-np.asarray(logits), axis=-1)
    assert result["accuracy"] == pytest.approx((order[:, 0] == label).mean())
    assert result["top5"] == pytest.approx((order[:, :5] == label[:, None]).any(1).mean())
    shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    losses = -np.log(shares[np.arange(14), label])
    assert result["loss"] == pytest.approx(float(losses.mean()), rel=1e-5)
    rows = found.rows[""]
    np.testing.assert_array_equal(rows["prediction"], order[:, 0])
    np.testing.assert_array_equal(rows["label"], label)
    np.testing.assert_array_equal(rows["id"], np.arange(14) + 2**40)
    close(rows["confidence"], shares.max(-1))
    # The first records as they were evaluated, for pictures.
    np.testing.assert_array_equal(found.examples["image"], image)
    np.testing.assert_array_equal(found.examples["id"], rows["id"])


def test_evaluation_counts_nan_logits_as_wrong_and_refuses_an_empty_split():
    config, start, _, graphdef = set_up()
    eval_step = make_eval_step(graphdef, config)
    broken = jax.tree.map(lambda p: p * jnp.nan, start.params)
    batch = jax.tree.map(np.array, make_batch(6)) | {
        "mask": np.ones(6, np.float32),
        "id": np.arange(6),
    }
    batch["label"][:] = 3
    found = evaluate.evaluate(eval_step, {"": (broken, start.stats)}, [batch])
    assert found.sums[""]["correct"] == 0 and found.sums[""]["top5"] == 0
    batch["mask"][:] = 0
    with pytest.raises(ValueError, match="no record"):
        evaluate.evaluate(eval_step, {"": (start.params, start.stats)}, [batch])


class Answers(nnx.Module):
    """Returns the logits it was made with, whatever the image."""

    def __init__(self, logits):
        self.logits = nnx.Param(jnp.asarray(logits, jnp.float32))

    def __call__(self, x, *, rngs=None):
        return self.logits[...]


@pytest.mark.parametrize(
    "logits, hits",
    [
        (np.zeros((8, 8)), (1, 5)),  # a collapsed model: the first classes win, as in torch.topk
        (np.full((8, 8), 3e38), (1, 5)),
        (np.full((8, 8), np.inf), (1, 5)),
        (np.full((8, 8), -np.inf), (1, 5)),
        (np.full((8, 8), np.nan), (0, 0)),
        (np.eye(8), (8, 8)),
        (np.where(np.arange(8) < 6, np.inf, 0.0) * np.ones((8, 1)), (1, 5)),
    ],
    ids=["equal", "saturated", "inf", "-inf", "nan", "right", "some inf"],
)
def test_ties_count_as_in_torch_topk(logits, hits):
    graphdef, params, stats = state.split_model(Answers(logits))
    batch = dict(image=np.zeros((8, 2, 2, 1), np.uint8), label=np.arange(8), mask=np.ones(8))
    sums, _ = make_eval_step(graphdef, base.get_config())(params, stats, batch)
    assert (int(sums["correct"]), int(sums["top5"])) == hits


def test_names_of_the_state_and_back():
    _, start, _, _ = set_up(train=dict(ema_decay=0.9))
    flat = state.flatten_names(start)
    assert {"step", "params/layers/0/kernel", "stats/norm/mean", "ema/stats/norm/var"} <= set(flat)
    assert any(
        name.startswith("opt_state/") and name.endswith("trace/conv/kernel") for name in flat
    )
    back = state.unflatten_names(flat, start)
    assert jax.tree.structure(back) == jax.tree.structure(start)
    jax.tree.map(np.testing.assert_array_equal, back, start)
    with pytest.raises(ValueError, match=r"missing: \['params/conv/bias'\]; not used: \['x'\]"):
        state.unflatten_names(
            {k: v for k, v in flat.items() if k != "params/conv/bias"} | {"x": 1}, start
        )
    with pytest.raises(ValueError, match="clash"):
        state.flatten_names({"a": {"b": 1}, "a/b": 2})
