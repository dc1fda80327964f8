import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

import nets
from nets.net import Net
from paradigms.core import optimizers
from paradigms.core.errors import InputError
from paradigms.core.metrics import derive
from paradigms.core.transforms import repeated, swept
from paradigms.unsupervised import importance_bound, iwae, vae

X = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
SGD = optimizers.sgd(1.0)
NETS = nets.mlp((4,), 4, activation="tanh"), nets.mlp((4,), 3, activation="tanh")


def test_the_bound_and_its_slopes_by_hand():
    weights = jnp.log(jnp.array([1.0, 3.0]))
    assert importance_bound(weights) == pytest.approx(np.log(2))
    np.testing.assert_allclose(jax.grad(importance_bound)(weights), [0.25, 0.75], rtol=1e-6)
    # Of log-likelihoods of pictures no exponential is left.
    np.testing.assert_allclose(importance_bound(weights - 1e4), np.log(2) - 1e4, rtol=1e-6)


def test_one_sample_has_the_bound_of_its_weight_and_the_samples_are_the_last_axis():
    weights = np.random.default_rng(1).normal(size=(4, 5)).astype(np.float32)
    expected = scipy.special.logsumexp(weights, axis=1) - np.log(5)
    np.testing.assert_allclose(importance_bound(weights), expected, rtol=1e-6)
    np.testing.assert_array_equal(importance_bound(weights[:, :1]), weights[:, 0])


def make(k, optimizer=SGD, **options):
    return iwae(*NETS, optimizer, k=k, likelihood="gaussian", scale=0.5, input_name="x", **options)


def gradient(learner, batch, key=0):
    state = jax.jit(learner.init)(jax.random.key(key), batch)
    after, metrics = jax.jit(learner.update)(state, batch)
    return jax.tree.map(jnp.subtract, state.params, after.params), derive(metrics), state


def weights_of(params, state, k):
    """The log-weights [B, k] of the draws of `state`, written out once more; and `log p(x|z)`."""
    code, _ = NETS[0].apply(params["encoder"], {}, X)
    mean, deviation = code[:, :2], jnp.exp(code[:, 2:] / 2)
    noise = jax.random.normal(state.rng("latent"), (len(X), k, 2))
    z = mean[:, None] + deviation[:, None] * noise
    output = jnp.stack([NETS[1].apply(params["decoder"], {}, z[:, i])[0] for i in range(k)], 1)
    log_p = jax.scipy.stats.norm.logpdf(X[:, None], output, 0.5).sum(-1)
    log_prior = jax.scipy.stats.norm.logpdf(z).sum(-1)
    log_q = jax.scipy.stats.norm.logpdf(z, mean[:, None], deviation[:, None]).sum(-1)
    return log_p + log_prior - log_q, log_p


@pytest.mark.parametrize("k", [1, 5])
def test_the_gradient_weighs_each_draw_by_its_normalised_weight(k):
    slopes, metrics, state = gradient(make(k), {"x": X})

    @jax.jit
    @jax.grad
    def by_hand(params):
        log_w, _ = weights_of(params, state, k)
        share = jax.lax.stop_gradient(jax.nn.softmax(log_w, axis=1))
        return -(share * log_w).sum(1).mean()

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        slopes,
        by_hand(state.params),
    )
    log_w, log_p = jax.jit(weights_of, static_argnums=2)(state.params, state, k)
    expected = -(scipy.special.logsumexp(log_w, axis=1) - np.log(k)).mean()
    assert metrics["loss"] == pytest.approx(expected, rel=1e-5)
    assert metrics["reconstruction"] == pytest.approx(float(log_p.mean()), rel=1e-5)
    assert metrics["elbo"] == pytest.approx(metrics["reconstruction"] - metrics["kl"], rel=1e-5)


def test_with_the_true_posterior_the_bound_is_the_exact_likelihood():
    # x = w z + b + s e with one latent: any draw of the true posterior has the weight p(x).
    w, b, s = np.array([1.0, -2.0, 0.5]), np.array([0.3, 0.0, -1.0]), 0.6
    square = w @ w + s**2
    decoder = Net(lambda key, z: ({}, {}), lambda params, state, z, **_: (z * w + b, state))
    encoder = Net(
        lambda key, x: ({}, {}),
        lambda params, state, x, **_: (
            jnp.stack([(x - b) @ w / square, jnp.full(len(x), np.log(s**2 / square))], 1),
            state,
        ),
    )
    exact = scipy.stats.multivariate_normal(b, np.outer(w, w) + s**2 * np.eye(3)).logpdf(X)
    learner = iwae(encoder, decoder, SGD, k=3, likelihood="gaussian", scale=s, input_name="x")
    state = learner.init(jax.random.key(0), {"x": X})
    _, metrics = jax.jit(learner.update)(state, {"x": X})
    assert derive(metrics)["loss"] == pytest.approx(-exact.mean(), abs=1e-4)
    values = derive(jax.jit(learner.evaluate)(state, {"x": X}, jax.random.key(0)))
    assert values["log_likelihood"] == pytest.approx(exact.mean(), abs=1e-4)


