"""The study on photographs: its statistics, its recipes, its records, its document, and the whole
command in miniature.
"""

import json
import math
import re
import subprocess
import sys
import time
import types

import jax
import numpy as np
import pytest
from covering import part
from flax import nnx
from PIL import Image
from scipy import stats
from sklearn.datasets import load_digits

import models
from benchmarks import (
    paired_statistics,
    reading,
    study,
    study_data,
    study_plan,
    study_records,
    study_report,
    study_results,
    study_variations,
    training_command,
    training_runs,
)
from configs import base
from configs import study as recipe
from lambdanet.config import validate
from lambdanet.training import state
from lambdanet.training.optimizer import check_rules

RESULTS = training_runs.ROOT / "benchmarks" / "results" / "study.jsonl"


# --------------------------------------------------------------------------------------------------
# Statistics
# --------------------------------------------------------------------------------------------------
def answers(share, images=372, seeds=1):
    """Right about the first images."""
    return np.tile(np.arange(images) < round(share * images), (seeds, 1))


def test_the_interval_of_an_accuracy_is_that_of_a_proportion():
    low, high = paired_statistics.interval(answers(0.6))
    p = round(0.6 * 372) / 372
    half = 1.96 * math.sqrt(p * (1 - p) / 372)
    np.testing.assert_allclose([low, high], [p - half, p + half], atol=0.004)
    assert paired_statistics.interval(answers(1.0)) == (1.0, 1.0)


def test_the_interval_of_a_difference_is_that_of_paired_answers():
    first, second = answers(0.6), answers(0.5)  # the second is right where the first is, mostly
    low, high = paired_statistics.interval(first, second)
    share = (first.sum() - second.sum()) / 372  # of images that only the first gets right
    half = 1.96 * math.sqrt(share * (1 - share) / 372)
    np.testing.assert_allclose([low, high], [share - half, share + half], atol=0.004)
    assert paired_statistics.interval(first, first) == (0.0, 0.0)


def test_seeds_that_differ_widen_the_interval():
    seeds = np.stack([np.ones(50, bool), np.zeros(50, bool)])
    assert paired_statistics.interval(seeds) == (0.0, 1.0)
    assert paired_statistics.interval(seeds[:1]) == (1.0, 1.0)


@pytest.mark.parametrize(
    "won, lost, p", [(5, 0, 0.0625), (9, 1, 0.021484375), (10, 10, 1.0), (0, 0, 1.0), (7, 19, None)]
)
def test_with_one_seed_the_test_is_mcnemars(won, lost, p):
    first = np.array([[True] * won + [False] * lost + [True] * 11 + [False] * 7])
    second = np.array([[False] * won + [True] * lost + [True] * 11 + [False] * 7])
    expected = stats.binomtest(won, won + lost).pvalue if p is None else p
    assert paired_statistics.paired_p(first, second) == pytest.approx(expected, rel=1e-12)
    assert paired_statistics.paired_p(second, first) == pytest.approx(expected, rel=1e-12)


def test_with_several_seeds_the_test_counts_how_much_they_differ():
    images = np.arange(1000)
    base = np.stack([images < 500] * 3)
    steady = np.stack([images < count for count in (690, 700, 710)])
    lucky = np.stack([images < count for count in (500, 650, 950)])  # the mean is the same
    assert steady.mean() == lucky.mean()
    assert paired_statistics.paired_p(steady, base) < 1e-6
    assert paired_statistics.paired_p(lucky, base) > 0.1
    assert paired_statistics.paired_p(base, base) == 1.0
    assert paired_statistics.paired_p(base | True, base & False) == 0.0


def test_the_test_of_several_seeds_is_welchs_where_the_images_say_nothing():
    """Many images whose differences agree leave the variance of the seeds alone."""
    images = np.arange(10**6)
    first = np.stack([images % 100 < share for share in (60, 66, 69)])
    second = np.stack([images % 100 < share for share in (50, 52, 54)])
    shares = first.mean(axis=1), second.mean(axis=1)
    expected = stats.ttest_ind(*shares, equal_var=False).pvalue
    assert paired_statistics.paired_p(first, second) == pytest.approx(expected, rel=1e-3)


