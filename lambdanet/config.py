"""Configuration: the check of every value before any device work, and config.json in the workdir.

The schema is `configs/base.py`: its keys are the only ones allowed, its values fix the types. The
section `model` is open: its keys are options of the model named there and are checked against that
model's signature; what they say about blocks inside it, the model checks when it is built.
"""

from __future__ import annotations

import difflib
import json
import os
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from lambdanet import config_memory, config_model
from lambdanet.atomic import write_file
from lambdanet.config_checks import CHECKS
from lambdanet.config_conditions import CROSS_CHECKS, DATA_PATHS, START
from lambdanet.registry import LARGEST, Registry, is_number, show, suggest
from lambdanet.training import schedule, weights

FILE_NAME = "config.json"
OPEN_SECTION = "model"
MOVED = {"label_smoothing", "mixup_alpha", "cutmix_alpha"}
"""Keys that older configs have in `train`, now in `classification`."""
_MOST_BYTES = 2**22  # of a config.json; ours have a few thousand
_MOST_LEVELS = 32  # of sections, tuples and options in each other


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
    training: bool = True,
    resumes: bool = False,
    public: Callable[[Any], str] | None = None,
) -> None:
    """Checks a config before any device work and reports every problem at once.

    Args:
        config: the final config, overrides applied.
        schema: `configs.base.get_config()`: the allowed keys and their types.
        model_registry: the registry that `config.model.name` is looked up in.
        build: builds the model without allocating it, for example `lambda: nnx.eval_shape(lambda:
            models.create_from_config(config, num_classes=10, rngs=nnx.Rngs(0)))`; called when
            everything that it reads is right, so that its own complaints (heads that do not divide)
            join the report.
        workdir: also check that this directory can be written to.
        check_paths: data directories and label files must exist, and batches must fit into this
            machine's memory; False where no data is read (model summary, export).
        training: also check what only training reads and, with `build`, what it asks of the model:
            its auxiliary losses, something left to train, and memory.
        resumes: the run goes on from a checkpoint; what only a start reads is not looked at.
        public: gives the source of public weights for the backbone of `config.model`, '' for none;
            errors that ask for weights name it.

    Raises:
        ConfigError: with one line per problem: key, value, what is allowed, the nearest valid name.
    """
    check_type(config)
    problems: list[str] = []
    failed: set[str] = set()  # keys that must not take part in checks over several keys

    def add(key: str, text: str) -> None:
        problems.append(text)
        # a section in place of a value fails the value's key, too
        failed.update(key.rsplit(".", n)[0] for n in range(key.count(".") + 1))

    values = dict(leaves(config))
    allowed = dict(leaves(schema))
    for key, value in values.items():
        if key not in allowed:
            nearest = _suggest_key(key, list(allowed))
            add(key, f"{key[:200]} = {show(value)}: no such key.{nearest}")
    for key, default in allowed.items():
        if key not in values:
            if any(v.startswith(key + ".") for v in values):
                continue  # a section stands where a value belongs: its keys are reported above
            add(key, f"{key}: missing; the default is {default!r}")
            continue
        value = values[key]
        if text := _type_problem(value, default):
            add(key, f"{key} = {show(value)}: must be {text}")
        elif key in CHECKS and not CHECKS[key][0](value):
            names = CHECKS[key][1]
            text = (
                names
                if isinstance(names, str)
                else f"one of {', '.join(map(repr, names))}.{suggest(value, names)}"
            )
            add(key, f"{key} = {show(value)}: must be {text}")
    cause: Exception | None = None
    conditions = CROSS_CHECKS + (DATA_PATHS if check_paths else ())
    if training and not resumes:
        source = public(config.get(OPEN_SECTION)) if public else ""
        known = f", such as {source} for its backbone" if source else ""
        conditions += tuple((*told, text.format(public=known)) for *told, text in START)
    for keys, holds, text in conditions:
        if not failed.intersection(keys) and not holds(config):
            problems.append(f"{', '.join(f'{k} = {show(values[k])}' for k in keys)}: {text}")
    if training and not resumes and check_paths and not failed & weights.SOURCE_KEYS:
        problems += weights.source_problems(config.train)
    sections = {key.partition(".")[0] for key in failed}
    if check_paths and not sections & {"task", *config_memory.SECTIONS}:
        problems += config_memory.batch_problems(config, training=training)

    if isinstance(config.get(OPEN_SECTION), (ConfigDict, dict)):
        options = to_plain(config[OPEN_SECTION])
        found = config_model.option_problems(options, model_registry, values, failed)
        if build is not None and not found and not failed & config_model.BUILT_FROM:
            found, cause = config_model.build_problems(config, options, build, failed, training)
        problems += found
    else:
        given = show(config.get(OPEN_SECTION))
        problems.append(f"{OPEN_SECTION} = {given}: must be a section with the key 'name'")
    if workdir is not None:
        try:
            check_workdir(workdir, keep=not problems)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems) from cause


