"""VICReg: the authors' formula in numpy, its zero, and what happens without the variance term."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nets
from paradigms.core.errors import InputError
from paradigms.core.metrics import derive
from paradigms.core.transforms import repeated
from paradigms.self_supervised import vicreg
from paradigms.self_supervised.vicreg import vicreg_terms as eager_terms

KEY = jax.random.key(0)
vicreg_terms = jax.jit(eager_terms)


def numbers(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def noise(key, x):
    return x + 0.5 * jax.random.normal(key, x.shape)


def official(x, y):
    """The authors' code, term by term, in float64."""
    x, y = np.float64(x), np.float64(y)
    n, d = x.shape
    std_x, std_y = (np.sqrt(z.var(0, ddof=1) + 1e-4) for z in (x, y))
    std_loss = np.maximum(1 - std_x, 0).mean() / 2 + np.maximum(1 - std_y, 0).mean() / 2
    cov_loss = 0.0
    for z in (x, y):
        cov = (z - z.mean(0)).T @ (z - z.mean(0)) / (n - 1)
        cov_loss += (np.square(cov).sum() - np.square(np.diag(cov)).sum()) / d
    return np.square(x - y).mean(), std_loss, cov_loss


@pytest.mark.parametrize("scale", [0.3, 3.0])
def test_the_terms_are_those_of_the_authors(scale):
    x = scale * numbers(0, 5, 3) + 2
    y = scale * numbers(1, 5, 3) * np.float32([0.1, 1.0, 2.0])
    np.testing.assert_allclose(vicreg_terms(x, y), official(x, y), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(vicreg_terms(y, x), vicreg_terms(x, y), rtol=1e-6)


def test_two_points_by_hand():
    # Deviations of sqrt(2) and 0 in x, of 0 in y; covariance 0.
    x, y = jnp.array([[0.0, 5.0], [2.0, 5.0]]), jnp.array([[1.0, 5.0], [1.0, 5.0]])
    found = vicreg_terms(x, y)
    assert found.invariance == pytest.approx(0.5)
    assert found.variance == pytest.approx((0.99 / 2 + 0.99) / 2, rel=1e-6)
    assert found.covariance == 0
    # Both coordinates vary alike in x: the covariance is 2, twice, squared, over two coordinates.
    x = jnp.array([[0.0, 0.0], [2.0, 2.0]])
    assert vicreg_terms(x, y).covariance == pytest.approx(4)


def test_white_views_that_agree_cost_nothing():
    # Four corners: variance 4 / 3 and no covariance; scaled to variance 1.
    z = jnp.array([[1, 1], [1, -1], [-1, 1], [-1, -1]]) * jnp.sqrt(0.75) + 10
    for term in vicreg_terms(z, z):
        assert float(term) == pytest.approx(0, abs=1e-10)


def test_lengths_count_and_precision_is_float32():
    x, y = numbers(0, 6, 3), numbers(1, 6, 3)
    assert vicreg_terms(2 * x, 2 * y).invariance == pytest.approx(
        4 * float(vicreg_terms(x, y).invariance), rel=1e-5
    )
    half = vicreg_terms(jnp.asarray(x, jnp.bfloat16), jnp.asarray(y, jnp.bfloat16))
    assert all(term.dtype == jnp.float32 for term in half)


def test_masked_examples_are_in_no_term():
    x, y = numbers(0, 6, 3), numbers(1, 6, 3)
    keep = np.float32([1, 1, 0, 1, 0, 1])
    expected = vicreg_terms(x[keep > 0], y[keep > 0])
    x[2], y[4] = np.nan, 50
    np.testing.assert_allclose(vicreg_terms(x, y, keep), expected, rtol=1e-5)
    for left in (0, 1):
        assert np.isfinite(vicreg_terms(x, y, np.arange(6) < left)).all()


def test_collapsed_embeddings_have_a_finite_slope():
    slope = jax.jit(jax.grad(lambda z: sum(vicreg_terms(z, z))))(jnp.ones((4, 3)))
    assert np.isfinite(slope).all()


def make(optimizer, **options):
    return vicreg(nets.mlp((32,), 32), nets.mlp((32,), 8), optimizer, noise, **options)


def test_the_loss_weighs_the_terms():
    batch = {"image": numbers(0, 8, 2)}
    learner = make(optax.sgd(0.1))
    state = jax.jit(learner.init)(KEY, batch)
    for weights, options in (
        ((25, 25, 1), {}),
        ((2, 3, 5), {"invariance": 2.0, "variance": 3.0, "covariance": 5.0}),
    ):
        _, metrics = jax.jit(make(optax.sgd(0.1), **options).update)(state, batch)
        found = derive(metrics)
        terms = [found[name] for name in ("invariance", "variance", "covariance")]
        assert min(terms) > 0
        assert found["loss"] == pytest.approx(np.dot(weights, terms), rel=1e-5)


def test_collapse_is_seen_where_nothing_keeps_the_variance():
    """Without the term embeddings shrink to nothing, and the flag says so."""
    batch = {"image": numbers(0, 64, 2)}
    found = {}
    for variance in (25.0, 0.0):
        learner = repeated(make(optax.sgd(0.003, momentum=0.9), variance=variance), 300)
        state = jax.jit(learner.init)(KEY, batch)
        state, metrics = jax.jit(learner.update)(state, batch)
        assert float(metrics["embedding/collapsed"].value()[0]) == 0
        assert float(metrics["embedding/collapsed"].value()[-1]) == (variance == 0)
        found[variance] = derive(jax.jit(learner.evaluate)(state, batch, KEY))
    healthy, dead = found[25.0], found[0.0]
    assert healthy["embedding/collapsed"] == 0 and healthy["variance"] < 0.5
    assert healthy["embedding/std"] > 0.5
    # sqrt(1e-4) is all that is left of the deviation. The loss is at its best.
    assert dead["embedding/collapsed"] == 1 and dead["variance"] == pytest.approx(0.99, abs=5e-3)
    assert dead["loss"] < 1e-2


def test_bad_input_is_one_clear_line():
    for name in ("invariance", "variance", "covariance"):
        for weight in (-1.0, float("inf"), float("nan")):
            with pytest.raises(InputError, match=rf"vicreg\({name}={weight}\): .* at least 0"):
                make(optax.sgd(0.1), **{name: weight})
    with pytest.raises(InputError, match="vicreg: .* N at least 2"):
        jax.eval_shape(lambda z: vicreg_terms(z, z), jnp.ones((1, 3)))
