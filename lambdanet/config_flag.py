"""The flags `--config` and `--config.KEY=VALUE`: a recipe and changes to it."""

from __future__ import annotations

import ast
import os
import re
import runpy
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from lambdanet.registry import is_number, show, suggest

HELP = (
    "recipe, a file of configs/ with an optional argument: configs/digits.py, "
    "configs/photos.py:cpu, configs/finetune.py:NAME (what a recipe takes stands at its top). "
    "--config.SECTION.KEY=VALUE changes any value of it, --config.optim.lr=1e-3 or "
    "--config.data.data_dir=DIR; all keys stand in configs/base.py with default and meaning, those "
    "of a model in `python eval.py --mode=describe --name=MODEL`"
)


class _PathParser(flags.ArgumentParser):
    """Knows the home directory by `~`, which shells leave alone behind a `=`."""

    def parse(self, argument: str) -> str:
        return os.path.expanduser(argument)


def define_path(name: str, text: str, *, many: bool = False, required: bool = False) -> None:
    """Defines a flag that is the path of a file or directory; left out it is None.

    Args:
        name: of the flag.
        text: for --help.
        many: it may be given several times; left out it is [].
        required: it may not be left out.
    """
    define, default = (flags.DEFINE_multi, []) if many else (flags.DEFINE, None)
    options = dict(serializer=flags.ArgumentSerializer(), module_name=sys.argv[0])
    define(_PathParser(), name=name, default=default, help=text, required=required, **options)


class ConfigFlag:
    """The flag `--config=FILE.py[:arg]` with its overrides `--config.section.key=value`.

    Not `config_flags.DEFINE_config_file`: that stops with a traceback at a misspelt section and at
    the first value of a wrong type, while `validate` shall report all of them together. So
    overrides are taken as text here and put into the config unchecked. Make one, at import, before
    flags are parsed.

    Args:
        default: the recipe when the flag is not given; None if there is none.
        module_name: the program whose --help shows the flag.
    """

    def __init__(self, default: str | None, module_name: str = sys.argv[0]):
        self._flag = flags.DEFINE_string("config", default, HELP, module_name=module_name)
        self._names = []
        for i, arg in enumerate(sys.argv[1:], 1):
            match = re.match(r"--?(no)?(config\.[^=]+)(=?)", arg)
            if match and match[2] not in self._names:
                following = sys.argv[i + 1] if i + 1 < len(sys.argv) else "-"
                alone = not match[3] and following.startswith(
                    "-"
                )  # `--config.a.b` or `--noconfig.a.b`
                define = flags.DEFINE_bool if match[1] or alone else flags.DEFINE_string
                define(match[2], None, f"overrides {match[2]}")
                self._names.append(match[2])

    @property
    def path(self) -> str | None:
        """The value of `--config` itself."""
        return self._flag.value

    @property
    def overrides(self) -> dict[str, str]:
        """The text given for each overridden key, by its path below the config."""
        return {name.partition(".")[2]: str(flags.FLAGS[name].value) for name in self._names}

    @property
    def value(self) -> ConfigDict:
        """The recipe's config with the overrides applied, not validated."""
        return apply_overrides(load_recipe(self.path), self.overrides)


def load_recipe(path: str) -> ConfigDict:
    """Returns `get_config(arg)` of a recipe file given as 'FILE.py' or 'FILE.py:arg'."""
    from lambdanet.config import ConfigError  # here, so that the flag alone starts no JAX

    name, colon, argument = path.partition(":")
    file, shown = Path(os.path.expanduser(name)), f"config = {show(path)}"
    try:
        found = file.is_file()
    except (OSError, ValueError) as error:  # too long, say
        raise ConfigError([f"{shown}: {error}"], "flags") from error
    if not found:
        near = sorted(str(p) for p in file.parent.glob("*.py") if p.stem != "__init__")
        there = f"{suggest(str(file), near)} Files there: {', '.join(near) or 'none'}"
        raise ConfigError([f"{shown}: no such file.{there}"], "flags")
    try:
        get_config = runpy.run_path(str(file))["get_config"]
        config = get_config(argument) if colon else get_config()
    except Exception as error:  # a recipe is any Python
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise ConfigError([f"{shown}: {kind}{error}"], "flags") from error
    if not isinstance(config, ConfigDict):
        what = f"get_config() gives {show(config)}; allowed: a ConfigDict, from configs.base"
        raise ConfigError([f"{shown}: {what}"], "flags")
    return config


def apply_overrides(config: ConfigDict, overrides: Mapping[str, str]) -> ConfigDict:
    """Puts the text of each override into a copy of the config, read as the type that the key has
    there.

    Values are Python literals ('3', '1e-3', '(1, 2)', "{'name': 'lambda'}", true, false, None);
    text that is no literal stays text, so that 'none' remains the name of an option. A single value
    for a tuple key becomes a tuple of one. Nothing is checked: `validate` reports unknown keys and
    wrong types.
    """
    from lambdanet.config import from_plain, to_plain  # see load_recipe

    plain = to_plain(config)
    for path, text in overrides.items():
        *sections, key = path.split(".")
        holder = plain
        for section in sections:
            inner = holder.get(section)
            if not isinstance(inner, dict):  # unknown, or a block given by its name alone
                inner = holder[section] = {"name": inner} if isinstance(inner, str) else {}
            holder = inner
        holder[key] = _parse_value(text, holder.get(key))
    return from_plain(plain)


def _parse_value(text: str, current: Any) -> Any:
    if isinstance(current, str):  # shells leave the ~ of --config.data.data_dir=~/x alone
        return os.path.expanduser(text) if text.startswith("~/") else text
    try:
        value = ast.literal_eval({"true": "True", "false": "False"}.get(text, text))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # no literal
        value = text
    if isinstance(current, float) and type(value) is int and is_number(value):
        return float(value)
    if isinstance(current, tuple) and not isinstance(value, tuple):
        return tuple(value) if isinstance(value, list) else (value,)
    return value
