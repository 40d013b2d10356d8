"""Collectives read from XLA's text: of a program with known ones, and of written text."""

import os
import subprocess
import sys

import pytest

from benchmarks.collectives import Collective, bytes_sent, collectives

# On a mesh of 2 x 4: one of each kind, and a sum in a loop of three turns.
KNOWN = """
import functools
import jax, jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec as P
mesh = jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
@functools.partial(
    jax.shard_map, mesh=mesh, in_specs=P(("data", "fsdp")), out_specs=P(("data", "fsdp")),
    check_vma=False,
)
def f(x):  # [4, 8] on each device
    gathered = jax.lax.all_gather(x, "fsdp", tiled=True)
    scattered = jax.lax.psum_scatter(gathered * x[0], "fsdp", tiled=True)
    y = jax.lax.all_to_all(scattered, "fsdp", 1, 0, tiled=True).reshape(x.shape)
    y = jax.lax.ppermute(y, "data", [(0, 1), (1, 0)])
    y = jax.lax.scan(lambda c, _: (jnp.tanh(jax.lax.psum(c, "data")), ()), y, length=3)[0]
    return y + jax.lax.psum(y, ("data", "fsdp")).astype(jnp.bfloat16)
print(jax.jit(f).lower(jax.ShapeDtypeStruct((32, 8), jnp.float32)).compile().as_text())
"""


def test_a_program_on_eight_devices():
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    text = subprocess.run(
        [sys.executable, "-c", KNOWN], env=os.environ | {"XLA_FLAGS": flags}, check=True,
        capture_output=True, text=True,
    ).stdout  # fmt: skip
    x = 4 * 8 * 4  # bytes
    assert sorted(collectives(text), key=lambda one: (one.kind, one.times)) == [
        Collective("all-gather", 4, 4 * x),
        Collective("all-reduce", 8, x),
        Collective("all-reduce", 2, x, times=3),
        Collective("all-to-all", 4, x),
        Collective("collective-permute", 8, x),
        Collective("reduce-scatter", 4, x),
    ]


HEAD = "HloModule jit_f, is_scheduled=true, num_partitions=16\n\n"


def in_main(*lines):
    return HEAD + "ENTRY %main.1 (p: f32[8]) -> f32[8] {\n  " + "\n  ".join(lines) + "\n}\n"


def test_types_and_groups_as_xla_writes_them():
    text = in_main(
        "%a = (f32[64]{0}, /*index=1*/bf16[3,5]{1,0}) all-reduce(%p, %q), replica_groups={}, "
        'to_apply=%sum, metadata={op_name="jit(f)/all-reduce(x)"}',
        "%b = u8[2,3]{1,0} all-gather(%p), replica_groups=[4,2]<=[2,4]T(1,0), dimensions={0}",
        "%c = f32[] all-reduce(%p), replica_groups={{0,1,2},{3,4,5}}, to_apply=%sum",
        "ROOT %d = pred[7]{0} copy(%p)",
    )
    assert collectives(text) == [
        Collective("all-reduce", 16, 64 * 4 + 15 * 2),
        Collective("all-gather", 2, 6),
        Collective("all-reduce", 3, 4),
    ]


def test_what_a_ring_sends():
    assert bytes_sent("all-reduce", 4, 100) == 150
    assert bytes_sent("all-gather", 4, 100) == 75
    assert bytes_sent("reduce-scatter", 4, 25) == 75  # of an operand of 100
    assert bytes_sent("all-to-all", 4, 100) == 75
    assert bytes_sent("collective-permute", 4, 100) == 100


LOOP = (
    "%body.1 (p: f32[8]) -> f32[8] {\n"
    "  ROOT %r = f32[8]{0} all-reduce(%p), replica_groups={}, to_apply=%sum\n}\n"
)


def test_loops_of_unknown_length_and_split_operations_are_refused():
    loop = "%w = f32[8]{0} while(%p), condition=%cond.1, body=%body.1"
    known = loop + ', backend_config={"known_trip_count":{"n":"5"},"known_init_step":{}}'
    assert collectives(in_main(known) + LOOP) == [Collective("all-reduce", 16, 32, times=5)]
    with pytest.raises(ValueError, match="loop of unknown length"):
        collectives(in_main(loop) + LOOP)
    with pytest.raises(ValueError, match="all-gather-start is split into start and end"):
        collectives(in_main("%g = (f32[2], f32[8]) all-gather-start(%p), replica_groups={}"))
    with pytest.raises(ValueError, match="no ENTRY computation"):
        collectives("nothing")
