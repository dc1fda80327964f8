import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from paradigms.core.errors import InputError
from paradigms.unsupervised import (
    bernoulli_log_prob,
    check_support,
    diagonal_normal_log_prob,
    gaussian_kl,
    gaussian_log_prob,
    pixel_means,
    standard_normal_log_prob,
    unit_interval,
)

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def test_kl_by_hand():
    # log(1 / 2) + (4 + 1) / 2 - 1 / 2
    assert gaussian_kl(jnp.ones(1), jnp.log(jnp.full(1, 4.0))) == pytest.approx(1.30685, abs=1e-5)
    assert gaussian_kl(jnp.zeros(7), jnp.zeros(7)) == 0
    two = gaussian_kl(jnp.array([[1.0, 3.0]]), jnp.log(jnp.array([[4.0, 1.0]])))
    np.testing.assert_allclose(two, [1.30685 + 4.5], rtol=1e-5)


def test_kl_is_the_mean_difference_of_the_log_densities():
    mean, log_var = normal(3), normal(3)
    z = mean + np.exp(log_var / 2) * normal(400_000, 3)
    difference = diagonal_normal_log_prob(z, mean, log_var) - standard_normal_log_prob(z)
    np.testing.assert_allclose(gaussian_kl(mean, log_var), difference.mean(), rtol=0.01)


def test_even_odds_cost_ln_2_for_each_pixel():
    x = RNG.integers(0, 2, (3, 28, 28, 1)).astype(np.float32)
    log_prob = bernoulli_log_prob(jnp.zeros(x.shape), x)
    assert log_prob.shape == (3,)
    np.testing.assert_allclose(log_prob, -543.43, atol=0.01)


@pytest.mark.parametrize("samples", [(), (4,), (2, 3)])
def test_data_densities_equal_scipy_and_are_summed_over_the_event(samples):
    x, output = normal(5, 2, 3), normal(5, *samples, 2, 3)
    spread = x.reshape(5, *(1 for _ in samples), 2, 3)
    gaussian = gaussian_log_prob(output, x, np.log(0.3))
    expected = scipy.stats.norm.logpdf(spread.astype(np.float64), output, 0.3).sum((-2, -1))
    assert gaussian.shape == (5, *samples)
    np.testing.assert_allclose(gaussian, expected, rtol=1e-5)
    bits = (x > 0).astype(np.float32)
    expected = scipy.stats.bernoulli.logpmf(spread > 0, scipy.special.expit(output)).sum((-2, -1))
    np.testing.assert_allclose(bernoulli_log_prob(output, bits), expected, rtol=1e-5)


def test_as_many_samples_as_examples_are_not_confused():
    x, output = normal(3, 3), normal(3, 3, 3)
    expected = scipy.stats.norm.logpdf(x[:, None], output).sum(-1)
    np.testing.assert_allclose(gaussian_log_prob(output, x, 0.0), expected, rtol=1e-5)


def test_shades_cost_their_cross_entropy():
    x = np.float32([[0.0, 0.25, 0.5, 1.0]])
    logits = np.float32([[-1.0, 2.0, 0.0, 3.0]])
    p = scipy.special.expit(logits.astype(np.float64))
    expected = (x * np.log(p) + (1 - x) * np.log(1 - p)).sum()
    np.testing.assert_allclose(bernoulli_log_prob(logits, x), [expected], rtol=1e-6)


def test_logits_are_never_turned_into_probabilities():
    logits, x = jnp.array([[1e4], [-1e4], [1e4], [-1e4]]), jnp.array([[1.0], [0.0], [0.0], [1.0]])
    np.testing.assert_array_equal(bernoulli_log_prob(logits, x), [0, 0, -1e4, -1e4])
    slope = jax.grad(lambda logits: bernoulli_log_prob(logits, x).sum())(logits)
    np.testing.assert_array_equal(slope, [[0], [0], [-1], [1]])


