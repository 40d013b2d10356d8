"""Builders of the golden harness: family -> builder, one file per group of families, found by
themselves.

A builder takes a `golden_harness.Fixture` and returns `golden_harness.Ours`; it builds our module
from the fixture's `config` alone. Every module here has a table FAMILIES.
"""

import importlib
import pkgutil

FAMILIES = {}
for _info in pkgutil.iter_modules(__path__):
    for _family, _builder in importlib.import_module(f"{__name__}.{_info.name}").FAMILIES.items():
        if _family in FAMILIES:
            raise ValueError(f"the family {_family!r} has two builders")
        FAMILIES[_family] = _builder
