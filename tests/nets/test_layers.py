"""Layers that the architectures share."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

import nets
from nets.layers import NORMS, StochasticDepth, activation_function, max_pool, normalise

KEY = jax.random.key(0)


class Normalised(nn.Module):
    """`normalise` as a module."""

    norm: str | None

    @nn.compact
    def __call__(self, x, train=False):
        return normalise(x, self.norm, train=train)


def test_batch_norm_running_statistics():
    net, x = nets.from_linen(Normalised("batch")), jnp.array([[0.0], [2.0], [4.0], [6.0]])
    params, state = net.init(KEY, x)
    output, state = net.apply(params, state, x, train=True)
    stats = state["batch_stats"]["BatchNorm_0"]
    np.testing.assert_allclose(stats["mean"], [0.3], rtol=1e-6)
    np.testing.assert_allclose(stats["var"], [1.4], rtol=1e-6)
    np.testing.assert_allclose(output, (x - 3) / np.sqrt(5 + 1e-5), rtol=1e-5)
    evaluated, _ = net.apply(params, state, x)
    np.testing.assert_allclose(evaluated, (x - 0.3) / np.sqrt(1.4 + 1e-5), rtol=1e-5)


@pytest.mark.parametrize("channels, groups", [(16, 4), (18, 2), (64, 16), (256, 32), (3, 1)])
def test_group_norm_normalises_each_group(channels, groups):
    x = 5 + 3 * jax.random.normal(KEY, (2, 6, 6, channels))
    net = nets.from_linen(Normalised("group"))
    y, _ = net.apply(*net.init(KEY, x), x)
    y = np.asarray(y).reshape(2, 36, groups, -1)
    np.testing.assert_allclose(y.mean((1, 3)), 0, atol=1e-4)
    np.testing.assert_allclose(y.std((1, 3)), 1, atol=1e-3)


def test_layer_norm_normalises_each_place():
    x = 5 + 3 * jax.random.normal(KEY, (2, 3, 8))
    net = nets.from_linen(Normalised("layer"))
    y, _ = net.apply(*net.init(KEY, x), x)
    np.testing.assert_allclose(y.mean(-1), 0, atol=1e-5)
    np.testing.assert_allclose(y.std(-1), 1, atol=1e-3)


def test_no_norm_is_the_identity():
    x = jnp.ones((2, 3))
    net = nets.from_linen(Normalised(None))
    assert net.init(KEY, x) == ({}, {})
    np.testing.assert_array_equal(net.apply({}, {}, x)[0], x)


def test_stochastic_depth():
    net, x = nets.from_linen(StochasticDepth(0.25)), jnp.ones((4000, 2, 3))
    output, _ = net.apply({}, {}, x, key=KEY, train=True)
    first = output[:, :1, :1]
    np.testing.assert_array_equal(output, jnp.broadcast_to(first, x.shape))  # whole examples
    np.testing.assert_allclose(np.unique(first), [0, 1 / 0.75], rtol=1e-6)
    # The standard error of the mean is sqrt(1/3 / 4000) = .009.
    assert abs(float(first.mean()) - 1) < 0.04
    np.testing.assert_array_equal(net.apply({}, {}, x)[0], x)


def test_dropout_keeps_the_expectation():
    net = nets.mlp((64,), 1, dropout=0.5)
    x = jnp.broadcast_to(jax.random.normal(KEY, (1, 8)), (8000, 8))
    params, state = net.init(KEY, x)
    expected = net.apply(params, state, x[:1])[0][0, 0]
    drawn = net.apply(params, state, x, key=KEY, train=True)[0][:, 0]
    error = drawn.std() / np.sqrt(8000)
    assert error > 0
    assert abs(float(drawn.mean() - expected)) < 4 * float(error)


def test_noise_comes_before_each_activation_in_training_alone():
    net, x = nets.mlp((4, 4), 2, noise=0.3, activation=jnp.exp), jnp.zeros((20_000, 3))
    params, state = net.init(KEY, x)
    identity = {"kernel": jnp.eye(4, 2), "bias": jnp.zeros(2)}
    nothing = jax.tree.map(jnp.zeros_like, params)
    # exp(z) of normal z with deviation 0.3: the mean is exp(0.3^2 / 2), the logarithm z itself.
    drawn = net.apply({**nothing, "Dense_2": identity}, state, x, key=KEY, train=True)[0]
    error = np.exp(0.045) * np.sqrt((np.exp(0.09) - 1) / drawn.size)
    assert abs(float(drawn.mean()) - np.exp(0.045)) < 4 * error
    assert abs(float(jnp.log(drawn).std()) - 0.3) < 4 * 0.3 / np.sqrt(2 * drawn.size)
    # In the first layer too: it moves what the second makes of it.
    second = {"kernel": jnp.eye(4) * 10, "bias": jnp.zeros(4)}
    moved = net.apply(
        {**nothing, "Dense_1": second, "Dense_2": identity}, state, x, key=KEY, train=True
    )[0]
    assert float(jnp.log(moved).std()) > 10 * 0.3
    np.testing.assert_array_equal(net.apply({**nothing, "Dense_2": identity}, state, x)[0], 1.0)
    with pytest.raises(ValueError, match="this net draws"):
        net.apply(params, state, x, train=True)


@pytest.mark.parametrize("size", [8, 7])
def test_max_pool_is_that_of_flax(size):
    x = jax.random.normal(KEY, (2, size, size, 3))
    (y, pull), (expected, reference) = (
        jax.vjp(function, x) for function in (max_pool, lambda x: nn.max_pool(x, (2, 2), (2, 2)))
    )
    np.testing.assert_array_equal(y, expected)
    dy = jax.random.normal(jax.random.key(1), y.shape)
    np.testing.assert_array_equal(pull(dy)[0], reference(dy)[0])


def test_nothing_left_to_pool():
    with pytest.raises(ValueError, match="1x1 cannot be pooled again: use larger images"):
        max_pool(jnp.ones((2, 1, 1, 3)))


def test_gelu_is_exact():
    x = np.linspace(-6, 6, 25)
    gelu = activation_function("gelu")
    np.testing.assert_allclose(gelu(jnp.asarray(x)), x * norm.cdf(x), atol=1e-6)
    slope = jax.vmap(jax.grad(gelu))(jnp.asarray(x))
    np.testing.assert_allclose(slope, norm.cdf(x) + x * norm.pdf(x), atol=1e-6)
    # In bfloat16 one plus the error function would keep few digits of what is left below zero.
    half = gelu(jnp.asarray(-2.0, jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half, -2 * norm.cdf(-2), rtol=1 / 256)
    assert activation_function(jnp.sin) is jnp.sin


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: nets.mlp((4,), 2, activation="rely"), "unknown activation 'rely': choose one of"),
        (lambda: nets.mlp((4,), 2, norm="bach"), "unknown norm 'bach': choose one of 'batch'"),
        (lambda: nets.mlp((4,), 2, dropout=1.0), "dropout is a probability of dropping, got 1.0"),
        (lambda: nets.mlp((4,), 2, noise=-0.1), "noise -0.1 is a standard deviation: choose 0"),
        (lambda: nets.cnn(2, pool="max"), "unknown pool 'max': choose one of 'flatten', 'mean'"),
        (lambda: nets.resnet_cifar(18), "depth 18 is not 6n [+] 2: choose 20"),
        (lambda: nets.resnet_cifar(20, shortcut="C"), "unknown shortcut 'C': choose one of 'A'"),
        (lambda: nets.resnet(101), "unknown depth 101: choose one of 18, 34, 50"),
        (lambda: nets.resnet(18, stem="small"), "unknown stem 'small': choose one of 'imagenet'"),
        (lambda: nets.resnet(18, stochastic_depth=-0.1), "stochastic_depth is a probability"),
        (lambda: nets.wide_resnet(27, 2), "depth 27 is not 6n [+] 4: choose 16"),
        (lambda: nets.vit(4, 10, 1, 3, 8, 2), "hidden 10 cannot be split over 3 heads"),
        (lambda: nets.vit(4, 8, 1, 2, 8, 2, pool="max"), "unknown pool 'max': choose one of 'cls'"),
        (lambda: nets.airbench(whitening=np.zeros((2, 2, 3, 12))), r"expected \(2, 2, 3, 24\)"),
        (lambda: nets.whitening_kernel(np.zeros((4, 8, 8))), r"expected \[N, H, W, 3\] floats"),
    ],
)
def test_bad_options_are_named_in_one_line(make, message):
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_every_norm_is_tested_above():
    assert set(NORMS) == {"batch", "layer", "group", None}
