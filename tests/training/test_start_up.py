"""What programs set before their first computation."""

import importlib.metadata
import io
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from flax import nnx
from ml_collections import ConfigDict

import models
import train
from configs import moving_digits
from lambdanet.training import start_up

OLD = importlib.metadata.version("jaxlib").startswith("0.10.")
BARRIERS_STAY = {"xla_disable_hlo_passes": "cse_barrier_expander"}

PROGRAM = """
import resource, sys
from lambdanet.training import start_up
done = start_up.keep_freed_memory()
import jax, jax.numpy as jnp
step = jax.jit(lambda x: x * 2)
x = jnp.ones((3072, 3072))  # 36 MiB: glibc never keeps more than 32 of its own accord
for _ in range(40):  # until the heap has its size
    step(x).block_until_ready()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step(x).block_until_ready()
print(done, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def run(program, **environment):
    paths = {"PATH": "", "PYTHONPATH": ":".join(sys.path), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", program]
    return subprocess.run(
        command, env=paths | environment, capture_output=True, text=True, check=True
    ).stdout


def faults(**environment):
    done, count = run(PROGRAM, **environment).split()
    return done == "True", int(count)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_buffers_are_not_mapped_afresh_in_every_step():
    kept, few = faults()
    left, many = faults(MALLOC_CHECK_="0")  # any setting of the user's stays
    assert (kept, left) == (True, False) and few < many / 10, (few, many)


LARGE = """
import resource
from lambdanet.training import start_up
start_up.prepare_cpu(dict(train=dict(batch_size=4), data=dict(image_size=(256, {width}))))
import jax, jax.numpy as jnp
step = jax.jit(lambda x: x * 2)  # 120 MiB: an arena other than the first keeps no more than 64
x = jnp.ones((5600, 5600))
for _ in range(8):  # until the heap has its size
    step(x).block_until_ready()
counts = []
for _ in range(5):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step(x).block_until_ready()
    counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(sorted(counts)[2])  # where a buffer is given back late, one step grows the heap once more
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_large_steps_run_in_the_calling_thread_and_keep_buffers_of_any_size():
    many, few = (int(run(LARGE.format(width=width))) for width in (255, 256))
    assert few < many / 10, (few, many)


