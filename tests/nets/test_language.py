"""GPT and BERT: causality, caching, padding, sizes, and how they start."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

import nets
from nets.transformer import Block, sinusoid

KEY = jax.random.key(0)
VOCABULARY, CONTEXT = 11, 9
SMALL = {"layers": 2, "heads": 2, "width": 16, "context": CONTEXT}
POSITIONS = ("learned", "sinusoidal", "rotary")
TOKENS = jax.random.randint(KEY, (3, CONTEXT), 0, VOCABULARY)
LENGTH = jnp.array([CONTEXT, 4, 1])
VALID = jnp.arange(CONTEXT) < LENGTH[:, None]


def numbers(net, *inputs):
    """Params of the net's shapes, larger than at the start, biases and scales included."""
    shapes, model_state = jax.eval_shape(net.init, KEY, *inputs)
    assert model_state == {}
    generator = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: np.float32(generator.normal(0, 0.3, leaf.shape)), shapes)


def small_gpt(**options):
    net, cache = nets.gpt(VOCABULARY, **SMALL, **options)
    return net, cache, numbers(net, TOKENS)


def layer_norm(layer, x):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return x * layer["scale"] + layer.get("bias", 0)


def trunk(params, positions, valid=None, **options):
    """What is read from the tokens, by numpy around the blocks."""
    x = params["tokens"]["embedding"][TOKENS]
    if positions == "learned":
        x = x + params["positions"]
    if positions == "sinusoidal":
        x = 4 * x + np.asarray(sinusoid(jnp.arange(CONTEXT), 16))
    block = Block(2, 64, rotary=positions == "rotary", epsilon=1e-5, **options)
    for layer in range(2):
        x = jax.jit(block.apply)({"params": params[f"block_{layer}"]}, x, valid)
    return layer_norm(params["norm"], np.asarray(x))


@pytest.mark.parametrize(
    ("positions", "bias"), [("learned", True), ("sinusoidal", False), ("rotary", False)]
)
def test_gpt_by_hand(positions, bias):
    net, _, params = small_gpt(positions=positions, bias=bias)
    x = trunk(params, positions, causal=True, bias=bias)
    logits = jax.jit(net.apply)(params, {}, TOKENS)[0]
    np.testing.assert_allclose(logits, x @ params["tokens"]["embedding"].T, atol=1e-4)
    assert ("positions" in params) == (positions == "learned")


@pytest.mark.parametrize("positions", POSITIONS)
def test_bert_by_hand(positions):
    net = nets.bert(VOCABULARY, **SMALL, positions=positions)
    params = numbers(net, TOKENS, VALID)
    x = trunk(params, positions, VALID)
    x = x @ params["head"]["kernel"] + params["head"]["bias"]
    x = layer_norm(params["head_norm"], x * scipy.special.ndtr(x))
    logits = jax.jit(net.apply)(params, {}, TOKENS, VALID)[0]
    expected = x @ params["tokens"]["embedding"].T + params["bias"]
    np.testing.assert_allclose(logits, expected, atol=1e-4)


@pytest.mark.parametrize("positions", POSITIONS)
def test_gpt_sees_no_future(positions):
    net, _, params = small_gpt(positions=positions)
    apply = jax.jit(net.apply)
    logits = apply(params, {}, TOKENS)[0]
    for s in (1, 5, CONTEXT - 1):
        other = TOKENS.at[:, s:].set((TOKENS[:, s:] + 1) % VOCABULARY)
        changed = apply(params, {}, other)[0]
        np.testing.assert_array_equal(changed[:, :s], logits[:, :s])
        assert (changed[:, s:] != logits[:, s:]).any(-1).all()


