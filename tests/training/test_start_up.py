"""What programs set before their first computation."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
from lambdanet.training import start_up
done = start_up.keep_freed_memory()
import jax, jax.numpy as jnp
step = jax.jit(lambda x: jnp.sort(x.reshape(-1, 4), axis=1) * 2)
x = jnp.ones((1024, 4096))
for _ in range(40):  # until the heap has its size
    step(x).block_until_ready()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step(x).block_until_ready()
print(done, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(**environment):
    command = [sys.executable, "-c", PROGRAM]
    paths = {"PATH": "", "PYTHONPATH": ":".join(sys.path), "JAX_PLATFORMS": "cpu"}
    done, count = subprocess.run(command, env=paths | environment, capture_output=True, text=True, check=True).stdout.split()
    return done == "True", int(count)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_buffers_are_not_mapped_afresh_in_every_step():
    kept, few = faults()
    left, many = faults(MALLOC_CHECK_="0")  # any setting of the user's stays
    assert (kept, left) == (True, False) and few < many / 10, (few, many)
