import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

import nets
from nets.net import Net
from paradigms.core import optimizers, schedules
from paradigms.core.errors import InputError
from paradigms.core.loop import evaluator
from paradigms.core.metrics import Mean, derive
from paradigms.core.transforms import repeated, swept
from paradigms.unsupervised import (
    decode,
    derive_vae,
    posterior,
    reconstruct,
    sample_prior,
    traverse,
    vae,
)

SGD = optimizers.sgd(1.0)


def affine(kernel, bias):
    """The net `x @ kernel + bias`, which starts at these values."""
    start = {"kernel": jnp.asarray(kernel, jnp.float32), "bias": jnp.asarray(bias, jnp.float32)}
    return Net(
        lambda key, x: (start, {}),
        lambda params, state, x, **_: (x @ params["kernel"] + params["bias"], state),
    )


class PCA:
    """Probabilistic PCA, a decoder whose posterior and likelihood are known.

    `x = W z + b + s e`. The columns of W are orthogonal, so that the posterior is diagonal:
    of variance `s^2 / (|w_j|^2 + s^2)` and mean `W^T (x - b) / (|w_j|^2 + s^2)`.
    """

    scale = 0.7
    rng = np.random.default_rng(0)
    columns = np.linalg.qr(rng.normal(size=(4, 2)))[0] * [1.5, 0.8]
    bias = rng.normal(size=4)
    square = (columns**2).sum(0) + scale**2
    log_var = np.log(scale**2 / square)
    decoder = affine(columns.T, bias)
    density = scipy.stats.multivariate_normal(bias, columns @ columns.T + scale**2 * np.eye(4))
    x = density.rvs(200, random_state=1).astype(np.float32)

    @classmethod
    def encoder(cls, shift=0.0, wider=0.0):
        """The posterior, with the mean moved and the log-variance raised."""
        back = cls.columns / cls.square
        kernel = np.concatenate([back, np.zeros((4, 2))], axis=1)
        bias = np.concatenate([shift - cls.bias @ back, cls.log_var + wider])
        return affine(kernel, bias)

    @classmethod
    def learner(cls, encoder, **options):
        return vae(
            encoder,
            cls.decoder,
            SGD,
            likelihood="gaussian",
            scale=cls.scale,
            input_name="x",
            **options,
        )

    @classmethod
    def evaluate(cls, encoder, x=None, **options):
        learner, batch = cls.learner(encoder, **options), {"x": cls.x if x is None else x}
        state = learner.init(jax.random.key(0), batch)
        return jax.jit(learner.evaluate)(state, batch, jax.random.key(1))


def test_with_the_true_posterior_one_sample_gives_the_exact_likelihood():
    for row in PCA.x[:3]:
        values = derive(PCA.evaluate(PCA.encoder(), row[None]))
        assert values["log_likelihood"] == pytest.approx(PCA.density.logpdf(row), abs=1e-4)
    values = derive(PCA.evaluate(PCA.encoder()))
    assert values["log_likelihood"] == pytest.approx(PCA.density.logpdf(PCA.x).mean(), abs=1e-4)


def test_the_elbo_of_the_true_posterior_is_the_likelihood():
    values = derive(PCA.evaluate(PCA.encoder(), importance_samples=4000))
    assert values["elbo"] == pytest.approx(PCA.density.logpdf(PCA.x).mean(), abs=0.01)
    assert values["elbo"] == pytest.approx(values["reconstruction"] - values["kl"], abs=1e-4)
    assert values["loss"] == -values["elbo"]


def test_with_a_wrong_posterior_the_estimate_rises_to_the_likelihood():
    exact = PCA.density.logpdf(PCA.x).mean()
    encoder = PCA.encoder(shift=0.5, wider=0.5)
    bounds = [
        derive(PCA.evaluate(encoder, importance_samples=n))["log_likelihood"]
        for n in (1, 5, 50, 2000)
    ]
    assert all(np.diff(bounds) > 0)
    assert bounds[0] < exact - 0.2
    assert bounds[-1] == pytest.approx(exact, abs=0.005)


