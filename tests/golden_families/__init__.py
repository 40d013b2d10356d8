"""Builders of the golden harness: family -> builder, one file per group of families.

A builder takes a `golden_harness.Fixture` and returns `golden_harness.Ours`; it builds our module from the fixture's
`config` alone.
"""

from golden_families import lambda_functions, lambda_modules, timm_lambda

FAMILIES = {**lambda_modules.FAMILIES, **lambda_functions.FAMILIES, **timm_lambda.FAMILIES}
