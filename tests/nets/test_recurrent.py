"""Recurrent nets: their cells by hand, sizes, initialisation and what they carry."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nets
from nets.recurrent import recurrent_actor_critic

KEY = jax.random.key(0)
X = jax.random.normal(KEY, (5, 3))


def small(cell):
    """A net of width 4 with 2 outputs, its carry, and the shapes of its params."""
    net, carry = recurrent_actor_critic((6,), 2, cell=cell, width=4)
    shapes, model_state = jax.eval_shape(net.init, KEY, X, carry(len(X)))
    assert model_state == {}
    return net, carry, shapes


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def lstm(weights, x, carry):
    """Input, forget and output gates; g is what may be written."""
    c, h = carry

    def gate(name):
        bias = weights[f"h{name}"]["bias"]
        return x @ weights[f"i{name}"]["kernel"] + h @ weights[f"h{name}"]["kernel"] + bias

    c = sigmoid(gate("f")) * c + sigmoid(gate("i")) * np.tanh(gate("g"))
    h = sigmoid(gate("o")) * np.tanh(c)
    return (c, h), h


def gru(weights, x, h):
    """Reset and update gates; n is what may be written."""

    def gate(name):
        return x @ weights[f"i{name}"]["kernel"] + weights[f"i{name}"]["bias"]

    reset = sigmoid(gate("r") + h @ weights["hr"]["kernel"])
    update = sigmoid(gate("z") + h @ weights["hz"]["kernel"])
    new = np.tanh(gate("n") + reset * (h @ weights["hn"]["kernel"] + weights["hn"]["bias"]))
    h = (1 - update) * new + update * h
    return h, h


def numbers(tree, seed):
    """Of the same shapes, biases included."""
    generator = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: generator.normal(size=leaf.shape).astype(np.float32), tree)


@pytest.mark.parametrize(("cell", "step"), [("lstm", lstm), ("gru", gru)])
def test_one_step_by_hand(cell, step):
    net, carry, shapes = small(cell)
    params, memory = numbers(shapes, 0), numbers(carry(len(X)), 1)
    logits, value, after = jax.jit(net.apply)(params, {}, X, memory)[0]
    layer = params["embedding"]["Dense_0"]
    x = np.tanh(np.asarray(X) @ layer["kernel"] + layer["bias"])
    expected, out = step(params["memory"], x, memory)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), after, expected)
    policy, critic = params["heads"]["policy"], params["heads"]["value"]
    np.testing.assert_allclose(logits, out @ policy["kernel"] + policy["bias"], atol=1e-5)
    np.testing.assert_allclose(value, (out @ critic["kernel"] + critic["bias"])[:, 0], atol=1e-5)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_it_starts_orthogonal_with_its_gains(cell):
    net, carry, _ = small(cell)
    params, _ = jax.jit(net.init)(KEY, X, carry(len(X)))
    gains = {"embedding": np.sqrt(2), "policy": 0.01}
    for path, leaf in jax.tree.leaves_with_path(params):
        names = [part.key for part in path]
        if names[-1] == "bias":
            np.testing.assert_array_equal(leaf, 0)
            continue
        gain = next((gains[name] for name in names if name in gains), 1.0)
        w = np.asarray(leaf, np.float64)
        product = w.T @ w if w.shape[0] >= w.shape[1] else w @ w.T
        np.testing.assert_allclose(product, gain**2 * np.eye(len(product)), atol=1e-5 * gain)


def test_counts_by_hand():
    inputs, width = 6, 4
    gate = inputs * width + width * width + width
    others = (3 * 6 + 6) + (width * 2 + 2) + (width + 1)
    # A GRU has a second bias in what it may write.
    for cell, memory in (("lstm", 4 * gate), ("gru", 3 * gate + width)):
        assert nets.count_parameters(small(cell)[2]) == memory + others


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize(
    ("policy", "dtype"), [("float32", jnp.float32), ("float32", bool), ("bfloat16", jnp.uint8)]
)
def test_a_carry_comes_back_as_it_went_in(cell, policy, dtype):
    """So that it can go round in a loop, in whatever precision and from whatever is observed."""
    net, carry = recurrent_actor_critic((6,), 2, cell=cell, width=4, continuous=True)
    net, x = nets.with_precision(net, policy), jnp.zeros((5, 2, 2), dtype)

    def both():
        params, model_state = net.init(KEY, x, carry(5))
        return net.apply(params, model_state, x, carry(5), key=KEY, train=True)[0]

    (mean, log_std), value, after = jax.eval_shape(both)
    assert mean.shape == log_std.shape == (5, 2) and value.shape == (5,)
    assert {leaf.dtype for leaf in (mean, log_std, value)} == {jnp.dtype("float32")}

    def forms(tree):
        return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.weak_type), tree)

    assert forms(after) == forms(carry(5))


def test_a_carry_starts_empty_in_buffers_of_its_own():
    c, h = recurrent_actor_critic((), 2, width=4)[1](5)
    assert c.unsafe_buffer_pointer() != h.unsafe_buffer_pointer()
    for leaf in (c, h, recurrent_actor_critic((), 2, cell="gru", width=4)[1](5)):
        np.testing.assert_array_equal(leaf, np.zeros((5, 4)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cell": "rnn"}, "unknown cell 'rnn': choose one of 'lstm', 'gru'"),
        ({"activation": "rely"}, "unknown activation 'rely'"),
        ({"width": 0}, r"recurrent_actor_critic: widths \(8, 0, 2\) must all be at least 1"),
    ],
)
def test_bad_options_are_named_in_one_line(options, message):
    with pytest.raises(ValueError, match=message) as caught:
        recurrent_actor_critic((8,), 2, **options)
    assert "\n" not in str(caught.value)
