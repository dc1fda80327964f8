import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nets
from nets.net import Net
from paradigms.core import optimizers
from paradigms.core.errors import InputError
from paradigms.core.loop import evaluator
from paradigms.core.metrics import derive
from paradigms.core.transforms import repeated
from paradigms.supervised import huber, regressor, squared_error

# Predictions are parameters, so that the gradient of a step is that of the predictions.
TABLE = Net(
    lambda key, x: ({"y": jnp.zeros(x.shape)}, {}),
    lambda params, model_state, x, **_: (params["y"] + x, model_state),
)
SGD = optimizers.sgd(1.0)


def gradient(batch, **options):
    learner = regressor(TABLE, SGD, **options)
    state, metrics = learner.update(learner.init(jax.random.key(0), batch), batch)
    return -np.asarray(state.params["y"]), float(metrics["loss"].value())


def test_squared_error_by_hand():
    prediction = jnp.array([[1.0, 2.0], [0.0, -3.0]])
    np.testing.assert_array_equal(squared_error(prediction, jnp.zeros((2, 2))), [2.5, 4.5])


@pytest.mark.parametrize(
    ("error", "delta", "loss"),
    [(0.5, 1, 0.125), (3, 1, 2.5), (-3, 1, 2.5), (1, 1, 0.5), (1, 2, 0.5), (3, 2, 4.0)],
)
def test_huber_by_hand(error, delta, loss):
    np.testing.assert_allclose(huber(jnp.array([error * 1.0]), jnp.zeros(1), delta), [loss])


def test_half_precision_predictions_are_subtracted_in_float32():
    prediction, target = jnp.full(1, 256, jnp.bfloat16), jnp.full(1, 257.0)
    for loss, value in ((squared_error, 1.0), (huber, 0.5)):
        assert loss(prediction, target).dtype == jnp.float32
        np.testing.assert_array_equal(loss(prediction, target), [value])


def test_gradients_are_twice_the_error_and_the_clipped_error():
    error = np.float32([[0.25, -0.5], [3.0, -4.0], [2.0, 1.5]])
    batch = {"x": error, "target": np.zeros((3, 2), np.float32)}
    squared, loss = gradient(batch)
    np.testing.assert_allclose(squared, 2 * error / 6, rtol=1e-6)
    assert loss == pytest.approx((error**2).mean())
    clipped, _ = gradient(batch, loss="huber", delta=2.0)
    np.testing.assert_allclose(clipped, np.clip(error, -2, 2) / 6, rtol=1e-6)


@pytest.mark.parametrize("loss", ["squared", "huber"])
def test_masked_examples_neither_count_nor_get_a_gradient(loss):
    rng = np.random.default_rng(0)
    x, target = rng.normal(size=(2, 5, 3)).astype(np.float32)
    x[3:] = 1e6
    masked, with_mask = gradient(
        {"x": x, "target": target, "mask": np.float32([1, 1, 1, 0, 0])}, loss=loss
    )
    short, without = gradient({"x": x[:3], "target": target[:3]}, loss=loss)
    assert (masked[3:] == 0).all()
    np.testing.assert_allclose(masked[:3], short, rtol=1e-6)
    assert with_mask == pytest.approx(without)


def test_evaluation_counts_every_example_once():
    rng = np.random.default_rng(1)
    x, target = rng.normal(size=(2, 13, 2)).astype(np.float32)
    arrays = {"x": x, "target": target}

    def explode(key, x):
        raise AssertionError("evaluation must not augment")

    learner = regressor(TABLE, SGD, loss="huber", augment=explode)
    state = learner.init(jax.random.key(0), {"x": x[:1], "target": target[:1]})
    values = derive(evaluator(learner, arrays, 5)(state, jax.random.key(1)))
    error = (x - target).astype(np.float64)
    small = np.abs(error) <= 1
    assert values["squared_error"] == pytest.approx((error**2).mean())
    assert values["absolute_error"] == pytest.approx(np.abs(error).mean())
    assert values["loss"] == pytest.approx(
        np.where(small, error**2 / 2, np.abs(error) - 0.5).mean()
    )


def test_targets_are_never_broadcast():
    batch = {"x": np.zeros((4, 1), np.float32), "target": np.zeros(4, np.float32)}
    learner = regressor(TABLE, SGD)
    state = learner.init(jax.random.key(0), batch)
    for use in (lambda: learner.update(state, batch), lambda: learner.evaluate(state, batch, None)):
        with pytest.raises(InputError, match=r"prediction \(4, 1\) and target \(4,\) differ"):
            use()


def test_bad_options_are_one_clear_line():
    with pytest.raises(InputError, match="expected 'squared' or 'huber'"):
        regressor(TABLE, SGD, loss="absolute")
    for delta in (0.0, -1.0, float("nan")):
        with pytest.raises(InputError, match="expected a positive number"):
            regressor(TABLE, SGD, loss="huber", delta=delta)


def test_a_linear_net_reaches_the_least_squares_solution():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(50, 3)).astype(np.float32)
    y = x @ np.float32([[1.0], [-2.0], [0.5]]) + 3 + rng.normal(size=(50, 1)).astype(np.float32)
    batch = {"x": jnp.asarray(x), "target": jnp.asarray(y)}
    learner = regressor(nets.mlp((), 1), optimizers.sgd(0.1, 0.9))
    state = jax.jit(learner.init)(jax.random.key(0), batch)
    state, metrics = jax.jit(repeated(learner, 400).update)(state, batch)
    best, residual, _, _ = np.linalg.lstsq(np.c_[x, np.ones(50)], y, rcond=None)
    (layer,) = state.params.values()
    np.testing.assert_allclose(layer["kernel"], best[:3], atol=1e-4)
    np.testing.assert_allclose(layer["bias"], best[3], atol=1e-4)
    np.testing.assert_allclose(metrics["loss"].value()[-1], residual[0] / 50, rtol=1e-4)
