"""Learning-rate schedules: a linear warm-up, then one of five shapes; whether one fits a run."""

from __future__ import annotations

from typing import Any

import optax

SCHEDULES = ("constant", "cosine", "step", "poly", "exponential")


def plan(train: Any, steps_per_epoch: float) -> tuple[int, float]:
    """Returns how long a run is: its steps, and how many of them count as an epoch wherever the
    config gives a time in epochs.

    The second is `steps_per_epoch`, unless `train.min_steps` or `train.max_steps` decides: then the
    run is train.epochs such epochs long, so that warm-up, evaluations and checkpoints keep their
    places in it.

    Args:
        train: the config's section; reads steps, epochs, min_steps and max_steps.
        steps_per_epoch: records of an epoch over the batch size.
    """
    if train.steps:
        return train.steps, steps_per_epoch
    wanted = max(round(train.epochs * steps_per_epoch), 1)
    total = max(min(wanted, train.max_steps or wanted), train.min_steps)
    return total, steps_per_epoch if total == wanted else total / train.epochs


def thaw_step(optim: Any, steps_per_epoch: float) -> int:
    """Returns the step from which all of the network learns; 0 where `optim.frozen_epochs` is 0."""
    return max(round(optim.frozen_epochs * steps_per_epoch), 1) if optim.frozen_epochs else 0


def make_schedule(optim: Any, *, total_steps: int, steps_per_epoch: float) -> optax.Schedule:
    r"""Builds step -> learning rate from the `optim` section of the config.

    With peak p, warm-up w steps from p b, cool-down c steps, total T, t the step counted from 0, o
    = w, or 0 with warmup_overlaps, and s = min((t - o) / (T - c - o), 1): warm-up p (b + (1 - b) t
    / w) for t < w; then constant p; cosine p (f + (1 - f) (1 + cos(pi s)) / 2); poly p (f + (1 - f)
    (1 - s)^power); step p rate^(number of step_epochs already passed, counted from the start of
    training); exponential p rate^floor((t - o) / every).

    Args:
        optim: `config.optim`; reads lr, schedule, warmup_epochs, warmup_start (b), warmup_overlaps,
            cooldown_epochs, final_lr (f), step_epochs, decay_rate, decay_epochs, poly_power.
        total_steps: T. A warm-up longer than the run lets the lr rise until the end; see
            `length_problems`.
        steps_per_epoch: turns epochs into steps.

    Returns:
        The schedule.

    Raises:
        ValueError: unknown schedule.
    """
    warmup, cooldown = (
        round(epochs * steps_per_epoch) for epochs in (optim.warmup_epochs, optim.cooldown_epochs)
    )
    begin = 0 if optim.warmup_overlaps else warmup  # the step at which the schedule's own time is 0
    remaining = max(total_steps - cooldown - begin, 1)
    if optim.schedule == "constant":
        main = optax.constant_schedule(optim.lr)
    elif optim.schedule == "cosine":
        main = optax.cosine_decay_schedule(optim.lr, remaining, alpha=optim.final_lr)
    elif optim.schedule == "poly":
        main = optax.polynomial_schedule(
            optim.lr, optim.lr * optim.final_lr, optim.poly_power, remaining
        )
    elif optim.schedule == "step":
        factors: dict[int, float] = {}
        for epoch in optim.step_epochs:  # epochs that round to one step decay once each
            boundary = round(epoch * steps_per_epoch) - begin
            factors[boundary] = factors.get(boundary, 1.0) * optim.decay_rate
        main = optax.piecewise_constant_schedule(optim.lr, factors)
    elif optim.schedule == "exponential":
        every = max(round(optim.decay_epochs * steps_per_epoch), 1)
        main = optax.exponential_decay(optim.lr, every, optim.decay_rate, staircase=True)
    else:
        raise ValueError(f"optim.schedule is {optim.schedule!r}; allowed: {', '.join(SCHEDULES)}")
    if warmup == 0:
        return main
    rise = optax.linear_schedule(optim.lr * optim.warmup_start, optim.lr, warmup)
    return optax.join_schedules([rise, lambda step: main(step + warmup - begin)], [warmup])


def length_problems(
    optim: Any, *, total_steps: int, steps_per_epoch: float, cut_short: bool
) -> list[str]:
    """Returns one text per part of the schedule that does not fit into the run.

    Args:
        optim: as for `make_schedule`.
        total_steps: of the run.
        steps_per_epoch: turns epochs into steps.
        cut_short: the run is a part of what its schedule was made for, so it may end inside the
            warm-up or before the first decay.
    """
    warmup, cooldown = (
        round(epochs * steps_per_epoch) for epochs in (optim.warmup_epochs, optim.cooldown_epochs)
    )
    rise = f"optim.warmup_epochs = {optim.warmup_epochs:g}: the warm-up of {warmup:,} steps"
    rest = f"optim.cooldown_epochs = {optim.cooldown_epochs:g}: the cool-down of {cooldown:,} steps"
    if warmup > total_steps:
        fix = "shorten it, lengthen the run, or set train.steps for a run that is cut short"
        return [] if cut_short else [f"{rise} is longer than the run; {fix}"]
    if cooldown >= total_steps:
        return [f"{rest} leaves no step of the run to the schedule; shorten it"]
    if cooldown and warmup + cooldown >= total_steps:
        return [f"{rise} and {rest} leave no step of the run between them; shorten one of them"]
    if cut_short:
        return []
    thaw = thaw_step(optim, steps_per_epoch)
    if thaw >= total_steps:
        fix = "shorten it; what shall never learn stands in optim.frozen"
        return [
            f"optim.frozen_epochs = {optim.frozen_epochs:g}: {thaw:,} steps, all of them; {fix}"
        ]
    begin = 0 if optim.warmup_overlaps else warmup
    fix = "set it to happen within the run, or choose optim.schedule = 'constant'"
    if optim.schedule == "step" and round(optim.step_epochs[0] * steps_per_epoch) >= total_steps:
        return [f"optim.step_epochs = {optim.step_epochs}: the first is the end of the run; {fix}"]
    if optim.schedule == "exponential":
        every = max(round(optim.decay_epochs * steps_per_epoch), 1)
        if begin + every >= total_steps:
            text = f"the first decay, {begin + every:,} steps from the start, is after the run"
            return [f"optim.decay_epochs = {optim.decay_epochs:g}: {text}; {fix}"]
        half = optim.decay_rate ** ((total_steps - begin) // 2 // every)
        if half < 1e-12:
            text = f"leaves {half:.0e} of the learning rate half-way through the run"
            return [
                f"optim.decay_rate = {optim.decay_rate:g}, optim.decay_epochs = "
                f"{optim.decay_epochs:g}: {text}; decay more slowly"
            ]
    return []
