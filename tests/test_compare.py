"""The comparison of all attention blocks: its recipes, one miniature of the whole command, and what
happens at each restart.
"""

import ast
import functools
import json
import re
import subprocess
import sys
import time

import jax
import pytest
from covering import part
from flax import nnx

import models
from benchmarks import (
    compare,
    compare_plots,
    compare_report,
    compare_runs,
    memory_suite,
    reading,
    training_runs,
)
from configs import attention_zoo, base
from lambdanet.attention import create_attention, registry
from lambdanet.config import to_json, validate
from lambdanet.training import state
from lambdanet.training.optimizer import check_rules

RESULTS = compare.ROOT / "benchmarks" / "results" / "cpu_compare.jsonl"


class Doubled(nnx.Module):
    """A newcomer: y = 2 x."""

    kind = "context"

    def __init__(self, dim, *, rngs):
        self.dim = dim

    def __call__(self, x, *, rngs=None):
        return 2 * x

    def macs(self, *spatial):
        return 0


# --------------------------------------------------------------------------------------------------
# Recipes
# --------------------------------------------------------------------------------------------------
@pytest.mark.exhaustive
@pytest.mark.parametrize("task", part(attention_zoo.TASKS, ["digits"]))
def test_every_variant_is_a_valid_recipe_and_builds_with_its_block(task):
    steps, plain = set(), None
    for name, spec in attention_zoo.variants().items():
        config = attention_zoo.get_config(f"{task},{name}")

        @functools.cache
        def build(config=config):
            return nnx.eval_shape(
                lambda: models.create_from_config(config, num_classes=10, rngs=nnx.Rngs(0))
            )

        validate(config, base.get_config(), models.registry, check_paths=False, build=build)
        types = {type(module) for _, module in nnx.iter_modules(build())}
        if spec is None:
            plain = types
        else:
            assert registry.lookup(spec["name"])[0] in types - plain, name
        steps.add(
            (config.train.steps, config.train.epochs, config.train.batch_size, config.optim.lr)
        )
    assert len(steps) == 1  # one recipe for all


def test_a_newly_registered_block_is_a_variant_by_itself():
    registry.register("doubled", Doubled)
    try:
        assert attention_zoo.variants()["doubled"] == {"name": "doubled"}
        assert {case.name for case in memory_suite.cases()} >= {"doubled"}
        config = attention_zoo.get_config("digits,doubled")
        assert config.model.context.to_dict() == {"name": "doubled", "after": "stage1.2"}
        facts = memory_suite.prepare("doubled", {"name": "doubled"}, "train", (4, 8), 3).facts
        assert (
            facts["formula"] == "(none given)"
            and "formula_bytes" not in facts
            and len(facts["bytes"]) == 2
        )
        assert "doubled" in compare.FULL.names("digits") and "doubled" not in compare.QUICK.names(
            "digits"
        )
    finally:
        registry._entries.pop("doubled")
    assert "nonlocal_paper" not in attention_zoo.variants()  # a preset of a block that is there


def test_unknown_tasks_and_variants_are_named():
    with pytest.raises(
        ValueError, match=r"task 'digit'; allowed: digits, cued. Did you mean 'digits'\?"
    ):
        attention_zoo.get_config("digit,se")
    with pytest.raises(
        ValueError, match=r"variant 'lamda'; allowed: none, .*Did you mean 'lambda'\?"
    ):
        attention_zoo.get_config("digits,lamda")
    smoke = attention_zoo.get_config("cued,lambda,smoke")
    assert (
        smoke.data.source == "synthetic"
        and smoke.train.steps == 10
        and smoke.data.image_size == (64, 64)
    )


