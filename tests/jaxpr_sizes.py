"""Sizes of the arrays that a traced function makes: what its memory cannot be below, whatever the
compiler does.
"""

import jax
from jax.extend.core import jaxprs_in_params


def largest_array(function, *arguments) -> int:
    """Traces `function` and returns the number of elements of its largest intermediate array."""
    return _largest(jax.make_jaxpr(function)(*arguments).jaxpr)


def _largest(jaxpr) -> int:
    sizes = [variable.aval.size for equation in jaxpr.eqns for variable in equation.outvars]
    inner = [_largest(sub) for equation in jaxpr.eqns for sub in jaxprs_in_params(equation.params)]
    return max(sizes + inner, default=0)