def test_equally_good_networks_rarely_seem_to_differ():
    """Seeds whose accuracies scatter by five points: at most 5 % may be called shown at 0.05."""
    rng = np.random.default_rng(0)
    shown = []
    for _ in range(400):
        hard = rng.random(300)  # of an image, for both
        shares = 0.6 + 0.05 * rng.standard_normal((2, 3, 1))
        pair = 0.5 * rng.random((2, 3, 300)) + 0.5 * hard < shares
        shown.append(paired_statistics.paired_p(*pair) < 0.05)
    assert np.mean(shown) < 0.06


def test_holms_correction():
    found = paired_statistics.holm([0.01, 0.04, 0.03, 0.005])
    np.testing.assert_allclose(found, [0.03, 0.06, 0.06, 0.02])
    assert paired_statistics.holm([0.6, 0.9]) == [1.0, 1.0] and paired_statistics.holm([]) == []


# --------------------------------------------------------------------------------------------------
# Recipes
# --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("net", part(recipe.NETS, ["lavit"]))
def test_every_network_is_a_valid_recipe_of_one_to_two_million_parameters(net):
    config = recipe.get_config(net)

    def build():
        return nnx.eval_shape(
            lambda: models.create_from_config(config, num_classes=10, rngs=nnx.Rngs(0))
        )

    validate(config, base.get_config(), models.registry, check_paths=False, build=build)
    params = state.split_model(build())[1]
    check_rules(config.optim, params)
    assert 1e6 <= sum(p.size for p in jax.tree.leaves(params)) <= 2e6
    maps = build().feature_info
    assert [one["stride"] for one in maps] == [4, 8, 16, 32]
    section = {"model", "seed"}
    same = {k: v for k, v in recipe.get_config("none").items() if k not in section}
    assert {k: v for k, v in config.items() if k not in section} == same  # one recipe for all


def test_unknown_networks_are_named():
    with pytest.raises(ValueError, match="argument 'sse'; allowed: none, .*Did you mean 'se'"):
        recipe.get_config("sse")
    assert recipe.get_config("se,smoke").train.steps == 10


def test_seed_0_of_everything_comes_first(tmp_path):
    runs = study_plan.all_runs(study_plan.FULL, tmp_path)
    assert len(runs) == 3 * (len(recipe.NETS) + len(recipe.NETS) - len(recipe.FAMILIES))
    order = list(dict.fromkeys((run.task, run.seed) for run in runs))
    assert order == [(task, 0) for task in ("photos", "cued")] + [
        (task, seed) for task in ("cued", "photos") for seed in (1, 2)
    ]
    assert all(run.workdir.is_relative_to(tmp_path / "nets") for run in runs)
    assert runs[0].config.data.data_dir == str(tmp_path / "photos")  # not among the runs
    assert runs[0].variant == "none" and {r.task for r in runs} == {"photos", "cued"}
    for task in study_plan.QUICK.nets:
        assert set(study_plan.QUICK.names(task)) <= set(study_plan.FULL.names(task))


def test_the_digest_is_of_what_a_network_learns(monkeypatch):
    def digest(task="photos", net="se", **changes):
        config = recipe.get_config(net)
        for key, value in changes.items():
            section, _, name = key.partition("__")
            config[section][name] = value
        return study_records.recipe_digest(task, config)

    first = digest()
    assert digest(data__data_dir="elsewhere", train__report=False, data__num_threads=1) == first
    others = [digest(optim__lr=0.5), digest(train__steps=9), digest(net="gc"), digest("cued")]
    others += [digest(model__zero_init_last=True), digest(data__eval_keep_aspect=True)]
    assert len({first, *others}) == 1 + len(others)
    defaults = base.get_config()
    with defaults.unlocked():
        defaults.train.some_new_key = 3
    monkeypatch.setattr(base, "get_config", lambda arg="": defaults.copy_and_resolve_references())
    assert digest() == first


