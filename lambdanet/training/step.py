"""The training and evaluation steps: pure functions of (state, batch), jitted by the caller."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, UInt8

from lambdanet.config_checks import auxiliary_problems
from lambdanet.training.mesh import AXES
from lambdanet.training.optimizer import match_mask
from lambdanet.training.state import TrainState


def normalise(
    image: UInt8[Array, "b h w c"], mean: tuple[float, ...], std: tuple[float, ...]
) -> Float[Array, "b h w c"]:
    """Maps uint8 images to float32: (image / 255 - mean) / std, per channel (one value serves all
    channels).
    """
    scaled = image.astype(jnp.float32) / 255.0
    return (scaled - jnp.asarray(mean, jnp.float32)) / jnp.asarray(std, jnp.float32)


def mix_weights(
    key: jax.Array, height: int, width: int, *, mixup_alpha: float, cutmix_alpha: float
) -> Float[Array, "h w"]:
    """Draws the weight of the own image at each pixel; the partner image gets the rest. One draw
    serves a whole batch.

    mixup (Zhang et al. 2018): lambda ~ Beta(alpha, alpha) everywhere. cutmix (Yun et al. 2019): 0
    inside a box of area 1 - lambda around a uniform centre, clipped at the border, and 1 outside.
    With both on, a fair coin picks one. The label weight is the mean of the map, which is lambda
    for mixup and the exact share of pixels for cutmix.

    Args:
        key: random key.
        height: pixels.
        width: pixels.
        mixup_alpha: 0 = off.
        cutmix_alpha: 0 = off; both off gives ones.
    """
    coin, up, cut, row, column = jax.random.split(key, 5)
    maps = []
    if mixup_alpha:
        maps.append(
            jnp.broadcast_to(jax.random.beta(up, mixup_alpha, mixup_alpha), (height, width))
        )
    if cutmix_alpha:
        half = jnp.sqrt(1.0 - jax.random.beta(cut, cutmix_alpha, cutmix_alpha)) / 2
        rows = jnp.abs(jnp.arange(height) - jax.random.randint(row, (), 0, height)) < half * height
        columns = (
            jnp.abs(jnp.arange(width) - jax.random.randint(column, (), 0, width)) < half * width
        )
        maps.append(1.0 - (rows[:, None] & columns[None, :]))
    if len(maps) == 2:
        return jnp.where(jax.random.bernoulli(coin), maps[0], maps[1])
    return maps[0] if maps else jnp.ones((height, width))


def soft_targets(
    label: Int[Array, " b"], num_classes: int, smoothing: float
) -> Float[Array, "b classes"]:
    """One-hot targets with label smoothing: 1 - s + s / classes for the class, s / classes
    elsewhere.
    """
    return (
        jax.nn.one_hot(label, num_classes, dtype=jnp.float32) * (1.0 - smoothing)
        + smoothing / num_classes
    )


def ema_decay_at(step: jax.Array, decay: float, warmup: bool) -> jax.Array:
    """Decay of the moving average at a step counted from 0: min(decay, (1 + step) / (10 + step))
    while warming up.
    """
    step = step.astype(jnp.float32)
    return (
        jnp.minimum(decay, (1.0 + step) / (10.0 + step))
        if warmup
        else jnp.asarray(decay, jnp.float32)
    )


def make_train_step(
    graphdef: nnx.GraphDef,
    tx: optax.GradientTransformation,
    config: Any,
    *,
    num_classes: int,
    seed: int,
    schedule: optax.Schedule | None = None,
    mesh: Mesh | None = None,
) -> Callable[[TrainState, dict], tuple[TrainState, dict]]:
    """Builds the training step; jit it once with `donate_argnums=0`.

    All randomness comes from fold_in(seed, state.step), so a step is a pure function of its
    arguments and a resume is exact.

    Args:
        graphdef: training view of the model; it maps [b, h, w, c] and `rngs` to logits [b,
            classes]. With `train.auxiliary_losses` it also takes `return_auxiliary=True` and then
            returns (logits, name -> scalar).
        tx: the optimiser.
        config: the whole config; reads data.mean, data.std, optim.frozen and the `train` section.
        num_classes: of the labels.
        seed: of dropout and mixing.
        schedule: adds 'lr' to the metrics; None leaves it out.
        mesh: keeps micro-batches spread over all devices; None = one device.

    Returns:
        step(state, batch) -> (state, metrics): batch {'image': uint8 [b, h, w, c], 'label': int32
        [b]}; metrics are float32
        scalars: loss (with smoothing and mixing) and accuracy (against the unmixed label) of the
            weights before the update,
        grad_norm before clipping, update_norm, param_norm after the update, lr. With auxiliary
        losses, loss is the sum that is minimised, cross entropy plus weight times term;
        cross_entropy and auxiliary_NAME of every term, without its weight, stand beside it.

    Raises:
        ValueError: when traced, an auxiliary loss that the model does not have.
    """
    train, own, accumulate = config.train, config.classification, config.train.accumulate
    mixing = bool(own.mixup_alpha or own.cutmix_alpha)

    def loss_and_aux(params, stats, batch, weights, key):
        image = normalise(batch["image"], config.data.mean, config.data.std)
        target = soft_targets(batch["label"], num_classes, own.label_smoothing)
        if mixing:
            partner = normalise(batch["partner_image"], config.data.mean, config.data.std)
            image = partner + weights[:, :, None] * (image - partner)
            other = soft_targets(batch["partner_label"], num_classes, own.label_smoothing)
            target = other + weights.mean() * (target - other)
        # Frozen parameters: no backward pass through them, and no part in the gradient norm.
        frozen = match_mask(config.optim.frozen, params)
        params = jax.tree.map(lambda p, f: jax.lax.stop_gradient(p) if f else p, params, frozen)
        model = nnx.merge(graphdef, params, stats)
        rngs, terms = nnx.Rngs(dropout=key), {}
        if train.auxiliary_losses:
            if problems := auxiliary_problems(train.auxiliary_losses, model):
                raise ValueError("; ".join(problems))
            logits, terms = model(image, return_auxiliary=True, rngs=rngs)
        else:
            logits = model(image, rngs=rngs)
        logits = logits.astype(jnp.float32)
        loss = optax.softmax_cross_entropy(logits, target).mean()
        shown = {"accuracy": (logits.argmax(-1) == batch["label"]).mean(dtype=jnp.float32)}
        if train.auxiliary_losses:
            shown["cross_entropy"] = loss
        for name, weight in train.auxiliary_losses:
            term = shown[f"auxiliary_{name}"] = terms[name].astype(jnp.float32)
            loss = loss + weight * term
        return loss, (nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)), {"loss": loss, **shown})

    gradient = jax.value_and_grad(loss_and_aux, has_aux=True)

    def over_micro_batches(state: TrainState, batch, weights, key):
        # Rows i, i + accumulate, ... form micro-batch i: each device splits its own rows, and
        # nothing moves between devices.
        batch = jax.tree.map(
            lambda a: a.reshape(-1, accumulate, *a.shape[1:]).swapaxes(0, 1), batch
        )
        if mesh is not None:
            spread = NamedSharding(mesh, PartitionSpec(None, AXES))
            batch = jax.lax.with_sharding_constraint(batch, spread)

        def body(carry, micro):
            index, rows = micro
            sums, stats = carry
            (_, (stats, shown)), grads = gradient(
                state.params, stats, rows, weights, jax.random.fold_in(key, index)
            )
            return (jax.tree.map(jnp.add, sums, (shown, grads)), stats), None

        terms = (
            ("cross_entropy", *(f"auxiliary_{name}" for name, _ in train.auxiliary_losses))
            if train.auxiliary_losses
            else ()
        )
        zeros = (
            {n: jnp.zeros(()) for n in ("loss", "accuracy", *terms)},
            jax.tree.map(jnp.zeros_like, state.params),
        )
        (sums, stats), _ = jax.lax.scan(body, (zeros, state.stats), (jnp.arange(accumulate), batch))
        return *jax.tree.map(lambda s: s / accumulate, sums), stats

    def step(
        state: TrainState, batch: dict[str, jax.Array]
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        # A stream of its own, apart from the initialisation's, which also starts from the seed.
        stream = jax.random.fold_in(jax.random.key(seed), 0x57E9)
        mix_key, dropout_key = jax.random.split(jax.random.fold_in(stream, state.step))
        weights = None
        if mixing:
            height, width = batch["image"].shape[1:3]
            weights = mix_weights(
                mix_key, height, width, mixup_alpha=own.mixup_alpha, cutmix_alpha=own.cutmix_alpha
            )
            # The partner is the neighbour in the shuffled batch; taken as uint8 and before
            # splitting, so that accumulation gives the same pairs.
            batch = batch | {f"partner_{k}": jnp.roll(v, 1, axis=0) for k, v in batch.items()}
        if accumulate == 1:
            (_, (stats, shown)), grads = gradient(
                state.params, state.stats, batch, weights, dropout_key
            )
        else:
            shown, grads, stats = over_micro_batches(state, batch, weights, dropout_key)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema:
            decay = ema_decay_at(state.step, train.ema_decay, train.ema_warmup)
            ema = optax.incremental_update({"params": params, "stats": stats}, ema, 1.0 - decay)
        metrics = {
            **shown,
            "grad_norm": optax.tree.norm(grads),
            "update_norm": optax.tree.norm(updates),
            "param_norm": optax.tree.norm(params),
        }
        if schedule is not None:
            metrics["lr"] = schedule(state.step)
        metrics = jax.tree.map(lambda m: jnp.asarray(m, jnp.float32), metrics)
        return TrainState(state.step + 1, params, stats, opt_state, ema), metrics

    return step


def make_eval_step(
    graphdef: nnx.GraphDef, config: Any, num_classes: int
) -> Callable[[dict, dict, dict], dict]:
    """Builds the evaluation step; jit it once.

    Args:
        graphdef: evaluation view of the model.
        config: the whole config; reads data.mean and data.std.
        num_classes: the width the logits must have.

    Returns:
        f(params, stats, batch) with batch {'image', 'label', 'mask' float32 [b]} -> dict of float32
        sums over rows with mask 1 (loss_sum: cross entropy without smoothing; correct_sum;
        top5_sum; count), 'prediction' int32 [b], 'confidence' float32 [b] (softmax of the
        prediction) and 'logits' float32 [b, classes].
    """

    def evaluate(params: dict, stats: dict, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        image = normalise(batch["image"], config.data.mean, config.data.std)
        logits = nnx.merge(graphdef, params, stats)(image).astype(jnp.float32)
        if logits.shape[-1] != num_classes:
            raise ValueError(
                f"the model has {logits.shape[-1]} classes, the data has {num_classes}"
            )
        label, mask = batch["label"], batch["mask"].astype(jnp.float32)
        # Padding rows may carry any label; 0 keeps the lookups below in range and their mask is 0.
        label = jnp.where(mask > 0, label, 0)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, label)
        own = jnp.take_along_axis(logits, label[:, None], axis=-1)
        # "Not smaller or equal" instead of "greater": a row of NaN counts as wrong.
        rank = jnp.sum(~(logits <= own), axis=-1)
        prediction = logits.argmax(-1).astype(jnp.int32)
        return {
            "loss_sum": jnp.sum(jnp.where(mask > 0, loss, 0.0)),
            "correct_sum": jnp.sum((prediction == label) * mask),
            "top5_sum": jnp.sum((rank < 5) * mask),
            "count": jnp.sum(mask),
            "prediction": prediction,
            "confidence": jax.nn.softmax(logits).max(axis=-1),
            "logits": logits,
        }

    return evaluate
