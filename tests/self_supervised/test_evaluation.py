import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from paradigms.core import optimizers
from paradigms.core.errors import InputError
from paradigms.core.learner import minimise
from paradigms.core.metrics import Mean, derive
from paradigms.core.transforms import averaged, repeated, seeded
from paradigms.self_supervised.evaluation import knn, linear_probe, logistic_probe, probed

SGD = optimizers.sgd(0.1, 0.9)
RNG = np.random.default_rng(0)
BANK = RNG.normal(size=(60, 5)).astype(np.float32) * RNG.lognormal(size=(60, 1)).astype(np.float32)
LABELS = RNG.integers(0, 4, 60)
QUERIES = RNG.normal(size=(17, 5)).astype(np.float32)


def blobs(number, seed, classes=3, dimensions=4):
    """Gaussians at corners ten standard deviations apart, and their classes."""
    rng = np.random.default_rng(seed)
    label = np.arange(number) % classes
    x = 10 * np.eye(classes, dimensions)[label] + rng.normal(size=(number, dimensions))
    return x.astype(np.float32), label.astype(np.int32)


@pytest.mark.parametrize(("k", "temperature"), [(20, 0.07), (5, 0.1), (60, 0.01)])
def test_votes_are_those_of_scikit_learn(k, temperature):
    # On the unit sphere the squared distance is 2 - 2 s, so its neighbours are ours.
    reference = KNeighborsClassifier(
        k, weights=lambda distance: np.exp((1 - distance**2 / 2) / temperature)
    )

    def unit(x):
        x = x.astype(np.float64)
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    expected = reference.fit(unit(BANK), LABELS).predict_proba(unit(QUERIES))
    votes = knn(BANK, LABELS, QUERIES, 4, k=k, temperature=temperature)
    assert votes.shape == (17, 4) and votes.dtype == jnp.float32
    np.testing.assert_allclose(votes, expected, atol=2e-5)


def test_votes_by_hand():
    bank = np.float32([[2, 0], [0, 3], [-1, 0]])
    votes = knn(bank, np.array([1, 0, 1]), np.float32([[5, 0]]), 3, k=2, temperature=0.5)
    # Cosines 1 and 0, weights e^2 and 1.
    share = np.exp(2) / (np.exp(2) + 1)
    np.testing.assert_allclose(votes, [[1 - share, share, 0]], rtol=1e-5)
    # 1.5 / .001 is far beyond what exp knows in float32.
    cold = knn(bank, np.array([1, 0, 1]), np.float32([[5, 0.1]]), 3, k=2, temperature=1e-3)
    np.testing.assert_array_equal(cold, [[0, 1, 0]])


def test_examples_without_a_label_have_no_vote():
    labels = np.where(np.arange(60) % 3 == 0, -1, LABELS)
    known = labels >= 0
    votes = knn(BANK, labels, QUERIES, 4, k=20)
    np.testing.assert_allclose(votes, knn(BANK[known], labels[known], QUERIES, 4, k=20), rtol=1e-5)
    # Under jit nobody can count them: all that there are vote, and none else.
    few = np.where(np.arange(60) < 3, LABELS, -1)
    votes = jax.jit(lambda labels: knn(BANK, labels, QUERIES, 4, k=20))(few)
    np.testing.assert_allclose(votes, knn(BANK[:3], few[:3], QUERIES, 4, k=3), rtol=1e-5)


def test_chunks_of_queries_change_nothing():
    whole = knn(BANK, LABELS, QUERIES, 4, k=7, chunk=100)
    np.testing.assert_allclose(knn(BANK, LABELS, QUERIES, 4, k=7, chunk=5), whole, atol=1e-6)
    # No more than a chunk's similarities are there at any time.
    jaxpr = jax.make_jaxpr(lambda queries: knn(BANK, LABELS, queries, 4, k=7, chunk=5))(QUERIES)
    assert "[5,60]" in str(jaxpr)
    assert "[17,60]" not in str(jaxpr) and "[60,17]" not in str(jaxpr)


def probe_by_sgd(x, label, validation=None, **options):
    held_out, truth = blobs(60, 1) if validation is None else validation
    # Three rates, so that most tests share one program.
    options = {"learning_rates": (0.03, 0.1, 0.3), "steps": 60, "batch_size": 30, **options}
    train, held_out = {"feature": x, "label": label}, {"feature": held_out, "label": truth}
    return linear_probe(jax.random.key(0), train, held_out, 3, **options)


