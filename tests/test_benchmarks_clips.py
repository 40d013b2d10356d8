"""Benchmark of the blocks on moving digits: which runs it makes, its steps on small networks, and
its table.
"""

import json

import pytest

from benchmarks import clip_blocks
from configs import moving_digits


def test_there_is_a_run_of_every_block_and_seed(tmp_path):
    runs = clip_blocks.make_runs([0, 2], tmp_path, "w.safetensors")
    assert [(run.variant, run.seed) for run in runs] == [
        (block, seed) for block in moving_digits.BLOCKS for seed in (0, 2)
    ]
    assert len({run.workdir for run in runs}) == len(runs)
    (run,) = (run for run in runs if (run.variant, run.seed) == ("cgnl", 2))
    assert run.flags[:2] == ("--config=configs/moving_digits.py:clip,cgnl", "--config.seed=2")
    assert run.config.train.init_weights.endswith("/w.safetensors")
    assert run.config.train.init_head == "new" and run.config.data.num_threads == 1
    assert run.config.seed == 2 and run.config.model.context["name"] == "cgnl"
    assert run.config.train.batch_size == moving_digits.get_config().train.batch_size


@pytest.mark.exhaustive
def test_steps_are_timed_and_their_memory_grows_with_the_clip():
    configs = {}
    for frames in (2, 8):
        config = configs[str(frames)] = moving_digits.get_config("clip,smoke")
        config.train.cache_dir, config.clips.frames = "", frames
    short, long = clip_blocks.measure_steps(configs, rounds=2).values()
    assert min(short["ms"], long["ms"]) > 0
    assert short["parameters"] == long["parameters"] > 0 and long["mib"] > 2 * short["mib"] > 0


def test_the_table_has_every_seed_and_their_mean(tmp_path):
    runs = [run for run in clip_blocks.make_runs([0, 1], tmp_path, "w") if run.variant == "none"]
    for run, accuracy in zip(runs, (0.5, 0.75), strict=True):
        run.workdir.mkdir(parents=True)
        (run.workdir / "result.json").write_text(json.dumps({"accuracy": accuracy}))
    measured = {"none": dict(ms=12.4, mib=30.6, parameters=1234)}
    expected = ["`none`", "50.0, 75.0 (mean 62.5)", "12", "31", "1,234"]
    assert clip_blocks.rows_of(runs, measured) == [expected]
    (row,) = clip_blocks.rows_of(runs[:1], measured)
    assert row[1] == "50.0"