# --------------------------------------------------------------------------------------------------
# Pictures
# --------------------------------------------------------------------------------------------------
def test_variations_are_repeatable_and_do_what_they_say():
    pictures = np.random.default_rng(0).integers(0, 256, (2, 64, 32, 3), np.uint8)
    for name, change in study_variations.VARIATIONS.items():
        varied = change(pictures)
        assert varied.shape == pictures.shape and varied.dtype == np.uint8
        assert np.array_equal(varied, change(pictures))
        assert np.array_equal(varied, pictures) == (name == study_variations.CLEAN)
    shifted = study_variations.shifted(pictures, 1, -1)
    assert np.array_equal(shifted[:, 6:, :-3], pictures[:, :-6, 3:])
    assert np.array_equal(shifted[:, 0, 0], pictures[:, 0, 3])  # the edge goes on
    grey = np.full((1, 64, 64, 3), 128, np.uint8)
    spread = study_variations.noisy(grey, 16).astype(float).std()
    assert spread == pytest.approx(16, rel=0.02)
    assert np.array_equal(study_variations.blurred(grey, 2), grey)
    point = np.zeros((1, 65, 65, 1), np.uint8)
    point[0, 32, 32] = 255
    tall = study_variations.blurred(np.repeat(point, 3, axis=3), 1)[0, 32, 32]
    np.testing.assert_allclose(tall, 255 / (2 * math.pi), atol=1)


def test_answers_survive_packing():
    right = np.random.default_rng(0).random(27) < 0.5
    text = study_records.pack(right)
    assert len(text) == 8 and np.array_equal(study_records.unpack(text, 27), right)


def photographs(directory, per_class=(6, 2, 4), classes=(0, 1)):
    """Class folders of embedded digits."""
    digits, start = load_digits(), 0
    for split, count in zip(study_data.SPLITS, per_class, strict=True):
        for label in classes:
            folder = directory / split / f"digit {label}"
            folder.mkdir(parents=True)
            chosen = digits.images[digits.target == label][start : start + count]
            for number, image in enumerate(chosen):
                picture = Image.fromarray((15 * image).astype(np.uint8)).resize((24, 32))
                picture.save(folder / f"{number}.png")
        start += count
    return directory


def test_what_is_known_of_the_photographs(tmp_path):
    source = photographs(tmp_path / "source")
    first = study_data.describe(source)
    assert first["images"] == {"train": 12, "validation": 4, "test": 8}
    assert first["classes"]["test"] == {"digit 0": 4, "digit 1": 4}
    assert set(first["duplicates"].values()) == {0}
    copy = (source / "train" / "digit 0" / "0.png").read_bytes()
    (source / "test" / "digit 0" / "again.png").write_bytes(copy)
    second = study_data.describe(source)
    assert second["duplicates"] == {"train, validation": 0, "train, test": 1, "validation, test": 0}
    assert second["digest"] != first["digest"]
    assert study_data.prepare(source, tmp_path / "prepared") == second
    assert study_data.prepare(source, tmp_path / "prepared") == second
    (source / "test" / "digit 0" / "again.png").unlink()
    with pytest.raises(ValueError, match="was prepared from other pictures"):
        study_data.prepare(source, tmp_path / "prepared")


# --------------------------------------------------------------------------------------------------
# Records and document
# --------------------------------------------------------------------------------------------------
def net_record(net, seed, right, task="photos", varied=True, digest="r", **more):
    right = np.asarray(right, bool)
    names = study_variations.VARIATIONS if varied else [study_variations.CLEAN]
    bits = {name: study_records.pack(right) for name in names}
    if varied:
        bits["noise_32"] = study_records.pack(right & (np.arange(len(right)) % 2 == 0))
    record = dict(suite="net", task=task, net=net, kind=recipe.kind_of(net), seed=seed)
    record |= dict(recipe=digest, count=len(right), correct=bits, parameters=1_200_000)
    record |= dict(macs=13_000_000, wall_seconds=9.0, python="3", jax="0", device="cpu")
    return record | more