@pytest.mark.parametrize("positions", POSITIONS)
def test_cached_decoding_is_full_decoding(positions):
    net, cache, params = small_gpt(positions=positions, bias=True)
    apply = jax.jit(net.apply)
    full = apply(params, {}, TOKENS)[0]
    for chunks in ((1,) * CONTEXT, (1, 3, 1, 1, 3)):
        past, logits, start = cache(3), [], 0
        for size in chunks:
            (some, past), state = apply(params, {}, TOKENS[:, start : start + size], past)
            logits.append(some)
            start += size
            assert int(past["length"]) == start and state == {}
        np.testing.assert_allclose(np.concatenate(logits, 1), full, atol=1e-5)
    # There is no room for another, and what is given must not pass for an answer.
    assert np.isfinite(logits[-1]).all()
    assert np.isnan(apply(params, {}, TOKENS[:, :1], past)[0][0]).all()


@pytest.mark.parametrize("policy", ["float32", "bfloat16"])
def test_a_cache_comes_back_as_it_went_in(policy):
    """So that it can go round in a loop."""
    net, cache = nets.gpt(VOCABULARY, **SMALL)
    net, empty = nets.with_precision(net, policy), cache(3)
    params, _ = jax.eval_shape(net.init, KEY, TOKENS)
    (logits, after), _ = jax.eval_shape(net.apply, params, {}, TOKENS[:, :2], empty)
    assert (logits.shape, logits.dtype) == ((3, 2, VOCABULARY), jnp.float32)

    def forms(tree):
        return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.weak_type), tree)

    assert forms(after) == forms(empty)
    assert all(leaf.shape == (3, CONTEXT, 2, 8) for leaf in empty["key"] + empty["value"])
    pointers = {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(empty)}
    assert len(pointers) == 2 * SMALL["layers"] + 1


def test_padding_is_seen_by_none():
    net = nets.bert(VOCABULARY, **SMALL)
    params, apply = numbers(net, TOKENS, VALID), jax.jit(net.apply)
    other = jnp.where(VALID, TOKENS, (TOKENS + 1) % VOCABULARY)
    before, after = (np.asarray(apply(params, {}, each, VALID)[0]) for each in (TOKENS, other))
    np.testing.assert_array_equal(before[VALID], after[VALID])
    # As if it were not there.
    short = apply(params, {}, TOKENS[1:2, :4], jnp.ones((1, 4), bool))[0]
    np.testing.assert_allclose(before[1, :4], short[0], atol=1e-5)
    # Whereas the first token sees the last valid one.
    ends = TOKENS.at[1, 3].set((TOKENS[1, 3] + 1) % VOCABULARY)
    assert (apply(params, {}, ends, VALID)[0][1, 0] != before[1, 0]).all()


def test_nanogpt_has_its_number_of_parameters():
    layers, width, vocabulary, context = 6, 384, 65, 256
    net, _ = nets.gpt(vocabulary, layers=layers, heads=6, width=width, context=context)
    params, _ = jax.eval_shape(net.init, KEY, TOKENS)
    block = 4 * width**2 + 2 * 4 * width**2 + 2 * width
    expected = (vocabulary + context) * width + layers * block + width
    assert nets.count_parameters(params) == expected
    # nanoGPT's own report, which leaves positions out: "number of parameters: 10.65M".
    assert round((expected - context * width) / 1e6, 2) == 10.65


def test_bert_counts_by_hand():
    params, _ = jax.eval_shape(nets.bert(VOCABULARY, **SMALL).init, KEY, TOKENS, VALID)
    attention, mlp, norm = 4 * (16 * 16 + 16), 16 * 64 + 64 + 64 * 16 + 16, 2 * 16
    head = 16 * 16 + 16 + norm + VOCABULARY
    expected = (VOCABULARY + CONTEXT) * 16 + 2 * (attention + mlp + 2 * norm) + norm + head
    assert nets.count_parameters(params) == expected


def sizes_for_statistics():
    return {"layers": 2, "heads": 2, "width": 48, "context": 40}


