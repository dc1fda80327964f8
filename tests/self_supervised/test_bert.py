"""Masking: its frequencies and what it spares; and the loss of what was chosen alone."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special
import scipy.stats

from nets.net import Net
from paradigms.core.errors import InputError
from paradigms.self_supervised.bert import bert, masked_tokens

KEY = jax.random.key(0)
V, PAD, CLS, MASK = 12, 9, 10, 11
IDS = {"vocab_size": V, "mask_token": MASK}
RNG = np.random.default_rng(0)
TOKENS = jnp.asarray(np.concatenate([np.full((4, 1), CLS), RNG.integers(0, 9, (4, 7))], axis=1))


# Compiled whole: op by op it would be compiled a dozen times.
NAMES = ("vocab_size", "mask_token", "special_tokens", "rate")
hide = jax.jit(masked_tokens, static_argnames=NAMES)


def places_net(start):
    """Logits that belong to places, `start[B, T, V]`, whatever the tokens."""
    params = {"logits": jnp.asarray(start, jnp.float32)}
    return Net(
        lambda key, tokens, valid: (params, {}),
        lambda params, state, tokens, valid, **_: (params["logits"][: len(tokens)], state),
    )


def test_frequencies():
    n = 200_000
    tokens = jnp.full((n // 100, 100), 3)
    inputs, chosen = hide(KEY, tokens, **IDS, special_tokens=(CLS,))
    inputs, chosen = np.asarray(inputs), np.asarray(chosen)
    assert inputs.dtype == tokens.dtype and chosen.dtype == bool
    hidden, kept = (inputs == MASK)[chosen].sum(), (inputs == 3)[chosen].sum()
    replaced = chosen.sum() - hidden - kept

    def plausible(count, of, share):
        return scipy.stats.binomtest(int(count), int(of), share).pvalue > 1e-3

    assert plausible(chosen.sum(), n, 0.15)
    assert plausible(hidden, n, 0.12)
    # One in ten of the words drawn is the same again: 9 ordinary ones, and PAD, not special here.
    assert plausible(replaced, n, 0.015 * 9 / 10)
    assert plausible(kept, n, 0.015 + 0.015 / 10)
    assert (inputs == tokens)[~chosen].all()
    # Drawn words are uniform over the ordinary tokens, and never special.
    counts = np.bincount(inputs[chosen & (inputs != 3) & (inputs != MASK)], minlength=V)
    assert counts[[3, CLS, MASK]].sum() == 0
    ordinary = np.delete(counts, [3, CLS, MASK])
    assert scipy.stats.chisquare(ordinary).pvalue > 1e-3
    # Neighbours are chosen independently of each other.
    pairs = (chosen[:, :-1] & chosen[:, 1:]).sum()
    assert plausible(pairs, chosen[:, 1:].size, 0.15**2)


@pytest.mark.parametrize("rate", [0.3, 0.999])
def test_the_rate_and_what_is_spared(rate):
    tokens = jax.random.randint(KEY, (500, 40), 0, V)
    inputs, chosen = hide(KEY, tokens, **IDS, special_tokens=(PAD, CLS), rate=rate)
    special = np.isin(tokens, [PAD, CLS, MASK])
    assert not np.asarray(chosen)[special].any()
    np.testing.assert_array_equal(inputs[special], tokens[special])
    eligible = (~special).sum()
    assert scipy.stats.binomtest(int(chosen.sum()), int(eligible), rate).pvalue > 1e-3


def test_masks_are_of_the_key():
    again, other = (
        masked_tokens(KEY, TOKENS, **IDS),
        masked_tokens(jax.random.key(1), TOKENS, **IDS),
    )
    for a, b in zip(hide(KEY, TOKENS, **IDS), again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert (again[1] != other[1]).any()


def test_the_loss_is_over_what_was_chosen():
    logits = RNG.normal(size=(4, 8, V)).astype(np.float32)
    learner = bert(places_net(logits), optax.sgd(1.0), **IDS, special_tokens=[CLS], rate=0.4)
    state = learner.init(KEY, {"tokens": TOKENS})
    options = {**IDS, "special_tokens": (CLS,), "rate": 0.4}
    update, evaluate = jax.jit(learner.update), jax.jit(learner.evaluate)
    log_p = scipy.special.log_softmax(logits.astype(np.float64), axis=-1)
    nats = -np.take_along_axis(log_p, np.asarray(TOKENS)[..., None], axis=-1)[..., 0]
    hits = logits.argmax(-1) == np.asarray(TOKENS)
    mask = np.array([1.0, 1.0, 0.0, 1.0])
    for weight in (np.ones(4), mask):
        batch = {"tokens": TOKENS, "mask": jnp.asarray(weight)}
        after, updated = update(state, batch)
        evaluated = evaluate(state, batch, jax.random.key(7))
        for found, key in ((updated, state.rng("mask")), (evaluated, jax.random.key(7))):
            chosen = np.asarray(hide(key, TOKENS, **options)[1]) * weight[:, None]
            assert float(found["loss"].count) == chosen.sum() > 0
            expected = (nats * chosen).sum() / chosen.sum()
            assert float(found["loss"].value()) == pytest.approx(expected, rel=1e-5)
            expected = (hits * chosen).sum() / chosen.sum()
            assert float(found["accuracy"].value()) == pytest.approx(expected, rel=1e-5)
        # The gradient reaches the chosen places, and no others.
        chosen = np.asarray(hide(state.rng("mask"), TOKENS, **options)[1])
        chosen = chosen & (weight > 0)[:, None]
        moved = np.asarray(after.params["logits"]) != logits
        assert not moved[~chosen].any()
        assert moved[chosen].all()
        assert 0 < chosen.sum() < chosen.size


def test_other_tokens_are_hidden_at_every_update():
    learner = bert(places_net(np.zeros((4, 8, V))), optax.sgd(0.1), **IDS, rate=0.5)
    batch = {"tokens": TOKENS}
    state = learner.init(KEY, batch)
    counts, update = [], jax.jit(learner.update)
    for _ in range(6):
        state, metrics = update(state, batch)
        counts.append(float(metrics["loss"].count))
    assert len(set(counts)) > 1


def test_uniform_logits_cost_the_logarithm_of_the_vocabulary():
    learner = bert(places_net(np.zeros((4, 8, V))), optax.sgd(0.1), **IDS)
    state = learner.init(KEY, {"tokens": TOKENS})
    _, metrics = jax.jit(learner.update)(state, {"tokens": TOKENS})
    assert float(metrics["loss"].value()) == pytest.approx(np.log(V), rel=1e-6)


def test_the_net_sees_hidden_tokens_and_where_there_is_padding():
    seen = {}

    def apply(params, state, tokens, valid, key=None, train=False):
        seen[train] = (tokens, valid, key is not None)
        return jnp.zeros((*tokens.shape, V)) + params, {"calls": state["calls"] + train}

    net = Net(lambda key, tokens, valid: (jnp.zeros(V), {"calls": jnp.int32(0)}), apply)
    tokens = TOKENS.at[1, 5:].set(PAD)
    options = {"special_tokens": (CLS,), "rate": 0.9}
    learner = bert(net, optax.sgd(0.1), **IDS, **options, pad_token=PAD)
    state, _ = learner.update(start := learner.init(KEY, {"tokens": tokens}), {"tokens": tokens})
    learner.evaluate(state, {"tokens": tokens}, KEY)
    assert state.model_state["calls"] == 1
    options["special_tokens"] = (CLS, PAD)
    for train, key in ((True, start.rng("mask")), (False, KEY)):
        inputs, valid, has_key = seen[train]
        assert has_key and valid.dtype == bool
        np.testing.assert_array_equal(valid, tokens != PAD)
        np.testing.assert_array_equal(inputs, hide(key, tokens, **IDS, **options)[0])
        assert (inputs == MASK).sum() > 10 and (inputs[1, 5:] == PAD).all()
    # Without padding everything is valid.
    bert(net, optax.sgd(0.1), **IDS).evaluate(state, {"tokens": tokens}, KEY)
    assert seen[False][1].all()


def test_nothing_chosen_is_no_loss():
    tokens = jnp.full((4, 8), CLS)
    learner = bert(places_net(np.zeros((4, 8, V))), optax.sgd(0.1), **IDS, special_tokens=[CLS])
    state = learner.init(KEY, {"tokens": tokens})
    state, metrics = jax.jit(learner.update)(state, {"tokens": tokens})
    assert metrics["loss"].count == metrics["loss"].value() == 0
    assert (state.params["logits"] == 0).all()


def test_bad_options_are_one_line():
    net, sgd = places_net(np.zeros((4, 8, V))), optax.sgd(0.1)
    for rate in (0.0, 1.0, -0.1, 15, float("nan")):
        with pytest.raises(InputError, match=r"rate=.*: expected the share of tokens to hide"):
            bert(net, sgd, **IDS, rate=rate)
        with pytest.raises(InputError, match=r"in \(0, 1\)"):
            masked_tokens(KEY, TOKENS, **IDS, rate=rate)
    for options in ({"mask_token": V}, {"special_tokens": [-1]}, {"pad_token": V}):
        with pytest.raises(InputError, match=r"special tokens .* are outside the vocabulary: .*11"):
            bert(net, sgd, **{**IDS, **options})
    with pytest.raises(InputError, match="all 12 tokens are special: there is none to hide"):
        bert(net, sgd, **IDS, special_tokens=range(V))
    learner = bert(places_net(np.zeros((4, 5, V))), sgd, **IDS)
    state = learner.init(KEY, {"tokens": TOKENS})
    with pytest.raises(InputError, match=r"logits \(4, 5, 12\) and tokens \(4, 8\) do not fit"):
        learner.update(state, {"tokens": TOKENS})