def test_one_draw_is_the_vae_in_expectation_and_more_are_tighter():
    batch = {"x": jnp.asarray(X)}
    options = {"likelihood": "gaussian", "scale": 0.5, "input_name": "x"}
    start = make(1).init(jax.random.key(0), batch)

    def losses(learner):
        """The loss of one state under 1,000 keys."""

        def one(key):
            _, metrics = learner.update(start.replace(key=key), batch)
            return metrics["loss"].value()

        return np.asarray(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(1), 1000)))

    with_kl = losses(vae(*NETS, SGD, **options))
    single, many = losses(make(1)), losses(make(20))
    error = np.std(single - with_kl) / np.sqrt(1000)
    assert error > 0
    assert abs(single.mean() - with_kl.mean()) < 4 * error
    assert many.mean() < single.mean() - 0.1


def test_masked_examples_neither_count_nor_get_a_gradient():
    x = np.concatenate([X, np.full((2, 3), 50, np.float32)])
    mask = np.float32([1] * 6 + [0] * 2)
    masked, with_mask, _ = gradient(make(3), {"x": x, "mask": mask})
    short, without, _ = gradient(make(3), {"x": X})
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), masked, short)
    for name in ("loss", "elbo", "reconstruction", "kl"):
        assert with_mask[name] == pytest.approx(without[name], rel=1e-5)


def test_bits_are_drawn_for_training_alone():
    seen = []

    def augment(key, x):
        seen.append(x.dtype)
        return 255 - x

    same = Net(lambda key, x: ({}, {}), lambda params, state, x, **_: (jnp.zeros((2, 4)), state))
    # Logits of 10: a pixel of 1 costs nothing, one of 0 costs 10 nats.
    bright = Net(
        lambda key, z: ({}, {}), lambda params, state, z, **_: (jnp.full((len(z), 2), 10.0), state)
    )
    learner = iwae(same, bright, SGD, k=2, augment=augment)
    batch = {"image": np.full((2, 2), 255, np.uint8)}
    state = learner.init(jax.random.key(0), batch)
    _, metrics = jax.jit(learner.update)(state, batch)
    assert seen == [jnp.uint8]
    assert derive(metrics)["reconstruction"] == pytest.approx(-20, abs=1e-3)
    values = derive(jax.jit(learner.evaluate)(state, batch, jax.random.key(0)))
    assert seen == [jnp.uint8]
    assert values["reconstruction"] == pytest.approx(0, abs=1e-3)


def test_a_sweep_over_the_learning_rate_is_the_runs_apart():
    rates, batch = np.float32([0.01, 0.002]), {"x": jnp.asarray(X)}
    learner = swept(lambda h: make(3, optimizers.sgd(h["rate"])), {"rate": rates})
    state = jax.jit(learner.init)(jax.random.key(0), batch)
    _, metrics = jax.jit(repeated(learner, 3).update)(state, batch)
    for i, rate in enumerate(rates):
        alone = make(3, optimizers.sgd(float(rate)))
        state = jax.jit(alone.init)(jax.random.key(0), batch)
        _, apart = jax.jit(repeated(alone, 3).update)(state, batch)
        np.testing.assert_allclose(metrics["loss"].value()[:, i], apart["loss"].value(), rtol=1e-4)


def test_bad_options_are_one_clear_line():
    for option, words in (
        ({"k": 0}, "iwae(k=0)"),
        ({"k": 2.0}, "iwae(k=2.0)"),
        ({"k": 1, "scale": -1.0}, "iwae(scale=-1.0)"),
        ({"k": 1, "likelihood": "laplace"}, "iwae(likelihood='laplace')"),
        ({"k": 1, "importance_samples": 0}, "iwae(importance_samples=0)"),
    ):
        with pytest.raises(InputError) as caught:
            iwae(*NETS, SGD, **option)
        assert words in str(caught.value) and "\n" not in str(caught.value)
    learner = iwae(nets.mlp((), 5), NETS[1], SGD, k=2, input_name="x")
    with pytest.raises(InputError, match=r"\(6, 5\): expected \[B, 2 \* latent\]"):
        learner.init(jax.random.key(0), {"x": X})
