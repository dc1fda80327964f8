"""SimCLR: NT-Xent by hand, at its known values and against optax."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nets
from paradigms.core.errors import InputError
from paradigms.core.state import fold_name
from paradigms.core.transforms import swept
from paradigms.self_supervised import simclr, two_views
from paradigms.self_supervised.simclr import nt_xent as eager_nt_xent

KEY = jax.random.key(0)
nt_xent = jax.jit(eager_nt_xent)
BACKBONE, PROJECTOR = nets.mlp((4,), 5, norm="batch"), nets.mlp((), 3)


def numbers(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def noise(key, x):
    return x + 0.1 * jax.random.normal(key, x.shape)


def test_nt_xent_of_two_pairs_by_hand():
    # Views e1 and e2, e2 and e2; lengths do not count.
    first = jnp.array([[2.0, 0.0], [0.0, 0.5]])
    second = jnp.array([[0.0, 3.0], [0.0, 1.0]])
    e = np.e
    # The anchor e1 is at right angles to all; its partner is like the other two, and not like it.
    expected = [(np.log(3) + np.log(1 + 2 * e)) / 2, np.log((1 + 2 * e) / e)]
    np.testing.assert_allclose(nt_xent(first, second, 1.0), expected, rtol=1e-6)
    e = np.exp(1 / 0.2)
    expected = [(np.log(3) + np.log(1 + 2 * e)) / 2, np.log((1 + 2 * e) / e)]
    np.testing.assert_allclose(nt_xent(first, second, 0.2), expected, rtol=1e-6)


@pytest.mark.parametrize(("n", "value"), [(2, 1.0986), (128, 5.5413)])
def test_equal_embeddings_cost_the_log_of_what_they_are_compared_with(n, value):
    same = jnp.ones((n, 3))
    np.testing.assert_allclose(nt_xent(same, same, 0.5), np.log(2 * n - 1), rtol=1e-6)
    assert np.log(2 * n - 1) == pytest.approx(value, abs=1e-4)


@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
def test_nt_xent_and_its_slope_are_those_of_optax(temperature):
    first, second = numbers(0, 6, 4), 2 * numbers(1, 6, 4)
    labels = jnp.tile(jnp.arange(6), 2)

    def theirs(first, second):
        return optax.losses.ntxent(jnp.concatenate([first, second]), labels, temperature)

    def ours(first, second):
        return nt_xent(first, second, temperature).mean()

    for found, expected in zip(
        jax.jit(jax.value_and_grad(ours, (0, 1)))(first, second),
        jax.jit(jax.value_and_grad(theirs, (0, 1)))(first, second),
        strict=True,
    ):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found, expected
        )
    swapped = nt_xent(second, first, temperature)
    np.testing.assert_allclose(nt_xent(first, second, temperature), swapped, rtol=1e-5)


def test_heat_hurts_pairs_that_agree_and_helps_pairs_that_do_not():
    same, across = jnp.eye(3), jnp.roll(jnp.eye(3), 1, axis=0)
    slope = jax.jit(jax.grad(lambda t, second: nt_xent(same, second, t).mean()))
    assert slope(0.5, same) > 0 > slope(0.5, across)


def test_everything_gets_a_gradient_and_low_precision_is_left():
    first, second = numbers(0, 4, 3), numbers(1, 4, 3)
    # The loss of the first example alone moves all others, which are its negatives.
    slopes = jax.jit(jax.grad(lambda *pair: nt_xent(*pair, 0.5)[0], (0, 1)))(first, second)
    for slope in slopes:
        assert (np.abs(slope).max(1) > 1e-3).all()
    half = [jnp.asarray(z, jnp.bfloat16) for z in (first, second)]
    assert nt_xent(*half, 0.5).dtype == jnp.float32
    whole = [z.astype(jnp.float32) for z in half]
    np.testing.assert_array_equal(nt_xent(*half, 0.5), nt_xent(*whole, 0.5))


def test_masked_examples_are_nobodys_negatives():
    first, second = numbers(0, 5, 3), numbers(1, 5, 3)
    expected = nt_xent(first[[0, 2, 4]], second[[0, 2, 4]], 0.5)
    for filling in (1e3, np.nan):
        first[1], second[3] = filling, filling
        found = nt_xent(first, second, 0.5, jnp.array([1, 0, 1, 0, 1]))
        np.testing.assert_allclose(found[jnp.array([0, 2, 4])], expected, rtol=1e-5)
    assert np.isfinite(nt_xent(jnp.ones((2, 3)), jnp.ones((2, 3)), 0.5, jnp.zeros(2))).all()


def make(optimizer=None, **options):
    return simclr(BACKBONE, PROJECTOR, optimizer or optax.sgd(0.1), noise, **options)


def by_hand(params, state, views, temperature):
    """The loss of `views[B, 2, ...]` and the statistics of all of them in one batch."""
    rows = jnp.concatenate([views[:, 0], views[:, 1]])
    h, of_backbone = BACKBONE.apply(
        params["backbone"], state.model_state["backbone"], rows, train=True
    )
    z, _ = PROJECTOR.apply(params["projector"], {}, h)
    return nt_xent(z[: len(views)], z[len(views) :], temperature).mean(), of_backbone


def test_an_update_descends_nt_xent_of_two_views_in_one_batch():
    batch = {"image": numbers(0, 6, 2), "label": np.arange(6)}
    learner = make(optax.sgd(1.0), temperature=0.3)
    state = jax.jit(learner.init)(KEY, batch)
    views = two_views(noise, fold_name(state.rng("views"), "augment"), batch["image"])
    (loss, of_backbone), slopes = jax.jit(jax.value_and_grad(by_hand, has_aux=True))(
        state.params, state, views, 0.3
    )
    after, metrics = jax.jit(learner.update)(state, batch)
    assert float(metrics["loss"].value()) == pytest.approx(float(loss), rel=1e-5)
    moved = jax.tree.map(jnp.subtract, state.params, after.params)
    for found, expected in ((moved, slopes), (after.model_state["backbone"], of_backbone)):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found, expected
        )


def test_a_sweep_over_temperatures_is_the_runs_apart():
    heat, batch = np.float32([0.1, 1.0]), {"image": numbers(0, 6, 2)}
    learner = swept(lambda h: make(temperature=h["t"]), {"t": heat})
    _, metrics = jax.jit(learner.update)(jax.jit(learner.init)(KEY, batch), batch)
    for i, t in enumerate(heat):
        alone = make(temperature=float(t))
        _, apart = jax.jit(alone.update)(jax.jit(alone.init)(KEY, batch), batch)
        np.testing.assert_allclose(metrics["loss"].value()[i], apart["loss"].value(), rtol=1e-5)


def test_bad_input_is_one_clear_line():
    for temperature in (0, -1.0, float("nan")):
        with pytest.raises(InputError, match=r"simclr\(temperature=.*above 0"):
            make(temperature=temperature)
    with pytest.raises(InputError, match="nt_xent: .* N at least 2"):
        jax.eval_shape(lambda z: nt_xent(z, z, 0.5), jnp.ones((1, 3)))