def hand_made():
    """none 50 %, se 60 % (wins 10 images of 100, loses none), lambda failed, swin missing."""
    images = np.arange(100)
    records = [
        dict(
            suite="data",
            digest="d",
            images={"train": 3, "validation": 1, "test": 100},
            classes={"train": {"hat": 2, "t_shirt": 1}},
            duplicates={"train, test": 4},
        ),
        net_record("none", 0, images < 50),
        net_record("se", 0, images < 60, parameters=1_100_000),
        dict(suite="net", task="photos", net="lambda", kind="mixer", seed=0, recipe="r")
        | dict(error="ended with status 1", python="3", jax="0", device="cpu"),
        net_record("gc", 0, images < 90, digest="older"),
        dict(suite="step", task="photos", net="se", recipe="r", ratio=1.05, cores=2),
    ]
    expected = {"photos": ["none", "lambda", "se", "gc", "swin"], "cued": ["none", "se"]}
    recipes = {(task, net): "r" for task, names in expected.items() for net in names}
    return records, study_plan.Scope(recipes, expected, (0, 1))


def test_the_document_says_what_hand_made_records_say(tmp_path):
    records, scope = hand_made()
    document, images = tmp_path / "study.md", tmp_path / "images"
    images.mkdir()
    places = dict(document=document, images=images, records_file=tmp_path / "r.jsonl")
    study_report.write(records, scope, **places)
    text = document.read_text()
    assert "- Photographs, 5 networks: seed 0: 2 of 5, seed 1: 0 of 5." in text
    assert "- Cued digits, 2 networks: seed 0: 0 of 2" in text
    assert "- 1 records of other recipes are in the file and not shown." in text
    assert "- Failed: `lambda`, ended with status 1" in text and "- Step times: 1 of 5." in text
    lines = text.splitlines()

    def cells(name, nth=0):
        rows = [x for x in lines if re.match(rf"\| \d+ \| `{name}` ", x)]
        return [cell.strip() for cell in rows[nth].split("|")]

    row = cells("se")
    assert row[4:9] == ["1,100,000", "13.00", "1.05", "1", "60.00"]
    assert row[10] == "+10.0" and row[12:14] == ["0.002", "0.002"]  # 2 / 2^10
    low, high = map(float, row[11].replace("+", "").split(" to "))
    assert 3.9 <= low <= 5.1 and 15.0 <= high <= 16.1  # 10 +- 1.96 * 3
    assert cells("none")[8] == "50.00" and cells("none")[10:14] == [""] * 4
    assert cells("lambda")[8] == "failed"
    assert text.count("Missing, 2 of 5: `gc`, `swin`.") == 2 and "Missing, 2 of 2: `none`" in text
    assert cells("se", 1)[4:7] == ["60.0", "60.0", "60.0"] and cells("se", 1)[7] == "30.0"
    assert "| accuracy, whatever it costs | `se` | best of 1: +10.0 points" in text
    assert "corrected p 0.002: shown; 1.05 x its step time |" in text
    assert "| `se` | 92 % of the parameters" in text
    assert "| a whole hierarchical network | not measured yet | none is trained |" in text
    assert "| pictures may be noisy | `se` | highest mean of 2: 30.0 % (unvaried 60.0 %)" in text
    assert "t\\_shirt 1; not those of the project." in text and "4 of train, test" in text
    for name in re.findall(r"\((images/\S+\.png)\)", text):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert len(list(images.iterdir())) == 2

    by_hand = f"{reading.begin(study_report.COMMAND)}\nSe wins.\n{reading.END}"
    document.write_text(re.sub(r"<!-- reading.*reading -->", by_hand, text, flags=re.S))
    study_report.write(records[:1], scope, **places)
    bare = document.read_text()
    assert "Se wins." in bare and "seed 0: 0 of 5" in bare and "png" not in bare


