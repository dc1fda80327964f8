"""The Pi-model and Mean Teacher by hand."""

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
    gradient,
    labelled_gradient,
    linear,
    recorded,
    softmax,
)

from nets.net import Net
from paradigms.semi_supervised import consistency, mean_teacher, pi_model

SGD = optax.sgd(1.0)


def noisy(key, x):
    return x + jax.random.normal(key, x.shape)


def test_consistency_is_the_squared_difference_of_softmaxes():
    first, second = np.float32([[0, 0], [2, 1]]), np.float32([[np.log(3), 0], [2, 1]])
    # (1/2, 1/2) against (3/4, 1/4), and nothing.
    np.testing.assert_allclose(consistency(first, second), [1 / 16, 0], atol=1e-7)
    pull = jax.grad(lambda a, b: consistency(a, b).sum(), (0, 1))(first, second)
    assert all((np.asarray(side[0]) != 0).all() for side in pull)


def entropy_of(logits):
    return -(jax.nn.softmax(logits) * jax.nn.log_softmax(logits)).sum(-1).mean()


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_pi_model_learns_from_both_passes(share):
    options = {"weight": 3.0, "entropy_weight": share, "augment": noisy, "input_name": "x"}
    learner = pi_model(linear(), SGD, **options)
    state = learner.init(KEY, BATCH)
    w = state.params["w"]
    got, _, metrics = gradient(learner, BATCH, state)
    own = noisy(state.rng("labelled_view"), X)
    first, second = (noisy(state.rng(f"{name}_view"), U) for name in ("first", "second"))

    def loss(w):
        labelled = optax.softmax_cross_entropy_with_integer_labels(own @ w, LABEL).mean()
        p, q = jax.nn.softmax(first @ w), jax.nn.softmax(second @ w)
        return labelled + 3 * (jnp.square(p - q).mean() + share * entropy_of(first @ w))

    value, wanted = jax.value_and_grad(loss)(w)
    np.testing.assert_allclose(metrics["loss"].value(), value, rtol=1e-5)
    np.testing.assert_allclose(got["w"], wanted, atol=1e-5)


def test_without_noise_the_pi_model_is_supervised():
    learner = pi_model(linear(), SGD, weight=100.0, input_name="x")
    state = learner.init(KEY, BATCH)
    got, _, metrics = gradient(learner, BATCH, state)
    assert metrics["loss/unlabelled"].value() == 0
    np.testing.assert_allclose(
        got["w"], labelled_gradient(np.asarray(state.params["w"])), atol=1e-6
    )


@pytest.mark.parametrize("make", [pi_model, mean_teacher])
def test_parts_do_not_share_batch_statistics(make):
    """Batch norm of both at once would tell the labelled examples from the others."""
    calls, views = [], []

    def view(key, x):
        views.append(key)
        return x

    learner = make(recorded(linear(), calls), SGD, weight=1.0, augment=view, input_name="x")
    state = learner.init(KEY, BATCH)
    with jax.disable_jit():
        learner.update(state, BATCH)
    assert sorted(calls) == [len(X), len(U), len(U)]
    assert len({tuple(jax.random.key_data(key).tolist()) for key in views}) == 3


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_mean_teacher_by_hand(share):
    options = {"weight": 3.0, "entropy_weight": share, "augment": noisy, "input_name": "x"}
    learner = mean_teacher(linear(), SGD, decay=0.75, **options)
    state = learner.init(KEY, BATCH)
    teacher = np.asarray(jax.random.normal(jax.random.key(9), (3, 3)))
    state = state.replace(target={"teacher": {"params": {"w": teacher}, "model_state": {}}})
    w = np.asarray(state.params["w"])
    got, after, metrics = gradient(learner, BATCH, state)
    x = np.asarray(noisy(state.rng("labelled_view"), X))
    own, other = (np.asarray(noisy(state.rng(f"{n}_view"), U)) for n in ("unlabelled", "teacher"))
    wanted = softmax(other @ teacher)

    def loss(w):
        labelled = optax.softmax_cross_entropy_with_integer_labels(x @ w, LABEL).mean()
        differing = jnp.square(jax.nn.softmax(own @ w) - wanted).mean()
        return labelled + 3 * (differing + share * entropy_of(own @ w))

    value, pull = jax.value_and_grad(loss)(w)
    np.testing.assert_allclose(metrics["loss"].value(), value, rtol=1e-5)
    np.testing.assert_allclose(metrics["entropy"].value(), entropy_of(own @ w), rtol=1e-5)
    np.testing.assert_allclose(got["w"], pull, atol=1e-5)
    followed = 0.75 * teacher + 0.25 * np.asarray(after.params["w"])  # after the step
    np.testing.assert_allclose(after.target["teacher"]["params"]["w"], followed, atol=1e-6)


def test_the_students_unlabelled_output_gets_a_gradient():
    # Labelled examples are zero: all that moves w comes from the unlabelled ones.
    batch = {**BATCH, "labelled": {"x": 0 * X, "label": LABEL}}
    learner = mean_teacher(linear(), SGD, weight=1.0, augment=None, input_name="x")
    state = learner.init(KEY, batch)
    assert (np.asarray(gradient(learner, batch, state)[0]["w"]) == 0).all()  # they agree
    other = jax.tree.map(lambda leaf: leaf + 1, state.target)
    other["teacher"]["params"]["w"] = other["teacher"]["params"]["w"].at[:, 0].add(1)
    assert (np.asarray(gradient(learner, batch, state.replace(target=other))[0]["w"]) != 0).any()


def test_student_and_teacher_have_noise_of_their_own():
    keys = []

    def apply(params, state, x, key=None, train=False):
        keys.append(tuple(jax.random.key_data(key).tolist()))
        return x @ params["w"], state

    learner = mean_teacher(Net(linear().init, apply), SGD, weight=1.0, input_name="x")
    state = learner.init(KEY, BATCH)
    with jax.disable_jit():
        learner.update(state, BATCH)
    assert len(set(keys)) == 3


def test_the_decay_may_be_a_schedule_and_evaluation_is_the_teachers():
    learner = mean_teacher(
        linear(), SGD, weight=0.0, decay=lambda step: jnp.where(step < 5, 0.0, 1.0), input_name="x"
    )
    state = learner.init(KEY, BATCH)
    _, after, _ = gradient(learner, BATCH, state)
    np.testing.assert_array_equal(after.target["teacher"]["params"]["w"], after.params["w"])
    _, later, _ = gradient(learner, BATCH, state.replace(step=jnp.int32(5)))
    np.testing.assert_array_equal(later.target["teacher"]["params"]["w"], state.params["w"])
    metrics = learner.evaluate(later, {"x": X, "label": LABEL}, KEY)
    for name, weights in (("accuracy", state.params["w"]), ("student/accuracy", later.params["w"])):
        hits = (X @ np.asarray(weights)).argmax(1) == LABEL
        np.testing.assert_allclose(metrics[name].value(), hits.mean())
