"""A state whose small arrays lie together: the same numbers, few arrays, the same steps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from lambdanet.training import mesh
from lambdanet.training.packing import Packing
from lambdanet.training.state import TrainState

DEVICES = mesh.make_mesh(1, 1, devices=jax.devices()[:1])
TX = optax.adam(0.1)


def state():
    rng = np.random.default_rng(0)
    shapes = {"a": (3,), "b": (5,), "c": (3,), "kernel": (2, 3), "scale": (), "d": (3,)}
    params = {k: jnp.asarray(rng.normal(size=s), jnp.float32) for k, s in shapes.items()}
    params["half"] = jnp.asarray(rng.normal(size=3), jnp.bfloat16)
    stats = {"mean": jnp.arange(3.0), "var": jnp.arange(3.0) + 1}
    made = TrainState(jnp.int32(0), params, stats, TX.init(params), ema={"params": params})
    return jax.device_put(jax.tree.map(jnp.copy, made), NamedSharding(DEVICES, PartitionSpec()))


def step(state, batch):
    def loss(params):
        parts = [jnp.sum(jnp.sin(p) * batch["x"]) for p in jax.tree.leaves(params)]
        return sum(parts) + jnp.sum(params["a"] * params["d"])

    value, gradient = jax.value_and_grad(loss)(state.params)
    updates, opt_state = TX.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return state.replace(step=state.step + 1, params=params, opt_state=opt_state), value


def test_small_arrays_of_one_shape_are_rows_of_one_array(monkeypatch):
    monkeypatch.setattr("lambdanet.training.packing.SMALL", 5)
    packing = Packing(state())
    arrays = packing.pack(state())
    assert len(jax.tree.leaves(state())) == 2 + 7 * 2 + 7 * 2 + 2
    # Of four parts, parameters, averages and two moments: a, c, d and two statistics; half; b; the
    # scale; and the numbers of steps. The kernel of each part is too large.
    expected = [(14, 3), (4, 3), (4, 5), (4,), (2,), *[(2, 3)] * 4]
    assert sorted(a.shape for a in arrays) == sorted(expected)
    assert [a.sharding for a in arrays] == packing.shardings
    abstract, _ = packing.abstract(state())
    assert [(a.shape, a.dtype) for a in arrays] == [(a.shape, a.dtype) for a in abstract]
    found, wanted = packing.unpack(arrays), state()
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
    assert not any(a.is_deleted() for a in arrays)


def test_its_steps_are_those_of_the_state(monkeypatch):
    monkeypatch.setattr("lambdanet.training.packing._BASE", 4)  # 14 rows have numbers of two digits
    packing = Packing(state())
    packed, plain = packing.pack(state()), state()
    run = jax.jit(packing.step(step), donate_argnums=0)
    for number in range(3):
        batch = {"x": jnp.float32(number + 0.5)}
        packed, value = run(packed, batch, packing.rows)
        plain, expected = jax.jit(step)(plain, batch)
        np.testing.assert_allclose(value, expected, rtol=1e-6)
    found = packing.unpack(packed)
    assert int(found.step) == 3
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, plain)


def test_what_is_spread_over_devices_stays_by_itself():
    devices = AbstractMesh((1, 3), mesh.AXES, axis_types=(AxisType.Auto,) * 2)
    shapes = jax.eval_shape(state)
    ways = jax.tree.map(lambda a: PartitionSpec("fsdp" if a.shape == (3,) else None), shapes)
    placed = jax.tree.map(
        lambda a, way: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=NamedSharding(devices, way)),
        shapes,
        jax.tree.map(lambda a, w: w if a.ndim else PartitionSpec(), shapes, ways),
    )
    kept = [a for a in Packing(placed).abstract(placed)[0] if a.shape == (3,)]
    assert len(kept) == sum(a.shape == (3,) for a in jax.tree.leaves(shapes))