def test_blobs_are_told_apart_by_both_probes():
    x, label = blobs(90, 0)
    other, truth = blobs(300, 2)
    probe, accuracy = probe_by_sgd(x, label)
    assert accuracy.shape == (3,) and accuracy.max() == 1
    assert (probe.logits(other).argmax(1) == truth).all()
    assert (logistic_probe(x, label, 3).logits(other).argmax(1) == truth).all()


@pytest.mark.parametrize("way", ["sgd", "lbfgs"])
def test_badly_scaled_features_have_to_be_standardised(way):
    def spoilt(number, seed):
        # All that tells the classes is small beside a feature that tells nothing.
        x, label = blobs(number, seed)
        return x * np.float32([0.01, 0.01, 0.01, 3000]) + np.float32([0, 0, 0, 1e4]), label

    def accuracy(standardise):
        if way == "lbfgs":
            probe = logistic_probe(*spoilt(90, 0), 3, standardise=standardise, steps=20)
        else:
            probe, _ = probe_by_sgd(*spoilt(90, 0), spoilt(60, 1), standardise=standardise)
        other, truth = spoilt(300, 2)
        return (probe.logits(other).argmax(1) == truth).mean()

    assert accuracy(True) == 1
    assert accuracy(False) < 0.8


def test_the_rate_is_chosen_on_validation_data():
    x, label = blobs(90, 0)
    # A rate of 0 learns nothing.
    probe, accuracy = probe_by_sgd(x, label, learning_rates=(0.0, 0.1, 0.0))
    np.testing.assert_allclose(accuracy, [1 / 3, 1, 1 / 3], rtol=1e-6)
    assert (probe.kernel != 0).any()
    # Of those that are as good the first is kept.
    first, _ = probe_by_sgd(x, label, learning_rates=(0.1, 0.3, 0.0))
    np.testing.assert_array_equal(probe.kernel, first.kernel)
    # Where the classes of the validation data are others, so is the choice.
    held_out, truth = blobs(60, 1)
    swapped, accuracy = probe_by_sgd(
        x, label, (held_out, np.maximum(truth - 1, 0)), learning_rates=(0.1, 0.0, 0.1)
    )
    assert accuracy[1] == pytest.approx(2 / 3) and (swapped.kernel == 0).all()