def test_results_use_the_seeds_that_both_networks_have():
    images = np.arange(40)
    records = [net_record("none", 0, images < 20), net_record("none", 1, images < 22)]
    records += [net_record("se", s, images < 24 + 4 * s) for s in (0, 1, 2)]
    found = study_results.results(records, "photos", ["none", "se"])
    assert found["se"].seeds == (0, 1, 2) and found["se"].accuracy == pytest.approx(70.0)
    assert found["se"].difference.mean == pytest.approx(100 * (26 - 21) / 40)
    assert found["none"].difference is None and found["none"].number == 0
    two = np.stack([images < 24, images < 28]), np.stack([images < 20, images < 22])
    assert found["se"].difference.p == paired_statistics.paired_p(*two)
    low, high = found["se"].low, found["se"].high
    assert low < 60 and high > 80  # of the seeds, too


def test_a_record_takes_the_place_of_an_earlier_one_of_the_same(tmp_path):
    path = tmp_path / "records.jsonl"
    failed = dict(suite="net", task="cued", net="se", seed=0, recipe="r", error="no")
    for record in (failed, failed | {"seed": 1}, failed | {"recipe": "s"}):
        study_records.put(path, record)
    right = net_record("se", 0, [1, 0], task="cued", varied=False)
    study_records.put(path, right)
    kept = study_records.read(path)
    assert len(kept) == 3 and kept[0] == json.loads(json.dumps(right))
    assert [r["recipe"] for r in study_records.current(kept, {("cued", "se"): "s"})] == ["s"]
    assert set(study_records.finished(kept)) == {("cued", "se", 0)}


@pytest.mark.skipif(not RESULTS.is_file(), reason="the study has not been run")
def test_the_committed_document_is_what_the_committed_records_say():
    records, scope = study_records.read(RESULTS), study_plan.scope_of(study_plan.FULL)
    document = training_runs.ROOT / "docs" / "study.md"
    by_hand = reading.read(document, study_report.COMMAND)
    places = ("images", f"../benchmarks/results/{RESULTS.name}")
    text, _ = study_report.markdown(records, scope, by_hand, *places)
    assert document.read_text() == text


# --------------------------------------------------------------------------------------------------
# The command
# --------------------------------------------------------------------------------------------------
def plan_of(*nets):
    small = {"train.steps": "3", "train.batch_size": "4", "data.image_size": "(32, 32)"}
    small |= {"train.cache_dir": "", "optim.warmup_epochs": "0.0", "train.eval_batch_size": "8"}
    shape = {"model.blocks": "(1, 1, 1, 1)", "model.widths": "(8, 8, 8, 8)"}
    options = {"photos": {**small, **shape}}
    return study_plan.Plan({"photos": nets}, (0,), rounds=2, options=options)


def places(directory):
    return training_command.files_in(
        directory, "study", "study.md", "study.jsonl", directory / "out"
    )


def arguments(source, *argv):
    return study.parse(["--data", str(source), "--jobs", "1", *argv])[2]


