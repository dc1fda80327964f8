"""MoCo: InfoNCE by hand, the queue against a numpy ring, a teacher that no gradient moves."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special

import nets
from nets.net import Net
from paradigms.core.errors import InputError
from paradigms.core.state import fold_name
from paradigms.core.transforms import swept
from paradigms.self_supervised import moco, two_views
from paradigms.self_supervised.moco import info_nce as eager_info_nce

KEY = jax.random.key(0)
info_nce = jax.jit(eager_info_nce)
SGD = optax.sgd(0.3)
NETS = nets.mlp((4,), 5, norm="batch"), nets.mlp((3,), 3, norm="batch", dropout=0.2)
# Numbers times one number each: what a step changes in them is the sum of all gradients.
SCALES = Net(
    lambda key, x: ({"scale": jax.random.normal(key, x.shape[1:])}, {}),
    lambda params, state, x, **_: (x * params["scale"], state),
)
SAME = Net(lambda key, x: ({}, {}), lambda params, state, x, **_: (x, state))


def numbers(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def noise(key, x):
    return x + 0.1 * jax.random.normal(key, x.shape)


def unit(z):
    return np.asarray(z) / np.linalg.norm(z, axis=-1, keepdims=True)


def make(backbone=SCALES, projector=SAME, optimizer=SGD, augment=noise, **options):
    return moco(backbone, projector, optimizer, augment, **{"queue_size": 8, **options})


@jax.jit
def views_of(state, image):
    """The two views that an update of `state` draws, `[2, B, ...]`."""
    views = two_views(noise, fold_name(state.rng("views"), "augment"), image)
    return views.swapaxes(0, 1)


def test_info_nce_by_hand():
    query = jnp.array([[2.0, 0.0], [0.0, 3.0]])
    key = jnp.array([[0.5, 0.0], [1.0, 0.0]])
    queue = jnp.array([[0.0, 1.0], [0.0, -4.0], [5.0, 0.0]])
    a, b, c = np.exp([2, 0, -2])  # temperature 1/2
    expected = [np.log((a + b + b + a) / a), np.log((b + a + c + b) / b)]
    np.testing.assert_allclose(info_nce(query, key, queue, 0.5), expected, rtol=1e-6)
    # Any leading axes: here two views of each example.
    pair = info_nce(query[:, None].repeat(2, 1), key[:, None].repeat(2, 1), queue, 0.5)
    np.testing.assert_allclose(pair, np.stack([expected, expected], 1), rtol=1e-6)


@pytest.mark.parametrize(("size", "value"), [(4096, 8.3180), (65536, 11.0904)])
def test_equal_cosines_cost_the_log_of_what_there_is_to_choose_from(size, value):
    same = jnp.ones((2, 2))
    found = info_nce(same, same, jnp.ones((size, 2)), 0.2)
    np.testing.assert_allclose(found, np.log(size + 1), rtol=1e-6)
    np.testing.assert_allclose(found, value, atol=1e-4)


def test_info_nce_moves_the_query_only():
    arguments = numbers(0, 4, 3), numbers(1, 4, 3), numbers(2, 5, 3)
    slopes = jax.jit(jax.grad(lambda *z: info_nce(*z, 0.2).sum(), (0, 1, 2)))(*arguments)
    assert (np.abs(slopes[0]).max(1) > 1e-3).all()
    for slope in slopes[1:]:
        np.testing.assert_array_equal(slope, 0)
    half = [jnp.asarray(z, jnp.bfloat16) for z in arguments]
    assert info_nce(*half, 0.2).dtype == jnp.float32


@pytest.mark.parametrize("symmetric", [True, False])
def test_three_wraps_of_the_queue_and_positives_that_are_not_in_it(symmetric):
    """Loss and queue of every update against numpy, with the teacher's weights of before it."""
    size, batch = 12, {"image": numbers(0, 3, 4)}
    options = {"queue_size": size, "symmetric": symmetric, "temperature": 0.3, "decay": 0.5}
    learner = make(**options)
    state, update = jax.jit(learner.init)(KEY, batch), jax.jit(learner.update)
    ring, place = np.array(state.memory["keys"]), 0
    per_update = 6 if symmetric else 3
    for step in range(3 * size // per_update + 1):
        batch = {"image": numbers(step, 3, 4)}
        first, second = np.asarray(views_of(state, batch["image"]))
        teacher = np.asarray(state.target["teacher"]["params"]["backbone"]["scale"])
        student = np.asarray(state.params["backbone"]["scale"])
        losses, fresh = [], []
        for query, key in ((first, second), (second, first))[: 1 + symmetric]:
            q, k = unit(query * student), unit(key * teacher)
            logits = np.concatenate([(q * k).sum(1, keepdims=True), q @ ring.T], 1) / 0.3
            losses.append(scipy.special.logsumexp(logits, axis=1) - logits[:, 0])
            fresh.append(k)
        state, metrics = update(state, batch)
        assert float(metrics["loss"].value()) == pytest.approx(np.mean(losses), rel=1e-4)
        # Both keys of an example follow each other.
        ring[place : place + per_update] = np.stack(fresh, 1).reshape(-1, 4)
        place = (place + per_update) % size
        np.testing.assert_allclose(state.memory["keys"], ring, rtol=1e-4, atol=1e-5)
        assert int(state.memory["cursor"]) == place


def test_the_teacher_starts_equal_and_follows_after_the_step():
    batch = {"image": numbers(0, 4, 4)}
    learner = make(*NETS, queue_size=16, decay=0.9)
    state, update = jax.jit(learner.init)(KEY, batch), jax.jit(learner.update)
    teacher = state.target["teacher"]
    jax.tree.map(np.testing.assert_array_equal, teacher["params"], state.params)
    jax.tree.map(np.testing.assert_array_equal, teacher["model_state"], state.model_state)
    students = []
    for _ in range(4):
        state, _ = update(state, batch)
        students.append(state.params)
    # .9^4 of the start and .1 * .9^(4 - i) of the weights after step i.
    shares = [0.9**4, *(0.1 * 0.9 ** (3 - i) for i in range(4))]
    expected = jax.tree.map(
        lambda *leaves: sum(share * leaf for share, leaf in zip(shares, leaves, strict=True)),
        teacher["params"],
        *students,
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        state.target["teacher"]["params"],
        expected,
    )


def test_the_teacher_normalises_by_its_own_batch_and_keeps_its_own_statistics():
    batch = {"image": numbers(0, 4, 4)}
    net = nets.mlp((4,), 5, norm="batch")
    learner = make(net, SAME)
    state = jax.jit(learner.init)(KEY, batch)
    apart = jax.tree.map(lambda leaf: leaf + 0.3, state.target["teacher"]["params"])
    teacher = {"params": apart, "model_state": state.model_state}
    state = state.replace(target={"teacher": teacher})
    views = views_of(state, batch["image"])
    after, _ = jax.jit(learner.update)(state, batch)
    rows, apply = views.reshape(-1, 4), jax.jit(functools.partial(net.apply, train=True))
    for tree, found in (
        (state.params, after.model_state),
        (apart, after.target["teacher"]["model_state"]),
    ):
        z, statistics = apply(tree["backbone"], state.model_state["backbone"], rows)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
            found["backbone"],
            statistics,
        )
    keys = unit(z)[[4, 0, 5, 1, 6, 2, 7, 3]]  # of the second view, of the first, and so on
    np.testing.assert_allclose(after.memory["keys"], keys, rtol=1e-3, atol=1e-4)