# --------------------------------------------------------------------------------------------------
# The command
# --------------------------------------------------------------------------------------------------
def plan_of(directory, **changes):
    options = {
        "data.data_dir": str(directory / "data"),
        "train.cache_dir": "",
        "train.batch_size": "16",
    }
    wanted = dict(
        seeds={"digits": (0,), "backbones": (0,)},
        steps={"digits": 3, "backbones": 3},
        sides=(8, 16),
        channels=8,
    )
    wanted["variants"] = ("none", "se", "resnet_digits")
    return compare.Plan(**{**wanted, **changes}, rounds=2, options=options)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The whole command in miniature: (plan, files, what it printed)."""
    directory = tmp_path_factory.mktemp("compare")
    plan, files = plan_of(directory), compare.files_in(directory / "out")
    with pytest.MonkeyPatch.context() as patch:  # compiling is most of what this costs
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        jax.config.update("jax_disable_most_optimizations", True)
        try:
            assert compare.run(plan, files, jobs=2) == {}
        finally:
            jax.config.update("jax_disable_most_optimizations", False)
    return plan, files


@pytest.mark.exhaustive
def test_trains_measures_and_writes_what_the_records_say(made):
    _, files = made
    records = [json.loads(line) for line in files.records.read_text().splitlines()]
    runs = {r["variant"]: r for r in records if r["suite"] == "accuracy"}
    steps = {r["impl"]: r for r in records if r["suite"] == "step"}
    memory = {(r["case"], r["direction"]): r for r in records if r["suite"] == "memory"}
    assert set(runs) == set(steps) == {"none", "se", "resnet_digits"} and set(memory) == {
        ("se", "fwd"),
        ("se", "train"),
    }
    assert all(
        r["total_steps"] == 3 and r["count"] == 360 and 0 <= r["accuracy"] <= 1
        for r in runs.values()
    )
    assert "--config=configs/attention_zoo.py:digits,se --config.seed=0" in runs["se"]["command"]
    assert "--config=configs/digits.py:conv --config.seed=0" in runs["resnet_digits"]["command"]
    block = nnx.eval_shape(lambda: create_attention("se", 64, rngs=nnx.Rngs(0)))
    assert steps["se"]["macs"] - steps["none"]["macs"] == block.macs(8, 8)
    assert steps["se"]["parameters"] - steps["none"]["parameters"] == 64 * 16 + 16 + 16 * 64 + 64
    assert memory["se", "fwd"]["sides"] == [8, 16] and len(memory["se", "train"]["bytes"]) == 2

    text = files.document.read_text()
    row = next(line for line in text.splitlines() if line.startswith("| 1 | `se` | context |"))
    assert f"{steps['se']['parameters']:,}" in row and f"{100 * runs['se']['accuracy']:.2f}" in row
    assert (
        f"{steps['se']['median_ms']:.2f}" in row
        and text.count("3 steps of batch 16; 360 test images") == 2
    )
    assert (
        text.index("## digits")
        < text.index("| `se` |")
        < text.index("## backbones")
        < text.index("| `resnet_digits` |")
    )
    for name in re.findall(r"\((images/\S+\.png)\)", text):
        assert (files.document.parent / name).read_bytes().startswith(b"\x89PNG")
    assert text == compare_report.markdown(records, reading.NOT_WRITTEN, "images", "compare.jsonl")


@pytest.mark.exhaustive
def test_a_second_call_only_writes_the_document_anew_and_keeps_the_reading(made, monkeypatch):
    plan, files = made
    before = files.records.read_text()
    begin, end = reading.begin(compare_report.COMMAND), reading.END
    by_hand = f"{begin}\nBoth are fine.\n{end}"
    written = re.sub(f"{begin}.*{end}", by_hand, files.document.read_text(), flags=re.S)
    files.document.write_text(written.replace("step ms", "step hours"))

    def refuse(*args):
        raise AssertionError("nothing is left to do")

    monkeypatch.setattr(training_runs, "start", refuse)
    monkeypatch.setattr(compare.harness, "run_cases", refuse)
    assert compare.run(plan, files, jobs=2) == {}
    assert files.document.read_text() == written and files.records.read_text() == before
    files.document.write_text("no marks")
    with pytest.raises(ValueError, match="hand-written part"):
        reading.read(files.document, compare_report.COMMAND)
    files.document.write_text(written)


@pytest.mark.skipif(not RESULTS.is_file(), reason="the comparison has not been run")
def test_the_committed_document_is_what_the_committed_records_say():
    records = [json.loads(line) for line in RESULTS.read_text().splitlines()]
    document = RESULTS.parents[2] / "docs" / "comparison.md"
    by_hand = reading.read(document, compare_report.COMMAND)
    assert document.read_text() == compare_report.markdown(
        records, by_hand, "images", f"../benchmarks/results/{RESULTS.name}"
    )


@pytest.mark.parametrize("task", part(["backbones", "lavit"], ["lavit"]))
def test_every_network_for_the_digits_is_a_valid_run(task, tmp_path):
    for name in compare.FULL.names(task):
        config = compare_runs.make_run(task, name, 0, tmp_path, {}).config

        @functools.cache
        def build(config=config):
            return nnx.eval_shape(
                lambda: models.create_from_config(config, num_classes=10, rngs=nnx.Rngs(0))
            )

        validate(config, base.get_config(), models.registry, check_paths=False, build=build)
        check_rules(config.optim, state.split_model(build())[1])


def test_quick_plan_is_a_part_of_the_full_one():
    for task in (*attention_zoo.TASKS, "backbones", "lavit"):
        assert set(compare.QUICK.names(task)) <= set(compare.FULL.names(task))
    assert (
        set(compare.QUICK.seeds)
        == set(compare.FULL.seeds)
        == {*attention_zoo.TASKS, "backbones", "lavit"}
    )


# --------------------------------------------------------------------------------------------------
# Restarts and failures
# --------------------------------------------------------------------------------------------------
def make_run(directory, **options):
    return compare_runs.make_run("digits", "none", 0, directory, {"train.steps": "3", **options})


def test_a_run_of_another_recipe_is_removed_and_one_of_the_same_kept(tmp_path, capsys):
    run = make_run(tmp_path)
    run.workdir.mkdir(parents=True)
    (run.workdir / "config.json").write_text(to_json(run.config))
    training_runs.drop_outdated([run])
    assert run.workdir.is_dir() and not capsys.readouterr().out
    training_runs.drop_outdated(
        [
            make_run(
                tmp_path, **{"optim.lr": "0.5", "train.steps": "4", "data.data_dir": "elsewhere"}
            )
        ]
    )
    printed = capsys.readouterr().out
    assert not run.workdir.exists() and "optim.lr" in printed and "train.steps: 3 -> 4" in printed
    assert "data_dir" not in printed  # where the data lies is not part of the recipe


@pytest.mark.parametrize(
    "log, status",
    [
        ("ConfigError: no such key", 1),
        ('{"interrupted": true, "accuracy": 0.5}', 0),
        ('{"interrupted": false, "accuracy": NaN}', 0),
        ("", 0),
    ],
)
def test_a_failed_run_keeps_no_result_and_says_why(tmp_path, log, status):
    run = make_run(tmp_path)
    run.workdir.mkdir(parents=True)
    (run.workdir / "train.log").write_text(log)
    with pytest.raises(RuntimeError) as caught:
        training_runs.finish(run, status, 1.0)
    assert log in str(caught.value) and "train.log" in str(caught.value) and run.result is None
    record = compare_runs.accuracy_record(run, str(caught.value))
    assert record["error"] and "accuracy" not in record
    machine = dict(suite="environment", python="3", jax="0", device="cpu", cores=2)
    assert "| failed |" in compare_report.markdown([machine, record], "", "images", "x.jsonl")


def test_the_others_go_on_when_one_fails_and_all_stop_on_a_signal(tmp_path, monkeypatch, capsys):
    started = []

    def program(code):
        def start(run):
            run.workdir.mkdir(parents=True, exist_ok=True)
            with (run.workdir / "train.log").open("w") as log:
                started.append(
                    subprocess.Popen([sys.executable, "-c", code, str(run.seed)], stdout=log)
                )
            return started[-1]

        return start

    runs = [compare_runs.make_run("digits", "none", seed, tmp_path, {}) for seed in range(3)]
    outcome = json.dumps({"interrupted": False, "accuracy": 0.5})
    monkeypatch.setattr(
        training_runs,
        "start",
        program(f"import sys; print('{outcome}'); sys.exit(sys.argv[1] == '1')"),
    )
    failures = training_runs.train_all(runs, jobs=2)
    assert (
        list(failures) == ["digits none seed 1"]
        and runs[0].result["accuracy"] == runs[2].result["accuracy"] == 0.5
    )
    assert "[3/3]" in capsys.readouterr().out

    def interrupt(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(training_runs, "start", program("import time; time.sleep(60)"))
    monkeypatch.setattr(time, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        training_runs.train_all([run for run in runs if run.result is None], jobs=1)
    assert started[-1].poll() is not None


def test_wrong_input_is_answered_before_anything_runs(tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("")
    for argv, message in (
        (
            ["--only", "lamda*", "--out", str(tmp_path)],
            "no variant matches 'lamda*'; variants: none, ",
        ),
        (
            ["--quick", "--out", str(tmp_path / "file" / "x")],
            "name a writable directory with --out",
        ),
    ):
        assert compare.main(argv) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        compare.main(["--jobs", "0"])
    seen = []
    monkeypatch.setattr(compare, "ROOT", tmp_path)
    monkeypatch.setattr(compare, "run", lambda plan, files, jobs: seen.append(files) or {})
    assert compare.main(["--quick"]) == 0 and compare.main(["--only", "se"]) == 0
    assert [f.document.relative_to(tmp_path).parts[:2] for f in seen] == [
        ("runs", "compare_quick"),
        ("runs", "compare_only"),
    ]
    assert compare.main([]) == 0 and seen[-1].document == tmp_path / "docs" / "comparison.md"


@pytest.mark.exhaustive
def test_plots_take_a_whole_set_of_variants(tmp_path):
    names = list(attention_zoo.variants())
    machine = [
        dict(suite="accuracy", task="digits", variant=n, kind="mixer", seed=0, accuracy=0.9)
        for n in names
    ]
    machine += [
        dict(suite="step", case="digits", impl=n, median_ms=1.0 + i % 5)
        for i, n in enumerate(names)
    ]
    sizes = dict(suite="memory", sides=[8, 16])
    machine += [
        dict(sizes, case=n, direction=d, bytes=[2**22, 2**24])
        for n in names
        for d in ("fwd", "train")
    ]
    compare_plots.draw_accuracy(machine, tmp_path / "a.png")
    compare_plots.draw_memory(machine, tmp_path / "m.png")
    assert min((tmp_path / name).stat().st_size for name in ("a.png", "m.png")) > 10_000


def test_no_circle_of_imports():
    """Also not by imports within functions, which hide one."""
    left: dict[str, set[str]] = {}
    for path in (compare.ROOT / "benchmarks").glob("*.py"):
        froms = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ImportFrom)]
        left[path.stem] = {a.name for n in froms if n.module == "benchmarks" for a in n.names}
        left[path.stem] |= {n.module.split(".")[1] for n in froms if "benchmarks." in n.module}
    assert "compare_plots" in left["compare_report"]
    while free := [name for name, wanted in left.items() if not wanted & left.keys()]:
        for name in free:
            del left[name]
    assert not left
