"""Random configs that cannot work, by a fixed seed, and what happens to each: shared by the short
test of the suite and the long one of tests/chaos.

Every case is a valid recipe with one mutation that is certainly wrong, as command-line texts. It
must end in an error of the config's family that names the key, before any array is made.
"""

import dataclasses
import random
import time
from collections.abc import Callable

import train
from configs import base, cued_digits, digits, imagenet300
from lambdanet import config as config_lib
from lambdanet.config_flag import apply_overrides
from lambdanet.training import state

RECIPES: dict[str, Callable] = {
    "digits": lambda: digits.get_config("lambda"),
    "digits:conv": lambda: digits.get_config("conv"),
    "digits:swin": lambda: digits.get_config("swin"),
    "digits:lavit": lambda: digits.get_config("lavit"),
    "cued_digits": lambda: cued_digits.get_config("nonlocal"),
    "smoke": lambda: base.get_config("smoke"),
    "imagenet300:smoke": lambda: imagenet300.get_config("slide_pvt_tiny,smoke"),
}
MOST_SECONDS = 30.0  # of one case: reading the recipe and building a model without its arrays


@dataclasses.dataclass(frozen=True)
class Case:
    """One wrong config.

    Attributes:
        recipe: key of RECIPES.
        overrides: texts by key, as on the command line.
        names: texts of which one must stand in the error.
    """

    recipe: str
    overrides: dict[str, str]
    names: tuple[str, ...]


class Accepted(Exception):
    """A wrong config came as far as the first arrays."""


# Texts that are wrong for every key whose default is of the type.
FOR_TYPE: dict[type, tuple[str, ...]] = {
    bool: ("1", "yes", "None", "'true'", "(True,)", "0.0", "{}", "[]"),
    int: (
        *("many", "1.5", "None", "true", "''", "(1,)", "[2]", "{'a': 1}", "1e3", "nan", "-7"),
        *("10**21", str(10**21), str(-(10**30)), "9" * 4000, "9" * 6000, "0x" + "f" * 40, "1j"),
        *("(" * 90 + "1" + ")" * 89, "(" * 5000, "-" * 3000 + "1", "[" * 150 + "]" * 150),
    ),
    float: (
        *(
            "much",
            "None",
            "true",
            "''",
            "(0.1,)",
            "{'a': 1}",
            "inf",
            "-inf",
            "nan",
            "1e999",
            "-0.5",
        ),
        *("1e308", "-1e308", "9" * 400, "9" * 6000, "1e", "0.1.2", "1j", "b'1'", "-1e-3"),
    ),
    tuple: (
        *("None", "x", "{'a': 1}", "((),)", "(None,)", "(nan,)", "(inf, 1)", "('a', 3)", "(1j, 2)"),
        *("(1e308, 1e309)", "(-1, -2)", "(-1e300,)", "({}, {})", "(1, (2, 3))", "(b'a',)"),
    ),
}

