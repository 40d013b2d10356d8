"""Configuration: the `--config` flag, the check of every value before any device work, and
config.json in the workdir.

The schema is `configs/base.py`: its keys are the only ones allowed, its values fix the types. The
section `model` is open: its keys are options of the model named there and are checked against that
model's signature.
"""

from __future__ import annotations

import difflib
import inspect
import json
import os
import tempfile
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from lambdanet.attention import registry as attention_registry
from lambdanet.config_checks import CHECKS, CROSS_CHECKS, PATH_CHECKS, auxiliary_problems, is_number
from lambdanet.registry import Registry, suggest

FILE_NAME = "config.json"
OPEN_SECTION = "model"


class ConfigError(ValueError):
    """A config, flag or path that cannot work; the message lists every problem found, with the
    allowed values.
    """

    def __init__(self, problems: list[str], what: str = "config"):
        self.problems = problems
        plural = "problem" if len(problems) == 1 else "problems"
        lines = [f"  {i}. {p}" for i, p in enumerate(problems, 1)]
        super().__init__(f"{what}: {len(problems)} {plural}\n" + "\n".join(lines))


# --------------------------------------------------------------------------------------------------
# Validation
# --------------------------------------------------------------------------------------------------


def validate(
    config: ConfigDict,
    schema: ConfigDict,
    model_registry: Registry,
    *,
    build: Callable[[], Any] | None = None,
    workdir: str | os.PathLike | None = None,
    check_paths: bool = True,
    resumes: bool = False,
) -> None:
    """Checks a config before any device work and reports every problem at once.

    Args:
        config: the final config, overrides applied.
        schema: `configs.base.get_config()`: the allowed keys and their types.
        model_registry: the registry that `config.model.name` is looked up in.
        build: builds the model without allocating it (`nnx.eval_shape`); called only when
            everything else about the model is right, so that its own complaints (heads that do not
            divide) join the report. What it returns is asked for the names of its auxiliary losses.
        workdir: also check that this directory can be written to.
        check_paths: data directories and label files must exist; False where no data is read (model
            summary, export).

    Raises:
        ConfigError: with one line per problem: key, value, what is allowed, the nearest valid name.
    """
    problems: list[str] = []
    failed: set[str] = set()  # keys that must not take part in checks over several keys

    def add(key: str, text: str) -> None:
        problems.append(text)
        failed.add(key)

    values = dict(_leaves(config))
    allowed = dict(_leaves(schema))
    for key, value in values.items():
        if key not in allowed:
            add(key, f"{key} = {value!r}: no such key.{_suggest_key(key, list(allowed))}")
    for key, default in allowed.items():
        if key not in values:
            if any(v.startswith(key + ".") for v in values):
                continue  # a section stands where a value belongs: its keys are reported above
            add(key, f"{key}: missing; the default is {default!r}")
            continue
        value = values[key]
        expected = _expected_type(value, default)
        if expected:
            add(key, f"{key} = {value!r}: must be {expected}, not {type(value).__name__}")
        elif key in CHECKS and not CHECKS[key][0](value):
            names = CHECKS[key][1]
            text = (
                names
                if isinstance(names, str)
                else f"one of {', '.join(map(repr, names))}.{suggest(value, names)}"
            )
            add(key, f"{key} = {value!r}: must be {text}")
    for keys, holds, text in CROSS_CHECKS + (PATH_CHECKS if check_paths else ()):
        if resumes and keys == ("train.init_weights",):  # only the start reads it
            continue
        if not failed.intersection(keys) and not holds(config):
            problems.append(f"{', '.join(f'{k} = {values[k]!r}' for k in keys)}: {text}")

    model_problems = _check_model(config, model_registry)
    data_failed = failed & {"data.channels", "data.image_size"}
    if build is not None and not model_problems and not data_failed:
        try:
            model = build()
            if "train.auxiliary_losses" not in failed:
                problems += auxiliary_problems(config.train.auxiliary_losses, model)
        except (ValueError, TypeError) as error:
            model_problems.append(f"model '{config.model.name}' cannot be built: {error}")
    problems += model_problems
    if workdir is not None:
        try:
            check_workdir(workdir)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)