def test_the_slope_in_a_logit_is_what_is_missing():
    logits, x = normal(4, 6), RNG.uniform(size=(4, 6)).astype(np.float32)
    slope = jax.grad(lambda logits: bernoulli_log_prob(logits, x).sum())(jnp.asarray(logits))
    np.testing.assert_allclose(slope, x - scipy.special.expit(logits), atol=1e-6)


def test_latent_densities_equal_scipy():
    z, mean, log_var = normal(6, 4, 3), normal(6, 1, 3), normal(6, 1, 3)
    expected = scipy.stats.norm.logpdf(z, mean, np.exp(log_var / 2)).sum(-1)
    np.testing.assert_allclose(diagonal_normal_log_prob(z, mean, log_var), expected, rtol=1e-5)
    expected = scipy.stats.multivariate_normal.logpdf(z, np.zeros(3))
    np.testing.assert_allclose(standard_normal_log_prob(z), expected, rtol=1e-5)


def test_densities_of_half_precision_are_float32():
    output, x = jnp.full((1, 1000), 0.5, jnp.bfloat16), jnp.zeros((1, 1000), jnp.bfloat16)
    for log_prob in (bernoulli_log_prob(output, x), gaussian_log_prob(output, x, 0.0)):
        assert log_prob.dtype == jnp.float32
    np.testing.assert_allclose(bernoulli_log_prob(output, x), [-1000 * np.log1p(np.exp(0.5))], 1e-5)


def test_the_mean_of_a_pixel():
    output = jnp.array([0.0, np.log(3)])
    np.testing.assert_allclose(pixel_means(output, "bernoulli"), [0.5, 0.75], rtol=1e-6)
    np.testing.assert_array_equal(pixel_means(output, "gaussian"), output)


def test_bytes_become_the_unit_interval_and_floats_stay():
    np.testing.assert_allclose(unit_interval(jnp.uint8([0, 51, 255])), [0, 0.2, 1], rtol=1e-6)
    assert unit_interval(jnp.uint8([1])).dtype == jnp.float32
    x = jnp.array([-3.0, 0.5, 255.0])
    np.testing.assert_array_equal(unit_interval(x), x)


def test_data_within_the_support_passes():
    x = RNG.uniform(size=(4, 3)).astype(np.float32)
    check_support(np.round(x), "bernoulli", "x")
    check_support(x, "bernoulli", "x")
    check_support(np.full((2, 2), 255, np.uint8), "bernoulli", "x")
    check_support(100 * normal(4, 3), "gaussian", "x")


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: check_support(np.float32([[0, 1.01]]), "bernoulli", "train"), "train has values"),
        (lambda: check_support(np.float32([[-0.1, 1]]), "bernoulli", "x"), "from -0.1 to 1"),
        (lambda: check_support(np.float32([[0, np.nan]]), "bernoulli", "x"), "x has 1 values"),
        (lambda: check_support(np.float32([[np.inf, np.nan]]), "gaussian", "x"), "x has 2 values"),
        (lambda: check_support(np.zeros((0, 4), np.uint8), "bernoulli", "x"), "x is empty"),
        (lambda: check_support(np.zeros((2, 4), np.int64), "gaussian", "x"), "dtype int64"),
        (lambda: check_support(np.zeros((2, 4)), "poisson", "x"), "'poisson'"),
        (lambda: unit_interval(jnp.zeros(3, jnp.int32)), "dtype int32"),
        (lambda: bernoulli_log_prob(jnp.zeros((4, 1)), jnp.zeros((4, 3))), "(4, 1) and the data"),
        (lambda: bernoulli_log_prob(jnp.zeros(4), jnp.zeros((4, 1))), "(4,) and the data (4, 1)"),
        (lambda: gaussian_log_prob(jnp.zeros((3, 4)), jnp.zeros((4, 3)), 0.0), "differ"),
        (lambda: gaussian_log_prob(jnp.zeros((5, 4, 3)), jnp.zeros((4, 3)), 0.0), "differ"),
    ],
)
def test_bad_input_is_refused_in_one_line(call, words):
    with pytest.raises(InputError) as caught:
        call()
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
