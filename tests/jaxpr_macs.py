"""Multiply-adds that a traced function really does: of its matrix products and convolutions, loops
counted in full.
"""

import math

import jax


def jaxpr_macs(function, *arguments) -> int:
    """Traces `function` and returns the multiply-adds of its products and convolutions."""
    return _count(jax.make_jaxpr(function)(*arguments).jaxpr)


def _count(jaxpr) -> int:
    return sum(_equation(equation) for equation in jaxpr.eqns)


def _equation(equation) -> int:
    name = equation.primitive.name
    if name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        lhs = equation.invars[0].aval.shape
        return math.prod(equation.outvars[0].aval.shape) * math.prod(
            lhs[axis] for axis in contracted
        )
    if name == "conv_general_dilated":
        kernel, numbers = equation.invars[1].aval.shape, equation.params["dimension_numbers"]
        outputs = kernel[numbers.rhs_spec[0]]
        return math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) // outputs
    inner = [sub for value in equation.params.values() for sub in _jaxprs(value)]
    if name == "cond":
        return max((_count(sub) for sub in inner), default=0)
    return sum(_count(sub) for sub in inner) * (equation.params["length"] if name == "scan" else 1)


def _jaxprs(value):
    for entry in value if isinstance(value, (tuple, list)) else (value,):
        if hasattr(entry, "eqns"):
            yield entry
        elif hasattr(entry, "jaxpr"):
            yield entry.jaxpr
