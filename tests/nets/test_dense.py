"""The CPU dense layer against XLA's own."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nets.dense as dense_module
from nets.dense import Dense, matmul, wins

KEY = jax.random.key(0)
close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)


def pair(rows, features_in, features_out):
    x_key, kernel_key = jax.random.split(KEY)
    return (
        jax.random.normal(x_key, (rows, features_in)),
        jax.random.normal(kernel_key, (features_in, features_out)),
    )


@pytest.mark.parametrize("sizes", [(7, 5, 3), (1, 1, 1), (3, 1, 4)])
def test_value_and_gradients_are_those_of_the_plain_product(sizes):
    x, kernel = pair(*sizes)
    (y, pull), (expected, reference) = (jax.vjp(f, x, kernel) for f in (matmul, jnp.matmul))
    np.testing.assert_array_equal(y, expected)
    dy = jax.random.normal(jax.random.key(1), y.shape)
    jax.tree.map(close, pull(dy), reference(dy))


def test_tangents_second_derivatives_and_vmap():
    x, kernel = pair(4, 3, 2)
    tangents = (x[::-1], kernel[::-1])
    jax.tree.map(close, *(jax.jvp(f, (x, kernel), tangents) for f in (matmul, jnp.matmul)))

    def penalty(product, kernel):
        return (jax.grad(lambda x: (product(x, kernel) ** 3).sum())(x) ** 2).mean()

    kernels = jnp.stack([kernel, 2 * kernel])
    mine, reference = (
        jax.vmap(jax.grad(partial(penalty, f)))(kernels) for f in (matmul, jnp.matmul)
    )
    np.testing.assert_allclose(mine, reference, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    "shape, dtype, own",
    [
        ((256, 8), jnp.float32, True),
        ((4, 64, 8), jnp.float32, True),
        ((255, 8), jnp.float32, False),
        ((3, 85, 8), jnp.float32, False),
        ((256, 8), jnp.bfloat16, False),
    ],
)
def test_injected_into_linen_it_changes_nothing_but_speed(shape, dtype, own, monkeypatch):
    taken = []

    def spy(x, kernel):
        taken.append(x.shape)
        return matmul(x, kernel)

    monkeypatch.setattr(dense_module, "matmul", spy)
    mine, plain = Dense(3, dtype=dtype), nn.Dense(3, dtype=dtype)
    x = jax.random.normal(KEY, shape)
    params = plain.init(KEY, x)
    assert jax.tree.map(jnp.shape, mine.init(KEY, x)) == jax.tree.map(jnp.shape, params)

    def loss(module, params, x):
        return (module.apply(params, x).astype(jnp.float32) ** 2).mean()

    taken.clear()
    got, wanted = (
        jax.value_and_grad(partial(loss, module), (0, 1))(params, x) for module in (mine, plain)
    )
    assert set(taken) == ({(256, 8)} if own else set())
    jax.tree.map(close, got, wanted)


def test_another_backend_or_precision_is_left_alone(monkeypatch):
    monkeypatch.setattr(dense_module, "matmul", None)
    x, kernel = pair(256, 4, 2)
    assert wins(len(x))
    numbers = (((1,), (0,)), ((), ()))
    close(dense_module.dot_general(x, kernel, numbers, jax.lax.Precision.HIGHEST), x @ kernel)
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    close(dense_module.dot_general(x, kernel, numbers), x @ kernel)


def test_the_gradient_of_the_kernel_has_its_rows_written_out_transposed():
    x, kernel = pair(256, 8, 4)
    text = jax.jit(jax.grad(lambda kernel: matmul(x, kernel).sum())).lower(kernel).as_text()
    assert "optimization_barrier" in text
    assert "tensor<8x256xf32>" in text
