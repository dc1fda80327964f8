"""Attention, the block and the positions of every transformer, against plain numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

import nets
from nets.transformer import (
    Block,
    SelfAttention,
    attend,
    attention_of,
    patch_tokens,
    rotate,
    sinusoid,
)

KEY = jax.random.key(0)
X = jax.random.normal(KEY, (2, 5, 8))
VALID = jnp.array([[True, True, False, True, False], [False, True, True, True, True]])


def numbers(module, *inputs, seed=0):
    """Params of the module's shapes, biases and scales included."""
    shapes = jax.eval_shape(module.init, KEY, *inputs)["params"]
    generator = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: np.float32(generator.normal(0, 0.5, leaf.shape)), shapes)


def dense(layer, x):
    return x @ layer["kernel"] + layer.get("bias", 0)


def norm(layer, x, epsilon):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + epsilon)
    return x * layer["scale"] + layer.get("bias", 0)


def turn(vector, position):
    """Equation 34 of Su et al. 2021, on pairs of neighbours taken as complex numbers."""
    d = len(vector)
    pairs = vector[0::2] + 1j * vector[1::2]
    pairs = pairs * np.exp(1j * position / 10000.0 ** (2 * np.arange(d // 2) / d))
    return np.stack([pairs.real, pairs.imag], 1).ravel()


def attention(params, x, heads, causal, rotary, valid):
    """One query at a time."""
    query, key, value = (dense(params[name], x) for name in ("query", "key", "value"))
    y, d = np.zeros_like(x), x.shape[-1] // heads
    for b, t, h in np.ndindex(x.shape[0], x.shape[1], heads):
        own = slice(h * d, (h + 1) * d)
        seen = [s for s in range(x.shape[1]) if valid[b, s] and (s <= t or not causal)]
        seen = seen or range(x.shape[1])  # what sees none is defined nowhere; here it sees all
        q, k = query[b, t, own], [key[b, s, own] for s in seen]
        if rotary:
            q, k = turn(q, t), [turn(one, s) for one, s in zip(k, seen, strict=True)]
        weights = scipy.special.softmax([q @ one / np.sqrt(d) for one in k])
        y[b, t, own] = sum(w * value[b, s, own] for w, s in zip(weights, seen, strict=True))
    return dense(params["out"], y)


@pytest.mark.parametrize(
    ("causal", "rotary", "bias", "masked"),
    [
        (False, False, True, False),
        (True, False, False, False),
        (False, True, True, True),
        (True, True, False, True),
    ],
)
def test_block_against_numpy(causal, rotary, bias, masked):
    block = Block(2, 12, causal=causal, rotary=rotary, bias=bias, epsilon=0.1)
    params, valid = numbers(block, X), VALID if masked else None
    y = jax.jit(block.apply)({"params": params}, X, valid)

    params = jax.tree.map(np.float64, params)
    x = np.float64(X)
    seen = np.asarray(VALID) if masked else np.ones(X.shape[:2], bool)
    inner = norm(params["LayerNorm_0"], x, 0.1)
    x = x + attention(params["SelfAttention_0"], inner, 2, causal, rotary, seen)
    hidden = dense(params["Dense_0"], norm(params["LayerNorm_1"], x, 0.1))
    hidden = hidden * scipy.special.ndtr(hidden)  # the exact GELU
    expected = x + dense(params["Dense_1"], hidden)
    # A token that sees none, the first of the second sequence, means nothing.
    compared = np.ones(X.shape[:2], bool) if not (masked and causal) else np.tri(5)[[4, 4]] > 0
    compared[1, 0] = not (masked and causal)
    np.testing.assert_allclose(y[compared], expected[compared], atol=2e-5)
    assert ("bias" in params["Dense_1"]) == ("bias" in params["LayerNorm_0"]) == bias


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_attention_is_the_same_on_every_backend(monkeypatch, causal, masked, dtype):
    """On a CPU it is written out; elsewhere it is jax's. Who has nothing to see breaks nothing."""
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = ((2, 4, 2, 8), (2, 4, 2, 8), (2, 4, 2, 8))
    given = [jax.random.normal(key, shape, dtype) for key, shape in zip(keys, shapes, strict=True)]
    mask = jnp.arange(4)[None, None, None] < jnp.array([3, 0])[:, None, None, None]

    def attended(query, key, value):
        return attend(query, key, value, mask if masked else None, causal)

    def size(*given):
        return jnp.square(attended(*given)[:1].astype(jnp.float32)).sum()

    slopes = jax.grad(size, (0, 1, 2))

    ours, our_slopes = attended(*given), slopes(*given)
    assert ours.dtype == dtype
    assert all(np.isfinite(leaf.astype(jnp.float32)).all() for leaf in (ours, *our_slopes))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    tolerance = 1e-5 if dtype == jnp.float32 else 2e-2
    theirs = (attended(*given)[0], *slopes(*given))
    for one, other in zip((ours[0], *our_slopes), theirs, strict=True):
        np.testing.assert_allclose(
            one.astype(jnp.float32), other.astype(jnp.float32), rtol=tolerance, atol=tolerance
        )


@pytest.mark.parametrize("rotary", [False, True])
def test_no_gradient_comes_from_the_future(rotary):
    block = Block(2, 12, causal=True, rotary=rotary)
    params = numbers(block, X)
    slopes = jax.jit(jax.jacobian(lambda x: block.apply({"params": params}, x[None])[0]))(X[0])
    size = np.abs(slopes).max((1, 3))  # [t, s]
    np.testing.assert_array_equal(size > 0, np.tri(5, dtype=bool))


def test_invalid_tokens_are_seen_by_none():
    attend = SelfAttention(2)
    params, apply = {"params": numbers(attend, X)}, jax.jit(attend.apply)
    other = jnp.where(VALID[..., None], X, 100 * jax.random.normal(jax.random.key(1), X.shape))
    before, after = (np.asarray(apply(params, x, VALID))[VALID] for x in (X, other))
    np.testing.assert_array_equal(before, after)
    assert not np.allclose(apply(params, X)[VALID], before, atol=1e-3)
    # A sequence of padding alone is no reason for NaN.
    assert np.isfinite(apply(params, X, jnp.zeros_like(VALID))).all()


def train(block, params, x):
    apply = jax.jit(lambda x: block.apply({"params": params}, x, train=True, rngs={"dropout": KEY}))
    return np.asarray(apply(x))


def test_what_is_dropped_are_the_ends_of_the_branches():
    block = Block(1, 8, dropout=0.5)
    x = jnp.zeros((50, 10, 8))
    params = jax.tree.map(np.zeros_like, numbers(block, x))
    params["SelfAttention_0"]["out"]["bias"] += 1  # the branches give 1 and 10
    params["Dense_1"]["bias"] += 10
    y = train(block, params, x)
    values, counts = np.unique(y, return_counts=True)
    np.testing.assert_array_equal(values, [0, 2, 20, 22])
    np.testing.assert_allclose(counts / y.size, 0.25, atol=4 * np.sqrt(3 / 16 / y.size))
    np.testing.assert_array_equal(jax.jit(block.apply)({"params": params}, x[:1]), 11)

    # Within the MLP at another rate: 8 ones to the first output, 3 of 4 dropped.
    block = Block(1, 8, mlp_dropout=0.75)
    params = jax.tree.map(np.zeros_like, numbers(block, x))
    params["Dense_0"]["bias"] += 8  # whose GELU is itself
    params["Dense_1"]["kernel"][:, 0] = 1
    y = train(block, params, x)[..., 0] / 32
    np.testing.assert_allclose(y, np.round(y), atol=1e-5)
    np.testing.assert_allclose(y.mean(), 2, atol=4 * np.sqrt(8 * 3 / 16 / y.size))
    np.testing.assert_allclose(y.var(), 8 * 3 / 16, rtol=0.25)


def test_how_often_each_net_draws():
    # Once at the bottom, then in each of two blocks: after both branches, ViT within the MLP too.
    sizes = {"layers": 2, "heads": 2, "width": 8, "context": 5, "dropout": 0.1}
    tokens = jnp.zeros((2, 5), int)
    vit = nets.vit(4, 8, 2, 2, 8, 3, dropout=0.1)
    for net, inputs, draws in (
        (vit, (jnp.zeros((2, 8, 8, 1)),), 1 + 2 * 3),
        (nets.gpt(3, **sizes)[0], (tokens,), 1 + 2 * 2),
        (nets.bert(3, **sizes), (tokens, tokens == 0), 1 + 2 * 2),
    ):
        params, _ = jax.eval_shape(net.init, KEY, *inputs)
        program = jax.make_jaxpr(lambda p, n=net, x=inputs: n.apply(p, {}, *x, key=KEY, train=True))
        called = [equation.params.get("name") for equation in program(params).eqns]
        assert called.count("_bernoulli") == draws


def test_sinusoid_is_that_of_the_paper():
    position = np.array([0, 1, 7, 1000])
    table = np.zeros((4, 6))
    for row, i in np.ndindex(4, 3):
        angle = position[row] / 10000 ** (2 * i / 6)
        table[row, 2 * i], table[row, 2 * i + 1] = np.sin(angle), np.cos(angle)
    mine = sinusoid(jnp.asarray(position), 6)
    np.testing.assert_allclose(mine, table, atol=1e-4)
    np.testing.assert_array_equal(mine[0], [0, 1] * 3)
    assert mine.dtype == jnp.float32


@pytest.mark.parametrize("shift", [1, 200])
def test_rotary_scores_depend_on_distance_alone(shift):
    query, key = jax.random.normal(KEY, (2, 1, 4, 3, 8))
    position = jnp.array([0, 3, 4, 9])

    @jax.jit
    def scores(queries, keys):
        return jnp.einsum("bthd,bshd->bhts", rotate(query, queries), rotate(key, keys))

    here = scores(position, position)
    np.testing.assert_allclose(scores(position + shift, position + shift), here, atol=2e-4)
    assert not np.allclose(scores(position + shift, position), here, atol=0.1)
    np.testing.assert_array_equal(rotate(query, 0 * position), query)


def test_rotation_is_float32_whatever_it_turns():
    x = jax.random.normal(KEY, (1, 2, 1, 4)).astype(jnp.bfloat16)
    position = jnp.array([999, 1001])  # one and the same in bfloat16
    y = jax.jit(rotate)(x, position)
    assert y.dtype == jnp.bfloat16
    expected = jax.jit(rotate)(x.astype(jnp.float32), position)
    np.testing.assert_allclose(y.astype(jnp.float32), expected, rtol=2**-8)
    turned = [turn(np.float64(x[0, t, 0]), int(position[t])) for t in range(2)]
    np.testing.assert_allclose(expected[0, :, 0], turned, atol=1e-3)


def test_patches_need_images():
    with pytest.raises(ValueError, match=r"images of shape \(8, 8, 3\): expected \[B, H, W, C\]"):
        patch_tokens(jnp.zeros((8, 8, 3)), 4, 8, jax.nn.initializers.zeros)


@pytest.mark.parametrize(
    ("causal", "rotary", "masked"),
    [(False, False, False), (True, True, False), (True, False, True)],
)
def test_attention_of_is_what_mixes_the_tokens(causal, rotary, masked):
    module = SelfAttention(2, causal=causal, rotary=rotary, bias=False)
    valid = VALID.at[:, 0].set(True) if masked else None
    params = numbers(module, X)
    # Nothing but the mixing is left of the output.
    params["value"]["kernel"] = params["out"]["kernel"] = np.eye(8, dtype=np.float32)
    (weights,), state = attention_of(module).apply(params, {}, X, valid)
    assert weights.shape == (2, 2, 5, 5) and state == {}
    heads = X.reshape(2, 5, 2, 4)
    mixed = np.einsum("bhts,bshd->bthd", weights, heads).reshape(X.shape)
    np.testing.assert_allclose(mixed, module.apply({"params": params}, X, valid), atol=1e-6)
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-6)
    if causal:
        assert (np.asarray(weights) * ~np.tri(5, dtype=bool) == 0).all()
    if masked:
        assert (weights[0, :, :, 2] == 0).all()


def test_attention_of_counts_blocks_as_numbers():
    net = nets.mae_attention(4, 8, 11, 2, 8)
    image = jax.random.normal(KEY, (1, 8, 8, 1))
    params, model_state = net.init(KEY, image)
    assert model_state == {}
    params["Block_9"]["SelfAttention_0"]["query"]["kernel"] *= 0
    weights, _ = net.apply(params, {}, image)
    assert weights.shape == (11, 1, 2, 5, 5)
    uniform = np.ptp(np.asarray(weights), axis=(1, 2, 3, 4)) < 1e-6
    np.testing.assert_array_equal(np.flatnonzero(uniform), [9])
