"""MixMatch by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from semi_supervised.linear import BATCH, KEY, LABEL, U, X, gradient, linear, softmax

from paradigms.semi_supervised import mixmatch, sharpen

SGD = optax.sgd(1.0)


def noisy(key, x):
    return x + jax.random.normal(key, x.shape)


@pytest.mark.parametrize(
    ("temperature", "expected"), [(0.5, [9 / 13, 4 / 13]), (1.0, [0.6, 0.4]), (1e-3, [1, 0])]
)
def test_sharpen(temperature, expected):
    np.testing.assert_allclose(
        sharpen(jnp.array([[0.6, 0.4]]), temperature)[0], expected, atol=1e-4
    )


def test_an_impossible_class_stays_so():
    np.testing.assert_array_equal(sharpen(jnp.array([1.0, 0.0]), 0.5), [1, 0])


def test_loss_and_gradient_by_hand():
    learner = mixmatch(linear(), SGD, noisy, views=3, weight=4.0, alpha=0.5, input_name="x")
    state = learner.init(KEY, BATCH)
    w = np.asarray(state.params["w"])
    got, _, metrics = gradient(learner, BATCH, state)

    x = np.asarray(noisy(state.rng("labelled"), X))
    u = np.asarray(noisy(state.rng("unlabelled"), np.tile(U, (3, 1))))
    mean = np.mean([softmax(u[6 * i : 6 * i + 6] @ w) for i in range(3)], 0)
    guess = mean**2 / (mean**2).sum(1, keepdims=True)
    inputs = np.concatenate([x, u])
    targets = np.concatenate([np.eye(3)[LABEL], guess, guess, guess])
    share_key, pair_key = jax.random.split(state.rng("mix"))
    share = float(jax.random.beta(share_key, 0.5, 0.5))
    share = max(share, 1 - share)
    partner = np.asarray(jax.random.permutation(pair_key, 22))
    inputs = share * inputs + (1 - share) * inputs[partner]
    targets = share * targets + (1 - share) * targets[partner]

    def loss(w):
        logits = inputs @ w
        labelled = -(targets[:4] * jax.nn.log_softmax(logits[:4])).sum(1).mean()
        return labelled + 4 * jnp.square(jax.nn.softmax(logits[4:]) - targets[4:]).mean()

    value, wanted = jax.value_and_grad(loss)(w)
    np.testing.assert_allclose(metrics["loss"].value(), value, rtol=1e-5)
    np.testing.assert_allclose(got["w"], wanted, atol=1e-5)
    np.testing.assert_allclose(
        metrics["pseudo/accuracy"].value(),
        (guess.argmax(1) == BATCH["unlabelled"]["label"]).mean(),
        rtol=1e-6,
    )


def test_shares_are_at_least_a_half_and_nothing_is_mixed_at_the_ends():
    # Beta(1e-3, 1e-3) is 0 or 1, either of which leaves each example as it is.
    learner = mixmatch(
        linear(), SGD, lambda key, x: x, views=1, temperature=1.0, alpha=1e-3, input_name="x"
    )
    state = learner.init(KEY, BATCH)
    _, _, metrics = gradient(learner, BATCH, state)
    w = np.asarray(state.params["w"])
    np.testing.assert_allclose(metrics["loss/unlabelled"].value(), 0, atol=1e-9)
    plain = optax.softmax_cross_entropy_with_integer_labels(X @ w, LABEL).mean()
    np.testing.assert_allclose(metrics["loss/labelled"].value(), plain, rtol=1e-5)