CHUNKS = (1, 3, 7, 50)


@pytest.mark.parametrize("chunk", CHUNKS)
def test_the_likelihood_is_the_log_mean_of_the_weights_whatever_the_chunk(chunk):
    x, (shift, wider), n = PCA.x[:6], (0.4, -0.3), 7
    values = derive(PCA.evaluate(PCA.encoder(shift, wider), x, importance_samples=n, chunk=chunk))
    # Once more in numpy, from the same draws.
    mean = (x - PCA.bias) @ (PCA.columns / PCA.square) + shift
    deviation = np.exp((PCA.log_var + wider) / 2)
    keys = [jax.random.fold_in(jax.random.key(1), i) for i in range(n)]
    z = np.stack([mean + deviation * jax.random.normal(key, (6, 2)) for key in keys])
    seen = scipy.stats.norm.logpdf(x, z @ PCA.columns.T + PCA.bias, PCA.scale).sum(-1)
    weights = seen + scipy.stats.norm.logpdf(z).sum(-1)
    weights -= scipy.stats.norm.logpdf(z, mean, deviation).sum(-1)
    expected = (scipy.special.logsumexp(weights, axis=0) - np.log(n)).mean()
    assert values["log_likelihood"] == pytest.approx(expected, abs=1e-4)
    assert values["reconstruction"] == pytest.approx(seen.mean(), abs=1e-4)


def test_a_convolution_is_not_looped_over_and_gives_the_same():
    def apply(params, state, z, **_):
        kernel = params["kernel"].T[:, :, None]
        output = jax.lax.conv_general_dilated(z[:, :, None], kernel, (1,), "VALID")
        return output[..., 0] + params["bias"], state

    learner = vae(
        PCA.encoder(0.4),
        Net(PCA.decoder.init, apply),
        SGD,
        likelihood="gaussian",
        scale=PCA.scale,
        importance_samples=5,
        chunk=2,
        input_name="x",
    )
    batch = {"x": PCA.x[:6]}
    state = learner.init(jax.random.key(0), batch)
    values = derive(jax.jit(learner.evaluate)(state, batch, jax.random.key(1)))
    expected = derive(PCA.evaluate(PCA.encoder(0.4), PCA.x[:6], importance_samples=5, chunk=2))
    assert values["log_likelihood"] == pytest.approx(expected["log_likelihood"], abs=1e-4)


# The encoder and the decoder of these say the same whatever they see, so that every number can be
# worked out by hand: N(1, 4) for each of three latents, and even odds for each of four pixels.
CODE = np.concatenate([np.ones(3), np.full(3, np.log(4))])
SAME = affine(np.zeros((4, 6)), CODE), affine(np.zeros((3, 4)), np.zeros(4))
BITS = np.float32([[0, 1, 1, 0], [1, 0, 1, 1]])
KL, EVEN = 3 * 1.306853, -4 * np.log(2)


def step(learner, batch, steps=1):
    """Minus the gradient of the last step, the metrics and the state."""
    update = jax.jit(learner.update)
    after = jax.jit(learner.init)(jax.random.key(0), batch)
    for _ in range(steps):
        state = after
        after, metrics = update(state, batch)
    moved = jax.tree.map(lambda new, old: np.asarray(new - old), after.params, state.params)
    return moved, derive(metrics), state


@pytest.mark.parametrize("beta", [0.0, 1.0, 4.0])
def test_the_loss_by_hand(beta):
    moved, metrics, _ = step(vae(*SAME, SGD, beta=beta, input_name="x"), {"x": BITS})
    assert metrics["reconstruction"] == pytest.approx(EVEN)
    assert metrics["kl"] == pytest.approx(KL)
    assert metrics["elbo"] == pytest.approx(EVEN - KL)
    assert metrics["loss"] == pytest.approx(beta * KL - EVEN, rel=1e-5)
    # The mean over the batch of x - 1/2, and of the slopes m and (v - 1) / 2 of the KL.
    np.testing.assert_allclose(moved["decoder"]["bias"], (BITS - 0.5).mean(0), atol=1e-6)
    expected = -beta * np.concatenate([np.ones(3), np.full(3, 1.5)])
    np.testing.assert_allclose(moved["encoder"]["bias"], expected, atol=1e-6)