# Texts that are wrong for single keys.
FOR_KEY: dict[str, tuple[str, ...]] = {
    "task": ("", "classificaton", "detect", "None"),
    "seed": ("9223372036854775808", "18446744073709551616", "-1"),
    "data.source": ("", "digit", "Digits", "imagenet", "tfds2"),
    "data.train_split": (
        *("", "train[5:2]", "train[", "train[:x]", "train[90%:10%]", "train]", "train[1:2:3]", "+"),
        *(
            "train[:0]",
            "train[:]+",
            "tr ain",
            "[:5]",
            "train[::2]",
            "train[50%:10]",
            "train" * 5000,
        ),
        *("trainn", "train[-1:-5]"),
    ),
    "data.eval_split": ("validation[9:9]", "valid", "validation[1%:1%]", "a/b", "x\ny"),
    "data.test_split": ("test[7:3]", "tset", "test+", "test[a:b]"),
    "data.image_size": (
        *("8", "(8,)", "(8, 8, 8)", "(0, 8)", "(8, -8)", "(8.5, 8)", "(100000, 100000)", "()"),
        *("(True, 8)", "(16000, 16000)", "(10000000000, 1)", "('8', '8')"),
    ),
    "data.channels": ("0", "2", "4", "300"),
    "data.mean": ("(128,)", "(0.1, 0.2)", "(-0.1,)", "()", "(123.7, 116.3, 103.5)"),
    "data.std": ("(58,)", "(0.0,)", "(0.1, 0.2)", "()", "(-1.0,)", "(1e-30,)"),
    "data.on_error": ("", "ignore", "Raise"),
    "data.num_workers": ("10000", "100000000", "-1"),
    "data.num_threads": ("0", "100000", "10000000000"),
    "data.prefetch": ("0", "100000000", "10000000000000"),
    "data.synthetic_records": ("0", "1000000000000", "1000000000000000000000"),
    "data.synthetic_classes": ("0", "100000000000"),
    "data.crop": ("", "Shift", "center", "random"),
    "data.crop_scale": ("(0.5, 0.1)", "(0.0, 1.0)", "(0.1, 1.1)", "(0.1,)", "(1e-300, 1)"),
    "data.crop_ratio": ("(2.0, 1.0)", "(0.0, 1.0)", "(1e-300, 1e300)", "(1,)"),
    "data.scale_range": ("(2.0, 0.5)", "(0.0, 1.0)", "(0.5, 1e300)", "(1.0,)", "2.0"),
    "data.scale_base": ("-1", "100000000"),
    "data.cat_max_ratio": ("0.0", "1.5", "75", "0.75"),  # the last: without crop 'scale_crop'
    "data.photometric_distortion": ("1", "on"),
    "data.flip": ("1.5", "2"),
    "data.rand_augment": ("(100000, 9)", "(1.5, 9)", "(2, 31)", "(2,)", "(-1, 9)", "2"),
    "data.color_jitter": ("(0.1, 0.1)", "0.4", "(1e300, 0, 0)", "(-1, 0, 0)"),
    "data.random_erasing": ("1.01", "25"),
    "data.eval_crop": ("0.0", "1.1", "1e-300", "87.5"),
    "data.interpolation": ("", "nearest", "Bicubic", "lanczos"),
    "data.pseudo_labels": ("no/such/file.json", "x" * 5000, "labels\0.json", "."),
    "data.pseudo_fraction": ("0.0", "1.0", "1e-300", "50"),
    "optim.name": ("", "adam", "SGD", "lion"),
    "optim.lr": ("0.0", "0", "1e-60", "1e300"),
    "optim.momentum": ("1.0", "1.5", "0.99999999999"),
    "optim.betas": ("(0.9, 1.0)", "0.9", "(0.9,)", "(0.9, 0.99999999999)", "(0.9, 0.99, 0.9)"),
    "optim.eps": ("1e-60", "0.0", "1e-300", "100"),
    "optim.clip_norm": ("1e-300", "1e300"),
    "optim.schedule": ("", "cosin", "linear", "onecycle"),
    "optim.warmup_epochs": ("1e15", "1e308", "2e6"),
    "optim.warmup_start": ("1.5", "-1"),
    "optim.cooldown_epochs": ("1e15", "1e308", "1000000"),
    "optim.final_lr": ("1.0001", "5"),
    "optim.step_epochs": ("(60, 30)", "(30, 30)", "(0,)", "(1.5, 2)", "(10**9,)"),
    "optim.decay_rate": ("0.0", "1.5", "1e-300"),
    "optim.decay_epochs": ("0.0", "0", "1e-300"),
    "optim.poly_power": ("0.0", "1e300"),
    "optim.no_decay": ("(", "('a(',)", "('*',)", "(3,)", "('a{99999999999999}',)", "'no_such'"),
    "optim.frozen": ("('.*',)", "('a(',)", "('nothing',)", "(None,)", "'.+'"),
    "optim.lr_multipliers": (
        *("(('.*', 0.0),)", "('head', 0.1)", "(('a', 'b'),)", "(('head/.*', -1),)", "((1, 2),)"),
        *("(('head/.*', 1e300),)", "(('nothing', 0.5),)", "(('a(', 1),)"),
    ),
    "optim.layer_decay": ("0", "1.5", "-0.7", "75"),
    "optim.frozen_epochs": ("1e15", "-1", "2"),  # the last: without init_weights
    "train.batch_size": ("0", "-64", "1000000000000000000000", "100000000000"),
    "train.epochs": ("0", "0.0", "1e18", "-3"),
    "train.steps": ("-1", "100000000000000000000", "2147483648"),
    "train.min_steps": ("-1", "2147483648", "x"),
    "train.max_steps": ("-1", "2147483648", "1.5"),
    "train.accumulate": ("0", "7", "1000000007"),
    "train.init_weights": ("no/file.safetensors", "y" * 5000, "a\0b", "."),
    "train.init_head": ("", "fresh", "New", "new", "backbone"),
    "train.init_average": ("", "EMA", "live"),
    "train.auxiliary_losses": (
        "(('nothing', 1),)",
        "(('a', 1), ('a', 1))",
        "('a', 1)",
        "((1, 1),)",
    ),
    "train.ema_decay": ("1.0", "1.5", "0.99999999999"),
    "train.eval_every": ("1e15", "-1"),
    "train.eval_batch_size": ("-1", "10000000", "100000000000000000000"),
    "train.save_every": ("1e15", "-1"),
    "train.keep_last": ("0", "-1", "10000000000000"),
    "train.keep_best": ("acc", "accuracyy", "ema_accuracy", "ema_", "Loss"),
    "train.log_every": ("0", "100000000000"),
    "train.cache_dir": ("z" * 5000, "a\0b", "train.py"),
    "train.damaged": ("", "fallback", "ignore"),
    "classification.label_smoothing": ("1.0", "1.5"),
    "classification.class_weights": ("", "Balanced", "balance", "sampler"),
    "classification.mixup_alpha": ("1e300", "1e-300"),
    "classification.cutmix_alpha": ("1e300", "1e-300"),
    "detection.max_objects": ("0", "-1", "1000000000"),
    "detection.mask_bytes": ("0", "16", "10000000000"),
    "detection.metric": ("", "COCO", "ap50"),
    "detection.shown_score": ("1.5", "-0.1", "50"),
    "clips.frames": ("0", "-4", "1025"),
    "clips.frame_stride": ("0", "-1", "100000"),
    "clips.jitter": ("1", "-1", "1000"),
    "clips.short": ("", "pad", "LOOP"),
    "clips.eval_clips": ("0", "101"),
    "clips.eval_crops": ("0", "101"),
    "mesh.data": ("0", "-2", "10000000000", "7"),
    "mesh.fsdp": ("0", "-1", "10000000000", "7"),
    "mesh.fsdp_min_size": ("-1", "1000000000000000000000"),
    "model.name": (
        *("", "resnet", "lambda_resnet_digit", "None", "3", "m" * 5000, "../digits", "{'a': 1}"),
    ),
    "model.image_size": ("(9, 9)", "8", "(8,)", "'8x8'", "(10**6, 10**6)", "(0, 0)"),
    "model.in_channels": ("7", "0", "'3'", "100000000000"),
    "model.num_classes": ("2", "0", "-1", "100000000000", "'ten'", "10.0", "10000000000000000000"),
    "model.blocks": (
        *("()", "(0, 1)", "(2, -2)", "3", "('a', 'b')", "(1.5, 1)", "(100000, 100000)"),
        *("(10000000000, 1)", "(1,) * 5", "{'a': 1}", "(1, 1, 1, 1, 1, 1, 1)"),
    ),
    "model.widths": ("()", "(0, 8)", "(8,)", "(16.5, 32)", "(100000000, 100000000)", "x", "-16"),
    "model.remat": ("all", "Block", "True", "1"),
    "model.dtype": ("float16", "float64", "half", "1", "None"),
    "model.param_dtype": ("int8", "float8", "True"),
    "model.drop_path_rate": ("1.0", "-0.1", "x", "nan", "1e308", "(0.1,)"),
    "model.dropout_rate": ("1.0", "-0.1", "None", "inf"),
    "model.attention": (
        *("lamda", "''", "3", "{'a': 1}", "{'name': 'lambda', 'scop': 3}", "('lambda',) * 3"),
        *("{'name': {'x': 1}}", "{'name': 'lambda', 'key_depth': 1000000000}", "se", "less"),
        *("{'name': 'lambda', 'key_depth': 10**9}", "{'name': 'lambda', 'key_depth': 'x'}"),
        *("{'name': 'lambda', 'key_depth': 100000000000}", "{'name': 'lambda', 'heads': -1}"),
        *("('lambda', 'lambda', 'lambda')", "{'name': 'mhsa', 'num_heads': 0}", "{1: 2}"),
        *("{'name': 'window', 'window_size': -1}", "{'name': 'slide', 'kernel_size': 4000000000}"),
        *("{'name': 'lambda', 'dim_out': 7}", "{'name': 'lambda', 'norm_momentum': 1e300}"),
        *("{'name': 'linformer', 'k': 'x'}", "{'a.b': 1, 'name': 'lambda'}", "{(1, 2): 3}"),
    ),
    "model.attention.name.x": ("1",),
    "model.attention.name": ("", "nothing", "7"),
    "model.context": (
        *("cgnl", "{'name': 'cgnl'}", "{'name': 'cgnl', 'after': 'stage9.1'}", "{'after': 'x'}"),
        *("{'name': 'lambda', 'after': 'stage1.1'}", "{'name': 'cgnl', 'after': 'stage[1'}"),
        *("{'name': 'se', 'after': 'stage1.1', 'ratio': -1}", "7", "({'name': 'se'},)"),
        *("{'name': 'se', 'after': 'stage1.1', 'bla': 1}", "{'name': 5, 'after': 'stage1.1'}"),
        *("{'name': 'rcca', 'after': 'stage1.1', 'recurrence': 100000}",),
        *("{'name': 'object_context', 'after': 'stage1.1', 'num_qk_convs': 100000}",),
        *("{'name': 'se', 'after': 5}", "{'name': 'se', 'after': 'stage1.1', 'placement': 'in'}"),
    ),
}
FOR_KEY["data.pseudo_split"] = FOR_KEY["data.train_split"][:15]