def check_type(config: Any) -> None:
    """Raises ConfigError unless `config` is a ConfigDict: the name of its file is none, nor is a
    plain dict.
    """
    if not isinstance(config, ConfigDict):
        kind, fix = type(config).__name__, "get_config() of a file of configs/ gives one"
        ways = "config_flag.load_recipe reads one by name, config.from_plain makes one of a dict"
        raise ConfigError([f"{show(config)}: must be a ConfigDict, not {kind}; {fix}, {ways}"])


def check_lengths(config: ConfigDict, total_steps: int, steps_per_epoch: float) -> None:
    """Checks what the number of records decides: the length of the run, and whether the schedule
    fits into it.

    A run cut short by an explicit `train.steps` may end inside its warm-up; one of `train.epochs`
    may not.

    Args:
        config: that `validate` has passed.
        total_steps: of the run.
        steps_per_epoch: records of an epoch over `train.batch_size`.

    Raises:
        ConfigError: with one line per problem.
    """
    train = config.train
    length = f"train.steps = {train.steps}" if train.steps else f"train.epochs = {train.epochs:g}"
    problems = []
    if total_steps > LARGEST:
        problems.append(
            f"{length}: is {total_steps:,} steps; allowed: at most {LARGEST:,}, the largest number "
            "of the step counter"
        )
    problems += [
        f"{text} ({length}, {total_steps:,} steps)"
        for text in schedule.length_problems(
            config.optim,
            total_steps=total_steps,
            steps_per_epoch=steps_per_epoch,
            cut_short=bool(train.steps),
        )
    ]
    if problems:
        raise ConfigError(problems)


def check_workdir(workdir: str | os.PathLike, flag: str = "workdir", *, keep: bool = True) -> None:
    """Creates the workdir, or the directory that another flag names, if needed and checks that it
    can be written to; raises ConfigError. With `keep` False what was created goes again.
    """
    if not str(workdir):
        raise ConfigError([f"{flag} = '': name a directory with --{flag}=DIR"], flag)
    try:
        path = Path(workdir).absolute()
        made = [folder for folder in (path, *path.parents) if not folder.exists()]
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=workdir):
            pass
        for folder in () if keep else made:
            folder.rmdir()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        shown = f"{flag} = {show(str(workdir))}: cannot be written to ({reason})"
        raise ConfigError([f"{shown}; name another with --{flag}=DIR"], flag) from error


def _type_problem(value: Any, default: Any) -> str:
    """Returns '' if `value` has the type of `default`, otherwise what it must be and what it is."""
    kind = type(value).__name__
    if isinstance(default, bool):
        return "" if isinstance(value, bool) else f"true or false, not {kind}"
    if isinstance(default, int):
        whole = isinstance(value, int) and not isinstance(value, bool)
        return "" if whole else f"an integer, not {kind}"
    if isinstance(default, float):
        return "" if is_number(value) else f"a finite number, not {kind}"
    if isinstance(default, str):
        return "" if isinstance(value, str) else f"text, not {kind}"
    if not isinstance(value, tuple):
        return f"a tuple such as {default!r}, not {kind}"
    if not default:
        return ""  # nothing to compare with: CHECKS has the rule
    whole = all(isinstance(x, int) for x in default)
    like = default[0] if whole or isinstance(default[0], str) else 0.0
    wrong = [x for x in value if _type_problem(x, like)]
    return f"a tuple such as {default!r}; {show(wrong[0])} does not belong there" if wrong else ""


