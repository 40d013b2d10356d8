"""What a run is told at its start: the optimiser's groups, and what is allowed and yet unlikely to
be meant.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from flax import nnx

from lambdanet.interop import sources
from lambdanet.training import layer_groups, optimizer, weights
from lambdanet.training.state import split_model

LEFT = 0.1  # share of the initial statistics that may be left at the end of a run
USUAL = 0.9  # a run that is too short for this momentum is a trial

Published = Callable[[str], Mapping[str, Sequence[float]]]
"""A source of weights -> `mean` and `std` of its pictures; {} where they are not known."""


def tell_advice(
    say: Callable[[str], object],
    config: Any,
    model: nnx.Module,
    total_steps: int,
    *,
    begins: bool = False,
    published: Published = lambda source: {},
    held: Sequence[str] = (),
    thaw: int = 0,
) -> None:
    """Shows the table of the optimiser's groups, if not all parameters are treated alike,
    `norm_advice` and, where weights have just been read, `normalisation_advice`.

    Args:
        say: shows a text.
        config: the whole config; reads the sections optim, data and train.
        model: concrete or abstract.
        total_steps: of the run.
        begins: the run, and does not go on from a checkpoint.
        published: for `normalisation_advice`.
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
    source = config.train.init_weights if begins else ""
    for text in normalisation_advice(source, config.data, published) if source else ():
        say(text)


def normalisation_advice(
    source: str | os.PathLike | sources.Source, data: Any, published: Published = lambda source: {}
) -> list[str]:
    """Returns a text if weights have learnt from pictures of another normalisation than those that
    they are to see, of which nothing else would tell: a run starts and ends lower, and an
    evaluation gives lower numbers.

    Args:
        source: of the weights, see `weights.normalisation_of`.
        data: the config's section; reads mean and std.
        published: for sources that do not say it themselves.
    """
    theirs = weights.normalisation_of(source) or published(str(source))
    own = {name: tuple(data[name]) for name in theirs}
    # one value serves all channels
    if all(np.allclose(*np.broadcast_arrays(own[name], theirs[name]), atol=1e-3) for name in own):
        return []
    listed = " and ".join(f"data.{name}={own[name]}" for name in own)
    fix = " ".join(f"--config.data.{name}='{tuple(theirs[name])}'" for name in own)
    return [
        f"warning: the pictures have {listed}, and those that {source} learnt from had others; "
        f"unless that is meant, give {fix}"
    ]


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