# Whole sections, and keys that cannot be.
STRUCTURE = (
    *("data", "optim", "train", "mesh", "classification", "model"),
    *(
        "",
        ".",
        "..",
        "data.",
        ".lr",
        "items",
        "optim.keys",
        "model..x",
        "data.image_size.0",
        "a" * 9000,
    ),
    *(
        "train.batch_size.x",
        "train.accumulate.y.z",
        "optim.lr.x",
        "seed.a",
        "task.b",
        "optim.betas.c",
    ),
    *(
        "train.label_smoothing",
        "train.mixup_alpha",
        "train.cutmix_alpha",
        "lr",
        "optim.learning_rate",
    ),
    *(
        "__class__",
        "data.__init__",
        "model.rngs",
        "model.self",
        "optim.lr.lr.lr.lr.lr",
        "train.ema",
    ),
)


def make_cases(count: int, seed: int = 0) -> list[Case]:
    """Returns different cases, spread evenly over the kinds of mutation."""
    draw, cases = random.Random(seed), {}
    kinds = (_of_key, _of_key, _of_type, _misspelt, _structure, _two_at_once, _schedule)
    turn = 0
    while len(cases) < count:
        case = kinds[turn % len(kinds)](draw)
        turn += 1
        cases.setdefault(repr(case), case)
    return list(cases.values())


