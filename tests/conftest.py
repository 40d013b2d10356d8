"""Set-up of the whole suite: CPU by default, one compilation cache, and the options of the golden
harness.
"""

import gc
import importlib.metadata
import os
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent

# Before anything imports jax. What stands in the environment already wins.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(HERE.parent / ".cache" / "jax-tests"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

# Nearly all that tests cost is compiling, which takes a third of the time without optimisation.
# XLA's newer way to write fusions, which only some versions can switch off, takes long even then.
# Tests of speed or memory ask for what they need.
if "XLA_FLAGS" not in os.environ:
    os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"
    if importlib.metadata.version("jaxlib").startswith("0.10."):
        os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"

# tests/optimised needs XLA's default level, so it is a suite of its own: `make optimised`.
collect_ignore = ["optimised"] if "optimization_level" in os.environ["XLA_FLAGS"] else []

# Test files are imported by path (--import-mode=importlib); what they share is found here. Last, so
# that it hides no package.
sys.path.append(str(HERE))


def pytest_addoption(parser):
    group = parser.getgroup("golden", "golden fixtures (tests/test_golden.py)")
    group.addoption(
        "--golden-dir",
        metavar="DIR",
        default=str(HERE / "golden"),
        help="directory of the fixtures (default: tests/golden)",
    )
    group.addoption(
        "--golden-family",
        metavar="GLOB",
        default="*",
        help="only fixtures whose family or file stem matches (default: all)",
    )


def pytest_configure(config):
    from absl import flags

    # Grain's reader processes look at absl flags, which are parsed by absl.app.run in programs but
    # by nobody in tests.
    flags.FLAGS.mark_as_parsed()
    # A worker ends up with millions of JAX's objects, and a collector that looks through them at
    # every allocation slows late tests down up to seven times. `forget_programs` collects once per
    # file instead.
    gc.disable()


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """After each file: drop compiled programs (the cache on disk has them) and what only cycles
    keep alive.
    """
    yield
    import jax

    jax.clear_caches()
    gc.collect()
