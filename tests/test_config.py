"""The config: what is refused and how it is said, overrides from the command line, config.json."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from flax import nnx
from ml_collections import ConfigDict

import models
from configs import base
from lambdanet import config as configs
from lambdanet import config_flag, config_memory, tasks
from lambdanet.config_checks import CHECKS
from lambdanet.config_conditions import CROSS_CHECKS
from lambdanet.data import decode, geometry, sources
from lambdanet.registry import Registry
from lambdanet.training import optimizer, schedule

ROOT = Path(__file__).resolve().parent.parent


def tiny_net(
    *,
    blocks: tuple[int, ...] = (1,),
    num_heads: int = 4,
    attention: str | dict | tuple | None = None,
    rngs=None,
):
    if 16 % num_heads:
        raise ValueError(f"num_heads={num_heads} does not divide 16")
    return object()


@pytest.fixture
def registry():
    registry = Registry("model")
    registry.register("tiny_net", tiny_net)
    registry.register("tiny_lambda_net", tiny_net, attention="lambda")
    return registry


@pytest.fixture
def config():
    config = base.get_config()
    config.model.name = "tiny_net"
    return config


def check(config, registry, **kwargs):
    own = {k: v for k, v in configs.to_plain(config.model).items() if k != "name"}
    configs.validate(config, base.get_config(), registry, build=lambda: tiny_net(**own), **kwargs)


def problems_of(config, registry, overrides, **kwargs) -> list[str]:
    with pytest.raises(configs.ConfigError) as caught:
        check(config_flag.apply_overrides(config, overrides), registry, **kwargs)
    return caught.value.problems


def test_defaults_are_valid(config, registry, tmp_path):
    check(config, registry, workdir=tmp_path / "new" / "run")


# overrides as on the command line -> parts of the one message
WRONG = {
    "misspelt key": ({"optim.lrr": "1"}, ["optim.lrr = 1", "no such key", "'optim.lr'"]),
    "misspelt section": ({"optm.lr": "1"}, ["optm.lr = 1", "'optim.lr'"]),
    "wrong type": (
        {"train.batch_size": "many"},
        ["train.batch_size = 'many'", "an integer", "str"],
    ),
    "fraction for an integer": (
        {"train.batch_size": "1.5"},
        ["train.batch_size = 1.5", "an integer"],
    ),
    "number for a bool": ({"optim.nesterov": "1"}, ["optim.nesterov = 1", "true or false"]),
    "element of a tuple": (
        {"data.image_size": "(8, 'x')"},
        ["data.image_size", "'x' does not belong"],
    ),
    "section for a value": ({"train.epochs.x": "1"}, ["train.epochs.x = 1", "no such key"]),
    "value for a section": ({"optim": "3"}, ["optim = 3"]),
    "long name of a short key": (
        {"optim.learning_rate": "1"},
        ["optim.learning_rate", "Did you mean 'optim.lr'?"],
    ),
    "unknown choice": ({"data.source": "digit"}, ["'digit'", "'tfds'", "Did you mean 'digits'?"]),
    "out of range": ({"data.flip": "1.5"}, ["data.flip = 1.5", "[0, 1]"]),
    "not finite": ({"optim.lr": "1e999"}, ["optim.lr = inf", "finite"]),
    "regex": ({"optim.frozen": "('a(',)"}, ["optim.frozen", "regular expressions"]),
    "lr multipliers": (
        {"optim.lr_multipliers": "(('a', 'b'),)"},
        ["optim.lr_multipliers", "pairs"],
    ),
    "indivisible batch": (
        {"train.accumulate": "7"},
        ["train.batch_size = 64, train.accumulate = 7", "multiple"],
    ),
    "mean per channel": ({"data.mean": "(0.1, 0.2, 0.3)"}, ["data.mean", "data.channels = 1"]),
    "missing data": (
        {"data.source": "tfds", "data.data_dir": "no/where"},
        ["no/where", "lambdanet.data.prepare"],
    ),
    "windows that nobody draws": (
        {"data.cat_max_ratio": "0.75"},
        ["data.cat_max_ratio = 0.75, data.crop = 'none'", "scale_crop"],
    ),
    "scales in the wrong order": ({"data.scale_range": "(2.0, 0.5)"}, ["data.scale_range", "low"]),
    "missing pseudo-labels": ({"data.pseudo_labels": "no.npz"}, ["no.npz", "pseudo_label"]),
    "unknown model": ({"model.name": "tiny_nett"}, ["'tiny_nett'", "Did you mean 'tiny_net'?"]),
    "unknown model option": (
        {"model.num_head": "2"},
        ["model.num_head = 2", "Did you mean 'num_heads'?"],
    ),
    "type of a model option": (
        {"model.num_heads": "two"},
        ["model.num_heads = 'two'", "must be int"],
    ),
    "heads not dividing": (
        {"model.num_heads": "5"},
        ["'tiny_net' cannot be built", "5 does not divide 16"],
    ),
    "old name": (
        {"train.label_smoothing": "0.1"},
        ["no such key", "Did you mean 'classification.label_smoothing'?"],
    ),
    "true for a number": ({"optim.lr": "true"}, ["optim.lr = True", "a finite number, not bool"]),
    "None for a number": ({"seed": "None"}, ["seed = None: must be an integer, not NoneType"]),
    "seed beyond 63 bits": ({"seed": str(2**63)}, ["seed", "9,223,372,036,854,775,807"]),
    "thousands of digits": ({"seed": "9" * 6000}, ["seed = ", "an integer, not str"]),
    "mean of 0..255": ({"data.mean": "(128,)"}, ["data.mean = (128,)", "divide means of 0..255"]),
    "std of 0..255": ({"data.std": "(58,)"}, ["data.std = (58,)", "by 255"]),
    "mean for no channel": ({"data.mean": "()"}, ["data.mean = ()", "one per channel"]),
    "empty slice": ({"data.train_split": "train[5:2]"}, ["data.train_split", "not empty"]),
    "epsilon that float32 lacks": ({"optim.eps": "1e-60"}, ["optim.eps = 1e-60", "1e-30 to 1"]),
    "mixup that is none": ({"classification.mixup_alpha": "1e-300"}, ["mixup_alpha", "0 (off) or"]),
    "mixing with nobody": (
        {"train.batch_size": "1", "classification.cutmix_alpha": "1"},
        ["train.batch_size = 1", "classification.cutmix_alpha = 1.0", "set both alphas to 0"],
    ),
    "no metric": ({"train.keep_best": "acuracy"}, ["train.keep_best", "accuracy, top5, loss"]),
    "averages that are not kept": ({"train.keep_best": "ema_top5"}, ["needs ema_decay > 0"]),
    "no task": ({"task": "clasification"}, ["task", "Did you mean 'classification'?"]),
    "name too long": ({"train.init_weights": "x" * 5000}, ["train.init_weights", "no such file"]),
    "cache in a file": ({"train.cache_dir": "train.py"}, ["train.cache_dir", "a directory"]),
    "nest too deep": ({"seed": "(" * 5000}, ["seed = ", "an integer, not str"]),
    "option beyond all shapes": (
        {"model.num_heads": str(2**31)},
        ["model.num_heads", "2,147,483,647"],
    ),
    "batches beyond the memory": (
        {"train.batch_size": "1048576", "data.image_size": "(4096, 4096)"},
        ["train.batch_size = 1048576", "data.image_size = (4096, 4096)", "GiB"],
    ),
    "attention without a name": (
        {"model.attention.scope": "7"},
        ["has no 'name'", "\"{'name': '...', 'scope': 7}\""],
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input(config, registry, case):
    overrides, parts = WRONG[case]
    problems = problems_of(config, registry, overrides)
    # Replacing a section by a number also leaves all its keys missing.
    assert len(problems) == (
        1 if case not in ("section for a value", "value for a section") else len(problems)
    )
    for part in parts:
        assert part in "\n".join(problems)


def test_all_problems_at_once(config, registry, tmp_path):
    (tmp_path / "file").write_text("")
    wrong = {
        "optim.lrr": "1",
        "train.epochs": "x",
        "data.crop": "shiftt",
        "model.name": "nothing",
        "optim.betas": "0.9",
    }
    problems = problems_of(config, registry, wrong, workdir=tmp_path / "file" / "run")
    assert len(problems) == 6
    assert "cannot be written to" in problems[-1] and "--workdir" in problems[-1]


def test_every_check_has_a_key():
    config = base.get_config()
    leaves = dict(configs.leaves(config))
    assert not set(CHECKS) - set(leaves)
    assert not {k for keys, _, _ in CROSS_CHECKS for k in keys} - set(leaves)


def test_overrides_take_the_type_of_the_key(config):
    overrides = {
        "optim.name": "lamb",
        "optim.lr": "1",
        "data.mean": "0.3",
        "data.data_dir": "12",
        "train.tensorboard": "True",
        "model.blocks": "(1, 1)",
        "model.attention": "lambda",
        "model.attention.scope": "7",
        "model.remat": "none",
    }
    changed = config_flag.apply_overrides(config, overrides)
    assert (
        changed.optim.name == "lamb"
        and changed.optim.lr == 1.0
        and isinstance(changed.optim.lr, float)
    )
    assert (
        changed.data.mean == (0.3,)
        and changed.data.data_dir == "12"
        and changed.train.tensorboard is True
    )
    assert configs.to_plain(changed.model) == {
        "name": "tiny_net",
        "blocks": (1, 1),
        "attention": {"name": "lambda", "scope": 7},
        "remat": "none",
    }
    assert config.optim.lr != 1.0, "the recipe's own config must not change"


def test_json_round_trip(config, tmp_path):
    config.model.attention = ("lambda", None, {"name": "lambda", "scope": (3, 5)})
    config.optim.lr_multipliers = ((r"head/.*", 0.5),)
    configs.save(config, tmp_path)
    loaded = configs.load(tmp_path, base.get_config())
    assert configs.to_plain(loaded) == configs.to_plain(config)
    assert isinstance(loaded, ConfigDict) and isinstance(loaded.data.image_size, tuple)
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]


def test_json_errors(tmp_path):
    with pytest.raises(configs.ConfigError, match="no such file; name a directory"):
        configs.load(tmp_path, base.get_config())
    (tmp_path / "config.json").mkdir()
    with pytest.raises(configs.ConfigError, match="cannot be read"):
        configs.load(tmp_path, base.get_config())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not valid JSON"),
        (b"", "not valid JSON"),
        (b"[]", "a tuple in place of an object"),
        (b"null", "a NoneType in place of an object"),
        (b"3", "a int in place of an object"),
        (b'{"data": null}', "data = None: must be a section"),
        (b'{"optim": [1], "model": "x"}', r"2 problems(.|\n)*optim = \(1,\)"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b'{"a.b": 1}', "a.b: no key can have this name"),
        (b'{"data": {"items": 1}}', "data.items: no key can have this name"),
        (b"\xff\xfe\x00", "cannot be read"),
        (b" " * 2**23, "has 8,388,608 bytes"),
    ],
    ids=range(13),
)
def test_json_that_is_no_config(tmp_path, content, message):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(configs.ConfigError, match=message) as caught:
        configs.load(tmp_path, base.get_config())
    assert str(tmp_path) in str(caught.value)


def test_json_of_older_runs(config):
    plain = configs.to_plain(config)
    old = json.loads(json.dumps(plain))
    for key in ("task", "classification"):
        del old[key]
    del old["data"]["exif_orientation"], old["train"]["damaged"]
    moved = {"label_smoothing": 0.2, "mixup_alpha": 0, "cutmix_alpha": 1.0}
    old["train"] |= moved
    loaded = configs.from_json(json.dumps(old), base.get_config())
    assert loaded.classification.to_dict() == {**moved, "class_weights": "none"}
    assert "label_smoothing" not in loaded.train
    assert loaded.task == "classification" and loaded.train.damaged == "refuse"
    assert loaded.data.exif_orientation is False, "photos were read as they lie in the file"
    assert configs.modernise(plain) == plain
    once = configs.modernise(old)
    assert configs.modernise(once) == once
    assert configs.modernise(None) is None and configs.modernise({"train": 3}) == {"train": 3}


def test_missing_recipe():
    with pytest.raises(configs.ConfigError, match=r"Did you mean '.*configs/base.py'"):
        config_flag.load_recipe(str(ROOT / "configs" / "bass.py") + ":smoke")


PLACEHOLDERS = ("configs/FILE.py", "configs/x.py")


def test_recipes_that_the_documents_name_exist():
    files = [*ROOT.glob("*.md"), *ROOT.glob("*.py"), *ROOT.glob("docs/*.md"), ROOT / "Makefile"]
    files += [*ROOT.glob("configs/*.py"), *ROOT.glob("benchmarks/*.py"), *ROOT.glob("models/*.py")]
    named = {
        name for f in files for name in re.findall(r"configs/\w+\.py(?::[\w@,]+)?", f.read_text())
    }
    named = {n for n in named if "NAME" not in n and not n.startswith(PLACEHOLDERS)}
    assert len(named) > 10
    for name in sorted(named):
        config_flag.load_recipe(str(ROOT / name))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import no_such_module", "ModuleNotFoundError"),
        ("def get_config(: pass", "SyntaxError"),
        ("x = 1", "get_config"),
        ("get_config = dict", "gives {}; allowed: a ConfigDict"),
        ("def get_config(): return 1 / 0", "ZeroDivisionError"),
    ],
)
def test_recipes_that_fail(tmp_path, text, message):
    (tmp_path / "recipe.py").write_text(text)
    with pytest.raises(configs.ConfigError, match=message):
        config_flag.load_recipe(str(tmp_path / "recipe.py"))
    with pytest.raises(configs.ConfigError, match="config = 'xxx"):
        config_flag.load_recipe("x" * 5000)


def test_every_number_has_bounds(registry):
    """Whatever its type allows, no key takes a number that no machine can work with."""
    for key, default in configs.leaves(base.get_config()):
        huge = {int: "9" * 25, float: "1e300"}.get(type(default))
        if huge:
            config = base.get_config()
            config.model.name = "tiny_net"
            assert any(key in p for p in problems_of(config, registry, {key: huge})), key


def test_names_are_those_that_are_implemented():
    for key, names in {
        "optim.name": optimizer.OPTIMIZERS,
        "optim.schedule": schedule.SCHEDULES,
        "data.source": sources.SOURCES,
        "data.crop": geometry.CROPS,
        "task": tuple(tasks.TASKS),
        "data.interpolation": (*decode.FILTERS, "random"),
    }.items():
        assert tuple(CHECKS[key][1]) == tuple(names)


# With a real model: overrides -> parts of the one message.
WRONG_MODELS = {
    "unknown attention": ({"model.attention": "lamda"}, ["'lamda'", "Did you mean 'lambda'?"]),
    "unknown option": ({"model.nam": "'x'"}, ["no option 'nam'. Did you mean 'name'?"]),
    "unknown option of a block": (
        {"model.attention": "(None, {'name': 'lambda', 'scop': 7})"},
        ["attention 'lambda' has no option 'scop'. Did you mean 'scope'?"],
    ),
    "type of an option": (
        {"model.attention": "{'name': 'lambda', 'key_depth': 'x'}"},
        ["option 'key_depth' of attention 'lambda' must be", "not 'x'"],
    ),
    "name that is a section": ({"model.attention.name.x": "1"}, ["unknown attention {'x': 1}"]),
    "no time": (
        {"model.context": "{'name': 'rcca', 'after': 'stage1.1', 'recurrence': 100000}"},
        ["option 'recurrence' of attention 'rcca' must be from 1 to 64"],
    ),
    "no memory": (
        {"model.attention": "{'name': 'lambda', 'key_depth': 1000000}"},
        ["model.attention = {", "parameters", "GiB", "the largest parameter is stages/"],
    ),
    "block that does not fit": (
        {"model.attention": "{'name': 'lambda', 'dim_out': 8}"},
        ["cannot run with model.attention"],
    ),
    "too many classes": ({"model.num_classes": "9999999999"}, ["model.num_classes = 9999999999"]),
    "another size": (
        {"model.image_size": "(9, 9)"},
        ["model.image_size = (9, 9), data.image_size = (8, 8): must be equal"],
    ),
    "other channels": ({"model.in_channels": "3"}, ["model.in_channels = 3, data.channels = 1"]),
    "all frozen": ({"optim.frozen": "('.*',)"}, ["optim.frozen = ('.*',)", "something to learn"]),
    "all at factor 0": ({"optim.lr_multipliers": "(('.*', 0),)"}, ["optim.lr_multipliers = (("]),
    "rule for nothing": ({"optim.frozen": "('hed/.*',)"}, ["optim.frozen: 'hed/.*' matches no"]),
    "activations": (
        {"train.batch_size": "100000", "data.image_size": "(512, 512)", "data.prefetch": "1"},
        ["train.batch_size = 100000", "GiB"],
    ),
}


def check_model(overrides):
    config = config_flag.apply_overrides(base.get_config(), overrides)

    def build():
        return nnx.eval_shape(
            lambda: models.create_from_config(config, num_classes=10, rngs=nnx.Rngs(0))
        )

    configs.validate(config, base.get_config(), models.registry, build=build)


@pytest.mark.parametrize("case", WRONG_MODELS)
def test_wrong_models(case, monkeypatch):
    monkeypatch.setattr(config_memory, "host_memory", lambda: 8 * 2**30)
    overrides, parts = WRONG_MODELS[case]
    with pytest.raises(configs.ConfigError) as caught:
        check_model(overrides)
    for part in parts:
        assert part in str(caught.value)


def test_right_models():
    check_model({"model.attention": "{'name': 'lambda', 'scope': 7}", "model.blocks": "(1, 1)"})
    check_model({"optim.frozen": "('stem/.*',)", "optim.lr_multipliers": "(('head/.*', 0),)"})


# ---- What the number of records decides ----------------------------------------------------------

# 1077 records in batches of 64, 40 epochs: 673 steps. Overrides -> part of the message, '' if fine.
LENGTHS = {
    "default": ({}, ""),
    "cool-down beyond": ({"optim.cooldown_epochs": "1000"}, "optim.cooldown_epochs = 1000"),
    "warm-up beyond": ({"optim.warmup_epochs": "1000"}, "the warm-up of 16,828 steps is longer"),
    "both together": (
        {"optim.warmup_epochs": "30", "optim.cooldown_epochs": "10"},
        "leave no step of the run between them",
    ),
    "warm-up as long as the run": ({"optim.warmup_epochs": "40"}, ""),
    "both with a rest": ({"optim.warmup_epochs": "20", "optim.cooldown_epochs": "10"}, ""),
    "cut short in the warm-up": ({"optim.warmup_epochs": "1000", "train.steps": "5"}, ""),
    "cut short, no decay": (
        {"optim.cooldown_epochs": "50", "train.steps": "100"},
        "leaves no step of the run",
    ),
    "no milestone": ({"optim.schedule": "step", "optim.step_epochs": "(40,)"}, "step_epochs"),
    "a milestone": ({"optim.schedule": "step", "optim.step_epochs": "(30, 60)"}, ""),
    "no decay": ({"optim.schedule": "exponential", "optim.decay_epochs": "40"}, "decay_epochs"),
    "all decay": (
        {"optim.schedule": "exponential", "optim.decay_epochs": "0.1"},
        "of the learning rate half-way",
    ),
}


@pytest.mark.parametrize("case", LENGTHS)
def test_schedules_that_cannot_work(case):
    overrides, message = LENGTHS[case]
    config = config_flag.apply_overrides(base.get_config(), overrides)
    length = dict(total_steps=config.train.steps or 673, steps_per_epoch=1077 / 64)
    if not message:
        configs.check_lengths(config, **length)
        return
    with pytest.raises(configs.ConfigError, match="1 problem") as caught:
        configs.check_lengths(config, **length)
    assert message in str(caught.value) and "673 steps" in str(caught.value) or config.train.steps


def test_more_steps_than_the_counter_holds():
    with pytest.raises(configs.ConfigError, match="2,147,483,647"):
        configs.check_lengths(base.get_config(), total_steps=2**31, steps_per_epoch=1e6)


def test_flags_in_a_process():
    script = (
        "from absl import app; from lambdanet import config_flag\n"
        "FLAG = config_flag.ConfigFlag('configs/base.py')\n"
        "app.run(lambda argv: print(FLAG.value.to_dict(), FLAG.overrides, argv[1:]))\n"
    )
    arguments = [
        "--config=configs/base.py:smoke",
        "--config.optm.lr=1",
        "--config.optim.lr",
        "2",
        "--config.train.tensorboard",
    ]
    command = [
        sys.executable,
        "-c",
        script,
        *arguments,
        "--noconfig.train.report",
        "--config.model.blocks=(1,)",
        "rest",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for part in (
        "'optm': {'lr': 1}",
        "'lr': 2.0",
        "'tensorboard': True",
        "'report': False",
        "'blocks': (1,)",
        "['rest']",
    ):
        assert part in done.stdout