def _recipe(draw: random.Random) -> str:
    return draw.choice(list(RECIPES))


def _last(key: str) -> str:
    return key.rpartition(".")[2]


def _of_key(draw: random.Random) -> Case:
    key = draw.choice(list(FOR_KEY))
    recipe, text = _recipe(draw), draw.choice(FOR_KEY[key])
    return Case(recipe, {key: text}, _names(key))


def _names(key: str) -> tuple[str, ...]:
    """What must stand in the error: the key; for options inside a model also what it calls them."""
    return (key, _last(key)) if key.startswith("model.") else (key,)


def _of_type(draw: random.Random) -> Case:
    leaves = [(k, v) for k, v in config_lib.leaves(base.get_config()) if type(v) in FOR_TYPE]
    leaves = [(k, v) for k, v in leaves if v != ()]
    key, default = draw.choice(leaves)
    text = draw.choice(FOR_TYPE[type(default)])
    if key == "mesh.data" and text == "-1":
        text = "-7"
    return Case(_recipe(draw), {key: text}, (key,))


def _misspelt(draw: random.Random) -> Case:
    known = [k for k, _ in config_lib.leaves(base.get_config())]
    known += ["model.blocks", "model.widths", "model.attention", "model.remat", "model.dtype"]
    key = draw.choice(known)
    section, _, last = key.rpartition(".")
    spot = draw.randrange(len(last))
    last = draw.choice(
        (
            last[:spot] + last[spot + 1 :] + "_",
            last[:spot] + draw.choice("xyzq") + last[spot:],
            last[:spot] + last[spot] + last[spot:] + "s",
            last.upper(),
        )
    )
    if section and draw.random() < 0.2:
        section = section[:-1] + draw.choice("xyz")
    key = f"{section}.{last}".lstrip(".")
    return Case(_recipe(draw), {key: draw.choice(("1", "0.5", "x", "(1, 2)", "None"))}, (key,))