def test_standardising_is_that_of_the_training_features():
    x, label = blobs(90, 0)
    scaler = StandardScaler().fit(x)
    for probe in (logistic_probe(x, label, 3), probe_by_sgd(x, label)[0]):
        np.testing.assert_allclose(probe.mean, scaler.mean_, rtol=1e-5)
        np.testing.assert_allclose(probe.scale, scaler.scale_, rtol=1e-4)
        logits = (x - scaler.mean_) / scaler.scale_ @ probe.kernel + probe.bias
        np.testing.assert_allclose(probe.logits(x), logits, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("c", [0.1, 10.0])
@pytest.mark.parametrize("standardise", [True, False])
def test_the_logistic_probe_is_that_of_scikit_learn(c, standardise):
    x, label = blobs(90, 0)
    x += np.random.default_rng(3).normal(size=x.shape).astype(np.float32) * 4 + 3
    known = np.arange(90) % 4 != 0
    probe = logistic_probe(x, np.where(known, label, -1), 3, c=c, standardise=standardise)
    # The statistics are of all features, the rest of those with a label.
    scaled = StandardScaler().fit_transform(x) if standardise else x.astype(np.float64)
    reference = LogisticRegression(C=c, tol=1e-9, max_iter=10000).fit(scaled[known], label[known])
    np.testing.assert_allclose(probe.kernel.T, reference.coef_, atol=2e-3)
    odds = jax.nn.softmax(probe.logits(x))
    np.testing.assert_allclose(odds, reference.predict_proba(scaled), atol=1e-3)


IMAGES = {"image": jnp.asarray(blobs(12, 0)[0] / 10), "label": jnp.asarray(blobs(12, 0)[1])}


def embedding(optimizer=SGD):
    """A learner of two features with noise and a running mean: it reconstructs its input."""

    def loss(params, state, batch):
        noise = 0.1 * jax.random.normal(state.rng("noise"), batch["image"].shape)
        z = (batch["image"] + noise) @ params["in"]
        losses = jnp.square(z @ params["out"] - batch["image"]).mean(-1)
        metrics = {"loss": Mean.of(losses, batch.get("mask"))}
        return metrics["loss"].value(), (metrics, {"mean": batch["image"].mean(0)})

    def init(key, batch):
        keys = jax.random.split(key)
        params = {
            "in": jax.random.normal(keys[0], (4, 2)),
            "out": jax.random.normal(keys[1], (2, 4)),
        }
        return jax.tree.map(lambda leaf: 0.3 * leaf, params), {"mean": jnp.zeros(4)}

    def evaluate(state, batch, key):
        losses = jnp.square(batch["image"] @ state.params["in"] @ state.params["out"]).mean(-1)
        return {"loss": Mean.of(losses, batch.get("mask"))}

    return minimise(loss, optimizer, init=init, evaluate=evaluate)


def features(state, batch):
    return batch["image"] @ state.params["in"]


WITH_PROBE = probed(embedding(), features, 3, SGD)
INIT, UPDATE = jax.jit(WITH_PROBE.init), jax.jit(WITH_PROBE.update)


def assert_same(first, second):
    def data(leaf):
        is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return jax.random.key_data(leaf) if is_key else leaf

    jax.tree.map(lambda a, b: np.testing.assert_array_equal(data(a), data(b)), first, second)


@pytest.fixture(scope="module")
def runs():
    """States and metrics of thirty updates, alone and with a probe."""
    found = []
    for learner in (embedding(), WITH_PROBE):
        state = jax.jit(learner.init)(jax.random.key(0), IMAGES)
        found.append(jax.jit(repeated(learner, 30).update)(state, IMAGES))
    return found


def test_a_probe_leaves_the_learner_as_it_is_to_the_last_bit(runs):
    (alone, reported), (state, metrics) = runs
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((alone.params, state.target)))
    assert set(state.target) == {"probe"}
    assert_same(state.replace(target={}), alone)
    assert_same({name: metrics[name] for name in reported}, reported)
    assert set(metrics) - set(reported) == {"probe/loss", "probe/accuracy"}
    keys = jax.random.key(1)
    ours, theirs = (
        jax.jit(learner.evaluate)(start, IMAGES, keys)
        for learner, start in ((WITH_PROBE, state), (embedding(), alone))
    )
    assert_same(ours["loss"], theirs["loss"])
    assert set(ours) == {"loss", "probe/loss", "probe/accuracy"}


def test_the_probe_is_softmax_regression_on_the_features_before_each_step(runs):
    learner, tx = embedding(), optax.sgd(0.1, 0.9)
    state = jax.jit(learner.init)(jax.random.key(0), IMAGES)
    update = jax.jit(learner.update)
    params = {"kernel": jnp.zeros((2, 3)), "bias": jnp.zeros(3)}
    opt_state, losses, hits = tx.init(params), [], []

    def loss(params, z):
        log_p = jax.nn.log_softmax(z @ params["kernel"] + params["bias"])
        return -log_p[jnp.arange(12), IMAGES["label"]].mean()

    slope = jax.jit(jax.value_and_grad(loss))
    for _ in range(30):
        z = features(state, IMAGES)
        hits.append((z @ params["kernel"] + params["bias"]).argmax(1) == IMAGES["label"])
        value, grads = slope(params, z)
        losses.append(value)
        updates, opt_state = tx.update(grads, opt_state)
        params = optax.apply_updates(params, updates)
        state, _ = update(state, IMAGES)
    _, (final, metrics) = runs
    np.testing.assert_allclose(metrics["probe/loss"].value(), losses, rtol=1e-4)
    np.testing.assert_allclose(metrics["probe/accuracy"].value(), np.mean(hits, 1), atol=1e-6)
    np.testing.assert_allclose(
        final.target["probe"]["params"]["kernel"], params["kernel"], rtol=1e-3
    )
    assert losses[0] == pytest.approx(np.log(3)) and losses[-1] < 0.9


