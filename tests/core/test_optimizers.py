"""Optimisers against their papers' formulas in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from paradigms.core import optimizers as opt
from paradigms.core import schedules
from paradigms.core.errors import InputError

WEIGHT, BIAS = np.array([[2.0, -1.0], [0.5, 3.0]]), np.array([1.0, -2.0])


def _params():
    return {"Dense_0": {"kernel": jnp.float32(WEIGHT), "bias": jnp.float32(BIAS)}}


def _gradients(steps):
    draw = np.random.default_rng(0)
    return [
        {"Dense_0": {"kernel": draw.normal(size=(2, 2)), "bias": draw.normal(size=2)}}
        for _ in range(steps)
    ]


def _train(optimizer, gradients, params=None):
    params = _params() if params is None else params
    state = optimizer.init(params)
    step = jax.jit(optimizer.update)
    for grads in gradients:
        updates, state = step(jax.tree.map(jnp.float32, grads), state, params)
        params = optax.apply_updates(params, updates)
    return params


def _first_update(optimizer, grads, params):
    return jax.jit(lambda g, p: optimizer.update(g, optimizer.init(p), p)[0])(grads, params)


def _reference(rule, gradients, decay):
    """Runs `rule(w, g, decay, memory) -> w` in float64 on each leaf; the bias does not decay."""
    result = {}
    for name, start, share in (("kernel", WEIGHT, decay), ("bias", BIAS, 0.0)):
        value, memory = start.copy(), {}
        for grads in gradients:
            value = rule(value, grads["Dense_0"][name], share, memory)
        result[name] = value
    return {"Dense_0": result}


def _sgd(w, g, decay, memory, rate=0.1, momentum=0.9, nesterov=False):
    g = g + decay * w
    memory["m"] = momentum * memory.get("m", 0) + g
    return w - rate * (g + momentum * memory["m"] if nesterov else memory["m"])


def _rmsprop(w, g, decay, memory, rate=0.1, centered=False, inside=False, momentum=0.0):
    g = g + decay * w
    memory["v"] = 0.9 * memory.get("v", 0) + 0.1 * g**2
    memory["mean"] = 0.9 * memory.get("mean", 0) + 0.1 * g
    square = memory["v"] - memory["mean"] ** 2 if centered else memory["v"]
    scaled = g / (np.sqrt(square + 1e-2) if inside else np.sqrt(square) + 1e-2)
    memory["b"] = momentum * memory.get("b", 0) + scaled
    return w - rate * memory["b"]


def _adam(w, g, decay, memory, rate=0.1, decoupled=False):
    direct = g if decoupled else g + decay * w
    memory["t"] = memory.get("t", 0) + 1
    memory["m"] = 0.9 * memory.get("m", 0) + 0.1 * direct
    memory["v"] = 0.999 * memory.get("v", 0) + 0.001 * direct**2
    mean = memory["m"] / (1 - 0.9 ** memory["t"])
    square = memory["v"] / (1 - 0.999 ** memory["t"])
    step = mean / (np.sqrt(square) + 1e-8)
    return w - rate * (step + (decay * w if decoupled else 0))


def _lars(w, g, decay, memory, rate=2.0):
    u = g + decay * w
    if w.ndim == 2:
        u = u * 0.01 * np.linalg.norm(w) / np.linalg.norm(u)
    memory["m"] = 0.9 * memory.get("m", 0) + rate * u
    return w - memory["m"]


@pytest.mark.parametrize(
    ("optimizer", "rule"),
    [
        (opt.sgd(0.1, 0.9, weight_decay=0.3), _sgd),
        (
            opt.sgd(0.1, 0.9, nesterov=True, weight_decay=0.3),
            lambda *args: _sgd(*args, nesterov=True),
        ),
        (opt.sgd(0.1, weight_decay=0.3), lambda *args: _sgd(*args, momentum=0)),
        (opt.rmsprop(0.1, eps=1e-2, weight_decay=0.3), _rmsprop),
        (
            opt.rmsprop(0.1, eps=1e-2, weight_decay=0.3, eps_in_sqrt=True),
            lambda *args: _rmsprop(*args, inside=True),
        ),
        (
            opt.rmsprop(0.1, eps=1e-2, weight_decay=0.3, centered=True, momentum=0.5),
            lambda *args: _rmsprop(*args, centered=True, momentum=0.5),
        ),
        (opt.adam(0.1, weight_decay=0.3), _adam),
        (opt.adamw(0.1, weight_decay=0.3), lambda *args: _adam(*args, decoupled=True)),
        (opt.lars(2.0, trust_coefficient=0.01, weight_decay=0.3), _lars),
    ],
    ids=["sgd", "nesterov", "plain", "rmsprop", "eps_in_sqrt", "centered", "adam", "adamw", "lars"],
)
def test_five_steps_equal_the_formula(optimizer, rule):
    gradients = _gradients(5)
    expected = _reference(rule, gradients, 0.3)
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=1e-6),
        _train(optimizer, gradients),
        expected,
    )


def test_adamw_decays_by_the_rate_times_the_decay():
    kernel = {"kernel": jnp.full((1, 1), 2.0)}
    optimizer = opt.adamw(0.1, weight_decay=0.5)
    updates, _ = optimizer.update({"kernel": jnp.zeros((1, 1))}, optimizer.init(kernel), kernel)
    np.testing.assert_allclose(updates["kernel"], -0.1)


def test_momentum_sums_to_ten():
    # A factor 1 - momentum, as some libraries have it, would give 1.
    one = {"w": jnp.zeros(())}
    optimizer = opt.sgd(1.0, 0.9)
    state = optimizer.init(one)
    for _ in range(200):
        updates, state = optimizer.update({"w": jnp.ones(())}, state, one)
    np.testing.assert_allclose(updates["w"], -10.0, rtol=1e-5)


def test_clipping_is_by_the_global_norm_and_before_the_optimizer():
    params = {"a": {"w": jnp.zeros(())}, "b": {"w": jnp.zeros(())}}
    grads = {"a": {"w": jnp.float32(6)}, "b": {"w": jnp.float32(8)}}
    plain = opt.sgd(1.0, max_norm=0.5)
    updates = _first_update(plain, grads, params)
    np.testing.assert_allclose([updates["a"]["w"], updates["b"]["w"]], [-0.3, -0.4], rtol=1e-6)
    # Adam's first update is 1 in each coordinate whatever the clipping, unless clipped after it.
    adam = opt.adam(1.0, max_norm=0.5)
    updates = _first_update(adam, grads, params)
    np.testing.assert_allclose([updates["a"]["w"], updates["b"]["w"]], [-1, -1], rtol=1e-5)


def _loss(params, batch):
    output = batch["x"] @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"]
    return jnp.mean((output - batch["y"]) ** 2)


def test_accumulation_equals_the_large_batch_and_does_not_advance_the_schedule():
    draw = np.random.default_rng(1)
    batches = [
        {"x": jnp.float32(draw.normal(size=(8, 2))), "y": jnp.float32(draw.normal(size=(8, 2)))}
        for _ in range(3)
    ]

    # A rate that differs at every step, so that a schedule of micro-batches would show.
    def make(accumulate):
        return opt.sgd(
            schedules.warmup_linear(0.5, 4, warmup_steps=1, end=0.1),
            0.9,
            weight_decay=0.1,
            max_norm=1.0,
            accumulate=accumulate,
        )

    whole = _train(make(1), [jax.grad(_loss)(_params(), batch) for batch in batches])
    optimizer, params = make(4), _params()
    update, gradient = jax.jit(optimizer.update), jax.jit(jax.grad(_loss))
    state = optimizer.init(params)
    for batch in batches:
        for part in range(4):
            few = jax.tree.map(lambda leaf, part=part: leaf[2 * part : 2 * part + 2], batch)
            updates, state = update(gradient(_params(), few), state, params)
            moved = any(bool(leaf.any()) for leaf in jax.tree.leaves(updates))
            assert not moved or part == 3
            params = optax.apply_updates(params, updates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), params, whole)


def test_accumulation_of_masked_micro_batches_with_a_fixed_count():
    # Masks of 5 and 3 in 8: each sum divided by its share 4 of the 8, as the module says.
    draw = np.random.default_rng(2)
    x, mask = jnp.float32(draw.normal(size=16)), jnp.float32([1] * 5 + [0] * 6 + [1] * 3 + [0] * 2)

    def gradient(w, rows, count):
        return jax.grad(lambda w: jnp.sum(mask[rows] * (w * x[rows] - 1) ** 2) / count)(w)

    w = {"w": jnp.float32(0.5)}
    optimizer = opt.sgd(0.1, accumulate=2)
    state = optimizer.init(w)
    for rows in (slice(0, 8), slice(8, 16)):
        updates, state = optimizer.update({"w": gradient(w["w"], rows, 4)}, state, w)
    np.testing.assert_allclose(updates["w"], -0.1 * gradient(w["w"], slice(None), 8), rtol=1e-5)


# Masks


def _many():
    def leaf(*shape):
        return jnp.ones(shape)

    encoder = {
        "Conv_0": {"kernel": leaf(3, 3, 3, 4), "bias": leaf(4)},
        "BatchNorm_0": {"scale": leaf(4), "bias": leaf(4)},
        "pos_embedding": leaf(1, 5, 4),
        "cls": leaf(1, 1, 4),
        "mask_token": leaf(1, 1, 4),
        "PositionEmbed_0": {"embedding": leaf(5, 4)},
        "Embed_0": {"embedding": leaf(9, 4)},
        "attention": {
            "query": {"kernel": leaf(4, 2, 2), "bias": leaf(2, 2)},
            "out": {"kernel": leaf(2, 2, 4), "bias": leaf(4)},
        },
    }
    return {
        "encoder": encoder,
        "head": {"kernel": leaf(4, 2), "bias": leaf(2)},
        "critic": {"layers_0": {"kernel": leaf(4, 4), "scale": leaf(2, 4)}},
    }


def _marked(marks):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, mark in jax.tree_util.tree_leaves_with_path(marks)
        if mark
    }


def test_only_kernels_and_embedding_tables_decay():
    kernels = {
        "encoder/Conv_0/kernel",
        "encoder/Embed_0/embedding",
        "encoder/attention/query/kernel",
        "encoder/attention/out/kernel",
        "head/kernel",
        "critic/layers_0/kernel",
    }
    assert _marked(opt.kernels_only(_many())) == kernels
    # Through the optimiser, gradient zero: exactly those leaves move.
    optimizer = opt.adamw(0.1, weight_decay=0.5)
    zeros = jax.tree.map(jnp.zeros_like, _many())
    updates = _first_update(optimizer, zeros, _many())
    assert _marked(jax.tree.map(lambda leaf: bool((leaf != 0).any()), updates)) == kernels
    everything = opt.sgd(0.1, weight_decay=0.5, decay_mask=True)
    updates = _first_update(everything, zeros, _many())
    assert all(bool((leaf != 0).all()) for leaf in jax.tree.leaves(updates))


def test_hidden_kernels_leave_out_embeddings_and_heads():
    assert _marked(opt.hidden_kernels(_many())) == {
        "encoder/Conv_0/kernel",
        "encoder/attention/query/kernel",
        "encoder/attention/out/kernel",
        "critic/layers_0/kernel",
    }


def test_a_decay_mask_is_kept_within_a_group():
    # optax hides the other groups' leaves; the paths must still be those of the whole tree.
    optimizer = opt.by_path({"critic": opt.sgd(1.0)}, opt.sgd(1.0, weight_decay=1.0))
    zeros = jax.tree.map(jnp.zeros_like, _many())
    updates = _first_update(optimizer, zeros, _many())
    moved = _marked(jax.tree.map(lambda leaf: bool((leaf != 0).any()), updates))
    assert "head/kernel" in moved and not any("critic" in name for name in moved)
    assert "encoder/pos_embedding" not in moved


# Muon


def test_muon_makes_the_update_of_a_matrix_near_orthogonal():
    draw = np.random.default_rng(3)
    shapes = {
        "Dense_0": (16, 16),
        "Dense_1": (8, 32),
        "Conv_0": (3, 3, 4, 8),
        "query": (16, 2, 8),
        "out": (2, 8, 16),
    }
    params = {name: {"kernel": jnp.zeros(shape)} for name, shape in shapes.items()}
    params["head"] = {"kernel": jnp.zeros((16, 4))}
    grads = jax.tree.map(lambda leaf: jnp.float32(draw.normal(size=leaf.shape)), params)
    optimizer = opt.muon(0.1, adam_learning_rate=0.01)
    updates = _first_update(optimizer, grads, params)
    matrices = {"Conv_0": (36, 8), "query": (16, 16), "out": (16, 16)}
    for name, shape in shapes.items():
        matrix = np.asarray(updates[name]["kernel"]).reshape(matrices.get(name, shape))
        scale = 0.1 * max(1, matrix.shape[1] / matrix.shape[0]) ** 0.5
        values = np.linalg.svd(matrix / scale, compute_uv=False)
        # The Newton-Schulz band, for directions that are not nearly absent from the gradient.
        assert values.max() < 1.3 and np.median(values) > 0.65, (name, values)
        assert values.min() > 0.3, (name, values)
    # The head is Adam's: every coordinate moves by the rate.
    np.testing.assert_allclose(jnp.abs(updates["head"]["kernel"]), 0.01, rtol=1e-4)


def test_muon_decays_decoupled_and_never_biases():
    params = {"Dense_0": {"kernel": jnp.full((2, 2), 2.0), "bias": jnp.full(2, 2.0)}}
    optimizer = opt.muon(0.1, weight_decay=0.5)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates = _first_update(optimizer, zeros, params)
    np.testing.assert_allclose(updates["Dense_0"]["kernel"], -0.1, rtol=1e-6)
    assert not updates["Dense_0"]["bias"].any()


def test_muon_without_a_hidden_kernel_or_with_a_vector_is_refused():
    with pytest.raises(InputError, match="no hidden kernel"):
        opt.muon(0.1).init({"head": {"kernel": jnp.ones((2, 2))}})
    everything = opt.muon(0.1, hidden=lambda params: jax.tree.map(lambda leaf: True, params))
    with pytest.raises(InputError, match="'Dense_0/bias' has shape"):
        everything.init(_params())


# Groups


def _net():
    return {
        "whiten": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)},
        "BatchNorm_0": {"bias": jnp.ones(2)},
        "Conv_0": {"kernel": jnp.ones((2, 2))},
    }


def test_groups_by_path():
    rate = 0.5
    optimizer = opt.by_path(
        {
            "whiten/kernel": opt.freeze(),
            "whiten/bias": opt.sgd(
                optax.join_schedules([schedules.constant(rate), schedules.constant(0.0)], [2]), 0.9
            ),
            r"BatchNorm_\d+/bias": opt.sgd(64 * rate),
        },
        default=opt.sgd(rate),
    )
    params, state = _net(), optimizer.init(_net())
    ones = jax.tree.map(jnp.ones_like, params)
    moves = []
    for _ in range(4):
        updates, state = jax.jit(optimizer.update)(ones, state, params)
        moves.append(jax.tree.map(lambda leaf: float(leaf.ravel()[0]), updates))
    assert [move["whiten"]["kernel"] for move in moves] == [0, 0, 0, 0]
    np.testing.assert_allclose([move["whiten"]["bias"] for move in moves], [-0.5, -0.95, 0, 0])
    assert [move["BatchNorm_0"]["bias"] for move in moves] == [-32] * 4
    assert [move["Conv_0"]["kernel"] for move in moves] == [-0.5] * 4


def test_the_first_pattern_wins():
    optimizer = opt.by_path({"whiten": opt.freeze(), "bias": opt.sgd(2.0)}, opt.sgd(1.0))
    ones = jax.tree.map(jnp.ones_like, _net())
    updates = _first_update(optimizer, ones, _net())
    assert not updates["whiten"]["bias"].any()
    assert updates["BatchNorm_0"]["bias"][0] == -2


def test_clipping_over_groups_does_not_count_frozen_gradients():
    params = {"frozen": jnp.zeros(()), "a": jnp.zeros(()), "b": jnp.zeros(())}
    grads = {"frozen": jnp.float32(1e6), "a": jnp.float32(6), "b": jnp.float32(8)}
    optimizer = opt.by_path(
        {"frozen": opt.freeze(), "^a$": opt.sgd(1.0)}, opt.sgd(1.0), max_norm=0.5
    )
    updates = _first_update(optimizer, grads, params)
    np.testing.assert_allclose([updates["a"], updates["b"]], [-0.3, -0.4], rtol=1e-6)
    assert updates["frozen"] == 0


def test_a_pattern_that_matches_nothing_is_refused():
    with pytest.raises(InputError, match="'LayerNorm' matches no parameter") as caught:
        opt.by_path({"LayerNorm": opt.freeze()}, opt.sgd(0.1)).init(_net())
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="regular expression"):
        opt.by_path({"(": opt.freeze()}, opt.sgd(0.1))


# The state and the transformations of JAX

MAKE = {
    "sgd": lambda rate, **more: opt.sgd(rate, 0.9, nesterov=True, **more),
    "rmsprop": lambda rate, **more: opt.rmsprop(rate, momentum=0.9, **more),
    "centered": lambda rate, **more: opt.rmsprop(rate, centered=True, **more),
    "adam": opt.adam,
    "adamw": opt.adamw,
    "lars": opt.lars,
    "muon": opt.muon,
    "by_path": lambda rate, accumulate=1, max_norm=None, **more: opt.by_path(
        {"bias": opt.freeze()},
        opt.sgd(rate, **more),
        accumulate=accumulate,
        max_norm=max_norm,
    ),
}


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_update_is_a_fixed_point_of_shapes_dtypes_and_weak_types(name, accumulate):
    def signature(tree):
        return jax.tree.map(
            lambda leaf: (leaf.shape, leaf.dtype, leaf.weak_type), jax.eval_shape(lambda: tree)
        )

    rates = {"number": 0.1, "schedule": schedules.warmup_cosine(0.1, 10, warmup_steps=2)}
    for kind, rate in rates.items():
        optimizer = MAKE[name](rate, accumulate=accumulate, weight_decay=0.1, max_norm=1.0)
        state = jax.eval_shape(optimizer.init, _params())

        def once(params, state, optimizer=optimizer):
            updates, state = optimizer.update(params, state, params)
            return optax.apply_updates(params, updates), state

        after = jax.eval_shape(once, _params(), state)
        before = (jax.eval_shape(lambda: _params()), state)
        assert jax.tree.structure(after) == jax.tree.structure(before)
        kinds = [(leaf.shape, leaf.dtype, leaf.weak_type) for leaf in jax.tree.leaves(before)]
        found = [(leaf.shape, leaf.dtype, leaf.weak_type) for leaf in jax.tree.leaves(after)]
        assert kinds == found, (name, kind)
        leaves = jax.tree.leaves(optimizer.init(_params()))
        assert all(isinstance(leaf, jax.Array) for leaf in leaves)


@pytest.mark.parametrize("name", MAKE)
def test_a_mapped_learning_rate_equals_separate_runs(name):
    gradients = jax.tree.map(jnp.float32, _gradients(1)[0])

    def run(rate):
        optimizer = MAKE[name](schedules.warmup_cosine(rate, 8, warmup_steps=1), max_norm=1.0)
        params, state = _params(), optimizer.init(_params())
        for _ in range(3):
            updates, state = optimizer.update(gradients, state, params)
            params = optax.apply_updates(params, updates)
        return params

    rates = jnp.array([0.01, 0.1])
    mapped = jax.jit(jax.vmap(run))(rates)
    for index, rate in enumerate((0.01, 0.1)):
        jax.tree.map(
            lambda many, one, index=index: np.testing.assert_allclose(many[index], one, rtol=2e-4),
            mapped,
            jax.jit(run)(jnp.float32(rate)),
        )


def test_a_traced_constant_rate():
    def first(rate):
        optimizer = opt.sgd(rate, 0.9)
        return optimizer.update(_params(), optimizer.init(_params()))[0]["Dense_0"]["bias"]

    np.testing.assert_allclose(jax.vmap(first)(jnp.array([0.1, 1.0]))[:, 0], [-0.1, -1.0])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: opt.sgd(-0.1), "learning_rate must be at least 0"),
        (lambda: opt.sgd(float("nan")), "learning_rate"),
        (lambda: opt.adamw(jnp.ones(2)), "learning_rate must be one number"),
        (lambda: opt.lars(-1.0), "learning_rate"),
        (lambda: opt.muon(-1.0), "learning_rate"),
        (lambda: opt.muon(0.1, adam_learning_rate=-1.0), "learning_rate"),
        (lambda: opt.sgd(0.1, 1.0), "momentum must be at least 0 and below 1"),
        (lambda: opt.sgd(0.1, -0.1), "momentum"),
        (lambda: opt.lars(0.1, 1.5), "momentum"),
        (lambda: opt.muon(0.1, 1.5), "momentum"),
        (lambda: opt.rmsprop(0.1, momentum=1.0), "momentum"),
        (lambda: opt.sgd(0.1, nesterov=True), "nesterov"),
        (lambda: opt.adam(0.1, b2=1.0), "b2"),
        (lambda: opt.adamw(0.1, weight_decay=-1.0), "weight_decay"),
        (lambda: opt.sgd(0.1, accumulate=0), "accumulate"),
        (lambda: opt.sgd(0.1, accumulate=1.5), "accumulate"),
        (lambda: opt.sgd(0.1, max_norm=0.0), "max_norm must be above 0"),
    ],
)
def test_bad_input_is_one_line(call, words):
    with pytest.raises(InputError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)