def test_beta_may_be_a_schedule_of_the_updates_done():
    frozen = optimizers.sgd(0.0)
    learner = vae(*SAME, frozen, beta=lambda step: 0.5 * step, input_name="x")
    for steps, beta in ((1, 0.0), (3, 1.0)):
        _, metrics, _ = step(learner, {"x": BITS}, steps)
        assert metrics["loss"] == pytest.approx(beta * KL - EVEN, rel=1e-5)


def test_bytes_are_divided_by_255_after_the_augmentation():
    learner = vae(*SAME, SGD, augment=lambda key, x: 255 - x, input_name="x")
    moved, _, _ = step(learner, {"x": np.uint8(255 * BITS)})
    np.testing.assert_allclose(moved["decoder"]["bias"], (1 - BITS - 0.5).mean(0), atol=1e-6)


@pytest.mark.parametrize("samples", [1, 3])
def test_training_averages_over_the_draws(samples):
    x = PCA.x[:5]
    _, metrics, state = step(PCA.learner(PCA.encoder(0.3), samples=samples), {"x": x})
    mean = (x - PCA.bias) @ (PCA.columns / PCA.square) + 0.3
    noise = np.asarray(jax.random.normal(state.rng("latent"), (5, samples, 2)))
    z = mean[:, None] + np.exp(PCA.log_var / 2) * noise
    seen = scipy.stats.norm.logpdf(x[:, None], z @ PCA.columns.T + PCA.bias, PCA.scale).sum(-1)
    assert metrics["reconstruction"] == pytest.approx(seen.mean(), rel=1e-5)
    variance = np.exp(PCA.log_var)
    kl = 0.5 * (variance + mean**2 - 1 - np.log(variance)).sum(-1).mean()
    assert metrics["kl"] == pytest.approx(kl, rel=1e-5)


def test_the_draws_of_the_next_update_are_others():
    _, first, _ = step(PCA.learner(PCA.encoder(), beta=0.0), {"x": PCA.x})
    learner = vae(
        PCA.encoder(),
        PCA.decoder,
        optimizers.sgd(0.0),
        likelihood="gaussian",
        scale=PCA.scale,
        input_name="x",
    )
    _, second, _ = step(learner, {"x": PCA.x}, steps=2)
    assert first["reconstruction"] != second["reconstruction"]


def test_each_term_has_its_gradient_and_no_other():
    learner = PCA.learner(PCA.encoder(0.3, 0.2))
    batch = {"x": PCA.x}
    state = learner.init(jax.random.key(0), batch)

    def slopes(name):
        def value(params):
            return learner.update(state.replace(params=params), batch)[1][name].value()

        return jax.jit(jax.grad(value))(state.params)

    kl, reconstruction = slopes("kl"), slopes("reconstruction")
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(kl["decoder"]))
    assert all((leaf != 0).any() for leaf in jax.tree.leaves(kl["encoder"]))
    assert all((leaf != 0).any() for leaf in jax.tree.leaves(reconstruction["decoder"]))
    # Through the draw, to means and variances alike.
    assert (np.asarray(reconstruction["encoder"]["bias"]) != 0).all()
    x, scale = PCA.x, PCA.scale
    mean = (x - PCA.bias) @ (PCA.columns / PCA.square) + 0.3
    noise = np.asarray(jax.random.normal(state.rng("latent"), (len(x), 1, 2)))[:, 0]
    deviation = np.exp((PCA.log_var + 0.2) / 2)
    error = x - (mean + deviation * noise) @ PCA.columns.T - PCA.bias
    to_z = error @ PCA.columns / scale**2
    expected = np.concatenate([to_z.mean(0), (to_z * noise * deviation / 2).mean(0)])
    np.testing.assert_allclose(reconstruction["encoder"]["bias"], expected, rtol=1e-4, atol=1e-5)