@pytest.mark.parametrize("name", ["gpt", "bert"])
def test_they_start_small_and_with_the_loss_of_a_guess(name):
    vocabulary, inputs = 97, [jax.random.randint(KEY, (16, 40), 0, 97)]
    if name == "gpt":
        net, _ = nets.gpt(vocabulary, **sizes_for_statistics(), bias=True)
    else:
        net, inputs = nets.bert(vocabulary, **sizes_for_statistics()), [*inputs, inputs[0] >= 0]
    params, _ = jax.jit(net.init)(KEY, *inputs)
    for path, leaf in jax.tree.leaves_with_path(params):
        names = [part.key for part in path]
        if names[-1] in ("bias", "scale"):
            np.testing.assert_array_equal(leaf, float(names[-1] == "scale"))
            continue
        ends = names[-2:] in (["out", "kernel"], ["Dense_1", "kernel"])
        std = 0.01 if ends and name == "gpt" else 0.02  # 0.02 / sqrt(2 * 2)
        normal = scipy.stats.norm if name == "gpt" else scipy.stats.truncnorm(-2, 2)
        assert scipy.stats.kstest(np.ravel(leaf) / std, normal.cdf).pvalue > 1e-3, names
    logits = np.float64(jax.jit(net.apply)(params, {}, *inputs)[0])
    # On tokens that have nothing to do with the inputs.
    target = np.random.default_rng(0).integers(0, vocabulary, logits.shape[:2])
    losses = -scipy.special.log_softmax(logits, -1)[(*np.indices(target.shape), target)]
    np.testing.assert_allclose(losses.mean(), np.log(vocabulary), atol=0.03)


@pytest.mark.parametrize("name", ["gpt", "bert"])
def test_dropout_is_for_training_and_every_parameter_learns(name):
    options = {**SMALL, "layers": 1, "dropout": 0.5}
    net = nets.gpt(VOCABULARY, **options, bias=True)[0]
    inputs = [TOKENS]
    if name == "bert":
        net, inputs = nets.bert(VOCABULARY, **options), [TOKENS, VALID]
    params = numbers(net, *inputs)
    quiet = nets.gpt(VOCABULARY, **{**options, "dropout": 0.0}, bias=True)[0]
    if name == "bert":
        quiet = nets.bert(VOCABULARY, **{**options, "dropout": 0.0})

    @jax.jit
    def evaluate(params):
        return net.apply(params, {}, *inputs, key=KEY)[0], quiet.apply(params, {}, *inputs)[0]

    np.testing.assert_array_equal(*evaluate(params))
    with pytest.raises(ValueError, match="call apply with key=..., train=True"):
        jax.eval_shape(lambda: net.apply(params, {}, *inputs, train=True))

    @jax.jit
    @partial(jax.grad, has_aux=True)
    def train(params, key):
        logits = net.apply(params, {}, *inputs, key=key, train=True)[0]
        return (logits**3).sum(), logits

    (gradient, a), (_, b), (_, c) = (train(params, jax.random.key(i)) for i in (1, 1, 2))
    np.testing.assert_array_equal(a, b)
    assert not np.allclose(a, c, atol=0.1)
    for path, leaf in jax.tree.leaves_with_path(gradient):
        names = [part.key for part in path]
        if names[-2:] != ["key", "bias"]:  # adds the same to all scores of a query
            assert np.isfinite(leaf).all() and (leaf != 0).any(), names


def test_the_embedding_is_dropped_too():
    # Features 1 of a token without branches: the norm of their halves and doubles is -1 and 1.
    net, _ = nets.gpt(2, **{**SMALL, "layers": 1, "width": 256}, dropout=0.5, positions="rotary")
    params = jax.tree.map(np.zeros_like, numbers(net, TOKENS))
    params["tokens"]["embedding"][0, 0] = 1  # reads feature 0
    params["tokens"]["embedding"][1] = 1
    params["norm"]["scale"] += 1
    apply = jax.jit(net.apply, static_argnames="train")
    logits = apply(params, {}, jnp.ones((40, CONTEXT), int), key=KEY, train=True)[0][..., 0]
    np.testing.assert_allclose(np.abs(logits), 1, atol=0.5)
    assert abs((logits > 0).mean() - 0.5) < 4 * np.sqrt(0.25 / logits.size)


