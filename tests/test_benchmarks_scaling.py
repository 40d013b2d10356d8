"""python -m benchmarks.scaling: one small step on eight devices, the law, the page, wrong input."""

import json
import re

import jax
import numpy as np
import pytest

from benchmarks import scaling, scaling_law, scaling_program, scaling_records, scaling_report
from benchmarks.scaling_law import Moved
from lambdanet.training import mesh

SMOKE = "configs/imagenet350.py:50@128,smoke"


def test_the_state_by_shapes_is_that_of_arrays():
    made = scaling_program.set_up(SMOKE)
    one = mesh.make_mesh(1, 1, devices=jax.devices()[:1])
    arrays = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), made["abstract"])
    placed = jax.device_put(arrays, mesh.state_shardings(arrays, one, 0))
    found = scaling_program.state_bytes(made["abstract"], one, 0)
    assert scaling_law.held(found) == sum(mesh.bytes_per_device(placed).values())
    assert found["split_params"] == 0
    # of a kernel [3, 3, 8, 16] and a bias [5] on 4 devices, the kernel is split
    tree = {"kernel": jax.ShapeDtypeStruct((3, 3, 8, 16), np.float32)}
    tree["bias"] = jax.ShapeDtypeStruct((5,), np.float32)
    state = made["abstract"].replace(params=tree, opt_state=(), stats={}, ema={})
    four = jax.sharding.AbstractMesh((2, 4), mesh.AXES)
    found = scaling_program.state_bytes(state, four, 64)
    kernel = 4 * 9 * 8 * 16
    assert (found["params"], found["split_params"]) == (kernel // 4 + 20, kernel)


@pytest.mark.exhaustive
def test_a_step_on_eight_devices():
    found = scaling_records.do(scaling.program(SMOKE, 2, 4, batch=2))
    moved = scaling_law.measured(found)
    # Parameters with 2**18 elements are split; a tiny model has none, so gradients are all summed,
    # each parameter and each statistic once at least.
    made = scaling_program.set_up(SMOKE)
    gradients = sum(leaf.size for leaf in jax.tree.leaves(made["abstract"].params))
    assert moved["all-reduce", False].bytes >= 2 * gradients  # bfloat16
    assert moved["all-reduce", False].number > 50 and found["combined"]["all-reduce"] > 5
    assert {group for _, group, *_ in found["collectives"]} <= {2, 4, 8}
    images = 2 * 32 * 32 * 3
    assert found["operands"] >= scaling_law.held(found["state"]) + images
    assert found["temporary"] > 0 and found["dtype"] == "bfloat16"


@pytest.mark.exhaustive
def test_a_checkpoint_is_timed():
    found = scaling_records.do(dict(what="checkpoint_times", recipe=SMOKE, repeats=1))
    made = scaling_program.set_up(SMOKE)["abstract"]
    assert found["bytes"] == sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(made))
    assert found["on_disk"] > found["bytes"] / 2  # random numbers cannot be compressed away
    assert 0 < found["handed_over"] <= found["written"] and found["read"] > 0


@pytest.mark.exhaustive
def test_a_failed_job_says_what_and_why():
    job = scaling.program("configs/nothing.py", 1, 8)
    said = (
        r"program recipe=configs/nothing.py data=1 fsdp=8 batch=32: exit status 1\n(.*\n)*.*no such"
    )
    with pytest.raises(RuntimeError, match=said):
        scaling_records.do(job)


# --------------------------------------------------------------------------------------------------
# Records
# --------------------------------------------------------------------------------------------------


def test_what_is_done_is_not_repeated(monkeypatch, tmp_path, capsys):
    done = []

    def do(job):
        if job["n"] == 3 and len(done) < 3:
            raise RuntimeError("no memory")
        done.append(job["n"])
        return {"twice": 2 * job["n"]}

    monkeypatch.setattr(scaling_records, "do", do)
    jobs, path = [dict(what="program", n=n) for n in (1, 2, 3)], tmp_path / "records.jsonl"
    scaling_records.do_all(jobs[:1], path)
    with pytest.raises(RuntimeError, match="no memory"):
        scaling_records.do_all(jobs, path)
    done.append("again")
    found = scaling_records.do_all(jobs, path)
    assert done == [1, 2, "again", 3] and scaling_records.read(path) == found
    assert found[scaling_records.key(jobs[2])] == {"twice": 6}
    assert "[1/1] program n=3" in capsys.readouterr().out
    path.write_text(path.read_text() + '{"job": 1')
    with pytest.raises(ValueError, match="line 4 is no record"):
        scaling_records.read(path)


# --------------------------------------------------------------------------------------------------
# The law
# --------------------------------------------------------------------------------------------------