def leaves(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields ('a.b', value) of every key outside the open section; an empty section is a value."""
    for key, value in config.items():
        if prefix + key == OPEN_SECTION:
            continue
        if isinstance(value, (ConfigDict, dict)) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _suggest_key(key: str, known: list[str]) -> str:
    """The nearest key: the same last part anywhere, a similar one in the same section, then a
    similar path.
    """
    key = key[:200]
    section, _, last = key.rpartition(".")
    siblings = {k.rpartition(".")[2]: k for k in known if k.rpartition(".")[0] == section}
    initials = "".join(word[:1] for word in last.split("_"))  # learning_rate: lr
    close = [k for k in known if k.rpartition(".")[2] == last]
    close += [siblings[initials]] if initials in siblings else []
    close += [siblings[c] for c in difflib.get_close_matches(last, siblings, n=1, cutoff=0.5)]
    close += [section] if section in known else []
    close += difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return (
        f" Did you mean '{close[0]}'?"
        if close
        else f" Keys there: {', '.join(siblings)}"
        if siblings
        else ""
    )


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


def modernise(plain: Any) -> Any:
    """Returns the config of an older run with the names and meanings of today; today's as it is.

    Args:
        plain: plain values, as `to_plain` or JSON gives them; what is no config is left alone.
    """
    if not isinstance(plain, Mapping):
        return plain
    train, data = plain.get("train"), plain.get("data")
    if isinstance(train, Mapping) and MOVED & set(train):
        own = plain.get("classification", {})
        moved = {key: train[key] for key in train if key in MOVED}
        plain = {
            **plain,
            "train": {key: value for key, value in train.items() if key not in MOVED},
            "classification": moved | own if isinstance(own, Mapping) else own,
        }
    if isinstance(data, Mapping) and "source" in data and "exif_orientation" not in data:
        # before the key came, photos were read as they lie in the file
        plain = {**plain, "data": {**data, "exif_orientation": False}}
    return plain


def from_json(text: str, schema: ConfigDict) -> ConfigDict:
    """Returns the config that `to_json` wrote, now or in an older version.

    Every list is a tuple again (configs hold no lists); keys that the schema has gained since get
    their default. Values are not checked: `validate` does that.

    Raises:
        ConfigError: not JSON, or JSON that is no config.
    """
    try:
        plain = to_plain(modernise(json.loads(text)))
    except (ValueError, RecursionError) as error:
        raise ConfigError([f"is not valid JSON ({error})"], FILE_NAME) from error
    if not isinstance(plain, dict):
        text = f"is JSON, but no config: a {type(plain).__name__} in place of an object"
        raise ConfigError([text], FILE_NAME)
    sections = [key for key, value in schema.items() if isinstance(value, ConfigDict)]
    problems = [
        f"{key} = {show(plain[key])}: must be a section (an object)"
        for key in sections
        if not isinstance(plain.get(key, {}), dict)
    ]
    if problems:
        raise ConfigError(problems, FILE_NAME)

    config = to_plain(schema)
    config[OPEN_SECTION] = {}
    for key, value in plain.items():
        if key in sections:
            config[key] |= {k: _as_in(config[key].get(k), v) for k, v in value.items()}
        else:
            config[key] = value
    return from_plain(config)


def _as_in(default: Any, value: Any) -> Any:
    """JSON has one kind of number: an integer where the schema has a float was one."""
    return (
        float(value)
        if type(default) is float and type(value) is int and is_number(value)
        else value
    )


def from_plain(plain: Mapping[str, Any]) -> ConfigDict:
    """Returns the config of plain values; raises ConfigError for keys that no config can have, and
    for values that are nested more deeply than ConfigDict can copy.
    """
    if (deep := _too_deep(plain)) is not None:
        text = f"is nested in more than {_MOST_LEVELS} levels; ours have five"
        raise ConfigError([f"{deep}: {text}" if deep else text])
    problems = list(_key_problems(plain))
    if problems:
        raise ConfigError(problems)
    return ConfigDict(dict(plain))


def _too_deep(value: Any, levels: int = _MOST_LEVELS, key: str = "") -> str | None:
    """Returns the key, section and name, of what is nested in more levels; None: nothing is."""
    if not isinstance(value, (Mapping, tuple, list)):
        return None
    if levels == 0:
        return key
    for name, part in value.items() if isinstance(value, Mapping) else ((None, v) for v in value):
        inner = key if name is None or "." in key else f"{key}.{name}".removeprefix(".")
        if (found := _too_deep(part, levels - 1, inner)) is not None:
            return found
    return None


def _key_problems(plain: Mapping[Any, Any], prefix: str = "") -> Iterator[str]:
    for key, value in plain.items():
        if not isinstance(key, str) or "." in key or hasattr(ConfigDict, key):
            yield f"{prefix}{key if isinstance(key, str) else show(key)}: no key can have this name"
        elif isinstance(value, Mapping):
            yield from _key_problems(value, f"{prefix}{key}.")


def save(config: ConfigDict, workdir: str | os.PathLike) -> Path:
    """Writes <workdir>/config.json and returns its path."""
    return write_file(Path(workdir) / FILE_NAME, to_json(config))


def load(workdir: str | os.PathLike, schema: ConfigDict) -> ConfigDict:
    """Reads <workdir>/config.json; raises ConfigError if there is none or it is no config."""
    path = Path(workdir) / FILE_NAME
    try:
        size, mode = path.stat().st_size, path.stat().st_mode
        if stat.S_ISFIFO(mode):  # or reading it would wait for somebody who writes
            raise OSError("it is a pipe")
        if size > _MOST_BYTES:
            problem = f"has {size:,} bytes; a config has a few thousand, at most {_MOST_BYTES:,}"
            raise ConfigError([problem], "workdir")
        return from_json(path.read_text(), schema)
    except FileNotFoundError as error:
        fix = "name a directory that train.py has written with --workdir=DIR"
        raise ConfigError([f"{path}: no such file; {fix}"], "workdir") from error
    except ConfigError as error:
        raise ConfigError(
            [f"{path}: {problem}" for problem in error.problems], "workdir"
        ) from error
    except (OSError, ValueError) as error:  # a directory, no text, a name that cannot be
        raise ConfigError([f"{show(str(path))}: cannot be read ({error})"], "workdir") from error
