"""What a program sets once, before its first computation: compilation cache, freed memory,
convolutions and recomputation on CPU.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import jax
from flax import nnx

# glibc's malloc.h: parameters of mallopt, which takes ints.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_NEVER = -1  # as a threshold
_TOP = 64 * 2**20  # bytes asked for beyond what is needed, so that the heap grows in few steps
_LARGE = 2**18  # pixels of a step
_YNN = "--xla_cpu_experimental_ynn_fusion_type"
_DISABLED = "xla_disable_hlo_passes"
_VERSIONS = "0.10."  # of jaxlib


def use_eigen_convolutions() -> bool:
    """Has XLA's CPU backend run convolutions by Eigen instead of YNNPACK; to be called before JAX
    looks for devices.

    In jaxlib 0.10 YNNPACK's convolutions with at most 64 output channels use one core and no other
    is faster (docs/performance.md). Matrix products and sums stay with YNNPACK. In 0.12 both take
    the same time. Other versions are left alone, because XLA ends the process at a flag that it
    does not know; and what XLA_FLAGS says about it already wins.

    Returns:
        Whether it was done.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if _YNN in flags or not importlib.metadata.version("jaxlib").startswith(_VERSIONS):
        return False
    os.environ["XLA_FLAGS"] = f"{flags} {_YNN}=-individual_convolution".strip()
    return True


def recomputing_options(model: nnx.Module) -> dict[str, str]:
    """Returns the `compiler_options` that a jitted training step of this model needs for its
    recomputation to save memory: `jax.jit(step, compiler_options=recomputing_options(model))`.

    In jaxlib 0.10 XLA's CPU backend drops the barriers around recomputed parts before it orders the
    program, and then recomputes them early or not at all: all memory is taken, and often the time
    as well (docs/performance.md). The option leaves the barriers in. In 0.12 it is not needed.
    Models without recomputation, and passes that XLA_FLAGS already disables, are left alone.

    Args:
        model: concrete or abstract; of its modules the attribute `remat` counts.
    """
    if (
        jax.default_backend() != "cpu"
        or _DISABLED in os.environ.get("XLA_FLAGS", "")
        or not importlib.metadata.version("jaxlib").startswith(_VERSIONS)
        or not any(getattr(module, "remat", False) for _, module in nnx.iter_modules(model))
    ):
        return {}
    return {_DISABLED: "cse_barrier_expander"}


def join_cluster(given: Mapping[str, Any]) -> None:
    """Joins the other processes of a run, if --distributed asks for it.

    Args:
        given: values of the flags distributed, coordinator_address, num_processes and process_id.

    Raises:
        ValueError: one of the other three without --distributed.
    """
    cluster = {k: given[k] for k in ("coordinator_address", "num_processes", "process_id")}
    if given["distributed"]:
        jax.distributed.initialize(**cluster, heartbeat_timeout_seconds=30)
    elif alone := [f"--{name}={value}" for name, value in cluster.items() if value is not None]:
        raise ValueError(f"{', '.join(alone)}: only with --distributed; add it, or leave out")


def leave(message: str) -> NoReturn:
    """Ends the program with a message on standard error and exit code 1.

    One of several processes ends at once: at an ordinary exit JAX would wait minutes for the
    others, which may be what went wrong.
    """
    if jax.process_count() > 1:
        print(message, file=sys.stderr, flush=True)
        os._exit(1)
    sys.exit(message)


def prepare_cpu(config: Any = None) -> None:
    """What a program does before its first computation, for speed on CPU: Eigen's convolutions,
    freed memory kept, large steps computed in the calling thread.

    From 2**18 pixels on, programs for one device run in the thread that calls them, whose freed
    memory has no limit of size (`keep_freed_memory`); the Python code after a step then waits for
    it. In smaller steps that costs more than their buffers (docs/performance.md).

    Args:
        config: of which train.batch_size and data.image_size are read. It need not be checked yet:
            what is missing, or no number of pixels, counts as none.
    """
    use_eigen_convolutions()
    keep_freed_memory()
    try:
        sizes = config["train"]["batch_size"], *config["data"]["image_size"]
    except (KeyError, TypeError):
        sizes = ()
    if all(isinstance(size, int) for size in sizes) and math.prod(sizes) >= _LARGE:
        compute_in_calling_thread()


def compute_in_calling_thread() -> None:
    """Has JAX's CPU backend run programs for one device in the thread that calls them, in place of
    one behind it; to be called before JAX looks for devices.
    """
    jax.config.update("jax_cpu_enable_async_dispatch", False)


def use_compilation_cache(directory: str) -> None:
    """Keeps compiled programs in `directory`, so that a later process need not compile them again;
    '' does nothing.
    """
    if directory:
        jax.config.update("jax_compilation_cache_dir", str(Path(directory).absolute()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def keep_freed_memory() -> bool:
    """Tells glibc's malloc to keep freed memory for the next request instead of returning it to the
    kernel.

    XLA on CPU asks for the same large buffers in every step. By default they are mapped afresh each
    time, and each fresh page costs a fault and is filled with zeros first (docs/performance.md has
    the measurement). What this process has freed is not available to other processes any more.
    Every thread keeps an arena of its own: in one arena for all, what a compilation leaves behind
    in thousands of sizes is searched through for every buffer of every step. An arena has no room
    for more than 64 MiB at once: larger buffers of other threads than the first are mapped afresh
    as before (`prepare_cpu` has large steps run in the first). Settings in the environment
    (MALLOC_...) win.

    Returns:
        Whether it was done: only with glibc, and if the environment does not set any of it.
    """
    if not sys.platform.startswith("linux") or any(
        name.startswith("MALLOC_") for name in os.environ
    ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # another C library
        return False
    settings = {_MMAP_MAX: 0, _TRIM_THRESHOLD: _NEVER, _TOP_PAD: _TOP}
    return all([mallopt(name, value) == 1 for name, value in settings.items()])