def made_up(data, fsdp, split=1000, temporary=500):
    """A program that follows the law: gathered and sliced over fsdp, slices summed over data."""
    n, kept = data * fsdp, 4000 - split
    moves = [["all-gather", fsdp, split, False, 1], ["all-reduce", fsdp, split, True, 1]]
    moves += [["all-reduce", n, kept, False, 1], ["all-reduce", n, 8, False, 10]]
    moves += [["collective-permute", n, 50, False, 2]]
    moves = [one for one in moves if one[1] > 1 and one[2]]
    return dict(collectives=moves, state=dict(split_params=split), temporary=temporary)


def test_the_law_predicts_other_meshes():
    base = made_up(2, 4)
    for sizes, split in (((4, 4), 1000), ((16, 4), 1000)):
        said = scaling_law.predicted(base, (2, 4), sizes, split)
        assert said == scaling_law.measured(made_up(*sizes, split))
    # What is not split any more is reduced whole and not gathered.
    said = scaling_law.predicted(base, (2, 4), (16, 4), 250)
    assert said["all-gather", False] == Moved(0.25, 250, 250 * 3 / 4, 250 * 3 / 4)
    assert said["all-reduce", True].bytes == 250
    assert said["all-reduce", False].bytes == 3000 + 80 + 750
    assert scaling_law.total(scaling_law.predicted(base, (2, 4), (1, 1), 0)) == Moved()
    # Of what is reduced in slices half is sent.
    part = scaling_law.measured(base)["all-reduce", True]
    assert (part.sent, part.sent_scattered) == (2 * 1000 * 3 / 4, 1000 * 3 / 4)


def test_errors_are_seen():
    base, others = made_up(1, 8), {(1, 64): made_up(1, 64)}
    assert set(scaling_law.errors(base, (1, 8), others)[1, 64].values()) == {0}
    others[1, 64]["temporary"] = 400
    others[1, 64]["collectives"][0][2] *= 2
    found = scaling_law.errors(base, (1, 8), others)[1, 64]
    assert found["temporary"] == 0.25 and found["bytes"] < -0.1 and found["sent_scattered"] < -0.1
    assert found["number"] == 0


# --------------------------------------------------------------------------------------------------
# The page
# --------------------------------------------------------------------------------------------------


@pytest.fixture
def page(monkeypatch, tmp_path):
    """A page with all tables, and records of a made-up run of two models."""
    answers = {
        "states": lambda job: dict(
            parameters=1000, arrays=3,
            layouts={
                name: [dict(data=d, fsdp=f, params=4000 // f, opt_state=4, stats=0, ema=0, step=4,
                            split_params=1000 * (f > 1)) for d, f in sizes]
                for name, sizes in job["layouts"].items()
            },
        ),
        "program": lambda job: made_up(job["data"], job["fsdp"], 1000 * (job["fsdp"] > 1)) | dict(
            temporary=job["batch"] * 2**20, global_batch=4096, image_size=[128, 128],
            combined={"all-reduce": 2},
        ),
        "checkpoint_times": lambda job: dict(
            bytes=2**21, on_disk=2**20, handed_over=0.25, written=0.5, read=2.0
        ),
    }  # fmt: skip

    def do(job):
        found = answers[job["what"]](job)
        if "state" in found:
            found["state"] |= dict(params=4, opt_state=4, stats=4, ema=4, step=4)
        return found

    monkeypatch.setattr(scaling_records, "do", do)
    monkeypatch.setattr(scaling, "DOCUMENT", tmp_path / "page.md")
    monkeypatch.setattr(scaling, "PICTURE", tmp_path / "images" / "picture.png")
    rates = dict(pipeline_4_threads=500, decode_crop_flip=1000, decode_crop_flip_randaugment=500)
    keys = dict(suite="input", direction="train", framework="ours", impl="x")
    lines = [json.dumps(keys | dict(case=k, items_per_cpu_s=v)) for k, v in rates.items()]
    (tmp_path / "cpu_input.jsonl").write_text("\n".join(lines))
    monkeypatch.setattr(scaling, "RESULTS", tmp_path)
    names = ("state", "devices", "collectives", "law", "extrapolated", "input", "checkpoint")
    marks = [
        f"<!-- table: {n} -->\nold\n<!-- end of the table -->" for n in (*names, "fits", "larger")
    ]
    scaling.DOCUMENT.write_text("By hand.\n\n" + "\n\n".join(marks) + "\n\nMore.\n")
    return scaling.DOCUMENT


