"""Generation: filters by hand, a table's chain and frequencies, and the cache against none."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from nets.net import Net
from paradigms.core.errors import InputError
from paradigms.self_supervised.generation import generate, top_k_logits, top_p_logits

KEY = jax.random.key(0)
INF = np.inf


def table_net(table):
    """The bigram model `logits = table[token]`; its cache is empty."""

    def apply(params, state, tokens, cache=None, **_):
        logits = jnp.asarray(params)[tokens]
        return (logits if cache is None else (logits, cache)), state

    return Net(lambda key, tokens: (jnp.asarray(table), {}), apply), lambda batch: ()


def summing_net(vocabulary=7, context=12, width=5):
    """Logits from the position and the sum of all embeddings so far, which is what it caches."""
    keys = jax.random.split(jax.random.key(3), 3)
    params = {
        "embedding": jax.random.normal(keys[0], (vocabulary, width)),
        "positions": jax.random.normal(keys[1], (context, width)),
        "kernel": jax.random.normal(keys[2], (width, vocabulary)),
    }

    def cache(batch):
        return {"sum": jnp.zeros((batch, width)), "length": jnp.zeros((), jnp.int32)}

    def apply(params, state, tokens, past=None, **_):
        length = tokens.shape[1]
        if length > context:
            raise ValueError(f"{length} tokens do not fit a context of {context}")
        start = cache(len(tokens)) if past is None else past
        places = jnp.arange(length) + start["length"]
        sums = start["sum"][:, None] + jnp.cumsum(params["embedding"][tokens], axis=1)
        logits = jnp.sin(sums + params["positions"][places]) @ params["kernel"]
        if past is None:
            return logits, state
        return (logits, {"sum": sums[:, -1], "length": start["length"] + length}), state

    return Net(lambda key, tokens: (params, {}), apply), cache, params


def test_greedy_is_the_chain_of_the_best():
    rng = np.random.default_rng(0)
    table = rng.normal(size=(9, 9)).astype(np.float32)
    net, cache = table_net(table)
    prompt = jnp.array([[4, 1], [2, 7], [0, 0]], jnp.uint8)
    write = jax.jit(lambda key: generate(net, cache, table, {}, prompt, 6, key, temperature=0))
    found = write(KEY)
    assert found.dtype == jnp.uint8 and found.shape == (3, 8)
    expected = np.asarray(prompt).tolist()
    for row in expected:
        for _ in range(6):
            row.append(int(table[row[-1]].argmax()))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 2.0}, {"top_k": 2}, {"top_p": 0.5}, {"top_k": 3, "top_p": 0.8}]
)
def test_drawn_pairs_have_the_frequencies_of_the_softmax(options):
    rng = np.random.default_rng(1)
    table = rng.normal(size=(4, 4)).astype(np.float32)
    net, cache = table_net(table)
    prompt = jnp.zeros((200, 1), jnp.int32)
    write = jax.jit(lambda key: generate(net, cache, table, {}, prompt, 60, key, **options))
    found = np.asarray(write(jax.random.key(5)))
    counts = np.zeros((4, 4))
    np.add.at(counts, (found[:, :-1], found[:, 1:]), 1)
    assert counts.sum() == 200 * 60
    table = table.astype(np.float64)
    # Temperature first, then the k best, then the nucleus of what is left.
    share = np.exp(table / options.get("temperature", 1.0))
    for row in share:
        order = np.argsort(-row)
        row[order[options.get("top_k", 4) :]] = 0
        row /= row.sum()
        reached = np.cumsum(row[order]) >= options.get("top_p", 1.0) - 1e-7
        row[order[np.argmax(reached) + 1 :]] = 0
        row /= row.sum()
    for i in range(4):
        possible = share[i] > 0
        assert counts[i][~possible].sum() == 0
        if possible.sum() > 1 and counts[i].sum() > 50:
            expected = share[i][possible] * counts[i].sum()
            assert scipy.stats.chisquare(counts[i][possible], expected).pvalue > 1e-3


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("start", [1, 4])
def test_the_cache_changes_nothing(temperature, start):
    net, cache, params = summing_net()
    prompt = jax.random.randint(KEY, (3, start), 0, 7)
    options = {"temperature": temperature}
    write = jax.jit(functools.partial(generate, net, cache, length=8, **options))
    found = write(params, {}, prompt, key=KEY)
    np.testing.assert_array_equal(found[:, :start], prompt)
    # The text is read again from its start for every token, in numpy.
    params, text = jax.tree.map(np.asarray, params), np.asarray(prompt)
    for key in jax.random.split(KEY, 8):
        sums = params["embedding"][text].sum(1) + params["positions"][text.shape[1] - 1]
        logits = np.sin(sums) @ params["kernel"]
        token = logits.argmax(-1) if temperature == 0 else jax.random.categorical(key, logits)
        text = np.concatenate([text, np.asarray(token)[:, None]], axis=1)
    np.testing.assert_array_equal(found, text)


def test_one_key_one_text():
    net, cache, params = summing_net()
    prompt = jnp.zeros((4, 1), jnp.int32)
    write = jax.jit(lambda key: generate(net, cache, params, {}, prompt, 10, key))
    first, again, other = write(KEY), write(KEY), write(jax.random.key(1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert len(np.unique(first, axis=0)) > 1  # rows do not share their draws


def test_a_text_may_fill_the_context_and_no_more():
    net, cache, params = summing_net(context=6)
    prompt = jnp.zeros((1, 2), jnp.int32)
    # The last token is written and never read.
    whole = jax.eval_shape(lambda key: generate(net, cache, params, {}, prompt, 5, key), KEY)
    assert whole.shape == (1, 7)
    with pytest.raises(ValueError, match="7 tokens do not fit a context of 6"):
        generate(net, cache, params, {}, prompt, 6, KEY)


def test_top_k_by_hand():
    logits = jnp.array([[1.0, 3.0, 2.0, 3.0], [0.0, 0.0, 0.0, 0.0]])
    np.testing.assert_array_equal(
        top_k_logits(logits, 1), [[-INF, 3, -INF, -INF], [0, -INF, -INF, -INF]]
    )
    np.testing.assert_array_equal(top_k_logits(logits, 3), [[-INF, 3, 2, 3], [0, 0, 0, -INF]])
    np.testing.assert_array_equal(top_k_logits(logits, 4), logits)


@pytest.mark.parametrize(
    ("p", "kept"),
    [
        (1e-6, [1]),
        (0.5, [1]),  # reached exactly
        (0.51, [1, 3]),
        (0.75, [1, 3]),
        (0.76, [0, 1, 3]),
        (0.875, [0, 1, 3]),
        (0.9, [0, 1, 2, 3]),
        (1.0, [0, 1, 2, 3]),
    ],
)
def test_top_p_by_hand(p, kept):
    logits = jnp.log(jnp.array([0.125, 0.5, 0.125, 0.25])) + 7
    expected = np.full(4, -INF, np.float32)
    expected[kept] = np.asarray(logits)[kept]
    np.testing.assert_array_equal(top_p_logits(logits, p), expected)
    np.testing.assert_array_equal(top_p_logits(logits[None, None], p), expected[None, None])


def test_a_probability_of_1_keeps_what_rounding_would_lose():
    logits = jnp.array([20.0, *[-1.0] * 50])
    assert np.isfinite(top_p_logits(logits, 1.0)).all()


def test_what_top_k_left_out_stays_out():
    found = top_p_logits(top_k_logits(jnp.log(jnp.array([0.5, 0.25, 0.125, 0.125])), 2), 0.99)
    assert np.isfinite(found).tolist() == [True, True, False, False]


def test_bad_options_are_one_line():
    net, cache = table_net(np.zeros((4, 4), np.float32))
    prompt = jnp.zeros((1, 1), jnp.int32)

    def write(prompt=prompt, length=2, **options):
        return generate(net, cache, jnp.zeros((4, 4)), {}, prompt, length, KEY, **options)

    for temperature in (-1.0, float("nan")):
        with pytest.raises(InputError, match="temperature=.*: expected a number of at least 0"):
            write(temperature=temperature)
    for k in (0, 5):
        with pytest.raises(InputError, match=f"top_k={k}: expected 1 to 4, the size of the vocab"):
            write(top_k=k)
    for p in (0.0, 1.5, -0.1, float("nan")):
        with pytest.raises(InputError, match=r"top_p=.*: expected a probability in \(0, 1\]"):
            write(top_p=p)
    for bad in (prompt[0], prompt[:, :0]):
        with pytest.raises(InputError, match=r"expected a prompt \[B, P\] of at least one token"):
            write(bad)
    with pytest.raises(InputError, match="length=0: .* at least one to write"):
        write(length=0)
