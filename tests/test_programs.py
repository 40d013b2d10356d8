"""The programs at their edges: what ends them says so in one message, whatever it is and however
early it comes.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import eval as program
import train
from configs import base
from lambdanet import config as configs
from lambdanet import config_flag
from lambdanet.analysis import modes
from lambdanet.data import info_file

ROOT = Path(__file__).resolve().parent.parent
ERRORS = {
    "OSError": OSError(28, "No space left on device", "runs/x/metrics.jsonl"),
    "MemoryError": MemoryError(),  # Python's own says nothing
    "JaxRuntimeError": jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating"),
    "ValueError": ValueError("a wrong value"),
}


class Flags(SimpleNamespace):
    """Flags as absl keeps them, none of which was given."""

    def __getitem__(self, name):
        return SimpleNamespace(present=0)

    def flag_values_dict(self):
        return vars(self)


@pytest.fixture
def alone(monkeypatch):
    """What the programs set for their whole process stays unset in that of the tests."""
    for module in (train, program):
        monkeypatch.setattr(module.logging, "set_verbosity", lambda *_: None)
        monkeypatch.setattr(module, "CONFIG", SimpleNamespace(value=base.get_config()), False)
    monkeypatch.setattr(train, "prepare_cpu", lambda *_: None)
    monkeypatch.setattr(train, "join_cluster", lambda *_: None)
    monkeypatch.setattr(program.start_up, "prepare_cpu", lambda *_: None)


@pytest.mark.parametrize("name", ERRORS)
@pytest.mark.parametrize("module", [train, program], ids=["train", "eval"])
def test_what_stops_a_program_is_one_message_and_no_traceback(module, name, alone, monkeypatch):
    def fail(*_, **__):
        raise ERRORS[name]

    given = Flags(mode="accuracy", workdir="runs/x", verbosity=-1, input=[])
    vars(given).update(dict.fromkeys(program.ONLY_FOR))
    monkeypatch.setattr(module.flags, "FLAGS", given)
    monkeypatch.setattr(module, "run", fail)
    with pytest.raises(SystemExit) as end:
        module.main(["program.py"])
    assert (str(ERRORS[name]) or name) in str(end.value)
    assert "Traceback" not in str(end.value)


@pytest.mark.parametrize("command", ["train.py --workdir=x", "eval.py --mode=describe"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_during_the_imports_ends_with_one_line(command, number, code, tmp_path):
    """That of JAX is the first slow one: here it is one that sends the signal."""
    kill = f"import os, time\nos.kill(os.getpid(), {int(number)})\ntime.sleep(30)\n"
    (tmp_path / "jax.py").write_text(kill)
    done = subprocess.run(
        [sys.executable, *command.split()],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        cwd=ROOT,
        text=True,
        capture_output=True,
    )
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr == f"{number.name}: ended; what is saved is whole\n"


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGPIPE"), reason="POSIX only")
def test_the_table_of_models_ends_with_its_reader():
    """As in `python -m models | head`."""
    command = [sys.executable, "-m", "models", "*_digits"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, text=True, stdout=pipe, stderr=pipe) as child:
        child.stdout.close()
        said = child.stderr.read()
    assert (child.returncode, said) == (-signal.SIGPIPE, "")


# ---- What a workdir holds that nobody wrote ------------------------------------------------------

SECTION = '{"data": {"image_size": %s}, "model": {"name": "resnet_digits"}}'
NO_CONFIGS = {
    "a list": "[]",
    "null": "null",
    "a number": "3",
    "a section that is null": '{"data": null}',
    "a model that is null": '{"model": null}',
    "a value that is null": SECTION % "null",
    "a value that is a section": SECTION % '{"a": 1}',
    "deep lists": SECTION % ("[" * 400 + "]" * 400),
    "deep objects": SECTION % ('{"a":' * 450 + "1" + "}" * 450),  # JSON allows a thousand
    "a deep model": '{"model": ' + '{"a":' * 450 + "1" + "}" * 451,
    "too deep for JSON": "[" * 100_000,
}


@pytest.mark.parametrize("content", NO_CONFIGS)
def test_evaluation_refuses_json_that_is_no_config(content, tmp_path):
    (tmp_path / configs.FILE_NAME).write_text(NO_CONFIGS[content])
    with pytest.raises(configs.ConfigError) as error:
        program.load_subject(workdir=tmp_path)
    assert len(str(error.value)) < 5000


def test_what_a_workdir_holds_is_not_waited_for(tmp_path):
    for name, load, says in (
        (configs.FILE_NAME, lambda: configs.load(tmp_path, base.get_config()), "cannot be read"),
        (info_file.FILE_NAME, lambda: info_file.load(tmp_path), "is damaged"),
    ):
        os.mkfifo(tmp_path / name)
        with pytest.raises(ValueError, match=rf"{name}.* {says} \(it is a pipe\)"):
            load()


# ---- What eval.py says ---------------------------------------------------------------------------


def test_the_table_of_attention_shows_whole_paths(monkeypatch, tmp_path, capsys):
    folder = tmp_path / "/".join(["a_folder_with_a_long_name"] * 8)
    maps = {"stages/0/blocks/0/attention": np.zeros((1, 1, 2, 2, 2, 2))}
    paths = [folder / "stages.0.blocks.0.attention.png"]
    monkeypatch.setattr(modes.attention_maps, "capture_maps", lambda *_: maps)
    monkeypatch.setattr(modes.attention_maps, "draw_maps", lambda *_: paths)
    monkeypatch.setattr(modes.nnx, "merge", lambda *_: None)
    batch = dict(image=np.zeros((1, 2, 2, 1), np.uint8), mask=np.ones(1))
    subject = SimpleNamespace(
        config=base.get_config(),
        name="a model",
        image_shape=(2, 2, 1),
        graphdef=None,
        load_weights=lambda: ((), "somewhere"),
        split=str,
        batches=lambda _: [batch],
    )
    modes.draw_attention(subject, folder)
    said = "".join(capsys.readouterr().out.split())
    assert str(folder)[-100:] in said and "attention.png" in said and "…" not in said


def test_a_recipe_that_lacks_sections_is_refused_by_their_names(tmp_path):
    """Before anything of it is read."""
    recipe = tmp_path / "bare.py"
    recipe.write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config():\n    return ConfigDict({'model': {'name': 'resnet_digits'}})\n"
    )
    command = [sys.executable, "train.py", f"--config={recipe}", f"--workdir={tmp_path / 'run'}"]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr and "train" in done.stderr


# ---- Flags ---------------------------------------------------------------------------------------

SHOW_FLAGS = """
import runpy, sys
from absl import app, flags