def operands(function, *inputs):
    """The dtypes of what enters products, and of what enters exponentials."""
    found = {"dot_general": set(), "exp": set()}

    def visit(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name in found:
                kinds = {str(operand.aval.dtype) for operand in equation.invars}
                found[equation.primitive.name] |= kinds
            for inner in jax.tree.leaves(
                list(equation.params.values()), is_leaf=lambda leaf: hasattr(leaf, "eqns")
            ):
                if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                    visit(inner if hasattr(inner, "eqns") else inner.jaxpr)

    visit(jax.make_jaxpr(function)(*inputs).jaxpr)
    return found


@pytest.mark.parametrize(
    ("name", "positions"),
    [("gpt", "learned"), ("gpt", "rotary"), ("cached", "rotary"), ("bert", "sinusoidal")],
)
def test_in_bfloat16_the_softmax_stays_float32(name, positions):
    net, cache = nets.gpt(VOCABULARY, **SMALL, positions=positions)
    inputs = {"gpt": (), "cached": (cache(3),), "bert": (VALID,)}[name]
    if name == "bert":
        net = nets.bert(VOCABULARY, **SMALL, positions=positions)
    params = numbers(net, TOKENS, *inputs)
    half = nets.with_precision(net, "bfloat16")

    def logits(net, params):
        output = net.apply(params, {}, TOKENS, *inputs)[0]
        return output[0] if name == "cached" else output

    kinds = operands(lambda params: logits(half, params), params)
    assert kinds == {"dot_general": {"bfloat16"}, "exp": {"float32"}}
    exact, rounded = jax.jit(lambda params: (logits(net, params), logits(half, params)))(params)
    assert rounded.dtype == jnp.float32 and not np.array_equal(exact, rounded)
    np.testing.assert_allclose(exact, rounded, atol=0.05 * np.abs(exact).max())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: nets.gpt(0, **SMALL),
            "gpt: vocab_size 0, layers 2, heads 2, width 16, context 9 must all be at least 1",
        ),
        (lambda: nets.bert(5, **{**SMALL, "heads": 0}), "bert: vocab_size 5, layers 2, heads 0,"),
        (lambda: nets.gpt(5, **{**SMALL, "heads": 3}), "width 16 cannot be split over 3 heads"),
        (lambda: nets.gpt(5, **SMALL, dropout=1.0), "dropout is a probability"),
        (
            lambda: nets.bert(5, **SMALL, positions="alibi"),
            "unknown positions 'alibi': choose one of 'learned', 'sinusoidal', 'rotary'",
        ),
        (
            lambda: nets.gpt(5, **{**SMALL, "heads": 16}, positions="rotary"),
            "rotary positions go by pairs of features, and there are 1: choose an even width per h",
        ),
        (
            lambda: nets.gpt(5, **{**SMALL, "heads": 3, "width": 9}, positions="sinusoidal"),
            "sinusoidal positions go by pairs of features, and there are 9: choose an even width",
        ),
        (
            lambda: jax.eval_shape(
                nets.gpt(5, **SMALL, positions="rotary")[0].init, KEY, jnp.zeros((2, 10), int)
            ),
            r"tokens of shape \(2, 10\): .* a sequence no longer than the context of 9: cut it",
        ),
        (
            lambda: nets.bert(5, **SMALL).init(KEY, jnp.zeros(3, int), jnp.ones(3, bool)),
            r"tokens of shape \(3,\): expected \[B, T\]",
        ),
        (
            lambda: nets.bert(5, **SMALL).init(KEY, TOKENS, jnp.ones((3, 1), bool)),
            r"valid is bool of shape \(3, 1\): expected bool of the shape of the tokens, \(3, 9\)",
        ),
        (
            lambda: nets.bert(5, **SMALL).init(KEY, TOKENS, jnp.ones((3, 9))),
            r"valid is float32 of shape \(3, 9\): expected bool",
        ),
        (
            lambda: nets.gpt(5, **SMALL)[0].init(KEY, TOKENS, nets.gpt(5, **SMALL)[1](2)),
            r"tokens of 3 sequences and a cache of 2: make it by cache\(3\)",
        ),
    ],
)
def test_bad_options_are_named_in_one_line(make, message):
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