def test_masked_examples_neither_count_nor_get_a_gradient():
    x = np.concatenate([PCA.x[:5], np.full((2, 4), 50, np.float32)])
    mask = np.float32([1, 1, 1, 1, 1, 0, 0])
    learner = PCA.learner(PCA.encoder(0.3), samples=2)
    masked, with_mask, _ = step(learner, {"x": x, "mask": mask})
    short, without, _ = step(learner, {"x": x[:5]})
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), masked, short)
    for name in ("loss", "elbo", "reconstruction", "kl"):
        assert with_mask[name] == pytest.approx(without[name], rel=1e-5)


def test_evaluation_counts_every_example_once_and_never_augments():
    def explode(key, x):
        raise AssertionError("evaluation must not augment")

    learner = PCA.learner(PCA.encoder(), augment=explode)
    state = learner.init(jax.random.key(0), {"x": PCA.x[:1]})
    means = evaluator(learner, {"x": PCA.x[:13]}, 5)(state, jax.random.key(1))
    mean = (PCA.x[:13] - PCA.bias) @ (PCA.columns / PCA.square)
    assert derive(means)["log_likelihood"] == pytest.approx(
        PCA.density.logpdf(PCA.x[:13]).mean(), abs=1e-4
    )
    variance = np.exp(PCA.log_var)
    kl = 0.5 * (variance + mean**2 - 1 - PCA.log_var)
    for name, values in (
        ("latent_mean", mean),
        ("latent_square", mean**2),
        ("latent_kl", kl),
    ):
        np.testing.assert_allclose(means[name].value(), values.mean(0), rtol=1e-4, atol=1e-5)
    assert derive(means)["kl"] == pytest.approx(kl.sum(1).mean(), rel=1e-5)


def test_both_nets_train_with_keys_of_their_own_and_evaluate_without():
    calls = []

    def recording(name, width):
        def apply(params, model_state, x, key=None, train=False):
            calls.append((name, key, train))
            return params * jnp.ones((len(x), width)), model_state + 1 if train else model_state

        return Net(lambda key, x: (jax.random.normal(key), jnp.zeros(())), apply)

    learner = vae(recording("encoder", 2), recording("decoder", 4), SGD, input_name="x")
    start = learner.init(jax.random.key(0), {"x": BITS})
    assert start.params["encoder"] != start.params["decoder"]
    calls.clear()
    state, _ = learner.update(start, {"x": BITS})
    assert [(name, train) for name, _, train in calls] == [("encoder", True), ("decoder", True)]
    assert calls[0][1] != calls[1][1]
    assert state.model_state == {"encoder": 1, "decoder": 1}
    calls.clear()
    learner.evaluate(state, {"x": BITS}, jax.random.key(1))
    assert [(name, train) for name, _, train in calls] == [("encoder", False), ("decoder", False)]