def check_workdir(workdir: str | os.PathLike) -> None:
    """Creates the workdir if needed and checks that it can be written to; raises ConfigError."""
    if not str(workdir):
        raise ConfigError(["workdir = '': name a directory with --workdir=DIR"], "workdir")
    try:
        Path(workdir).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=workdir):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(
            [
                f"workdir = {str(workdir)!r}: cannot be written to ({reason}); name another with "
                "--workdir=DIR"
            ],
            "workdir",
        ) from error


def _expected_type(value: Any, default: Any) -> str:
    """Returns '' if `value` has the type of `default`, otherwise the type in words."""
    if isinstance(default, bool):
        return "" if isinstance(value, bool) else "true or false"
    if isinstance(default, int):
        return "" if isinstance(value, int) and not isinstance(value, bool) else "an integer"
    if isinstance(default, float):
        return "" if is_number(value) else "a finite number"
    if isinstance(default, str):
        return "" if isinstance(value, str) else "text"
    if not isinstance(value, tuple):
        return f"a tuple such as {default!r}"
    if not default:
        return ""  # nothing to compare with: CHECKS has the rule
    whole = all(isinstance(x, int) for x in default)
    wrong = [
        x
        for x in value
        if _expected_type(x, default[0] if whole or isinstance(default[0], str) else 0.0)
    ]
    return f"a tuple such as {default!r}; {wrong[0]!r} does not belong there" if wrong else ""


