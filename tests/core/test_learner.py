"""`minimise` and `descend` against steps taken by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from paradigms.core import optimizers
from paradigms.core.learner import NORM_PERIOD, descend, minimise, norm
from paradigms.core.metrics import Mean, derive
from paradigms.core.transforms import repeated


def quadratic(optimizer, factor=lambda state: 1.0):
    """Descends `factor / 2 * |w - batch|^2`, and counts its batches in the model state."""

    def loss(params, state, batch):
        value = 0.5 * factor(state) * jnp.sum((params["w"] - batch) ** 2)
        return value, ({"loss": Mean.of(value)}, {"count": state.model_state["count"] + 1})

    def init(key, batch):
        return {"w": jnp.zeros_like(batch)}, {"count": jnp.int32(0)}

    def evaluate(state, batch, key):
        return {"distance": Mean.of(jnp.linalg.norm(state.params["w"] - batch))}

    return minimise(loss, optimizer, init=init, evaluate=evaluate)


TARGET = jnp.array([-6.0, -8.0])


def test_a_step_downhill():
    learner = quadratic(optax.sgd(0.25))
    state = learner.init(jax.random.key(0), TARGET)
    state, metrics = learner.update(state, TARGET)
    np.testing.assert_allclose(state.params["w"], 0.25 * TARGET)
    assert (state.step, state.model_state["count"]) == (1, 1)
    assert derive(metrics) == {
        "loss": 50.0,
        "norm/gradient": 10.0,
        "norm/parameter": 0.0,
        "norm/update": 2.5,
    }
    state, metrics = learner.update(state, TARGET)
    np.testing.assert_allclose(state.params["w"], (1 - 0.75**2) * TARGET)
    assert derive(metrics).keys() == {"loss"}  # norms are not measured at every step
    assert derive(learner.evaluate(state, TARGET, jax.random.key(0))) == {
        "distance": pytest.approx(10 * 0.75**2)
    }


def test_norms_come_periodically_and_are_right_when_they_do():
    learner = quadratic(optax.sgd(0.25))
    state = learner.init(jax.random.key(0), TARGET)
    state, metrics = jax.jit(repeated(learner, 2 * NORM_PERIOD + 1).update)(state, TARGET)
    measured = [0, NORM_PERIOD, 2 * NORM_PERIOD]
    for kind, scale in (("gradient", 10.0), ("update", 2.5)):
        norms = metrics[f"norm/{kind}"]
        np.testing.assert_array_equal(np.flatnonzero(norms.count), measured)
        np.testing.assert_allclose(
            norms.total[jnp.array(measured)], scale * 0.75 ** jnp.array(measured), rtol=1e-4
        )
        assert np.count_nonzero(norms.total) == len(measured)


def test_the_gradient_norm_is_taken_before_clipping():
    learner = quadratic(optimizers.sgd(1.0, max_norm=0.5))
    state = learner.init(jax.random.key(0), TARGET)
    state, metrics = learner.update(state, TARGET)
    np.testing.assert_allclose(state.params["w"], [-0.3, -0.4], rtol=1e-6)
    assert derive(metrics)["norm/gradient"] == 10.0
    assert derive(metrics)["norm/update"] == pytest.approx(0.5)


def test_the_optimiser_remembers():
    learner = quadratic(optimizers.sgd(0.1, momentum=0.9))
    state = learner.init(jax.random.key(0), TARGET)
    w, trace = np.zeros(2), np.zeros(2)
    for _ in range(4):
        state, _ = learner.update(state, TARGET)
        trace = 0.9 * trace + (w - np.asarray(TARGET))
        w = w - 0.1 * trace
    np.testing.assert_allclose(state.params["w"], w, rtol=1e-6)


def test_the_loss_sees_the_state_before_the_update():
    learner = quadratic(optax.sgd(1.0), factor=lambda state: state.step + 1.0)
    state = learner.init(jax.random.key(0), TARGET)
    _, metrics = learner.update(state, TARGET)
    assert derive(metrics)["loss"] == 50  # factor 1, at step 0


def test_the_schedule_starts_at_step_0():
    learner = quadratic(optimizers.sgd(lambda count: jnp.where(count == 0, 0.5, 0.0)))
    state = learner.init(jax.random.key(0), TARGET)
    for _ in range(2):
        state, _ = learner.update(state, TARGET)
    np.testing.assert_allclose(state.params["w"], 0.5 * TARGET)


def test_descend_adds_up_all_leaves():
    grads = {"a": jnp.full((2, 2), 3.0), "b": jnp.array([8.0])}
    params = {"a": jnp.full((2, 2), 1.0), "b": jnp.array([0.0])}
    optimizer = optax.sgd(0.5)
    moved, _, metrics = descend(optimizer, grads, optimizer.init(params), params)
    np.testing.assert_array_equal(moved["a"], np.full((2, 2), -0.5))
    np.testing.assert_array_equal(moved["b"], [-4.0])
    expected = {"norm/gradient": 10, "norm/parameter": 2, "norm/update": 5}
    assert derive(metrics) == expected


def test_the_norm_is_that_of_all_leaves_together():
    small = {"a": jnp.float32([[3, 4]]), "b": jnp.bfloat16(12)}
    assert norm(small) == 13 and norm(small).dtype == jnp.float32
    large = jnp.full((300, 300), 0.28)  # of norm 84
    np.testing.assert_allclose(norm({**small, "c": large}), 85, rtol=1e-5)
    np.testing.assert_allclose(norm({"c": large, "d": large}), 84 * np.sqrt(2), rtol=1e-5)
    assert norm({}) == 0


def test_the_optimiser_sees_the_parameters():
    """Weight decay reads them: AdamW with gradient 0, w = 2, rate .1, decay .5 gives -.1."""
    optimizer = optimizers.adamw(0.1, weight_decay=0.5, decay_mask=True)
    params = {"kernel": jnp.full((1, 1), 2.0)}
    grads = jax.tree.map(jnp.zeros_like, params)
    moved, _, _ = descend(optimizer, grads, optimizer.init(params), params)
    np.testing.assert_allclose(moved["kernel"], [[1.9]], rtol=1e-6)