BATCHES = """
import resource
from lambdanet.training import mesh, start_up
start_up.prepare_cpu(dict(train=dict(batch_size=4), data=dict(image_size=(256, 256))))
import jax, numpy as np
rows = mesh.batch_sharding(mesh.make_mesh(1, 1, devices=jax.devices()[:1]))
step = jax.jit(lambda image: image.astype("float32") * 2)
images = np.ones((5600, 5600), np.uint8)
counts = []
for _ in range(13):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step(mesh.put_batch({"image": images}, rows)["image"]).block_until_ready()
    counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(sorted(counts[8:])[2])  # as above
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_batches_are_ready_when_a_large_step_is_called():
    result = 4 * 5600**2 // 4096  # pages; all of them fault where the batch is not ready
    assert int(run(BATCHES)) < result / 10


def test_sizes_that_are_none_change_nothing(monkeypatch):
    changes = []
    monkeypatch.setattr(start_up, "use_eigen_convolutions", lambda: False)
    monkeypatch.setattr(start_up, "keep_freed_memory", lambda: False)
    monkeypatch.setattr(jax.config, "update", lambda *change: changes.append(change))
    large = {"batch_size": 1}, {"image_size": (2**9, 2**9)}
    wrong = (None, {}, {"train": 3, "data": {}}, {"train": large[0]}, {"train": None, "data": None})
    for config in (*map(ConfigDict, wrong[1:]), *wrong):
        start_up.prepare_cpu(config)
    for size in (("a", 2**20), 2**20, (2**9, 2**9 - 1)):
        start_up.prepare_cpu({"train": large[0], "data": {"image_size": size}})
    assert not changes
    start_up.prepare_cpu(ConfigDict({"train": large[0], "data": large[1]}))
    assert changes == [("jax_cpu_enable_async_dispatch", False)]


CONVOLUTION = """
import os
from lambdanet.training import start_up
done = start_up.use_eigen_convolutions()
import jax, jax.numpy as jnp
x, kernel = jnp.ones((2, 32, 32, 64)), jnp.ones((3, 3, 64, 64))
convolve = lambda x, kernel: jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
print(done, jax.jit(convolve).lower(x, kernel).compile().as_text().count("ynn_fusion"), os.environ["XLA_FLAGS"])
"""  # noqa: E501


@pytest.mark.skipif(not OLD, reason="other versions are left alone")
def test_convolutions_are_eigens_and_the_users_flags_stay():
    done, count, flags = run(CONVOLUTION, XLA_FLAGS="--xla_cpu_enable_fast_math=false").split(
        maxsplit=2
    )
    assert (done, count) == ("True", "0") and flags.startswith(
        "--xla_cpu_enable_fast_math=false --xla_cpu_experimental_ynn"
    )
    theirs = "--xla_cpu_experimental_ynn_fusion_type=individual_convolution"
    done, count, flags = run(CONVOLUTION, XLA_FLAGS=theirs).split()
    assert done == "False" and int(count) > 0 and flags == theirs


@pytest.mark.skipif(not OLD, reason="other versions are left alone")
def test_models_that_recompute_ask_for_options_and_no_others(monkeypatch):
    def options(name, **given):
        build = models.model_builder(name, **given)
        return start_up.recomputing_options(nnx.eval_shape(lambda: build(rngs=nnx.Rngs(0))))

    assert options("small_i3d") == options("swin_tiny") == options("small_fcn") == {}
    inside = dict(name="resnet18", remat="block")
    recomputing = [
        options("small_i3d", remat="block"),
        options("small_i3d", remat="stage"),
        options("swin_tiny", remat="block"),
        options("segmenter", backbone=inside),
    ]
    assert recomputing == [BARRIERS_STAY] * 4
    monkeypatch.setenv("XLA_FLAGS", "--xla_disable_hlo_passes=cse")  # the option would undo it
    assert options("small_i3d", remat="block") == {}


@pytest.mark.skipif(not OLD, reason="other versions are left alone")
@pytest.mark.parametrize(("remat", "expected"), [("none", {}), ("block", BARRIERS_STAY)])
def test_train_compiles_its_step_with_them(remat, expected, monkeypatch, tmp_path):
    class Reached(Exception):
        pass

    jit = jax.jit

    def spy(*functions, **options):
        if options.get("donate_argnums") == 0:
            raise Reached(options["compiler_options"])
        return jit(*functions, **options)

    config = moving_digits.get_config("clip,smoke")
    config.model.remat = remat
    monkeypatch.setattr(jax, "jit", spy)
    with pytest.raises(Reached) as reached:
        train.run(config, tmp_path, devices=jax.devices()[:1], stream=io.StringIO())
    assert reached.value.args == (expected,)


def test_help_names_the_recipe_its_keys_and_where_they_stand_and_starts_no_jax():
    root = Path(__file__).parents[2]
    command = [sys.executable, "-X", "importtime", "train.py", "--help"]
    done = subprocess.run(command, cwd=root, text=True, capture_output=True, check=True)
    for part in ("--config:", "--config.SECTION.KEY=VALUE", "configs/base.py", "--workdir:"):
        assert part in done.stdout
    assert "absl.app" in done.stderr and "jax" not in done.stderr


def test_models_are_imported_without_data_pictures_or_other_frameworks():
    root = Path(__file__).parents[2]
    command = [sys.executable, "-X", "importtime", "-c", "import models"]
    done = subprocess.run(command, cwd=root, text=True, capture_output=True, check=True)
    modules = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    slow = {"tensorflow", "tensorflow_datasets", "sklearn", "matplotlib", "torch", "orbax", "grain"}
    assert "models" in modules and not modules & slow