def show(main):
    flags.FLAGS(sys.argv)
    print(*[flags.FLAGS[arg[2:].split("=")[0]].value for arg in sys.argv[1:]], sep=", ")

app.run, sys.argv = show, sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "read"),
    [
        ("train.py --workdir=~/w", "{0}/w"),
        ("eval.py --workdir=~/w --output=~ --input=~/a", "{0}/w, {0}, ['{0}/a']"),
    ],
)
def test_the_home_is_known_behind_an_equals_sign(command, read, tmp_path):
    """Shells leave it alone there."""
    done = subprocess.run(
        [sys.executable, "-c", SHOW_FLAGS, *command.split()],
        env=os.environ | {"HOME": str(tmp_path)},
        cwd=ROOT,
        text=True,
        capture_output=True,
        check=True,
    )
    assert done.stdout.strip() == read.format(tmp_path)


def test_the_home_is_known_in_recipes_and_their_texts(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "recipe.py").write_text("from configs.base import get_config\n")
    config = config_flag.load_recipe("~/recipe.py:smoke")
    changes = {"train.init_weights": "~/w.npz", "data.pseudo_labels": "~/p.json", "task": "~"}
    found = config_flag.apply_overrides(config, changes)
    assert found.train.init_weights == f"{tmp_path}/w.npz"
    assert found.data.pseudo_labels == f"{tmp_path}/p.json"
    assert found.task == "~"  # no path
