"""Policies against scipy, quadrature, finite differences and their own samples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from paradigms.core.errors import InputError
from paradigms.reinforcement.policies import Categorical, Gaussian, TanhGaussian, rescale

KEY = jax.random.key(0)
LOGITS = jnp.array([[0.3, -1.2, 2.0, 0.0], [50.0, 0.0, -50.0, 49.0]])
MEAN = jnp.array([[0.5, -1.0, 0.0], [2.0, 0.1, -0.3]])
LOG_STD = jnp.array([[0.0, -0.7, 0.4], [-1.0, 0.2, 0.0]])


def differences(function, x, step=1e-2):
    """The gradient of a scalar function of a numpy array, by central differences of order 4."""

    def slope(index):
        def at(steps):
            moved = np.array(x, np.float32)
            moved[index] += steps * step
            return float(function(jnp.asarray(moved)))

        return (8 * (at(1) - at(-1)) - (at(2) - at(-2))) / (12 * step)

    return np.array([slope(index) for index in np.ndindex(x.shape)]).reshape(x.shape)


def test_categorical_is_a_softmax():
    policy = Categorical(LOGITS)
    log_probs = np.stack([policy.log_prob(np.full(2, action)) for action in range(4)], -1)
    np.testing.assert_allclose(log_probs, scipy.special.log_softmax(LOGITS, -1), rtol=1e-5)
    np.testing.assert_allclose(np.exp(log_probs).sum(-1), 1, rtol=1e-6)
    entropy = [scipy.stats.entropy(row) for row in scipy.special.softmax(LOGITS, -1)]
    np.testing.assert_allclose(policy.entropy(), entropy, rtol=1e-5)
    np.testing.assert_array_equal(policy.mode(), [2, 0])
    assert policy.mode().dtype == policy.sample(KEY).dtype == jnp.int32


def test_categorical_leading_axes_are_a_batch():
    logits = jax.random.normal(KEY, (5, 3, 4))
    policy, action = Categorical(logits), np.arange(15).reshape(5, 3) % 4
    assert policy.sample(KEY).shape == policy.mode().shape == policy.entropy().shape == (5, 3)
    one = Categorical(logits[4, 1])
    np.testing.assert_allclose(policy.log_prob(action)[4, 1], one.log_prob(action[4, 1]), rtol=1e-6)


@pytest.mark.parametrize("actions", [2, 6, 18])
def test_equal_logits_have_entropy_ln_a(actions):
    policy = Categorical(jnp.full((actions,), 7.0))
    np.testing.assert_allclose(policy.entropy(), np.log(actions), rtol=1e-6)
    assert policy.mode() == 0


def test_categorical_samples_have_their_probabilities():
    draws = 20_000
    actions = Categorical(jnp.broadcast_to(LOGITS[0], (draws, 4))).sample(KEY)
    expected = draws * scipy.special.softmax(np.asarray(LOGITS[0], np.float64))
    assert scipy.stats.chisquare(np.bincount(actions, minlength=4), expected).pvalue > 1e-3


def test_a_forbidden_action_is_never_taken_and_leaves_everything_finite():
    logits = jnp.array([0.5, -jnp.inf, -0.5])

    def value(logits):
        policy = Categorical(logits)
        return policy.entropy() + policy.log_prob(jnp.array(2))

    total, gradient = jax.jit(jax.value_and_grad(value))(logits)
    probs = scipy.special.softmax([0.5, -0.5])
    np.testing.assert_allclose(total, scipy.stats.entropy(probs) + np.log(probs[1]), rtol=1e-5)
    # d log p2 = onehot - p, and dH = -p (log p + H).
    allowed = np.float32([probs[0], probs[1]])
    surprise = np.log(allowed) - (allowed * np.log(allowed)).sum()
    expected = np.array([0, 1]) - allowed - allowed * surprise
    np.testing.assert_allclose(gradient[::2], expected, rtol=1e-6)
    assert gradient[1] == 0 and np.isfinite(gradient).all()
    drawn = Categorical(jnp.broadcast_to(logits, (1000, 3))).sample(KEY)
    assert set(np.unique(drawn)) == {0, 2}


def test_an_action_beyond_the_last_is_no_number():
    assert np.isnan(Categorical(LOGITS[0]).log_prob(jnp.array(4)))


def test_gaussian_equals_scipy():
    policy, action = Gaussian(MEAN, LOG_STD), jnp.array([[0.0, 3.0, -2.0], [1.0, 1.0, 1.0]])
    law = scipy.stats.norm(np.asarray(MEAN), np.exp(np.asarray(LOG_STD)))
    np.testing.assert_allclose(policy.log_prob(action), law.logpdf(action).sum(-1), rtol=1e-5)
    np.testing.assert_allclose(policy.entropy(), law.entropy().sum(-1), rtol=1e-5)
    np.testing.assert_array_equal(policy.mode(), MEAN)


def test_standard_numbers():
    zero = jnp.zeros(1)
    np.testing.assert_allclose(Gaussian(zero, zero).log_prob(zero), -0.91894, atol=1e-5)
    np.testing.assert_allclose(TanhGaussian(zero, zero).log_prob(zero), -0.91894, atol=1e-5)
    np.testing.assert_allclose(Gaussian(zero, zero).entropy(), 1.41894, atol=1e-5)
    # Two coordinates add; a standard deviation of e adds 1.
    np.testing.assert_allclose(Gaussian(MEAN[0, :2], jnp.ones(2)).entropy(), 4.83788, atol=1e-5)


@pytest.mark.parametrize("law, edge", [(Gaussian, 12.0), (TanhGaussian, 1.0)])
def test_densities_integrate_to_one(law, edge):
    # Gauss-Legendre nodes avoid the edges, where the tanh density has a singular derivative.
    nodes, weights = np.polynomial.legendre.leggauss(400)
    mean, log_std = jnp.array([0.3]), jnp.array([-0.2])
    log_prob = jax.jit(lambda x: law(mean, log_std).log_prob(x))(np.float32(edge * nodes)[:, None])
    assert abs(edge * weights @ np.exp(np.asarray(log_prob, np.float64)) - 1) < 1e-4


@pytest.mark.parametrize("law, squash", [(Gaussian, lambda x: x), (TanhGaussian, np.tanh)])
def test_samples_have_their_law(law, squash):
    shape = (4000, 2)
    mean, log_std = jnp.array([0.4, -0.6]), jnp.array([0.1, -1.0])
    policy = law(jnp.broadcast_to(mean, shape), jnp.broadcast_to(log_std, shape))
    action = np.asarray(policy.sample(KEY), np.float64)
    for i in range(2):
        reference = scipy.stats.norm(mean[i], np.exp(log_std[i]))
        below = action[:, i] if law is Gaussian else np.arctanh(action[:, i])
        assert scipy.stats.kstest(below, reference.cdf).pvalue > 1e-3
    assert abs(scipy.stats.pearsonr(*action.T).statistic) < 0.06  # four standard errors
    np.testing.assert_allclose(policy.mode()[0], squash(mean), rtol=1e-6)


def test_entropy_is_the_mean_of_minus_the_log_density():
    policy = Gaussian(jnp.full((20_000, 1), 0.7), jnp.full((20_000, 1), -0.5))
    surprise = -np.asarray(policy.log_prob(policy.sample(KEY)))
    # The standard deviation of a Gaussian's log-density is sqrt(1/2).
    assert abs(surprise.mean() - policy.entropy()[0]) < 4 * np.sqrt(0.5 / 20_000)


def test_tanh_log_density_of_a_sample_is_scipys_with_the_change_of_variables():
    policy = TanhGaussian(MEAN, LOG_STD)
    action, log_prob = policy.sample_and_log_prob(KEY)
    np.testing.assert_array_equal(action, policy.sample(KEY))
    assert action.shape == (2, 3) and log_prob.shape == (2,)
    a = np.asarray(action, np.float64)
    law = scipy.stats.norm(np.asarray(MEAN), np.exp(np.asarray(LOG_STD)))
    expected = (law.logpdf(np.arctanh(a)) - np.log1p(-(a**2))).sum(-1)
    np.testing.assert_allclose(log_prob, expected, rtol=1e-4)
    np.testing.assert_allclose(policy.log_prob(action), expected, rtol=1e-4)


def noise():
    """What `sample` of two rows of three draws from KEY, read off a standard Gaussian."""
    return np.asarray(Gaussian(jnp.zeros((2, 3)), jnp.zeros((2, 3))).sample(KEY), np.float64)


def test_the_gradient_through_a_tanh_sample_is_that_of_the_formula():
    def total(mean, log_std):
        action, log_prob = TanhGaussian(mean, log_std).sample_and_log_prob(KEY)
        return (log_prob.sum(), action.sum())

    log_prob, action = jax.jit(jax.jacrev(total, (0, 1)))(MEAN, LOG_STD)
    std = np.exp(np.asarray(LOG_STD, np.float64))
    a = np.tanh(np.asarray(MEAN) + std * noise())
    # log pi = -noise^2/2 - log_std - log(1 - tanh(u)^2) + constant, with u = mean + std * noise.
    np.testing.assert_allclose(log_prob[0], 2 * a, atol=1e-5)
    np.testing.assert_allclose(log_prob[1], 2 * a * std * noise() - 1, atol=1e-5)
    np.testing.assert_allclose(action[0], 1 - a**2, atol=1e-5)
    np.testing.assert_allclose(action[1], (1 - a**2) * std * noise(), atol=1e-5)


@pytest.mark.parametrize("law", [Gaussian, TanhGaussian])
def test_the_gradient_of_log_prob_equals_finite_differences(law):
    action = jnp.array([[0.2, -0.5, 0.6], [0.9, 0.0, -0.8]])
    arguments = (MEAN, LOG_STD, action)

    def total(mean, log_std, action):
        return law(mean, log_std).log_prob(action).sum()

    gradients = jax.jit(jax.grad(total, (0, 1, 2)))(*arguments)
    fast = jax.jit(total)
    for place, gradient in enumerate(gradients):

        def one(x, place=place):
            return fast(*arguments[:place], x, *arguments[place + 1 :])

        np.testing.assert_allclose(gradient, differences(one, arguments[place]), atol=5e-3)


def test_the_gradient_of_categorical_log_prob_and_entropy_equal_finite_differences():
    logits, action = LOGITS[:1], jnp.array([3])
    for function in (
        lambda logits: Categorical(logits).log_prob(action).sum(),
        lambda logits: Categorical(logits).entropy().sum(),
    ):
        gradient = jax.jit(jax.grad(function))(logits)
        np.testing.assert_allclose(gradient, differences(jax.jit(function), logits), atol=1e-3)
    # In closed form the first is the one-hot action minus the probabilities.
    expected = np.eye(4)[[3]] - scipy.special.softmax(logits, -1)
    np.testing.assert_allclose(
        jax.grad(lambda x: Categorical(x).log_prob(action).sum())(logits), expected, atol=1e-6
    )


@pytest.mark.parametrize("mean, log_std", [(20, 2), (-20, 2), (20, -5), (-20, -5), (0, 2)])
def test_tanh_extremes_are_finite_and_right(mean, log_std):
    mean, log_std = jnp.full((500, 1), float(mean)), jnp.full((500, 1), float(log_std))

    def sample(mean, log_std):
        action, log_prob = TanhGaussian(mean, log_std).sample_and_log_prob(KEY)
        return (log_prob.sum() + action.sum()), (action, log_prob)

    differentiate = jax.jit(jax.grad(sample, (0, 1), has_aux=True))
    gradient, (action, log_prob) = differentiate(mean, log_std)
    assert np.isfinite(jax.tree.leaves(gradient)).all()
    assert (abs(action) <= 1).all()
    # In float64, with log(1 - tanh(u)^2) = -2 log cosh u.
    u = np.float64(mean) + np.exp(np.float64(log_std)) * (
        np.asarray(Gaussian(0 * mean, 0 * mean).sample(KEY), np.float64)
    )
    law = scipy.stats.norm(np.float64(mean), np.exp(np.float64(log_std)))
    log_cosh = np.logaddexp(u, -u) - np.log(2)
    np.testing.assert_allclose(log_prob, (law.logpdf(u) + 2 * log_cosh)[:, 0], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("action", [-1.0, 1.0, 1.5])
def test_log_prob_at_the_edge_is_finite(action):
    def log_prob(mean, log_std, action):
        return TanhGaussian(mean, log_std).log_prob(action)

    differentiate = jax.jit(jax.value_and_grad(log_prob, (0, 1, 2)))
    for mean, log_std in ((0.0, 0.0), (20.0, 2.0), (-20.0, -5.0)):
        arguments = jnp.array([mean]), jnp.array([log_std]), jnp.array([action])
        value, gradient = differentiate(*arguments)
        assert np.isfinite(value) and np.isfinite(gradient).all()


@pytest.mark.parametrize(
    "policy", [Categorical(LOGITS), Gaussian(MEAN, LOG_STD), TanhGaussian(MEAN, LOG_STD)]
)
def test_vmap_and_jit_change_nothing(policy):
    def everything(policy, key):
        action = policy.sample(key)
        return action, policy.log_prob(action), policy.mode()

    keys = jax.random.split(KEY, 2)
    mapped = jax.jit(jax.vmap(everything))(policy, keys)
    for i in range(2):
        single = everything(jax.tree.map(lambda leaf, i=i: leaf[i], policy), keys[i])
        for together, apart in zip(mapped, single, strict=True):
            np.testing.assert_allclose(together[i], apart, rtol=1e-5)
    drawn = [np.asarray(policy.sample(jax.random.key(i)), np.float32) for i in range(5)]
    assert len(np.unique(drawn, axis=0)) > 1


def test_rescale_maps_the_edges_exactly_and_the_rest_linearly():
    low, high = np.float32([-2.0, 0.1, -0.3]), np.float32([2.0, 0.7, 1e6])
    action = jnp.linspace(-1, 1, 9)[:, None] * jnp.ones(3)
    scaled = jax.jit(rescale)(action, low, high)
    np.testing.assert_array_equal(scaled[0], low)
    np.testing.assert_array_equal(scaled[-1], high)
    np.testing.assert_allclose(scaled, np.linspace(low, high, 9), rtol=1e-5)
    np.testing.assert_array_equal(
        rescale(action, low, high), rescale(action, *map(jnp.array, (low, high)))
    )
    np.testing.assert_allclose(rescale(jnp.array([0.5]), -2.0, 2.0), [1.0])


@pytest.mark.parametrize(
    "low, high, words",
    [
        (-np.inf, 1.0, "action bounds are -inf to 1.0; expected finite numbers"),
        (np.zeros(2), np.array([1.0, np.nan]), "[0.0, 0.0] to [1.0, nan]"),
        (np.array([0.0, 2.0]), 2.0, "[0.0, 2.0] to [2.0, 2.0]; expected finite numbers with low <"),
    ],
)
def test_bounds_that_bound_nothing_are_refused_in_one_line(low, high, words):
    with pytest.raises(InputError) as caught:
        rescale(jnp.zeros((4, 2)), low, high)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
