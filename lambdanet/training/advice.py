"""What a run is told at its start: the optimiser's groups, and what is allowed and yet unlikely to
be meant.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from flax import nnx

from lambdanet.training import layer_groups, optimizer
from lambdanet.training.state import split_model

LEFT = 0.1  # share of the initial statistics that may be left at the end of a run
USUAL = 0.9  # a run that is too short for this momentum is a trial


def tell_advice(
    say: Callable[[str], object],
    config: Any,
    model: nnx.Module,
    total_steps: int,
    *,
    held: Sequence[str] = (),
    thaw: int = 0,
) -> None:
    """Shows the table of the optimiser's groups, if not all parameters are treated alike, and
    `norm_advice`.

    Args:
        say: shows a text.
        config: the whole config; reads the section optim.
        model: concrete or abstract.
        total_steps: of the run.
        held: regexes of what is frozen before step `thaw`; see `optimizer.make_optimizer`.
        thaw: 0 = nothing is.
    """
    optim = config.optim
    if optim.layer_decay != 1 or optim.lr_multipliers or optim.frozen or thaw:
        params = split_model(model)[1]
        factors = optimizer.rate_factors(optim, params)
        say(layer_groups.table(optim, params, factors, held=held, thaw=thaw))
    for text in norm_advice(model, total_steps, optim.frozen):
        say(text)


def norm_advice(model: nnx.Module, total_steps: int, frozen: Sequence[str] = ()) -> list[str]:
    """Returns a text for each momentum of batch norms whose running statistics, which decay by it
    in every step, hold more than a tenth of what they began with when the run ends: evaluation,
    which reads them, then sees another network than training does.

    Args:
        model: concrete or abstract.
        total_steps: of the run.
        frozen: regexes of paths; norms whose statistics match keep them on purpose.
    """
    slow: dict[float, int] = {}
    for path, module in nnx.iter_modules(model):
        mean = "/".join(map(str, (*path, "mean")))
        if not isinstance(module, nnx.BatchNorm) or any(re.fullmatch(r, mean) for r in frozen):
            continue
        momentum = float(module.momentum)
        if momentum > USUAL and momentum**total_steps > LEFT:
            slow[momentum] = slow.get(momentum, 0) + 1
    texts = []
    for momentum, count in sorted(slow.items()):
        need = math.ceil(math.log(LEFT) / math.log(momentum))
        most = max(math.floor(LEFT ** (1 / total_steps) * 1e4) / 1e4, USUAL)
        texts.append(
            f"warning: {count} batch norms have momentum {momentum:g}: after {total_steps:,} steps "
            f"their running statistics are still {momentum**total_steps:.0%} what they began with, "
            f"and evaluation reads these. Set model.norm_momentum=0.9 (at most {most:g} for this "
            f"run), or train for {need:,} steps or more."
        )
    return texts
