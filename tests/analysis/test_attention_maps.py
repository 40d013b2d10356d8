"""Attention maps: what is captured is what the layer computes with, and the pictures show it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from covering import part
from flax import nnx
from PIL import Image

from lambdanet.analysis import attention_maps
from lambdanet.attention import create_attention
from models import model_builder

SPECS = {
    "local": dict(name="lambda", num_heads=2, key_depth=4, scope=3),
    "global": dict(name="lambda", num_heads=2, key_depth=4, scope=None),
    "content only": dict(name="lambda", num_heads=2, key_depth=4, position=False),
    "position only": dict(name="lambda", num_heads=2, key_depth=4, scope=5, content=False),
}


class Net(nnx.Module):
    """Two attention layers, one of them in a list."""

    def __init__(self, spec):
        rngs = nnx.Rngs(0)
        self.first = create_attention(spec, 8, size=(4, 6), rngs=rngs)
        self.rest = nnx.List([create_attention(spec, 8, size=(4, 6), rngs=rngs)])

    def __call__(self, x):
        return self.rest[0](self.first(x))


@pytest.mark.parametrize("spec", part(SPECS, ["local"]))
def test_map_times_values_is_the_output(spec):
    """y_n = sum_m a_nm v_m: with the captured map and the layer's own values, the layer's output
    comes out.
    """
    net = nnx.view(Net(SPECS[spec]), use_running_average=True)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 6, 8)), jnp.float32)
    maps = attention_maps.capture_maps(net, x)
    assert list(maps) == ["first", "rest/0"]
    values = net.first.norm_value(net.first.value(x))
    expected = jnp.einsum("bhyxij,bijv->byxhv", maps["first"], values).reshape(x.shape)
    np.testing.assert_allclose(net.first(x), expected, atol=1e-5)


RESNET = dict(blocks=(1, 2), widths=(8, 8), stem="cifar")
GATE = dict(name="se", after="stage*.*")
HOSTS = {
    "resnet": ("resnet18", dict(RESNET, attention="mhsa"), ("block", "stage")),
    "resnet with context": ("resnet18", dict(RESNET, context=GATE), ("block", "stage")),
    "resnet with shared embeddings": (
        "resnet50",
        dict(
            RESNET,
            attention=dict(name="lambda", num_heads=2, key_depth=4, scope=3),
            share_embeddings=True,
            context=dict(GATE, placement="standard"),
        ),
        ("block", "stage"),
    ),
    "transformer": ("nat_digits", {}, ("block",)),
    "transformer with context": (
        "swin_digits",
        dict(context=(GATE, dict(name="criss_cross", after="stage1.1"))),
        ("block",),
    ),
    "class token": ("pvt_digits", {}, ("block",)),
    "carried": ("lavit_digits", {}, ("block",)),
    "carried with context": ("lavit_digits", dict(context=GATE), ("block",)),
}


# All modes and all kinds of layers; the others have fewer of them.
ALWAYS = ["carried with context"]


@pytest.mark.parametrize("host", part(HOSTS, ALWAYS))
def test_recomputation_hides_no_map(host):
    name, options, modes = HOSTS[host]
    options = dict(options, image_size=(8, 8), in_channels=1, num_classes=3)
    draw = np.random.default_rng(0)

    def captured(mode, weights):
        build = model_builder(name, remat=mode, **options)
        model = nnx.eval_shape(lambda: build(rngs=nnx.Rngs(0)))
        view = nnx.view(
            model, deterministic=True, use_running_average=True, raise_if_not_found=False
        )
        graphdef, state = nnx.split(view)
        # numbers from NumPy cost no compilation; positive ones suit variances, too
        weights = weights or jax.tree.map(lambda a: draw.uniform(0.1, 0.3, a.shape), state)
        model = nnx.merge(graphdef, jax.tree.map(jnp.float32, weights))
        return attention_maps.capture_maps(model, jnp.ones((1, 8, 8, 1)).at[0, 2].set(0.0)), weights

    plain, weights = captured("none", None)
    assert plain
    for mode in modes:
        shown, _ = captured(mode, weights)
        assert list(shown) == list(plain)
        for path, values in plain.items():
            np.testing.assert_array_equal(values, shown[path], err_msg=f"{mode}: {path}")


def test_pictures(tmp_path):
    rng = np.random.default_rng(0)
    maps = {
        "stages/0/blocks/1/attention": rng.normal(size=(2, 2, 4, 6, 4, 6)),
        "b": np.zeros((2, 1, 2, 3, 2, 3)),
    }
    for channels in (1, 3):
        images = rng.integers(0, 256, (2, 16, 24, channels), dtype=np.uint8)
        paths = attention_maps.draw_maps(maps, images, tmp_path / str(channels))
        assert [p.name for p in paths] == ["stages.0.blocks.1.attention.png", "b.png"]
        with Image.open(paths[0]) as picture:
            pixels = np.asarray(picture.convert("RGB")).astype(int)
        assert (pixels[..., 0] - pixels[..., 2] > 80).any(), "something adds (red)"
        assert (pixels[..., 2] - pixels[..., 0] > 80).any(), "something subtracts (blue)"


def test_queries_lie_on_the_picture_and_not_on_its_padding(tmp_path):
    """A picture of 8 x 80 on a canvas of 80 x 80 is the first of ten rows of the map."""
    cells = attention_maps.query_cells(10, 10, np.array([0.1, 1.0]))
    assert cells == [(0, 5), (0, 2), (0, 7), (0, 2), (0, 7)]
    assert attention_maps.query_cells(4, 6, np.ones(2)) == [(2, 3), (1, 1), (1, 4), (3, 1), (3, 4)]
    assert attention_maps.query_cells(1, 1, np.ones(2)) == [(0, 0)]
    weights = np.full((2, 1, 4, 4, 4, 4), 1 / 16)
    images = np.zeros((2, 16, 16, 3), np.uint8)
    drawn = []
    for folder, shapes in (("all", None), ("part", np.array([[16, 16], [4, 16]]))):
        (path,) = attention_maps.draw_maps({"a": weights}, images, tmp_path / folder, shapes)
        drawn.append(np.asarray(Image.open(path).convert("RGB")))
    whole, part = drawn
    first = len(whole) // 2  # the picture without padding
    assert np.array_equal(whole[:first], part[:first]) and not np.array_equal(whole, part)


def test_pictures_of_gates_and_channel_maps(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 16, 24, 3), dtype=np.uint8)
    maps = {
        "a/gate": rng.uniform(size=(2, 4, 6, 8)),
        "b/gate": rng.uniform(size=(2, 1, 1, 8)),
        "c/gate": rng.uniform(size=(2, 4, 6, 1)),
        "d/channel_map": rng.uniform(size=(2, 8, 8)),
        "e": rng.uniform(size=(2, 1, 1, 1, 4, 6)),
    }
    paths = attention_maps.draw_maps(maps, images, tmp_path)
    assert [p.name for p in paths] == [
        "a.gate.png",
        "b.gate.png",
        "c.gate.png",
        "d.channel_map.png",
        "e.png",
    ]
    widths = {path.stem: Image.open(path).width for path in paths}
    assert widths["a.gate"] > widths["b.gate"] > widths["c.gate"], "a panel per thing that varies"
    with pytest.raises(ValueError, match=r"cannot draw f \(2, 2\); allowed: 6 axes"):
        attention_maps.draw_maps({"f": np.zeros((2, 2))}, images, tmp_path)


def test_captures_gates_beside_maps():
    class Gated(nnx.Module):
        def __init__(self):
            self.capture = False

        def set_view(self, capture: bool | None = None):
            """Records.

            Args:
              capture: whether.
            """
            self.capture = self.capture if capture is None else capture

        def __call__(self, x):
            if self.capture:
                self.sow(nnx.Intermediate, "gate", x[:, :1, :1])
                self.sow(nnx.Intermediate, "lambda_norm", x)
                self.sow(nnx.Intermediate, "channel_map", x[:, 0])
            return x

    class Host(nnx.Module):
        def __init__(self):
            self.inner = Gated()

        def __call__(self, x):
            return self.inner(self.inner(x))

    x = jnp.arange(24.0).reshape(1, 2, 3, 4)
    maps = attention_maps.capture_maps(Host(), x)
    assert sorted(maps) == [
        "inner/channel_map",
        "inner/channel_map/1",
        "inner/gate",
        "inner/gate/1",
    ]
    np.testing.assert_array_equal(maps["inner/gate"], x[:, :1, :1])


def test_models_without_attention():
    with pytest.raises(ValueError, match="no layer of this model"):
        attention_maps.capture_maps(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), jnp.ones((1, 2, 2, 2)))
