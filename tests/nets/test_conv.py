"""The CPU convolution against XLA's own."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import nets.conv as conv_module
from nets.conv import ConvTranspose, conv_general_dilated, convolve, wins

KEY = jax.random.key(0)


def xla(x, kernel):
    return lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


# More outputs than inputs, fewer, and kernels of other sizes.
@pytest.mark.parametrize(
    "shape, features, size",
    [((3, 7, 5, 4), 6, 3), ((2, 7, 8, 5), 5, 3), ((2, 1, 2, 3), 1, 3), ((2, 5, 7, 3), 2, 5)],
)
def test_value_and_gradients_are_those_of_xla(shape, features, size):
    x = jax.random.normal(KEY, shape)
    kernel = jax.random.normal(KEY, (size, size, shape[-1], features))
    (y, pull), (expected, reference) = (jax.vjp(f, x, kernel) for f in (convolve, xla))
    np.testing.assert_array_equal(y, expected)
    dy = jax.random.normal(jax.random.key(1), y.shape)
    for gradient, wanted in zip(pull(dy), reference(dy), strict=True):
        np.testing.assert_allclose(gradient, wanted, rtol=1e-5, atol=1e-5)


def test_forward_mode():
    x, kernel = jax.random.normal(KEY, (2, 4, 4, 3)), jax.random.normal(KEY, (3, 3, 3, 2))
    for tangents in ((x + 1, kernel - 1), (x + 1, jnp.zeros_like(kernel))):
        (_, got), (_, wanted) = (jax.jvp(f, (x, kernel), tangents) for f in (convolve, xla))
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)


def test_second_derivative_and_vmap():
    x, kernel = jax.random.normal(KEY, (2, 4, 4, 3)), jax.random.normal(KEY, (5, 3, 3, 3, 2))

    def penalty(function, kernel):
        return (jax.grad(lambda x: (function(x, kernel) ** 3).sum())(x) ** 2).mean()

    mine, reference = (
        jax.vmap(jax.grad(partial(penalty, function)))(kernel) for function in (convolve, xla)
    )
    np.testing.assert_allclose(mine, reference, rtol=1e-4, atol=1e-3)


def test_images_without_a_gradient_cost_none():
    x, kernel = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 4))
    program = jax.make_jaxpr(jax.grad(lambda kernel: convolve(x, kernel).sum()))(kernel)
    # The output, and the gradients of three rows of the kernel.
    assert str(program).count("conv_general_dilated[") == 4


def test_bfloat16_accumulates_in_float32():
    x = jnp.ones((4, 32, 32, 1), jnp.bfloat16)
    kernel = jnp.zeros((3, 3, 1, 1), jnp.bfloat16)
    gradient = jax.grad(lambda kernel: convolve(x, kernel).sum())(kernel)
    assert gradient.dtype == jnp.bfloat16
    assert float(gradient[1, 1, 0, 0]) == 4 * 32 * 32  # a bfloat16 sum of ones stops at 256


@pytest.mark.parametrize(
    "options, own",
    [
        ({}, True),
        ({"padding": 1}, True),
        ({"padding": "VALID"}, False),
        ({"strides": 2}, False),
        ({"strides": 2, "padding": 1}, False),
        ({"kernel_dilation": 2}, False),
        ({"feature_group_count": 2}, False),
        ({"kernel_size": (1, 1)}, False),
        ({"kernel_size": (5, 5)}, True),
        ({"kernel_size": (4, 4)}, False),
        ({"kernel_size": (3, 5)}, False),
        ({"precision": "highest"}, False),
    ],
)
def test_injected_into_linen_it_changes_nothing_but_speed(options, own, monkeypatch):
    monkeypatch.setattr(conv_module, "wins", lambda images, size: size > 1)
    options = {"features": 4, "kernel_size": (3, 3), **options}
    mine, plain = nn.Conv(**options, conv_general_dilated=conv_general_dilated), nn.Conv(**options)
    x = jax.random.normal(KEY, (2, 8, 8, 4))
    params = plain.init(KEY, x)

    def loss(module, params, x):
        return (module.apply(params, x) ** 2).sum()

    got, wanted = (
        jax.value_and_grad(partial(loss, module), (0, 1))(params, x) for module in (mine, plain)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), got, wanted)
    uses = "custom_jvp" in str(jax.make_jaxpr(mine.apply)(params, x))
    assert uses == (own and jax.default_backend() == "cpu")


def test_other_backends_keep_xla(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    x, kernel = jnp.ones((2, 15, 15, 64)), jnp.ones((3, 3, 64, 256))
    assert wins(x.shape, 3)
    call = partial(
        conv_general_dilated,
        window_strides=(1, 1),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    assert "custom_jvp" not in str(jax.make_jaxpr(call)(x, kernel))


# Sides that differ, an odd kernel, and one output.
@pytest.mark.parametrize(
    "shape, features, size", [((3, 5, 4, 6), 2, (4, 4)), ((2, 3, 3, 2), 1, (5, 3))]
)
def test_a_transposed_convolution_is_that_of_flax(shape, features, size):
    mine = ConvTranspose(features, size)
    plain = nn.ConvTranspose(features, size, strides=(2, 2))
    x = jax.random.normal(KEY, shape)
    params = plain.init(KEY, x)
    jax.tree.map(np.testing.assert_array_equal, mine.init(KEY, x), params)
    bias = jax.random.normal(KEY, (features,))
    params = {"params": {**params["params"], "bias": bias}}
    np.testing.assert_array_equal(mine.apply(params, x), plain.apply(params, x))

    def loss(module, params, x):
        return (module.apply(params, x) ** 3).sum()

    def slope(module, params, x):
        """Differentiated, it takes the forward rule apart and never asks for the backward one."""
        return (jax.grad(partial(loss, module, params))(x) ** 2).sum()

    for function in (loss, slope):
        got, wanted = (
            jax.jit(jax.grad(partial(function, module), (0, 1)))(params, x)
            for module in (mine, plain)
        )
        for a, b in zip(*map(jax.tree.leaves, (got, wanted)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3)


def test_a_transposed_convolution_keeps_the_precision_and_xla_elsewhere(monkeypatch):
    module, x = ConvTranspose(2), jnp.ones((1, 4, 4, 3), jnp.bfloat16)
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), module.init(KEY, x))
    assert module.apply(params, x).dtype == jnp.bfloat16
    assert "custom_vjp" in str(jax.make_jaxpr(module.apply)(params, x))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert "custom_vjp" not in str(jax.make_jaxpr(module.apply)(params, x))