@pytest.mark.exhaustive
def test_trains_tests_measures_and_writes_what_the_records_say(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    source = photographs(tmp_path / "source")
    files = training_command.files_in(
        tmp_path, "study", "study.md", "study.jsonl", tmp_path / "out"
    )
    plan, args = plan_of("none"), arguments(source)
    assert study.run(plan, files, args) == {}
    data, net, step = study_records.read(files.records)
    assert data["images"]["test"] == net["count"] == 8 and net["total_steps"] == 3
    assert set(net["correct"]) == set(study_variations.VARIATIONS)
    assert net["accuracies"]["clean"] == pytest.approx(net["accuracy"], abs=1e-6)
    clean = study_records.unpack(net["correct"]["clean"], 8)
    assert clean.mean() == net["accuracy"] and net["parameters"] > 1000 and net["macs"] > 1000
    assert "-m benchmarks.study_run --config=configs/study.py:none" in net["command"]
    assert step["net"] == "none" and step["ratio"] == pytest.approx(1, abs=0.9)
    assert f"| {100 * net['accuracy']:.2f} |" in files.document.read_text()

    def refuse(*args, **options):
        raise AssertionError("nothing is left to do")

    monkeypatch.setattr(training_runs, "start", refuse)
    monkeypatch.setattr(study.harness, "run_cases", refuse)
    before = files.document.read_text(), files.records.read_text()
    for argv in ((), ("--report",)):
        assert study.run(plan, files, arguments(source, *argv)) == {}
        assert (files.document.read_text(), files.records.read_text()) == before


def test_what_is_finished_stays_when_the_time_is_over_and_the_rest_follows(
    tmp_path, monkeypatch, capsys
):
    source = photographs(tmp_path / "source")
    files = training_command.files_in(
        tmp_path, "study", "study.md", "study.jsonl", tmp_path / "out"
    )
    outcome = dict(interrupted=False, accuracy=0.5, loss=1.0, count=8, total_steps=3)
    outcome |= dict(parameters=10, macs=20, train_seconds=1.0)
    outcome |= {f"correct_{name}": "f0" for name in study_variations.VARIATIONS}
    started, later = [], [0.0]
    now = lambda: time.monotonic() + later[0]  # noqa: E731
    clock = types.SimpleNamespace(monotonic=now, sleep=time.sleep)
    monkeypatch.setattr(training_runs, "time", clock)

    def program(slow):
        def start(run):
            started.append(run.variant)
            run.workdir.mkdir(parents=True, exist_ok=True)
            seconds = 60 * (run.variant in slow)
            later[0] = 1e5 * (run.variant in slow)  # the hours are over
            code = f"import time; time.sleep({seconds}); print('''{json.dumps(outcome)}''')"
            with (run.workdir / "train.log").open("w") as log:
                return subprocess.Popen([sys.executable, "-c", code], stdout=log)

        return start

    monkeypatch.setattr(study, "measure_steps", lambda *args: None)
    monkeypatch.setattr(training_runs, "start", program(slow=("se",)))
    plan = study_plan.Plan({"photos": ("none", "se")}, (0,))
    assert study.run(plan, files, arguments(source, "--hours", "1")) == {}
    assert started == ["none", "se"]
    assert "the time is over with 1 runs left" in capsys.readouterr().out
    assert "seed 0: 1 of 2" in files.document.read_text()
    first = files.records.read_text()
    monkeypatch.setattr(training_runs, "start", program(slow=()))
    assert study.run(plan, files, arguments(source)) == {} and started[2:] == ["se"]
    assert "seed 0: complete" in files.document.read_text()
    assert files.records.read_text().startswith(first)
    assert study_records.read(files.records)[-1]["accuracies"]["clean"] == 0.5


def test_wrong_input_is_answered_before_anything_runs(tmp_path, capsys, monkeypatch):
    out = ["--out", str(tmp_path / "out")]
    assert study.main(["--data", str(tmp_path), *out]) == 2
    said = capsys.readouterr().err
    assert "has no folder train, validation, test" in said and study_data.ORIGIN in said
    for argv, message in (
        (["--jobs", "0"], "--jobs is 0; allowed: at least 1"),
        (["--hours", "0"], "--hours is 0.0; allowed: more than 0"),
        (["--only", "lamda"], "--only is 'lamda'; networks: none, "),
        (["--speed", "--report"], "not allowed with"),
    ):
        with pytest.raises(SystemExit):
            study.main(argv)
        assert message in capsys.readouterr().err
    source = photographs(tmp_path / "source", per_class=(1, 1, 1))
    (tmp_path / "out" / "study.jsonl").write_text('{"suite": "data", "digest": "other"}\n')
    assert study.main(["--data", str(source), *out]) == 2
    assert "is of other photographs (other)" in capsys.readouterr().err
    (tmp_path / "out" / "study.md").write_text("no marks")
    assert study.main(["--data", str(source), *out]) == 2
    assert "hand-written part" in capsys.readouterr().err
    monkeypatch.setattr(study, "ROOT", tmp_path)
    seen = []
    monkeypatch.setattr(study, "run", lambda plan, files, args: seen.append(files.document) or {})
    assert study.main(["--quick"]) == study.main(["--only", "se"]) == study.main([]) == 0
    folders = [path.relative_to(tmp_path).parent.as_posix() for path in seen]
    assert folders == ["runs/study_quick", "runs/study_only", "docs"]