def test_no_gradient_of_the_probe_reaches_the_backbone():
    # With the weights of 0 that it starts from there would be none in any case.
    state, _ = UPDATE(INIT(jax.random.key(0), IMAGES), IMAGES)

    def loss(params):
        return UPDATE(state.replace(params=params), IMAGES)[1]["probe/loss"].value()

    assert all((leaf == 0).all() for leaf in jax.tree.leaves(jax.jit(jax.grad(loss))(state.params)))


def test_neither_masked_nor_unlabelled_examples_reach_the_probe():
    mask = np.float32([1] * 10 + [0, 1])
    label = np.where(np.arange(12) == 11, -1, IMAGES["label"])
    spoilt = IMAGES["image"].at[10:].set(77.0)
    start = INIT(jax.random.key(0), IMAGES)
    batch = {"image": spoilt, "label": jnp.asarray(label), "mask": jnp.asarray(mask)}
    state, metrics = UPDATE(start, batch)
    assert metrics["probe/loss"].count == metrics["probe/accuracy"].count == 10
    assert derive(metrics)["probe/loss"] == pytest.approx(np.log(3))
    # At weights of 0 all classes have 1/3, and class 0 is the guess.
    assert derive(metrics)["probe/accuracy"] == pytest.approx(0.4)
    z = np.asarray(features(start, IMAGES))[:10]
    error = 1 / 3 - np.eye(3)[label[:10]]
    expected = -0.1 * z.T @ error / 10
    np.testing.assert_allclose(state.target["probe"]["params"]["kernel"], expected, atol=1e-6)
    # A batch without any label moves nothing.
    state, metrics = UPDATE(start, {**batch, "label": jnp.full(12, -1)})
    assert metrics["probe/loss"].count == 0
    assert (state.target["probe"]["params"]["kernel"] == 0).all()


def test_a_label_that_is_no_class_stops_the_run():
    state = INIT(jax.random.key(0), IMAGES)
    _, metrics = UPDATE(state, {**IMAGES, "label": IMAGES["label"] + 1})
    assert not np.isfinite(metrics["probe/loss"].value())


def test_a_probe_goes_with_the_other_transformations():
    learner = seeded(averaged(WITH_PROBE, 0.5, model_state="live"), method="map")

    @jax.jit
    def run(keys):
        return learner.update(learner.init(keys, IMAGES), IMAGES)

    state, metrics = run(jax.random.split(jax.random.key(0), 2))
    assert metrics["probe/loss"].count.shape == (2,)
    assert set(state.target) == {"probe", "average"}


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: knn(BANK, LABELS, QUERIES, 4), "knn(k=200): the bank has 60 labelled"),
        (lambda: knn(BANK, LABELS - 9, QUERIES, 4, k=1), "the bank has 0 labelled"),
        (lambda: knn(BANK, LABELS, QUERIES, 4, k=0), "knn(k=0)"),
        (lambda: knn(BANK, LABELS, QUERIES[:, :2], 4, k=5), "queries (17, 2) and bank (60, 5)"),
        (lambda: knn(BANK, LABELS[:9], QUERIES, 4, k=5), "labels (9,): expected [N, D] and [N]"),
        (lambda: knn(BANK, LABELS * 1.0, QUERIES, 4, k=5), "labels have dtype float64"),
        (lambda: knn(BANK, LABELS, QUERIES, 3, k=5), "label 3 with 3 classes: expected 0 to 2"),
        (lambda: knn(BANK, LABELS, QUERIES, 4, k=5, temperature=0.0), "temperature=0.0"),
        (lambda: knn(BANK, LABELS, QUERIES, 4, k=5, chunk=0), "chunk=0"),
        (lambda: logistic_probe(BANK, LABELS, 4, c=0.0), "logistic_probe(c=0.0"),
        (lambda: probe_by_sgd(BANK, LABELS), "linear_probe(train): label 3"),
        (lambda: probe_by_sgd(BANK[:, :4], LABELS % 3, batch_size=61), "61"),
        (
            lambda: WITH_PROBE.init(jax.random.key(0), {"image": IMAGES["image"]}),
            "the batch has no 'label'",
        ),
        (
            lambda: probed(embedding(), lambda state, batch: batch["image"][0], 3, SGD).init(
                jax.random.key(0), IMAGES
            ),
            "probed: features (4,) and labels (12,)",
        ),
    ],
)
def test_bad_input_is_refused_in_one_line(call, words):
    with pytest.raises(InputError) as caught:
        call()
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
