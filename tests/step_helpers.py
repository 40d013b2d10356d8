"""The steps of classification for tests: its loss, and means in place of sums and weights."""

import jax

from lambdanet.tasks import classification
from lambdanet.training import step


def means(terms):
    """Name -> value of name -> (sum, weight)."""
    return {name: total / weight for name, (total, weight) in terms.items()}


def make_train_step(graphdef, tx, config, *, seed=0, schedule=None, mesh=None):
    """step(state, batch) -> (state, means)."""
    inner = step.make_train_step(
        graphdef, tx, config,
        loss=classification.loss, mix=classification.mix, seed=seed, schedule=schedule, mesh=mesh,
    )  # fmt: skip

    def one(state, batch):
        state, terms = inner(state, batch)
        return state, means(terms)

    return one


def make_eval_step(graphdef, config):
    """f(params, stats, batch) -> (sums, rows), compiled."""
    return jax.jit(step.make_eval_step(graphdef, config, score=classification.score))