def _structure(draw: random.Random) -> Case:
    key = draw.choice(STRUCTURE)
    text = draw.choice(("3", "None", "()", "[1]", "text", "{}", "{'lr': {'a': {}}}", "{'name': 7}"))
    first = key.split(".")[0][:100]
    return Case(_recipe(draw), {key: text}, (key[:100], first) if first else ("no such key",))


def _schedule(draw: random.Random) -> Case:
    """Schedules that do not fit into a run of epochs."""
    wrong = draw.choice(
        (
            {"optim.warmup_epochs": draw.choice(("401", "5e3", "999999"))},
            {"optim.cooldown_epochs": draw.choice(("401", "5e3", "999999"))},
            {"optim.warmup_epochs": "200", "optim.cooldown_epochs": "210"},
            {"optim.schedule": "step", "optim.step_epochs": "(500, 600)"},
            {"optim.schedule": "exponential", "optim.decay_epochs": "600"},
            {
                "optim.schedule": "exponential",
                "optim.decay_rate": "1e-4",
                "optim.decay_epochs": "1",
            },
            {
                "train.epochs": "1e6",
                "data.source": "synthetic",
                "data.synthetic_records": "9999999",
            },
        )
    )
    length = {"train.steps": "0", "train.epochs": "400"}
    return Case(_recipe(draw), {**length, **wrong}, (list(wrong)[0], list(wrong)[-1]))


def _two_at_once(draw: random.Random) -> Case:
    one, two = _of_key(draw), _misspelt(draw)
    return Case(one.recipe, {**one.overrides, **two.overrides}, one.names + two.names)


def verdict(case: Case, workdir, data_dir: str, monkeypatch) -> str:
    """Returns '' if the case ends as it must, else what happened instead."""

    def accepted(*_, **__):
        raise Accepted

    monkeypatch.setattr(state, "initialise", accepted)
    began = time.perf_counter()
    try:
        config = RECIPES[case.recipe]()
        config.data.data_dir, config.train.cache_dir = data_dir, ""
        train.run(apply_overrides(config, case.overrides), workdir)
    except Accepted:
        return "accepted"
    except ValueError as error:  # ConfigError and its kind: what main prints without a traceback
        text, kind = str(error), type(error).__name__
    except BaseException as error:
        return f"{type(error).__name__}: {error}"[:300]
    else:
        return "trained"
    seconds = time.perf_counter() - began
    if seconds > MOST_SECONDS:
        return f"took {seconds:.0f} s"
    if not any(name in text for name in case.names):
        return f"does not name {case.names}: {kind}: {text}"[:400]
    if len(text) > 20_000:
        return f"a message of {len(text):,} characters"
    return ""
