"""Wrong configs that once ended in tracebacks, endless work or misleading words: each by name.

tests/wrong_configs.py draws at random from many more, so no single one is sure to be tried there.
"""

import io

import pytest
from flax import nnx

import models
import train
from configs import base
from lambdanet import config as configs
from lambdanet import config_flag, config_memory
from lambdanet.training import state

LONG = "x" * 5000

# Key -> (text, what its message says besides the key). The keys are told before anything is built.
TRACEBACKS = (
    ("seed", "None", "an integer, not NoneType"),
    ("seed", str(2**63), "an integer from 0 to 9,223,372,036,854,775,807"),
    ("train.batch_size", "{'a': 1}", "no such key"),
    ("train.accumulate", "{'a': 1}", "no such key"),
    ("model.attention.name.x", "1", "unknown attention {'x': 1}"),
    ("optim.warmup_epochs", "1e15", "a number from 0 to 1e+06"),
    ("optim.warmup_epochs", "1e308", "a number from 0 to 1e+06"),
    ("optim.cooldown_epochs", "1e15", "a number from 0 to 1e+06"),
    ("optim.cooldown_epochs", "1e308", "a number from 0 to 1e+06"),
    ("train.batch_size", str(10**21), "an integer from 1 to 1,048,576"),
    ("data.synthetic_records", str(10**21), "an integer from 1 to 100,000,000"),
    ("data.data_dir", LONG, "data_dir must be a directory"),
    ("data.pseudo_labels", LONG, "no such file"),
    ("train.init_weights", LONG, "no such file"),
    ("train.cache_dir", LONG, "must be a directory"),
)
OUT_OF_MEMORY = (
    ("model.attention", "{'name': 'lambda', 'key_depth': 1000000000}", "1,048,576"),
    ("model.num_classes", str(10**11), "2,147,483,647"),
)
ENDLESS = (
    ("data.prefetch", str(10**8), "an integer from 1 to 100,000"),
    ("data.prefetch", "99999", "would take at least 391"),  # GiB: 64 pictures of 64 KiB in each
    ("data.rand_augment", "(100000, 9)", "an integer from 0 to 32"),
    ("train.batch_size", str(10**11), "an integer from 1 to 1,048,576"),
    ("train.epochs", "1e18", "at most 1,000,000"),
    ("train.eval_batch_size", "100000", "GiB"),  # all rows but those of the split are padding
    ("data.image_size", "(100000, 100000)", "from 1 to 16,384"),
    ("data.num_workers", "10000", "an integer from 0 to 512"),
)
MISLEADING = (
    ("optim.eps", "1e-60", "a number from 1e-30 to 1"),
    ("classification.mixup_alpha", "1e-300", "0 (off) or a number from 0.01 to 100"),
    ("classification.mixup_alpha", "1e300", "0 (off) or a number from 0.01 to 100"),
    ("data.train_split", "train[5:2]", "not empty"),
    ("data.eval_split", "validation[9:9]", "not empty"),
    ("model.in_channels", "3", "data.channels = 1"),
)


def problems_of(overrides):
    config = config_flag.apply_overrides(base.get_config(), overrides)

    def build():
        return nnx.eval_shape(
            lambda: models.create_from_config(config, num_classes=10, rngs=nnx.Rngs(0))
        )

    with pytest.raises(configs.ConfigError) as caught:
        configs.validate(config, base.get_config(), models.registry, build=build)
    return caught.value.problems


@pytest.mark.parametrize(
    ("key", "text", "says"), TRACEBACKS + OUT_OF_MEMORY + MISLEADING, ids=lambda value: value[:30]
)
def test_it_is_refused_by_its_key(key, text, says):
    (problem,) = problems_of({key: text})
    # What is set inside an option is named by the option.
    assert key.removesuffix(".name.x") in problem and says in problem and len(problem) < 2000


@pytest.mark.parametrize(("key", "text", "says"), ENDLESS, ids=lambda value: value[:30])
def test_what_would_never_end_or_not_fit_is_refused_by_its_key(key, text, says, monkeypatch):
    monkeypatch.setattr(config_memory, "host_memory", lambda: 8 * 2**30)
    problems = problems_of({"data.image_size": "(256, 256)", key: text})
    assert all(key in problem for problem in problems) and says in problems[0]


def test_an_element_of_a_tuple_is_what_is_wrong_and_not_the_tuple():
    (problem,) = problems_of({"optim.betas": "('a', 3)"})
    assert "a tuple such as (0.9, 0.999); 'a' does not belong there" in problem
    assert "not tuple" not in problem


@pytest.mark.parametrize("key", ["train_split", "eval_split", "test_split"])
def test_a_split_that_the_data_lack_is_named_by_its_key(key, tmp_path, monkeypatch):
    def too_late(*_, **__):
        raise AssertionError("arrays were made")

    monkeypatch.setattr(state, "initialise", too_late)
    config = base.get_config()
    config.data.source, config.data[key], config.train.cache_dir = "synthetic", "trian", ""
    with pytest.raises(ValueError, match=rf"data\.{key}.*'trian'.*train, validation, test"):
        train.run(config, tmp_path, stream=io.StringIO())


def test_what_is_nested_too_deeply_is_named_by_its_key():
    value = ()
    for _ in range(60):
        value = [value]
    with pytest.raises(configs.ConfigError) as caught:
        configs.from_plain({"propagation": {"interval": value}})
    (problem,) = caught.value.problems
    assert problem.startswith("propagation.interval: is nested in more than 32 levels")


@pytest.mark.parametrize("task", ["detection", "segmentation", "video_detection", "clips"])
@pytest.mark.parametrize(
    ("key", "text", "default", "readers"),
    [
        ("scale_base", "800", "0", ("segmentation", "clips")),
        ("eval_crop", "0.875", "1.0", ("clips",)),
        ("eval_keep_aspect", "False", "True", ("clips",)),
        ("eval_resize_first", "True", "False", ("clips",)),
    ],
)
def test_keys_of_augmentation_that_a_task_does_not_read(task, key, text, default, readers):
    overrides = {"task": task, "train.keep_best": "", f"data.{key}": text}
    said = "\n".join(problems_of(overrides))
    problem = f"task = '{task}', data.{key} = {text}: {key} is not read by this task: "
    assert (problem in said and f"; set it to {default}" in said) == (task not in readers)
