"""Every architecture: published sizes, shapes, and the details that counts do not show."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nets
from nets.resnet import ResidualBlock, conv
from nets.transformer import SelfAttention
from nets.vit import SIZES, ViT

KEY = jax.random.key(0)


def count(net, *shape):
    return nets.count_parameters(jax.eval_shape(net.init, KEY, jnp.zeros(shape))[0])


@pytest.mark.parametrize(
    "net, size, published",
    [
        # He et al. 2016, table 6: 0.27M, 0.46M, 0.66M, 0.85M, 1.7M.
        (nets.resnet_cifar(20), 32, 269_722),
        (nets.resnet_cifar(32), 32, 464_154),
        (nets.resnet_cifar(44), 32, 658_586),
        (nets.resnet_cifar(56), 32, 853_018),
        (nets.resnet_cifar(20, shortcut="B"), 32, 272_474),
        # torchvision's model table.
        (nets.resnet(18), 64, 11_689_512),
        (nets.resnet(34), 64, 21_797_672),
        (nets.resnet(50), 64, 25_557_032),
        (nets.resnet(18, 10, stem="cifar"), 32, 11_173_962),
        # Zagoruyko & Komodakis 2016, table 4: 36.5M; Oliver et al. 2018: 1.5M.
        (nets.wide_resnet(28, 10), 32, 36_479_194),
        (nets.wide_resnet(28, 2), 32, 1_467_610),
        # Touvron et al. 2021, table 1: 5.7M, 22M, 86M, and timm's exact counts.
        (nets.vit(16, *SIZES["Ti"], 1000), 224, 5_717_416),
        (nets.vit(16, *SIZES["S"], 1000), 224, 22_050_664),
        (nets.vit(16, *SIZES["B"], 1000), 224, 86_567_656),
    ],
)
def test_published_parameter_counts(net, size, published):
    assert count(net, 1, size, size, 3) == published


def test_counts_by_hand():
    assert count(nets.mlp((32,), 10), 1, 8, 8, 1) == 64 * 32 + 32 + 32 * 10 + 10
    lenet = nets.cnn(10, features=(6, 16), kernel_size=5, dense=(120, 84))
    assert count(lenet, 1, 28, 28, 1) == 156 + 2416 + (784 * 120 + 120) + (120 * 84 + 84) + 850
    small = nets.cnn(10, features=(8, 16), convolutions=2, dense=(), pool="mean", norm="batch")
    convolutions = 9 * (1 * 8 + 8 * 8 + 8 * 16 + 16 * 16)
    assert count(small, 1, 28, 28, 1) == convolutions + 2 * (8 + 8 + 16 + 16) + 170


SMALL = {
    "mlp": (nets.mlp((8,), 5, norm="batch", dropout=0.1), (8, 8, 1)),
    "mlp linear": (nets.mlp((), 5), (3,)),
    "mlp final norm": (nets.mlp((8,), 5, norm="batch", final_norm=True), (8, 8, 1)),
    "cnn": (nets.cnn(5, features=(4, 8), norm="batch", dropout=0.1), (9, 9, 1)),
    "cnn mean": (nets.cnn(5, features=(4, 8), pool="mean", norm="group", dense=()), (8, 8, 3)),
    "airbench": (nets.airbench(5, widths=(8, 8, 8)), (32, 32, 3)),
    "resnet_cifar": (nets.resnet_cifar(8, 5, stochastic_depth=0.2), (16, 16, 3)),
    "resnet": (nets.resnet(50, 5, norm="layer", activation="silu"), (64, 64, 3)),
    "resnet zero": (nets.resnet(18, 5, stem="cifar", zero_init=True), (8, 8, 3)),
    "wide_resnet": (nets.wide_resnet(10, 1, 5, dropout=0.1), (16, 16, 3)),
    "vit": (nets.vit(4, 16, 2, 2, 32, 5, dropout=0.1, stochastic_depth=0.1), (8, 8, 3)),
    "vit mean": (nets.vit(4, 16, 2, 2, 32, 5, pool="mean"), (8, 12, 3)),
}


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("policy", ["float32", "bfloat16"])
def test_shapes_and_state(name, policy):
    net, shape = SMALL[name]
    net = nets.with_precision(net, policy)
    x = jnp.zeros((2, *shape))
    params, state = jax.eval_shape(net.init, KEY, x)

    def both(params, state):
        evaluated, same = net.apply(params, state, x)
        assert same is state
        return evaluated, net.apply(params, state, x, key=KEY, train=True)

    evaluated, (trained, new) = jax.eval_shape(both, params, state)
    for output in (evaluated, trained):
        assert (output.shape, output.dtype) == ((2, 5), jnp.float32)
    assert new == state  # shapes and dtypes: training is a fixed point


@pytest.mark.parametrize("name", ["cnn", "resnet_cifar", "wide_resnet", "airbench"])
def test_every_parameter_has_a_gradient(name):
    net, shape = SMALL[name]
    x = jax.random.normal(KEY, (4, *shape))
    params, state = jax.jit(net.init)(KEY, x)

    @jax.jit
    def gradient(params):
        return jax.grad(lambda p: (net.apply(p, state, x, key=KEY, train=True)[0] ** 2).sum())(
            params
        )

    for path, leaf in jax.tree.leaves_with_path(gradient(params)):
        assert bool(jnp.isfinite(leaf).all()) and bool((leaf != 0).any()), path


def test_strided_convolutions_are_centred():
    x = jax.random.normal(KEY, (1, 6, 6, 1))
    delta = jnp.zeros((3, 3, 1, 1)).at[1, 1].set(1)
    y = conv(1, 3, 2).apply({"params": {"kernel": delta}}, x)
    np.testing.assert_array_equal(y, x[:, ::2, ::2])


@pytest.mark.parametrize("bottleneck", [False, True])
def test_zero_init_starts_blocks_as_their_shortcut(bottleneck):
    block = ResidualBlock(4, bottleneck=bottleneck, zero_init=True)
    x = jax.random.normal(KEY, (2, 4, 4, 16 if bottleneck else 4))
    variables = jax.jit(block.init)(KEY, x)
    np.testing.assert_array_equal(jax.jit(block.apply)(variables, x), nn.relu(x))


def test_shortcut_a_subsamples_and_pads():
    block = ResidualBlock(4, stride=2, shortcut="A", zero_init=True)
    x = jax.random.normal(KEY, (2, 4, 4, 2))
    y = jax.jit(block.apply)(jax.jit(block.init)(KEY, x), x)
    np.testing.assert_array_equal(y[..., :2], nn.relu(x[:, ::2, ::2]))
    np.testing.assert_array_equal(y[..., 2:], 0)


def test_resnet_kernels_are_he_normal_by_fan_out():
    kernel = conv(256, 3).init(KEY, jnp.ones((1, 4, 4, 16)))["params"]["kernel"]
    assert abs(float(kernel.std()) / np.sqrt(2 / (9 * 256)) - 1) < 0.02


def test_attention_is_that_of_flax():
    x = jax.random.normal(KEY, (2, 5, 12))
    mine = SelfAttention(3)
    params = jax.eval_shape(mine.init, KEY, x)["params"]
    params = jax.tree.map(lambda leaf: jax.random.normal(KEY, leaf.shape) / 4, params)
    heads = {
        name: {
            "kernel": params[name]["kernel"].reshape(12, 3, 4),
            "bias": params[name]["bias"].reshape(3, 4),
        }
        for name in ("query", "key", "value")
    }
    heads["out"] = {
        "kernel": params["out"]["kernel"].reshape(3, 4, 12),
        "bias": params["out"]["bias"],
    }
    reference = nn.MultiHeadDotProductAttention(3)
    np.testing.assert_allclose(
        jax.jit(mine.apply)({"params": params}, x),
        jax.jit(reference.apply)({"params": heads}, x, x),
        atol=1e-5,
    )


def test_vit_starts_with_uniform_logits_and_uses_positions():
    net = ViT(3, 4, 16, 1, 2, 32, pool="mean")
    x = jax.random.normal(KEY, (2, 8, 8, 3))
    params, apply = jax.jit(net.init)(KEY, x)["params"], jax.jit(net.apply)
    np.testing.assert_array_equal(apply({"params": params}, x), 0)
    params["head"]["kernel"] = jax.random.normal(KEY, (16, 3))
    turned = x[:, :, jnp.array([4, 5, 6, 7, 0, 1, 2, 3])]  # the patches, in another order
    outputs = [apply({"params": params}, image) for image in (x, turned)]
    assert not np.allclose(*outputs, atol=1e-4)
    params["positions"] = jnp.zeros_like(params["positions"])
    outputs = [apply({"params": params}, image) for image in (x, turned)]
    np.testing.assert_allclose(*outputs, atol=1e-5)


def test_vit_refuses_images_that_patches_do_not_tile():
    with pytest.raises(ValueError, match="images of 30x32 cannot be cut into patches of 4x4"):
        nets.vit(4, 8, 1, 2, 8, 2).init(KEY, jnp.zeros((1, 30, 32, 3)))


def test_a_final_norm_is_of_the_logits():
    x = jax.random.normal(KEY, (64, 6))
    net = nets.mlp((8,), 5, norm="batch", final_norm=True)
    logits, _ = net.apply(*net.init(KEY, x), x, key=KEY, train=True)
    np.testing.assert_allclose(logits.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(logits.std(0), 1, atol=1e-3)
