"""BYOL: its loss at known angles, whom it moves, its teacher, and collapse without a predictor."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nets
from nets.net import Net
from paradigms.core.errors import InputError
from paradigms.core.metrics import derive
from paradigms.core.state import fold_name
from paradigms.core.transforms import repeated, swept
from paradigms.self_supervised import byol, regression_loss, rising_decay, two_views

KEY = jax.random.key(0)
SAME = Net(lambda key, x: ({}, {}), lambda params, state, x, **_: (x, state))
SCALES = Net(
    lambda key, x: ({"scale": jax.random.normal(key, x.shape[1:])}, {}),
    lambda params, state, x, **_: (x * params["scale"], state),
)
NETS = (
    nets.mlp((16,), 16, norm="batch"),
    nets.mlp((16,), 8, norm="batch"),
    nets.mlp((16,), 8, norm="batch"),
)


def numbers(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def noise(key, x):
    return x + 0.5 * jax.random.normal(key, x.shape)


def make(*parts, optimizer=None, augment=noise, steps=10, **options):
    parts = parts or (SCALES, SAME, SCALES)
    return byol(*parts, optimizer or optax.sgd(0.3), augment, steps=steps, **options)


@pytest.mark.parametrize(
    ("target", "value"),
    [([3.0, 0.0], 0), ([0.0, 0.5], 2), ([-2.0, 0.0], 4), ([1.0, 1.0], 0.585786)],
)
def test_the_loss_by_angle(target, value):
    prediction, target = jnp.array([[5.0, 0.0]]), jnp.array([target])
    np.testing.assert_allclose(regression_loss(prediction, target), [value], atol=1e-6)
    # It is the squared distance of directions.
    apart = prediction / 5 - target / jnp.linalg.norm(target)
    np.testing.assert_allclose(jnp.square(apart).sum(), value, atol=1e-6)
    half = regression_loss(prediction.astype(jnp.bfloat16), target.astype(jnp.bfloat16))
    assert half.dtype == jnp.float32


def test_the_loss_moves_the_prediction_only():
    slopes = jax.jit(jax.grad(lambda *z: regression_loss(*z).sum(), (0, 1)))(
        numbers(0, 3, 2), numbers(1, 3, 2)
    )
    assert (np.abs(slopes[0]).max(1) > 1e-3).all()
    np.testing.assert_array_equal(slopes[1], 0)


def test_the_decay_rises_to_one_by_half_a_cosine():
    found = [float(rising_decay(step, 0.9, 4)) for step in (0, 1, 2, 4, 9)]
    quarter = 1 - 0.1 * (np.sqrt(0.5) + 1) / 2
    np.testing.assert_allclose(found, [0.9, quarter, 0.95, 1, 1], rtol=1e-6)
    assert float(rising_decay(7, 0.0, 7)) == 1 and float(rising_decay(0, 0.0, 7)) == 0


def test_an_update_by_hand():
    """The loss: one predictor, on the student's side, and the other view for a target."""
    batch = {"image": numbers(0, 5, 3)}
    learner = make(optimizer=optax.sgd(1.0))
    state = jax.jit(learner.init)(KEY, batch)
    teacher = {"params": {"backbone": {"scale": numbers(4, 3)}, "projector": {}}}
    teacher["model_state"] = {"backbone": {}, "projector": {}}
    state = state.replace(target={"teacher": teacher})
    drawn = two_views(noise, fold_name(state.rng("views"), "augment"), batch["image"])
    views = [drawn[:, 0], drawn[:, 1]]

    @jax.jit
    @jax.value_and_grad
    def loss_of(params):
        total = 0.0
        for online, other in (views, views[::-1]):
            p = online * params["backbone"]["scale"] * params["predictor"]["scale"]
            t = other * teacher["params"]["backbone"]["scale"]
            cosine = (p * t).sum(1) / jnp.linalg.norm(p, axis=1) / jnp.linalg.norm(t, axis=1)
            total += (2 - 2 * cosine).mean()
        return total

    loss, slopes = loss_of(state.params)
    after, metrics = jax.jit(learner.update)(state, batch)
    assert float(metrics["loss"].value()) == pytest.approx(float(loss), rel=1e-5)
    jax.tree.map(
        lambda a, b, c: np.testing.assert_allclose(a - b, c, rtol=1e-4, atol=1e-5),
        state.params,
        after.params,
        slopes,
    )
    # Diagnostics are of what comes before the predictor.
    u, v = (view * state.params["backbone"]["scale"] for view in views)
    u, v = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (u, v))
    expected = np.square(u - v).sum(1).mean()
    assert float(metrics["embedding/alignment"].value()) == pytest.approx(expected, rel=1e-4)


def test_gradients_reach_the_student_and_nothing_else():
    batch = {"image": numbers(0, 6, 2)}
    learner = make(*NETS)
    state = jax.jit(learner.init)(KEY, batch)

    @jax.jit
    @jax.grad
    def slopes(parts):
        changed = state.replace(params=parts[0], target=parts[1])
        return learner.update(changed, batch)[1]["loss"].value()

    of_student, of_teacher = slopes((state.params, state.target))
    assert set(of_teacher["teacher"]["params"]) == {"backbone", "projector"}
    for leaf in jax.tree.leaves(of_teacher):
        np.testing.assert_array_equal(leaf, 0)
    for leaf in jax.tree.leaves(of_student):
        assert np.abs(leaf).max() > 0


