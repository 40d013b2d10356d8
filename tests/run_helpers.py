"""Pieces of tests that train in child processes: how they are started, and what they left."""

import contextlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

CHILDREN = Path(__file__).resolve().parent / "training"


@contextlib.contextmanager
def quick_compilation():
    """Compiles without optimisation, three times faster; children do the same, so all run the same
    programs.
    """
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", False)


def start_child(script, *args, devices=1):
    environment = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "true"}
    if devices > 1:
        flags = (
            f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
        )
        environment |= {"XLA_FLAGS": flags}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, CHILDREN / script, *args],
        env=environment,
        text=True,
        stdout=pipe,
        stderr=pipe,
    )


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def finish(children):
    """Waits for children by name; returns their output and their exit codes."""
    try:
        output = {name: child.communicate(timeout=900) for name, child in children.items()}
    finally:
        for child in children.values():
            child.kill()
    return output, {name: child.returncode for name, child in children.items()}


def saved_state(workdir, step):
    """All arrays of a checkpoint by name, on the host, read without any of our own code."""
    folder = workdir / "checkpoints" / str(step) / "state"
    reader = ocp.PyTreeCheckpointer()
    args = jax.tree.map(
        lambda _: ocp.RestoreArgs(restore_type=np.ndarray),
        reader.metadata(folder).item_metadata.tree,
    )
    return reader.restore(folder, restore_args=args)
