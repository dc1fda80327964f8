"""Pseudo-Label by hand."""

import chex
import jax
import numpy as np
import optax
from semi_supervised.linear import (
    BATCH,
    KEY,
    LABEL,
    U,
    X,
    cross_entropy,
    gradient,
    labelled_gradient,
    linear,
    recorded,
    softmax,
)

import nets
from paradigms.semi_supervised import pseudo_label

SGD = optax.sgd(1.0)


def test_loss_and_gradient_by_hand():
    calls = []
    learner = pseudo_label(
        recorded(linear(), calls), SGD, weight=0.5, threshold=0.6, input_name="x"
    )
    state = learner.init(KEY, BATCH)
    w = np.asarray(state.params["w"])
    got, _, metrics = gradient(learner, BATCH, state)
    assert calls == [4, 6]  # a pass for each part

    probabilities = softmax(U @ w)
    guess, accepted = probabilities.argmax(1), probabilities.max(1) >= 0.6
    assert 0 < accepted.sum() < 6
    losses = cross_entropy(U @ w, guess) * accepted
    np.testing.assert_allclose(metrics["loss/unlabelled"].value(), losses.mean(), rtol=1e-5)
    expected = cross_entropy(X @ w, LABEL).mean() + 0.5 * losses.mean()
    np.testing.assert_allclose(metrics["loss"].value(), expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["pseudo/accepted"].value(), accepted.mean(), rtol=1e-6)
    # The label is a constant: the gradient is that of plain cross entropy with it.
    error = (probabilities - np.eye(3)[guess]) * accepted[:, None]
    wanted = labelled_gradient(w) + 0.5 * U.T @ error / len(U)
    np.testing.assert_allclose(got["w"], wanted, atol=1e-6)


def test_each_part_has_batch_statistics_of_its_own():
    """As if the labelled part were the whole batch; the running ones are of the other part."""
    net = nets.mlp((5,), 3, norm="batch")
    learner = pseudo_label(net, SGD, weight=0.0, input_name="x")
    state = learner.init(KEY, BATCH)
    after, metrics = learner.update(state, BATCH)
    logits, _ = net.apply(state.params, state.model_state, X, train=True)
    expected = optax.softmax_cross_entropy_with_integer_labels(logits, LABEL).mean()
    np.testing.assert_allclose(metrics["loss"].value(), expected, rtol=1e-6)
    _, model_state = net.apply(state.params, state.model_state, U, train=True)
    chex.assert_trees_all_close(after.model_state, model_state, rtol=1e-6)


def test_nothing_accepted_is_the_supervised_update():
    learner = pseudo_label(linear(), SGD, threshold=1.0, input_name="x")
    state = learner.init(KEY, BATCH)
    got, _, metrics = gradient(learner, BATCH, state)
    assert metrics["loss/unlabelled"].value() == 0
    assert metrics["pseudo/accuracy"].count == 0
    plain = jax.grad(
        lambda w: optax.softmax_cross_entropy_with_integer_labels(X @ w, LABEL).mean()
    )(state.params["w"])
    np.testing.assert_allclose(got["w"], plain, atol=1e-7)


def test_the_weight_follows_its_schedule():
    rising = optax.linear_schedule(0.0, 3.0, 500, 100)
    learner = pseudo_label(linear(), optax.sgd(0.0), weight=rising, input_name="x")
    state = learner.init(KEY, BATCH)
    for step, weight in ((0, 0), (100, 0), (350, 1.5), (600, 3), (900, 3)):
        _, metrics = learner.update(state.replace(step=step), BATCH)
        np.testing.assert_allclose(metrics["weight"].value(), weight, rtol=1e-6)
        parts = [metrics[f"loss/{part}"].value() for part in ("labelled", "unlabelled")]
        np.testing.assert_allclose(metrics["loss"].value(), parts[0] + weight * parts[1], rtol=1e-6)