def test_the_teacher_starts_equal_and_follows_after_the_step_ever_more_slowly():
    batch = {"image": numbers(0, 6, 2)}
    learner = make(*NETS, steps=4, decay=0.5)
    state, update = jax.jit(learner.init)(KEY, batch), jax.jit(learner.update)
    first, expected = state, state.target["teacher"]["params"]
    for name, tree in expected.items():
        jax.tree.map(np.testing.assert_array_equal, tree, state.params[name])
    for step in range(6):
        state, _ = update(state, batch)
        decay = 1 - 0.5 * (np.cos(np.pi * min(step, 4) / 4) + 1) / 2
        student = {name: state.params[name] for name in expected}
        expected = jax.tree.map(
            lambda t, s, decay=decay: decay * t + (1 - decay) * s, expected, student
        )
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
            state.target["teacher"]["params"],
            expected,
        )
    # Its batch statistics are those of its own passes: not the student's, nor those of the start.
    of_teacher = jax.tree.leaves(state.target["teacher"]["model_state"])
    own = {name: state.model_state[name] for name in ("backbone", "projector")}
    start = jax.tree.leaves({name: first.model_state[name] for name in own})
    for found, online, before in zip(of_teacher, jax.tree.leaves(own), start, strict=True):
        assert np.abs(found - online).max() > 1e-4 and np.abs(found - before).max() > 1e-4
    predictors = (tree.model_state["predictor"] for tree in (state, first))
    for found, before in zip(*map(jax.tree.leaves, predictors), strict=True):
        assert np.abs(found - before).max() > 1e-4


def test_evaluation_is_out_of_training():
    batch = {"image": numbers(0, 6, 2), "mask": np.float32([1, 1, 1, 1, 0, 0])}
    learner = make(*NETS, augment=lambda key, x: x)
    state = jax.jit(learner.init)(KEY, batch)
    found = jax.jit(learner.evaluate)(state, batch, KEY)
    # Untrained, running statistics change nothing; both views and both nets are the same.
    backbone, projector, predictor = NETS
    z, _ = backbone.apply(state.params["backbone"], state.model_state["backbone"], batch["image"])
    z, _ = projector.apply(state.params["projector"], state.model_state["projector"], z)
    p, _ = predictor.apply(state.params["predictor"], state.model_state["predictor"], z)
    expected = 2 * regression_loss(p, z)[:4].mean()
    assert float(found["loss"].value()) == pytest.approx(float(expected), rel=1e-5)
    assert float(found["loss"].count) == 4
    assert float(found["embedding/alignment"].value()) == pytest.approx(0, abs=1e-10)
    assert "embedding/rank" in found


def test_collapse_is_seen_where_nothing_predicts_and_the_teacher_is_the_student():
    """What keeps BYOL alive is the predictor behind a slow teacher; without, the flag goes up."""
    batch = {"image": numbers(0, 64, 2)}
    found = {}
    for name, predictor, decay in (("healthy", NETS[2], 0.9), ("dead", SAME, 0.0)):
        learner = make(
            *NETS[:2], predictor, optimizer=optax.sgd(0.1, 0.9), steps=10**6, decay=decay
        )
        learner = repeated(learner, 200)
        state = jax.jit(learner.init)(KEY, batch)
        state, metrics = jax.jit(learner.update)(state, batch)
        assert float(metrics["embedding/collapsed"].value()[0]) == 0
        assert float(metrics["embedding/collapsed"].value()[-1]) == (name == "dead")
        found[name] = derive(jax.jit(learner.evaluate)(state, batch, KEY))
    assert found["healthy"]["embedding/collapsed"] == 0
    assert found["healthy"]["embedding/std"] > 0.5 and found["healthy"]["embedding/rank"] > 2
    # By the loss alone the collapsed one is by far the better.
    assert found["dead"]["loss"] < 0.01 < found["healthy"]["loss"]
    assert found["dead"]["embedding/collapsed"] == 1 and found["dead"]["embedding/std"] < 0.03


@pytest.mark.slow
def test_a_sweep_over_the_decay_is_the_runs_apart():
    decays, batch = np.float32([0.5, 0.9]), {"image": numbers(0, 4, 3)}
    learner = swept(lambda h: make(decay=h["d"]), {"d": decays})
    state, _ = jax.jit(learner.update)(jax.jit(learner.init)(KEY, batch), batch)
    for i, decay in enumerate(decays):
        alone = make(decay=float(decay))
        apart, _ = jax.jit(alone.update)(jax.jit(alone.init)(KEY, batch), batch)
        np.testing.assert_allclose(
            state.target["teacher"]["params"]["backbone"]["scale"][i],
            apart.target["teacher"]["params"]["backbone"]["scale"],
            rtol=1e-5,
        )


def test_bad_input_is_one_clear_line():
    for decay in (-0.1, 1.1, float("nan")):
        with pytest.raises(InputError, match=r"byol\(decay=.*in \[0, 1\]"):
            make(decay=decay)
    with pytest.raises(InputError, match=r"byol\(steps=0\): expected at least 1 update"):
        make(steps=0)
    batch = {"image": numbers(0, 4, 3)}
    narrow = make(SCALES, SAME, nets.mlp((), 2))
    with pytest.raises(InputError, match="gives 2 numbers for embeddings of 3"):
        jax.eval_shape(narrow.update, jax.eval_shape(narrow.init, KEY, batch), batch)
    one = {"image": numbers(0, 1, 3)}
    with pytest.raises(InputError, match="N at least 2"):
        jax.eval_shape(make().update, jax.eval_shape(make().init, KEY, one), one)
