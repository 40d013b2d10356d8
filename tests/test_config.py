"""The config: what is refused and how it is said, overrides from the command line, config.json."""

import subprocess
import sys
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from configs import base
from lambdanet import config as configs
from lambdanet import config_flag
from lambdanet.config_checks import CHECKS, CROSS_CHECKS
from lambdanet.registry import Registry

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
    options = {k: v for k, v in configs.to_plain(config.model).items() if k != "name"}
    configs.validate(
        config, base.get_config(), registry, build=lambda: tiny_net(**options), **kwargs
    )


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
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(configs.ConfigError, match="not valid JSON"):
        configs.load(tmp_path, base.get_config())


def test_missing_recipe():
    with pytest.raises(configs.ConfigError, match=r"Did you mean '.*configs/base.py'"):
        config_flag.load_recipe(str(ROOT / "configs" / "bass.py") + ":smoke")


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
