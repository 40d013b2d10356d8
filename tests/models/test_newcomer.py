"""A block added as the README says, one new file and one import line, works everywhere without
another change.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent

# Runs in the copy. What it checks is found by name alone; the arguments are the kinds of blocks.
SCRIPT = """
import sys

import jax, jax.numpy as jnp, numpy as np, optax
from flax import nnx

import lambdanet
from configs import attention_zoo, base
from lambdanet.analysis.attention_maps import capture_maps
from lambdanet.attention import describe, list_attention
from lambdanet.training.state import make_init, views
from lambdanet.tasks import classification
from lambdanet.training.step import make_train_step
from models import create_from_config, create_model

def build(name, kind):
    place = dict(context=dict(name=name, after="stage1.1"))
    place = dict(attention=name) if kind == "mixer" else place
    options = dict(blocks=(1,), widths=(8,), block="basic", image_size=(8, 8), num_classes=2)
    return create_model("resnet_digits", **options, **place, rngs=nnx.Rngs(0))

def check(name, kind):
    make = lambda: build(name, kind)
    assert name in list_attention(kind=kind) and "Args:" in describe(name)

    config = base.get_config()
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1)).astype(np.uint8)
    batch = {"image": images, "label": np.array([0, 1, 0, 1])}
    tx = optax.sgd(0.05)
    task = dict(loss=classification.loss, mix=classification.mix, seed=0)
    step = make_train_step(views(make)[0], tx, config, **task)
    program = jax.jit(lambda: jax.lax.scan(lambda state, _: step(state, batch), make_init(make, tx, ema=False)(), length=2))
    losses, counted = program()[1]["loss"]
    losses = losses / counted
    assert np.isfinite(losses).all() and losses[1] < losses[0], losses

    model = nnx.view(make(), deterministic=True, use_running_average=True)
    shown = capture_maps(model, jnp.asarray(images, jnp.float32))
    block = "attention" if kind == "mixer" else "context/post/0"
    assert list(shown) == [f"stages/0/blocks/0/{block}/gate"], list(shown)
    assert any(row["type"] == "Newcomer" for row in model.summary_rows(8, 8))

    assert name in attention_zoo.variants()
    compared = attention_zoo.get_config("digits," + name)
    abstract = nnx.eval_shape(lambda: create_from_config(compared, num_classes=10, rngs=nnx.Rngs(0)))
    assert any(row["type"] == "Newcomer" for row in abstract.summary_rows(8, 8))

for kind in sys.argv[1:]:
    check("newcomer_" + kind, kind)
print(lambdanet.__file__)
"""  # noqa: E501


KINDS = ("context", "mixer")


def add_newcomer(blocks, kind):
    """A copy of squeeze-excite under another name and of this kind, and its import line."""
    source = (blocks / "se.py").read_text()
    changes = [
        ('register("se")', f'register("newcomer_{kind}")'),
        ("class SqueezeExcite", "class Newcomer"),
        ('kind: ClassVar[str] = "context"', f'kind: ClassVar[str] = "{kind}"'),
        ("jax.nn.sigmoid(", "1 + jnp.tanh("),
    ]
    for old, new in changes:
        assert source.count(old) == 1, old
        source = source.replace(old, new)
    (blocks / f"newcomer_{kind}.py").write_text(source)
    package = (blocks / "__init__.py").read_text()
    line = "from lambdanet.attention import se as _se  # noqa: F401\n"
    assert line in package
    own = line.replace("se as _se", f"newcomer_{kind} as _newcomer_{kind}")
    (blocks / "__init__.py").write_text(package.replace(line, own + line))


@pytest.mark.exhaustive
def test_a_copy_of_one_file_and_an_import_line(tmp_path):
    for folder in ("lambdanet", "models", "configs"):
        shutil.copytree(
            ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__")
        )
    for kind in KINDS:
        add_newcomer(tmp_path / "lambdanet" / "attention", kind)
    command = [sys.executable, "-c", SCRIPT, *KINDS]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "lambdanet" / "__init__.py")
