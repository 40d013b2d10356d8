"""Learning-rate schedules: a linear warm-up, then one of five shapes."""

from __future__ import annotations

from typing import Any

import optax

SCHEDULES = ("constant", "cosine", "step", "poly", "exponential")


def make_schedule(optim: Any, *, total_steps: int, steps_per_epoch: int) -> optax.Schedule:
    r"""Builds step -> learning rate from the `optim` section of the config.

    With peak p, warm-up w steps from p b, cool-down c steps, total T, t the step counted from 0, o
    = w, or 0 with warmup_overlaps, and s = min((t - o) / (T - c - o), 1): warm-up p (b + (1 - b) t
    / w) for t < w; then constant p; cosine p (f + (1 - f) (1 + cos(pi s)) / 2); poly p (f + (1 - f)
    (1 - s)^power); step p rate^(number of step_epochs already passed, counted from the start of
    training); exponential p rate^floor((t - o) / every).

    Args:
        optim: `config.optim`; reads lr, schedule, warmup_epochs, warmup_start (b), warmup_overlaps,
            cooldown_epochs, final_lr (f), step_epochs, decay_rate, decay_epochs, poly_power.
        total_steps: T. A warm-up as long as the run or longer is legal: then the lr rises until the
            end.
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
        boundaries = [round(epoch * steps_per_epoch) - begin for epoch in optim.step_epochs]
        main = optax.piecewise_constant_schedule(
            optim.lr, {b: optim.decay_rate for b in boundaries}
        )
    elif optim.schedule == "exponential":
        every = max(round(optim.decay_epochs * steps_per_epoch), 1)
        main = optax.exponential_decay(optim.lr, every, optim.decay_rate, staircase=True)
    else:
        raise ValueError(f"optim.schedule is {optim.schedule!r}; allowed: {', '.join(SCHEDULES)}")
    if warmup == 0:
        return main
    rise = optax.linear_schedule(optim.lr * optim.warmup_start, optim.lr, warmup)
    return optax.join_schedules([rise, lambda step: main(step + warmup - begin)], [warmup])