def test_gradients_reach_the_student_and_nothing_else():
    batch = {"image": numbers(0, 4, 4)}
    learner = make(*NETS)
    state = jax.jit(learner.init)(KEY, batch)

    @jax.jit
    @jax.grad
    def slopes(parts):
        params, target, keys = parts
        memory = {**state.memory, "keys": keys}
        changed = state.replace(params=params, target=target, memory=memory)
        return learner.update(changed, batch)[1]["loss"].value()

    of_student, *others = slopes((state.params, state.target, state.memory["keys"]))
    for leaf in jax.tree.leaves(others):
        np.testing.assert_array_equal(leaf, 0)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(of_student))


def test_evaluation_compares_with_the_queue_as_it_is():
    batch = {"image": numbers(0, 4, 4), "mask": np.float32([1, 1, 0, 1])}
    learner = make(augment=lambda key, x: x, temperature=0.3)
    state = jax.jit(learner.init)(KEY, batch)
    moved = {"backbone": {"scale": numbers(5, 4)}, "projector": {}}
    state = state.replace(params=moved)
    found = jax.jit(learner.evaluate)(state, batch, KEY)
    q = unit(batch["image"] * moved["backbone"]["scale"])
    k = unit(batch["image"] * state.target["teacher"]["params"]["backbone"]["scale"])
    negative = q @ np.asarray(state.memory["keys"]).T
    logits = np.concatenate([(q * k).sum(1, keepdims=True), negative], 1) / 0.3
    losses = (scipy.special.logsumexp(logits, axis=1) - logits[:, 0])[[0, 1, 3]]
    assert float(found["loss"].value()) == pytest.approx(losses.mean(), rel=1e-5)
    assert float(found["loss"].count) == 3 and "embedding/rank" in found


@pytest.mark.slow
def test_a_sweep_over_temperature_and_decay_is_the_runs_apart():
    grid, batch = {"t": np.float32([0.1, 1.0]), "d": np.float32([0.5, 0.9])}, numbers(0, 4, 4)
    batch = {"image": batch}
    learner = swept(lambda h: make(temperature=h["t"], decay=h["d"]), grid)
    state, _ = jax.jit(learner.update)(jax.jit(learner.init)(KEY, batch), batch)
    for i in range(2):
        alone = make(temperature=float(grid["t"][i]), decay=float(grid["d"][i]))
        apart, _ = jax.jit(alone.update)(jax.jit(alone.init)(KEY, batch), batch)
        for part in ("params", "target"):
            jax.tree.map(
                lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-5),
                getattr(state, part),
                getattr(apart, part),
            )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"queue_size": 0}, r"moco\(queue_size=0\): expected at least 1"),
        ({"temperature": 0.0}, r"moco\(temperature=0.0\): expected a number above 0"),
        ({"decay": 1.5}, r"moco\(decay=1.5\): expected a number in \[0, 1\]"),
        ({"decay": float("nan")}, r"moco\(decay=nan\)"),
    ],
)
def test_bad_options_are_one_clear_line(options, message):
    with pytest.raises(InputError, match=message) as caught:
        make(**options)
    assert "\n" not in str(caught.value)


def test_queues_and_batches_that_do_not_fit_are_refused_at_the_start():
    batch = {"image": numbers(0, 4, 4)}
    with pytest.raises(InputError, match="a queue of 12 is no multiple of the 8 keys"):
        jax.eval_shape(make(queue_size=12).init, KEY, batch)
    jax.eval_shape(make(queue_size=12, symmetric=False).init, KEY, batch)
    with pytest.raises(InputError, match="N at least 2"):
        jax.eval_shape(make().init, KEY, {"image": numbers(0, 1, 4)})
    state = jax.eval_shape(make().init, KEY, batch)
    with pytest.raises(InputError, match="a queue of 8 is no multiple of the 6 keys"):
        jax.eval_shape(make().update, state, {"image": numbers(0, 3, 4)})
