"""The speedrun network: whitening, Dirac init, and the order of its parts."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import nets
from nets.airbench import dirac_init

KEY = jax.random.key(0)


def textured(count=200):
    """Images whose neighbouring pixels and channels are strongly correlated."""
    draw = np.random.default_rng(0)
    noise = draw.normal(size=(count, 18, 18, 3))
    smooth = noise[:, :-2, :-2] + noise[:, 1:-1, :-2] + noise[:, :-2, 1:-1] + noise[:, 2:, 2:]
    return (smooth + 2 * smooth.mean(-1, keepdims=True)).astype(np.float32)


def convolve(x, kernel, padding="SAME"):
    return lax.conv_general_dilated(
        x, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def test_whitening_whitens():
    images, eps = textured(), 5e-4
    kernel = nets.whitening_kernel(images, eps)
    assert kernel.shape == (2, 2, 3, 24) and kernel.dtype == np.float32
    np.testing.assert_array_equal(kernel[..., 12:], -kernel[..., :12])
    responses = np.asarray(convolve(images, kernel[..., :12], "VALID"), np.float64).reshape(-1, 12)
    second_moment = responses.T @ responses / len(responses)
    # Unit variance up to eps, no correlation: an error in the order of the taps shows here.
    np.testing.assert_allclose(second_moment, np.eye(12), atol=5e-3)
    # The largest direction comes first, so its kernel is the smallest.
    norms = np.linalg.norm(kernel[..., :12].reshape(12, 12), axis=0)
    assert np.all(np.diff(norms) > 0)


def test_directions_without_signal_are_not_blown_up():
    kernel = nets.whitening_kernel(np.ones((4, 8, 8, 3), np.float32), eps=0.01)
    norms = np.linalg.norm(kernel[..., :12].reshape(12, 12), axis=0)
    np.testing.assert_allclose(norms, [1 / np.sqrt(12.01)] + [10.0] * 11, rtol=1e-4)


def test_dirac_init_passes_the_identity():
    x = jax.random.normal(KEY, (2, 5, 5, 6))
    for features in (4, 16):
        kernel = jax.jit(partial(dirac_init, shape=(3, 3, 6, features)))(KEY)
        copied = min(6, features)
        np.testing.assert_allclose(convolve(x, kernel)[..., :copied], x[..., :copied], atol=1e-6)
    rest = jax.jit(partial(dirac_init, shape=(3, 3, 64, 256)))(KEY)[..., 64:]
    bound = 1 / np.sqrt(9 * 64)
    assert float(abs(rest).max()) <= bound
    assert abs(float(rest.std()) / (bound / np.sqrt(3)) - 1) < 0.02


def test_whitening_kernel_is_frozen_and_its_bias_is_not():
    kernel = nets.whitening_kernel(textured())
    net, x = nets.airbench(whitening=kernel), jnp.zeros((2, 32, 32, 3))
    params, state = jax.jit(net.init)(KEY, x)
    np.testing.assert_array_equal(state["constants"]["whitening"], kernel)
    assert params["whitening_bias"].shape == (24,)
    assert nets.count_parameters(params) == (
        24 + 9 * (24 * 64 + 64 * 64 + 64 * 256 + 3 * 256 * 256) + 2 * (64 + 256 + 256) + 2560
    )


def test_forward_pass_against_plain_operations():
    net = nets.airbench(5, widths=(4, 6, 6), whitening=nets.whitening_kernel(textured()))
    x = jax.random.normal(KEY, (3, 32, 32, 3))
    params, state = jax.jit(net.init)(KEY, x)
    draw = np.random.default_rng(1)
    params, state["batch_stats"] = jax.tree.map(
        lambda leaf: jnp.asarray(draw.uniform(0.2, 1, leaf.shape), jnp.float32),
        (params, state["batch_stats"]),
    )

    def gelu(x):
        return x * (1 + lax.erf(x / np.sqrt(2))) / 2

    def norm(x, index):
        stats = state["batch_stats"][f"BatchNorm_{index}"]
        bias = params[f"BatchNorm_{index}"]["bias"]
        return (x - stats["mean"]) / jnp.sqrt(stats["var"]) + bias

    def reference(params, x):
        y = convolve(x, state["constants"]["whitening"], "VALID") + params["whitening_bias"]
        y = gelu(y)
        for group in range(3):
            y = convolve(y, params[f"Conv_{2 * group}"]["kernel"])
            y = lax.reduce_window(y, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
            y = gelu(norm(y, 2 * group))
            y = convolve(y, params[f"Conv_{2 * group + 1}"]["kernel"])
            y = gelu(norm(y, 2 * group + 1))
        assert y.shape == (3, 3, 3, 6)
        return y.max((1, 2)) @ params["Dense_0"]["kernel"] / 9

    output, expected = jax.jit(net.apply)(params, state, x)[0], jax.jit(reference)(params, x)
    np.testing.assert_allclose(output, expected, rtol=1e-4)
