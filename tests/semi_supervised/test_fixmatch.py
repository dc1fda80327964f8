"""FixMatch and FlexMatch by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
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

from paradigms.core.errors import InputError
from paradigms.semi_supervised import class_thresholds, fixmatch, flexmatch

SGD = optax.sgd(1.0)


def as_it_is(key, x):
    return x


def shifted(key, x):
    return x + jnp.array([0.5, -0.5, 0.0])


def test_loss_and_gradient_by_hand():
    calls = []
    net = recorded(linear(), calls)
    learner = fixmatch(net, SGD, as_it_is, shifted, threshold=0.6, weight=2.0, input_name="x")
    state = learner.init(KEY, BATCH)
    w = np.asarray(state.params["w"])
    got, _, metrics = gradient(learner, BATCH, state)
    assert calls == [16]  # labelled, weak and strong in one pass

    strong = np.asarray(shifted(None, U))
    probabilities = softmax(U @ w)
    guess, accepted = probabilities.argmax(1), probabilities.max(1) >= 0.6
    assert 0 < accepted.sum() < 6
    losses = cross_entropy(strong @ w, guess) * accepted
    # The mean is over all six, and not over the accepted ones.
    np.testing.assert_allclose(metrics["loss/unlabelled"].value(), losses.sum() / 6, rtol=1e-5)
    np.testing.assert_allclose(
        metrics["loss"].value(), cross_entropy(X @ w, LABEL).mean() + losses.sum() / 3, rtol=1e-5
    )
    error = (softmax(strong @ w) - np.eye(3)[guess]) * accepted[:, None]
    np.testing.assert_allclose(got["w"], labelled_gradient(w) + strong.T @ error / 3, atol=1e-6)


def test_the_guess_has_no_gradient_and_the_strong_view_has():
    # The weak view of unlabelled examples is told by feature 0 alone, the strong one by feature 1.
    labelled = {"x": np.float32([[0, 0, 1], [0, 0, -1]]), "label": np.array([0, 1])}
    batch = {"labelled": labelled, "unlabelled": {"x": np.ones((5, 3), np.float32)}}

    def only(feature):
        return lambda key, x: jnp.where(x[:, :1] == 0, x, jax.nn.one_hot(feature, 3) * x)

    learner = fixmatch(linear(), SGD, only(0), only(1), threshold=0.3, input_name="x")
    got, _, metrics = gradient(learner, batch)
    assert metrics["pseudo/accepted"].value() == 1
    assert (np.asarray(got["w"])[0] == 0).all()
    assert (np.asarray(got["w"])[1] != 0).any()


def test_a_confidence_at_the_threshold_is_accepted():
    def flat(key, x):
        return 0 * x

    learner = fixmatch(linear(2), SGD, flat, as_it_is, threshold=0.5, input_name="x")
    two = {**BATCH, "labelled": {"x": X, "label": LABEL % 2}}
    assert gradient(learner, two)[2]["pseudo/accepted"].value() == 1


def test_nothing_accepted_is_the_supervised_update():
    learner = fixmatch(linear(), SGD, as_it_is, shifted, threshold=1.0, input_name="x")
    state = learner.init(KEY, BATCH)
    got, _, metrics = gradient(learner, BATCH, state)
    assert metrics["pseudo/accepted"].value() == 0
    np.testing.assert_allclose(
        got["w"], labelled_gradient(np.asarray(state.params["w"])), atol=1e-6
    )


def test_views_have_keys_of_their_own():
    seen = {}

    def keyed(name):
        def view(key, x):
            seen.setdefault(name, []).append(jax.random.key_data(key).tolist())
            return x

        return view

    learner = fixmatch(linear(), SGD, keyed("weak"), keyed("strong"), input_name="x")
    learner.update(learner.init(KEY, BATCH), BATCH)
    keys = [tuple(key) for name in seen for key in seen[name]]
    assert len(seen["weak"]) == 2 and len(set(keys)) == 3


@pytest.mark.parametrize(
    ("won", "expected"),
    [
        # None won: everything is accepted.
        ([-1] * 6, [0, 0, 0]),
        # Warm-up: three are not won, which is more than any class has.
        ([0, 0, 1, -1, -1, -1], [(2 / 3) / (4 / 3), (1 / 3) / (5 / 3), 0]),
        ([0, 0, 0, 1, 2, -1], [1, (1 / 3) / (5 / 3), (1 / 3) / (5 / 3)]),
        # All equal: the plain threshold.
        ([0, 1, 2, 0, 1, 2], [1, 1, 1]),
    ],
)
def test_class_thresholds(won, expected):
    got = class_thresholds(jnp.array(won), 3, 0.9)
    np.testing.assert_allclose(got, 0.9 * np.array(expected), rtol=1e-6)


def test_flexmatch_lowers_thresholds_and_remembers():
    batch = {**BATCH, "unlabelled": {**BATCH["unlabelled"], "index": np.array([7, 0, 3, 4, 5, 1])}}
    learner = flexmatch(linear(), SGD, as_it_is, shifted, examples=8, threshold=0.6, input_name="x")
    state = learner.init(KEY, batch)
    w = np.asarray(state.params["w"])
    probabilities = softmax(U @ w)
    guess, confident = probabilities.argmax(1), probabilities.max(1) >= 0.6
    won = np.array([0, 1, 1, 1, 2, 2, 2, 2])
    state = state.replace(memory={"won": jnp.asarray(won)})
    thresholds = np.asarray(class_thresholds(jnp.asarray(won), 3, 0.6))
    accepted = probabilities.max(1) >= thresholds[guess]
    assert (accepted & ~confident).any()

    _, after, metrics = gradient(learner, batch, state)
    np.testing.assert_allclose(metrics["pseudo/accepted"].value(), accepted.mean(), rtol=1e-6)
    np.testing.assert_allclose(metrics["threshold"].value(), thresholds.mean(), rtol=1e-6)
    expected = won.copy()
    for place, one, sure in zip(batch["unlabelled"]["index"], guess, confident, strict=True):
        expected[place] = one if sure else expected[place]
    assert (expected != won).any()
    np.testing.assert_array_equal(after.memory["won"], expected)
    assert after.memory["won"].dtype == jnp.int32


def test_flexmatch_with_equal_classes_is_fixmatch():
    batch = {**BATCH, "unlabelled": {**BATCH["unlabelled"], "index": np.arange(6)}}
    options = {"threshold": 0.6, "input_name": "x"}
    fix = fixmatch(linear(), SGD, as_it_is, shifted, **options)
    flex = flexmatch(linear(), SGD, as_it_is, shifted, examples=6, **options)
    state = flex.init(KEY, batch).replace(memory={"won": jnp.arange(6) % 3})
    np.testing.assert_array_equal(
        gradient(flex, batch, state)[0]["w"], gradient(fix, batch)[0]["w"]
    )


def test_flexmatch_needs_to_know_the_examples():
    learner = flexmatch(linear(), SGD, as_it_is, shifted, examples=6, input_name="x")
    state = learner.init(KEY, BATCH)
    with pytest.raises(InputError, match="the unlabelled part has no 'index': expected int"):
        learner.update(state, BATCH)