def test_sweeps_over_beta_learning_rate_and_scale_are_the_runs_apart(compilations):
    def make(hparams):
        return vae(
            nets.mlp((3,), 4),
            nets.mlp((3,), 4),
            optimizers.sgd(hparams["learning_rate"]),
            likelihood="gaussian",
            beta=hparams["beta"],
            scale=hparams["scale"],
            input_name="x",
        )

    grid = {
        "beta": np.float32([1.0, 4.0]),
        "learning_rate": np.float32([0.02, 0.01]),
        "scale": np.float32([1.0, 2.0]),
    }
    learner, batch = swept(make, grid), {"x": jnp.asarray(PCA.x[:8])}
    start = jax.jit(learner.init)(jax.random.key(0), batch)
    update = jax.jit(repeated(learner, 3).update)
    state, metrics = update(start, batch)
    evaluated = jax.jit(learner.evaluate)(state, batch, jax.random.key(1))
    evaluated = np.asarray(evaluated["elbo"].value())
    values = np.asarray(metrics["loss"].value())
    backwards = {name: jax.device_put(points[::-1].copy()) for name, points in grid.items()}
    moved = start.replace(hparams=backwards)
    compilations.clear()
    np.testing.assert_allclose(
        np.asarray(update(moved, batch)[1]["loss"].total)[:, ::-1],
        np.asarray(metrics["loss"].total),
        rtol=1e-5,
    )
    assert not compilations
    for i in range(2):
        alone = make({name: float(points[i]) for name, points in grid.items()})
        state = jax.jit(alone.init)(jax.random.key(0), batch)
        state, reported = jax.jit(repeated(alone, 3).update)(state, batch)
        np.testing.assert_allclose(values[:, i], reported["loss"].value(), rtol=1e-4)
        apart = jax.jit(alone.evaluate)(state, batch, jax.random.key(1))
        assert evaluated[i] == pytest.approx(float(apart["elbo"].value()), rel=1e-4)


def test_active_units_are_the_latents_whose_mean_varies():
    # Variances of .04, .0064 and 0 about means of 0, 0 and 5.
    spread = np.float32([[0.2, 0.08, 5], [-0.2, -0.08, 5], [0.2, -0.08, 5], [-0.2, 0.08, 5]])
    encoder = affine(np.concatenate([np.eye(3), np.zeros((3, 3))], axis=1), np.zeros(6))
    learner = vae(encoder, affine(np.eye(3), np.zeros(3)), SGD, likelihood="gaussian")
    state = learner.init(jax.random.key(0), {"image": spread})
    means = jax.jit(learner.evaluate)(state, {"image": spread}, jax.random.key(0))
    values = derive_vae(means)
    assert values["active_units"] == 1 and values["collapsed_units"] == 2
    assert values["kl"] == pytest.approx(0.5 * (spread**2).sum(1).mean(), rel=1e-5)
    # Of nothing there is nothing to say, and what training reports has no such ingredients.
    absent = {name: Mean(0 * mean.total, 0 * mean.count) for name, mean in means.items()}
    assert derive_vae(absent) == {}
    assert derive_vae({"loss": Mean.of(jnp.ones(1))}) == {"loss": 1}


def test_the_code_is_means_then_log_variances_clipped():
    mean, log_var = posterior(jnp.array([[1.0, -2.0, 0.5, 1e4], [0, 0, -1e4, -3]]))
    np.testing.assert_array_equal(mean, [[1, -2], [0, 0]])
    np.testing.assert_array_equal(log_var, [[0.5, 20], [-20, -3]])


def test_pictures():
    learner = PCA.learner(PCA.encoder())
    state = learner.init(jax.random.key(0), {"x": PCA.x[:1]})
    trees = state.params, state.model_state
    z = np.random.default_rng(0).normal(size=(2, 3, 2)).astype(np.float32)
    expected = z @ PCA.columns.T + PCA.bias
    means = decode(PCA.decoder, *trees, z, "gaussian")
    np.testing.assert_allclose(means, expected, rtol=1e-5, atol=1e-6)
    odds = decode(PCA.decoder, *trees, z)
    np.testing.assert_allclose(odds, scipy.special.expit(expected), rtol=1e-5)

    shrunk = (PCA.x - PCA.bias) @ (PCA.columns / PCA.square) @ PCA.columns.T + PCA.bias
    again = reconstruct(PCA.encoder(), PCA.decoder, *trees, PCA.x, "gaussian")
    np.testing.assert_allclose(again, shrunk, rtol=1e-4, atol=1e-5)
    again = reconstruct(PCA.encoder(), PCA.decoder, *trees, np.full((1, 4), 255, np.uint8))
    shrunk = (1 - PCA.bias) @ (PCA.columns / PCA.square) @ PCA.columns.T + PCA.bias
    np.testing.assert_allclose(again[0], scipy.special.expit(shrunk), rtol=1e-4)

    draws = sample_prior(PCA.decoder, *trees, jax.random.key(0), (20000, 2), "gaussian")
    np.testing.assert_allclose(draws.mean(0), PCA.bias, atol=0.04)
    np.testing.assert_allclose(np.cov(draws.T), PCA.columns @ PCA.columns.T, atol=0.08)

    values = np.float32([-3, 0, 3])
    rows = traverse(PCA.decoder, *trees, np.float32([0.5, -1]), values, "gaussian")
    assert rows.shape == (2, 3, 4)
    for i, value in enumerate(values):
        for row, z in ((rows[0, i], [value, -1]), (rows[1, i], [0.5, value])):
            np.testing.assert_allclose(row, PCA.columns @ z + PCA.bias, rtol=1e-5, atol=1e-5)


