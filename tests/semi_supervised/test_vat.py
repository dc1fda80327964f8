"""Virtual adversarial training by hand."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from semi_supervised.linear import (
    BATCH,
    KEY,
    U,
    gradient,
    labelled_gradient,
    linear,
    softmax,
)

import nets
from paradigms.semi_supervised import entropy, vat, virtual_adversarial_loss

SGD = optax.sgd(1.0)
W = np.asarray(jax.random.normal(jax.random.key(5), (3, 3)))


def logits_of(x):
    return x @ W


def divergence(x, r):
    p, q = softmax(x @ W), softmax((x + r) @ W)
    return (p * np.log(p / q)).sum(1)


def test_the_direction_is_the_top_eigenvector_of_the_fisher_matrix():
    epsilon = 0.05
    losses = virtual_adversarial_loss(KEY, logits_of, U, epsilon=epsilon, iterations=50)
    for loss, x in zip(losses, U, strict=True):
        p = softmax(x @ W)
        fisher = W @ (np.diag(p) - np.outer(p, p)) @ W.T  # of the input
        vector = np.linalg.eigh(fisher)[1][:, -1]
        # The divergence is even only to second order, so that either sign may be found.
        both = [divergence(x[None], sign * epsilon * vector[None])[0] for sign in (-1, 1)]
        assert min(abs(loss - one) for one in both) < 1e-2 * max(both)


def test_it_is_worse_than_any_random_direction():
    loss = virtual_adversarial_loss(KEY, logits_of, U, epsilon=0.01, iterations=50)
    r = np.random.default_rng(0).normal(size=(200, 6, 3))
    r *= 0.01 / np.linalg.norm(r, axis=-1, keepdims=True)
    random = np.max([divergence(U, one) for one in r], 0)
    # Sums of float32 near 1 lose the last digits of a divergence of 1e-5.
    assert (np.asarray(loss) > 0.97 * random).all()
    assert (np.asarray(loss) < 1.1 * random).all()


def test_each_example_has_its_own_length():
    lengths = []

    def spy(x):
        if not isinstance(x, jax.core.Tracer):
            lengths.append(np.linalg.norm(np.asarray(x - U), axis=1))
        return logits_of(x)

    x = jnp.asarray(U)
    with jax.disable_jit():
        loss = virtual_adversarial_loss(KEY, spy, x, epsilon=2.0, xi=0.5)
    np.testing.assert_allclose(lengths[0], 0)
    np.testing.assert_allclose(lengths[-1], 2, rtol=1e-5)
    alone = virtual_adversarial_loss(KEY, logits_of, x * jnp.eye(6)[:, :1], epsilon=2.0, xi=0.5)
    np.testing.assert_allclose(loss[0], alone[0], rtol=1e-4)  # the others change nothing


def test_no_length_no_loss():
    learner = vat(linear(), SGD, epsilon=0.0, input_name="x")
    state = learner.init(KEY, BATCH)
    got, _, metrics = gradient(learner, BATCH, state)
    assert metrics["loss/unlabelled"].value() == 0
    np.testing.assert_allclose(
        got["w"], labelled_gradient(np.asarray(state.params["w"])), atol=1e-6
    )


def test_neither_the_clean_output_nor_the_direction_has_a_gradient():
    x = jnp.asarray(U)
    found = []

    def loss(w):
        def spied(inputs):
            found.append(inputs)
            return inputs @ w

        return virtual_adversarial_loss(KEY, spied, x, epsilon=1.0).mean()

    with jax.disable_jit():
        got = jax.grad(loss)(jnp.asarray(W))
    r = jax.lax.stop_gradient(found[-1]) - x
    clean = softmax(U @ W)

    def by_hand(w):
        return -(clean * jax.nn.log_softmax((x + r) @ w)).sum(1).mean()

    np.testing.assert_allclose(got, jax.grad(by_hand)(jnp.asarray(W)), atol=1e-5)
    assert (np.abs(got) > 1e-3).any()


def test_entropy_is_that_of_scipy():
    np.testing.assert_allclose(
        entropy(jnp.asarray(U @ W)), scipy.stats.entropy(softmax(U @ W), axis=1), rtol=1e-5
    )


@pytest.mark.parametrize("entropy_weight", [0.0, 0.5])
def test_entropy_is_added_where_it_is_asked_for(entropy_weight):
    learner = vat(linear(), SGD, epsilon=0.0, entropy_weight=entropy_weight, input_name="x")
    state = learner.init(KEY, BATCH)
    _, metrics = learner.update(state, BATCH)
    expected = scipy.stats.entropy(softmax(U @ np.asarray(state.params["w"])), axis=1).mean()
    np.testing.assert_allclose(metrics["entropy"].value(), expected, rtol=1e-5)
    np.testing.assert_allclose(
        metrics["loss/unlabelled"].value(), entropy_weight * expected, rtol=1e-5, atol=1e-8
    )


def test_batch_statistics_are_of_the_clean_unlabelled_pass():
    net = nets.mlp((4,), 3, norm="batch")
    after = []
    for epsilon in (0.0, 5.0):
        learner = vat(net, optax.sgd(0.0), epsilon=epsilon, input_name="x")
        state, metrics = learner.update(learner.init(KEY, BATCH), BATCH)
        after.append(state.model_state)
    assert metrics["loss/unlabelled"].value() > 0
    start = learner.init(KEY, BATCH)
    _, alone = net.apply(start.params, start.model_state, U, key=KEY, train=True)
    for found in after:
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), found, alone)


def test_the_nets_noise_is_the_same_in_every_pass():
    learner = vat(nets.mlp((8,), 3, dropout=0.5), SGD, epsilon=1e-6, input_name="x")
    _, metrics = learner.update(learner.init(KEY, BATCH), BATCH)
    assert metrics["loss/unlabelled"].value() < 1e-6