def _leaves(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields ('a.b', value) of every key outside the open section."""
    for key, value in config.items():
        if prefix + key == OPEN_SECTION and isinstance(value, (ConfigDict, dict)):
            continue
        if isinstance(value, (ConfigDict, dict)):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _suggest_key(key: str, known: list[str]) -> str:
    """The nearest key: a similar one in the same section, the same last part anywhere, then a
    similar path.
    """
    section, _, last = key.rpartition(".")
    siblings = {k.rpartition(".")[2]: k for k in known if k.rpartition(".")[0] == section}
    initials = "".join(word[:1] for word in last.split("_"))  # learning_rate: lr
    close = [siblings[initials]] if initials in siblings else []
    close += [siblings[c] for c in difflib.get_close_matches(last, siblings, n=1, cutoff=0.5)]
    close += [k for k in known if k.rpartition(".")[2] == last]
    close += difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return (
        f" Did you mean '{close[0]}'?"
        if close
        else f" Keys there: {', '.join(siblings)}"
        if siblings
        else ""
    )


def _check_model(config: ConfigDict, registry: Registry) -> list[str]:
    if not isinstance(config.get(OPEN_SECTION), (ConfigDict, dict)):
        return [f"model = {config.get(OPEN_SECTION)!r}: must be a section with the key 'name'"]
    options = to_plain(config[OPEN_SECTION])
    name = options.pop("name", None)
    if not isinstance(name, str):
        return [f"model.name = {name!r}: must be one of {', '.join(registry.names())}"]
    try:
        _, preset = registry.lookup(name)
    except ValueError as error:
        return [f"model.name = {name!r}: {error}"]
    problems = _check_options("model", registry, name, options)
    specs = options.get("attention")
    for spec in specs if isinstance(specs, tuple) else (specs,):
        if isinstance(spec, dict) and "name" not in spec:
            own = preset.get("attention")
            whole = {
                "name": own if isinstance(own, str) else "...",
                **(own if isinstance(own, dict) else {}),
                **spec,
            }
            problems.append(
                f"model.attention = {spec!r}: has no 'name' "
                f"({', '.join(attention_registry.names())}); an option is "
                f'changed by giving the whole: --config.model.attention="{whole}"'
            )
        elif isinstance(spec, (str, dict)):
            block = dict(spec) if isinstance(spec, dict) else {"name": spec}
            block_name = block.pop("name")
            try:
                attention_registry.lookup(block_name)
            except ValueError as error:
                problems.append(f"model.attention = {block_name!r}: {error}")
            else:
                problems += _check_options("model.attention", attention_registry, block_name, block)
    return problems


def _check_options(where: str, registry: Registry, name: str, options: dict[str, Any]) -> list[str]:
    """Unknown options of a registered factory, and values that its annotations rule out."""
    problems = []
    declared = registry.parameters(name)
    for option, value in options.items():
        try:
            registry.check_options(name, {option: value})
        except ValueError as error:
            problems.append(f"{where}.{option} = {value!r}: {error}")
            continue
        annotation = declared[option].annotation
        if annotation is not inspect.Parameter.empty and not _fits(value, annotation):
            text = (
                annotation.__name__
                if isinstance(annotation, type)
                else str(annotation).replace("typing.", "")
            )
            problems.append(
                f"{where}.{option} = {value!r} ({type(value).__name__}): must be {text}"
            )
    return problems


def _fits(value: Any, annotation: Any) -> bool:
    """Whether a plain config value can be what an annotation says; annotations of other kinds
    accept anything.
    """
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, a) for a in args)
    if origin is typing.Literal:
        return value in args
    if annotation in (None, types.NoneType):
        return value is None
    if annotation is bool or annotation is str:
        return isinstance(value, annotation)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if annotation is float:
        return is_number(value)
    if annotation is tuple or origin is tuple:
        if not isinstance(value, (tuple, list)):
            return False
        if len(args) == 2 and args[1] is Ellipsis:
            return all(_fits(v, args[0]) for v in value)
        return not args or (
            len(args) == len(value) and all(_fits(v, a) for v, a in zip(value, args, strict=True))
        )
    if annotation in (dict, Mapping) or origin in (dict, Mapping):
        return isinstance(value, (dict, ConfigDict))
    return True


# --------------------------------------------------------------------------------------------------
# config.json
# --------------------------------------------------------------------------------------------------


def to_plain(value: Any) -> Any:
    """Returns the config as plain dicts, with tuples where it has tuples or lists."""
    if isinstance(value, (ConfigDict, dict)):
        return {k: to_plain(v) for k, v in value.items()}
    return tuple(to_plain(v) for v in value) if isinstance(value, (tuple, list)) else value


def to_json(config: ConfigDict) -> str:
    """Returns the config as JSON text."""
    return json.dumps(to_plain(config), indent=2) + "\n"


def from_json(text: str, schema: ConfigDict) -> ConfigDict:
    """Returns the config that `to_json` wrote.

    Every list is a tuple again (configs hold no lists); keys that the schema has gained since get
    their default.
    """

    def merge(into: ConfigDict, values: dict) -> None:
        for key, value in values.items():
            if isinstance(value, dict) and isinstance(into.get(key), ConfigDict):
                merge(into[key], value)
            else:
                into[key] = (
                    float(value) if type(value) is int and type(into.get(key)) is float else value
                )

    config = schema.copy_and_resolve_references()
    config.unlock()
    with config.ignore_type():
        config[OPEN_SECTION] = ConfigDict()
        merge(config, to_plain(json.loads(text)))
    return config


def save(config: ConfigDict, workdir: str | os.PathLike) -> Path:
    """Writes <workdir>/config.json in one step (a reader never sees half a file) and returns its
    path.
    """
    path = Path(workdir) / FILE_NAME
    partial = path.with_suffix(f".{os.getpid()}.tmp")
    partial.write_text(to_json(config))
    os.replace(partial, path)
    return path


def load(workdir: str | os.PathLike, schema: ConfigDict) -> ConfigDict:
    """Reads <workdir>/config.json; raises ConfigError if there is none or it is not JSON."""
    path = Path(workdir) / FILE_NAME
    if not path.is_file():
        text = (
            f"{path}: no such file; name a directory that train.py has written with --workdir=DIR"
        )
        raise ConfigError([text], "workdir")
    try:
        return from_json(path.read_text(), schema)
    except json.JSONDecodeError as error:
        raise ConfigError([f"{path}: is not valid JSON ({error})"], "workdir") from error


def modernise(plain):
    return plain


def check_lengths(config, total_steps, steps_per_epoch):
    pass