def test_the_page_is_written_from_the_records(page, capsys):
    assert scaling.main([]) == 0
    text = page.read_text()
    assert text.startswith("By hand.\n") and text.endswith("\nMore.\n") and "old" not in text
    assert (page.parent / "images" / "picture.png").read_bytes()[:4] == b"\x89PNG"
    assert "| `swin_tiny` | fsdp | 1 x 8 | 1 x 64 | +0.00 % | +0.00 % | +0.00 % | +0.00 % |" in text
    assert "| `lambda_resnet50` | 2 x 4 | all-reduce, sliced | 1 |" in text
    # 1/500 + 1/500 - 1/1000 seconds
    assert re.search(r"\| 1000 \| 2\.0 \| 3\.0 \| 12\.0 \| 144 \| 64,000 \| 1,024,000 \|", text)
    # (16 GiB - 4008 bytes) / MiB
    assert "| `swin_tiny` | 128 | 1.0 | 16383 |" in text
    assert "| 2 | 1 | 0.25 | 0.50 | 4 | 2.00 | 1 |" in text
    assert scaling.main([]) == 0 and page.read_text() == text
    assert "jobs, " in capsys.readouterr().out


@pytest.mark.exhaustive
def test_a_report_of_what_there_is(page, capsys, tmp_path):
    assert scaling.main(["--report"]) == 1
    assert "no record of program recipe=configs/imagenet350.py" in capsys.readouterr().err
    assert scaling.main([]) == 0
    path, job = tmp_path / "scaling.jsonl", scaling.program(scaling.RECIPES["swin_tiny"], 64, 1)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(one for one in lines if json.loads(one)["job"] != job))
    assert scaling.main(["--report"]) == 0 and len(path.read_text().splitlines()) < len(lines)
    text = page.read_text()
    assert "| `swin_tiny` | fsdp | 1 x 8 | 1 x 64 |" in text
    assert "| `swin_tiny` | data | 8 x 1 | 64 x 1 |" not in text


def test_records_of_ones_own_leave_the_page_alone(page, capsys, tmp_path):
    before = page.read_text()
    own = ["--models", "swin_tiny", "--devices", "8,32", "--json", str(tmp_path / "own.jsonl")]
    assert scaling.main(own) == 0
    shown = capsys.readouterr().out
    assert "| `swin_tiny` | data | 8 x 1 | 32 x 1 |" in shown and "`lambda_resnet50`" not in shown
    assert page.read_text() == before and (tmp_path / "own.jsonl").is_file()


def test_a_page_with_other_tables_is_refused(page, capsys):
    before = page.read_text().replace("table: law", "table: lore")
    page.write_text(before)
    assert scaling.main([]) == 1 and page.read_text() == before
    assert "must have each of state, devices" in capsys.readouterr().err


def test_hosts_of_ones_own_step(page, capsys):
    assert scaling.main(["--step_ms", "50", "--images", "100"]) == 0
    said = capsys.readouterr().out
    assert said == (
        "100 images in 50 ms: 2000 images/s and device, 4.0 cores and device, with RandAugment "
        "6.0\n"
    )


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--models", "swin_tinny"], "--models swin_tinny; allowed: lambda_resnet50, swin_tiny"),
        (["--models", "swin_tiny"], "models or devices of one's own: name a file"),
        (["--devices", "8,16,x"], "--devices 8,16,x; allowed: 8 and one or more of 16, 32, 64"),
        (["--devices", "16,64"], "--devices 16,64; allowed: 8 and"),
        (["--devices", "8"], "--devices 8; allowed: 8 and"),
        (["--devices", "8,128"], "--devices 8,128; allowed: 8 and"),
        (["--step_ms", "5", "--images", "1", "--report"], "--step_ms reads no records"),
        (["--step_ms", "5"], "--step_ms and --images belong together"),
        (["--step_ms", "0", "--images", "5"], "--step_ms 0.0 --images 5; allowed: more than 0"),
        (["--step_ms", "nan", "--images", "5"], "--step_ms nan --images 5; allowed: more than 0"),
        (["--json", "/nowhere/x"], "argument --json: /nowhere/x: there is no directory /nowhere"),
    ],
)
def test_wrong_arguments(argv, said, capsys):
    with pytest.raises(SystemExit) as ended:
        scaling.main(argv)
    assert ended.value.code == 2 and said in capsys.readouterr().err


def test_all_mistakes_at_once(capsys):
    with pytest.raises(SystemExit):
        scaling.main(["--models", "swin", "--devices", "9", "--images", "3"])
    said = capsys.readouterr().err
    assert "Did you mean" in said and "--devices 9" in said and "--step_ms and --images" in said


def test_sizes_of_a_table():
    assert [scaling_report.mib(n * 2**20) for n in (0, 0.123456, 12.34, 123.4, 12345)] == [
        "0", "0.123", "12.3", "123", "12,345",
    ]  # fmt: skip
