"""The language model: its loss by hand, and a Markov chain whose entropy rate is known."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special

from nets.net import Net
from paradigms.core import optimizers
from paradigms.core.errors import InputError
from paradigms.core.loop import evaluator
from paradigms.core.metrics import Mean
from paradigms.core.transforms import repeated, windowed
from paradigms.data.tokens import windows
from paradigms.self_supervised.gpt import cross_entropy, derive_language, gpt

KEY = jax.random.key(0)
TABLE = np.random.default_rng(0).normal(size=(5, 5)).astype(np.float32)


def table_net(table):
    """The bigram model `logits = table[token]`, which starts at this table."""
    start = {"table": jnp.asarray(table, jnp.float32)}
    return Net(
        lambda key, tokens: (start, {}),
        lambda params, state, tokens, **_: (params["table"][tokens], state),
    )


BATCH = {"tokens": jnp.array([[0, 3, 3, 1], [4, 2, 0, 0], [1, 1, 1, 1]])}


def nats_by_hand(rows):
    """Minus the logarithm of the probability of each token but the first."""
    log_p = scipy.special.log_softmax(TABLE.astype(np.float64), axis=1)
    return np.array([[-log_p[a, b] for a, b in zip(row, row[1:], strict=False)] for row in rows])


def test_the_loss_by_hand():
    nats = nats_by_hand(BATCH["tokens"].tolist())
    learner = gpt(table_net(TABLE), optax.sgd(0.5))
    state = learner.init(KEY, BATCH)
    after, updated = jax.jit(learner.update)(state, BATCH)
    evaluated = jax.jit(learner.evaluate)(state, BATCH, KEY)
    hits = [
        TABLE[a].argmax() == b
        for row in BATCH["tokens"].tolist()
        for a, b in zip(row, row[1:], strict=False)
    ]
    for found in (updated, evaluated):
        assert float(found["loss"].value()) == pytest.approx(nats.mean(), rel=1e-6)
        assert float(found["accuracy"].value()) == pytest.approx(np.mean(hits))
        assert found["loss"].count == 3
    # The gradient of the mean: softmax less one-hot, over the 9 predictions.
    softmax = scipy.special.softmax(TABLE, axis=1)
    gradient = np.zeros((5, 5))
    for row in BATCH["tokens"].tolist():
        for a, b in zip(row, row[1:], strict=False):
            gradient[a] += (softmax[a] - np.eye(5)[b]) / 9
    np.testing.assert_allclose(after.params["table"], TABLE - 0.5 * gradient, atol=1e-6)


def test_masked_windows_do_not_count():
    learner = gpt(table_net(TABLE), optax.sgd(0.5))
    state = learner.init(KEY, BATCH)
    kept = {"tokens": BATCH["tokens"][:2]}
    masked = {**BATCH, "mask": jnp.array([1.0, 1.0, 0.0])}
    update = jax.jit(learner.update)
    expected, reported = update(state, kept)
    found, metrics = update(state, masked)
    np.testing.assert_allclose(found.params["table"], expected.params["table"], atol=1e-7)
    np.testing.assert_allclose(metrics["loss"].value(), reported["loss"].value(), rtol=1e-6)
    assert jax.jit(learner.evaluate)(state, masked, KEY)["loss"].count == 2


def test_uniform_logits_cost_the_logarithm_of_the_vocabulary():
    logits, tokens = jnp.zeros((2, 3, 65), jnp.bfloat16), jnp.array([[0, 64, 7], [1, 2, 3]])
    found = cross_entropy(logits, tokens)
    assert found.dtype == jnp.float32 and found.shape == (2, 3)
    np.testing.assert_allclose(found, 4.1744, atol=1e-4)


def test_the_last_token_is_asked_and_not_read():
    seen = []

    def apply(params, state, tokens, **_):
        seen.append(tokens)
        return jnp.zeros((*tokens.shape, 5)), state

    learner = gpt(Net(lambda key, tokens: ({}, {}), apply), optax.sgd(0.1))
    state = learner.init(KEY, BATCH)
    learner.evaluate(state, BATCH, KEY)
    np.testing.assert_array_equal(seen[0], BATCH["tokens"][:, :-1])


def test_training_has_a_key_and_new_statistics_and_evaluation_has_not():
    seen = []

    def apply(params, state, tokens, key=None, train=False):
        seen.append((key is not None, train))
        logits = jnp.zeros((*tokens.shape, 5)) + params
        return logits, {"calls": state["calls"] + train}

    net = Net(lambda key, tokens: (jnp.zeros(5), {"calls": jnp.int32(0)}), apply)
    learner = gpt(net, optax.sgd(0.1))
    state, _ = learner.update(learner.init(KEY, BATCH), BATCH)
    learner.evaluate(state, BATCH, KEY)
    assert seen == [(True, True), (True, False)]
    assert state.model_state["calls"] == 1


def chain(size, seed):
    """A Markov text of four letters with the entropy rate of its chain, in nats."""
    rng = np.random.default_rng(0)
    matrix = rng.dirichlet([0.5] * 4, size=4)
    values, vectors = np.linalg.eig(matrix.T)
    stationary = np.real(vectors[:, np.argmax(np.real(values))])
    stationary /= stationary.sum()
    rate = -(stationary[:, None] * scipy.special.xlogy(matrix, matrix)).sum()
    ends = matrix.cumsum(axis=1)
    text, token = np.zeros(size, np.int32), 0
    for i, draw in enumerate(np.random.default_rng(seed).random(size)):
        text[i] = token = min(int(np.searchsorted(ends[token], draw)), 3)
    return text, matrix, stationary, rate


def test_trained_on_a_markov_chain_it_reaches_the_entropy_rate():
    text, matrix, stationary, rate = chain(40_000, 1)
    learner = windowed(gpt(table_net(np.zeros((4, 4))), optimizers.adam(0.05)), 32, 16)
    data = {"tokens": jnp.asarray(text)}
    state = jax.jit(learner.init)(KEY, data)
    held_out = windows(chain(40_000, 2)[0], 16)
    evaluate = evaluator(learner, {"tokens": held_out}, 256)
    start = derive_language(evaluate(state, KEY))
    assert start["loss"] == pytest.approx(np.log(4), rel=1e-5)
    assert start["perplexity"] == pytest.approx(4, rel=1e-5)
    assert start["bits_per_token"] == pytest.approx(2, rel=1e-5)
    state, _ = jax.jit(repeated(learner, 300).update)(state, data)
    # What the table costs on average over the chain itself, and on a text of it.
    log_p = scipy.special.log_softmax(np.asarray(state.params["table"], np.float64), axis=1)
    exact = -(stationary[:, None] * matrix * log_p).sum()
    assert rate <= exact < 1.005 * rate
    found = derive_language(evaluate(state, KEY))
    assert found["loss"] == pytest.approx(rate, rel=0.02)
    assert evaluate(state, KEY)["loss"].count == len(held_out)
    assert rate < 0.8 * np.log(4)  # so that there was something to learn


def test_derived_numbers():
    found = derive_language({"loss": Mean.of(np.log(8.0)), "accuracy": Mean.of(0.5)})
    assert found["perplexity"] == pytest.approx(8, rel=1e-5)
    assert found["bits_per_token"] == pytest.approx(3, rel=1e-5)
    assert found["accuracy"] == 0.5
    assert derive_language({"loss": Mean.of(1e6)})["perplexity"] > 1e300
    assert derive_language({"accuracy": Mean.of(1.0)}) == {"accuracy": 1.0}
    assert derive_language({"loss": Mean.of(1.0, 0.0)}) == {}


def test_bad_batches_are_one_line():
    learner = gpt(table_net(TABLE), optax.sgd(0.1))
    for tokens in (jnp.zeros((3, 1), jnp.int32), jnp.zeros(3, jnp.int32), jnp.zeros((3, 4))):
        with pytest.raises(InputError, match=r"gpt: tokens are .*: expected integers \[B, T \+ 1"):
            learner.init(KEY, {"tokens": tokens})
    pooled = Net(lambda key, x: ({}, {}), lambda p, s, x, **_: (jnp.zeros((len(x), 5)), s))
    learner = gpt(pooled, optax.sgd(0.1))
    state = learner.init(KEY, BATCH)
    with pytest.raises(InputError, match=r"logits \(3, 5\) and tokens \(3, 3\) do not fit"):
        learner.update(state, BATCH)