def test_a_linear_vae_reaches_the_likelihood_of_probabilistic_pca():
    # Tipping and Bishop 1999: with the noise given, the best W has columns of squared length
    # eigenvalue - s^2.
    x = PCA.density.rvs(400, random_state=2)
    sizes, vectors = np.linalg.eigh(np.cov(x.T, bias=True))
    lengths = np.maximum(sizes[2:] - PCA.scale**2, 0)
    covariance = (vectors[:, 2:] * lengths) @ vectors[:, 2:].T + PCA.scale**2 * np.eye(4)
    best = scipy.stats.multivariate_normal(x.mean(0), covariance).logpdf(x).mean()
    learner = vae(
        nets.mlp((), 4),
        nets.mlp((), 4),
        optimizers.adam(schedules.warmup_cosine(0.03, 1200)),
        likelihood="gaussian",
        scale=PCA.scale,
        importance_samples=200,
        input_name="x",
    )
    batch = {"x": jnp.asarray(x, jnp.float32)}
    state = jax.jit(learner.init)(jax.random.key(0), batch)
    state, _ = jax.jit(repeated(learner, 1200).update)(state, batch)
    values = derive_vae(jax.jit(learner.evaluate)(state, batch, jax.random.key(1)))
    assert best - 0.02 < values["elbo"] < best + 0.01
    assert best - 0.02 < values["log_likelihood"] < best + 0.01
    assert values["active_units"] == 2


def init(encoder, decoder, **options):
    learner = vae(encoder, decoder, SGD, **options)
    return learner.init(jax.random.key(0), {"image": np.zeros((5, 2, 2), np.uint8)})


NONE = Net(lambda key, x: ({}, {}), lambda params, state, x, **_: (jnp.zeros((len(x), 0)), state))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: vae(*SAME, SGD, likelihood="poisson"), "vae(likelihood='poisson')"),
        (lambda: vae(*SAME, SGD, beta=-1.0), "vae(beta=-1.0)"),
        (lambda: vae(*SAME, SGD, beta=float("nan")), "vae(beta=nan)"),
        (lambda: vae(*SAME, SGD, scale=0.0), "vae(scale=0.0)"),
        (lambda: vae(*SAME, SGD, samples=0), "vae(samples=0)"),
        (lambda: vae(*SAME, SGD, importance_samples=0), "vae(importance_samples=0)"),
        (lambda: vae(*SAME, SGD, chunk=0), "vae(chunk=0)"),
        (lambda: vae(*SAME, SGD, samples=1.5), "vae(samples=1.5)"),
        (lambda: init(NONE, nets.mlp((), 4)), "(5, 0): expected [B, 2 * latent]"),
        (lambda: init(nets.mlp((), 3), nets.mlp((), 4)), "(5, 3): expected [B, 2 * latent]"),
        (lambda: init(nets.mlp((), 4), nets.mlp((), 4)), "(5, 4) and the data (5, 2, 2) differ"),
    ],
)
def test_bad_input_is_refused_in_one_line(call, words):
    with pytest.raises(InputError) as caught:
        call()
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
