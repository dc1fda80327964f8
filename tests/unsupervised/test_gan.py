from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nets
from nets.net import Net
from paradigms.core.errors import InputError
from paradigms.core.loop import evaluator
from paradigms.core.metrics import derive
from paradigms.core.transforms import repeated, resident, swept
from paradigms.unsupervised.gan import (
    categorical_latents,
    gan,
    generator_weights,
    gradient_norm_penalty,
    hinge_critic_loss,
    non_saturating_critic_loss,
    non_saturating_generator_loss,
    sample,
    wasserstein_critic_loss,
    wasserstein_generator_loss,
)

KEY = jax.random.key(0)
SGD = optax.sgd(0.1)


class Seen(NamedTuple):
    """A net, what it was given, and whether each call of those traced was in training."""

    net: Net
    recorded: list[np.ndarray]
    modes: list[bool]

    @property
    def inputs(self):
        jax.effects_barrier()  # what a jitted call has to tell may come after its result
        return self.recorded


def linear(width, out, kernel=None, init_seed=0):
    """`x @ w + b` for `x[B, width]`, with a model state that counts its calls in training."""
    inputs: list[np.ndarray] = []
    modes: list[bool] = []

    def init(key, x):
        w = jax.random.normal(jax.random.key(init_seed), (width, out)) if kernel is None else kernel
        return {"w": jnp.asarray(w, jnp.float32), "b": jnp.zeros(out)}, {"calls": jnp.zeros(())}

    def apply(params, model_state, x, *, key=None, train=False):
        modes.append(train)
        jax.debug.callback(lambda x: inputs.append(np.asarray(x)), x, ordered=True)
        moved = {"calls": model_state["calls"] + 1} if train else model_state
        return x.reshape(len(x), -1) @ params["w"] + params["b"], moved

    return Seen(Net(init, apply), inputs, modes)


def points(n, dim=2, seed=0):
    return np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)


def mlp_gan(**options):
    options = {"latent": 3, "input_name": "x", **options}
    generator, critic = nets.mlp((4,), 2, norm="batch"), nets.mlp((4,), 1)
    return gan(generator, critic, options.pop("generator_optimizer", SGD), SGD, **options)


# The losses -------------------------------------------------------------------------------------


def test_losses_by_hand():
    zeros = jnp.zeros(3)
    np.testing.assert_allclose(non_saturating_critic_loss(zeros, zeros), [2 * np.log(2)] * 3)
    np.testing.assert_allclose(non_saturating_generator_loss(zeros), [np.log(2)] * 3)
    # D(x) = 3/4 and D(G(z)) = 1/3.
    real, fake = jnp.log(jnp.array([3.0])), jnp.log(jnp.array([0.5]))
    expected = -np.log(3 / 4) - np.log(2 / 3)
    np.testing.assert_allclose(non_saturating_critic_loss(real, fake), [expected], rtol=1e-6)
    np.testing.assert_allclose(non_saturating_generator_loss(fake), [np.log(3)], rtol=1e-6)
    real, fake = jnp.array([0.25, 2.0, -1.0]), jnp.array([-0.5, -3.0, 2.0])
    np.testing.assert_allclose(hinge_critic_loss(real, fake), [0.75 + 0.5, 0, 2 + 3])
    np.testing.assert_allclose(wasserstein_critic_loss(real, fake), [-0.75, -5, 3])
    np.testing.assert_allclose(wasserstein_generator_loss(fake), [0.5, 3, -2])


def test_losses_are_float32_and_finite_for_certain_critics():
    certain = jnp.full(1, 1e4, jnp.bfloat16)
    for loss in (non_saturating_critic_loss, hinge_critic_loss, wasserstein_critic_loss):
        assert loss(certain, certain).dtype == jnp.float32
        assert np.isfinite(loss(-certain, certain)).all()
    for loss in (non_saturating_generator_loss, wasserstein_generator_loss):
        assert loss(certain).dtype == jnp.float32
        assert np.isfinite(loss(-certain)).all()


def test_the_generator_loss_does_not_saturate():
    # Its gradient in the logit is -(1 - D), which is -1 where D is sure of a fake.
    slope = jax.grad(lambda score: non_saturating_generator_loss(score).sum())(jnp.array([-20.0]))
    np.testing.assert_allclose(slope, [-1], rtol=1e-6)


# The gradient penalty ---------------------------------------------------------------------------


def test_penalty_of_a_linear_critic_by_hand():
    real, fake = points(5), points(5, seed=1)

    def penalty(w):
        return gradient_norm_penalty(lambda x: x @ w, real, fake, KEY)

    w = jnp.array([3.0, 4.0])
    np.testing.assert_allclose(penalty(w), [16] * 5, rtol=1e-6)
    # d/dw (|w| - 1)^2 = 2 (|w| - 1) w / |w|
    np.testing.assert_allclose(jax.jacobian(penalty)(w)[0], [4.8, 6.4], rtol=1e-6)
    images = jnp.zeros((3, 2, 1, 2))  # a norm over all axes but the first
    kernel = jnp.array([[[3.0, 0.0]], [[0.0, 4.0]]])
    values = gradient_norm_penalty(lambda x: (x * kernel).sum((1, 2, 3)), images, images, KEY)
    np.testing.assert_allclose(values, [16] * 3, rtol=1e-6)


def test_a_flat_critic_costs_1_and_has_a_finite_gradient():
    def penalty(w):
        return gradient_norm_penalty(lambda x: x @ w, points(4), points(4), KEY).sum()

    value, slope = jax.value_and_grad(penalty)(jnp.zeros(2))
    assert value == 4
    np.testing.assert_array_equal(slope, [0, 0])


def test_each_pair_has_one_place_of_its_own_on_its_line():
    n = 4000
    # The gradient of x^2 / 2 is x: from real 0 to fake 1 it is 1 - share, and the penalty share^2.
    values = gradient_norm_penalty(
        lambda x: jnp.square(x[:, 0]) / 2, jnp.zeros((n, 1)), jnp.ones((n, 1)), KEY
    )
    share = np.sqrt(np.asarray(values))
    assert len(np.unique(share)) > 0.99 * n
    assert share.mean() == pytest.approx(0.5, abs=4 * np.sqrt(1 / 12 / n))
    assert share.std() == pytest.approx(np.sqrt(1 / 12), rel=0.03)
    assert 0 <= share.min() < 0.01 and 0.99 < share.max() <= 1
    # On the line from (0, 0) to (1, 1) the critic (x - y)^2 / 2 is flat, beside it it is not.
    values = gradient_norm_penalty(
        lambda x: jnp.square(x[:, 0] - x[:, 1]) / 2, jnp.zeros((9, 2)), jnp.ones((9, 2)), KEY
    )
    np.testing.assert_array_equal(values, 1)


def test_penalty_of_a_nonlinear_critic_and_its_gradient_by_finite_differences():
    rng = np.random.default_rng(3)
    x, kernel, out = rng.normal(size=(4, 2)), rng.normal(size=(2, 3)), rng.normal(size=3)

    def reference(kernel):
        slope = (out * (1 - np.tanh(x @ kernel) ** 2)) @ kernel.T
        return np.square(np.linalg.norm(slope, axis=1) - 1)

    def penalty(kernel):
        data = jnp.float32(x)  # both ends of each line, so that the place does not matter
        return gradient_norm_penalty(lambda x: jnp.tanh(x @ kernel) @ out, data, data, KEY)

    np.testing.assert_allclose(penalty(jnp.float32(kernel)), reference(kernel), rtol=1e-4)
    slope = jax.grad(lambda kernel: penalty(kernel).sum())(jnp.float32(kernel))
    for place in np.ndindex(kernel.shape):
        nudge = np.zeros_like(kernel)
        nudge[place] = 1e-6
        numeric = (reference(kernel + nudge) - reference(kernel - nudge)).sum() / 2e-6
        assert slope[place] == pytest.approx(numeric, rel=1e-3, abs=1e-4)


# The update -------------------------------------------------------------------------------------


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


# Of the critic's loss in the scores of examples and samples, of the generator's in the latter.
SLOPES = {
    "non_saturating": (lambda r: sigmoid(r) - 1, sigmoid, lambda f: sigmoid(f) - 1),
    "hinge": (lambda r: -1.0 * (r < 1), lambda f: 1.0 * (f > -1), lambda f: -np.ones_like(f)),
    "wasserstein": (lambda r: -np.ones_like(r), np.ones_like, lambda f: -np.ones_like(f)),
}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("loss", SLOPES)
def test_an_update_is_that_of_the_papers_algorithm(loss, masked):
    generator, critic = linear(3, 2, init_seed=1), linear(2, 1, init_seed=2)
    learner = gan(
        generator.net,
        critic.net,
        optax.sgd(0.3),
        optax.sgd(0.2),
        latent=3,
        loss=loss,
        gradient_penalty=2.0,
        critic_steps=2,
        input_name="x",
    )
    x = points(8)
    weight = np.float32([1, 1, 0, 1, 0.5, 1, 1, 0]) if masked else np.ones(8, np.float32)
    if masked:
        x[weight == 0] = 1e6  # what does not count could hold anything
    state = learner.init(KEY, {"x": x})
    a, b = (np.float64(state.params["generator"][name]) for name in "wb")
    w, c = (np.float64(state.params["critic"][name][..., 0]) for name in "wb")
    state, metrics = jax.jit(learner.update)(
        state, {"x": x, **({"mask": weight} if masked else {})}
    )

    assert generator.modes[-3:] == [True] * 3
    assert critic.modes[-1]
    # What the nets were given: real and fake apart, each step of the critic its own rows.
    assert [z.shape for z in generator.inputs] == [(4, 3)] * 3
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert not np.isclose(generator.inputs[one], generator.inputs[other]).any()
    np.testing.assert_array_equal(critic.inputs[0], x[:4])
    np.testing.assert_array_equal(critic.inputs[3], x[4:])  # after the penalty's points

    on_real, on_fake, of_generator = SLOPES[loss]
    losses, penalties = [], []
    for i, z in enumerate(generator.inputs[:2]):
        real, fake, share = x[4 * i : 4 * i + 4], z @ a + b, weight[4 * i : 4 * i + 4]
        share = share / share.sum()
        real_score, fake_score = real @ w + c, fake @ w + c
        losses.append((real_score, fake_score, share))
        slope_real, slope_fake = share * on_real(real_score), share * on_fake(fake_score)
        length = np.linalg.norm(w)
        penalties.append((length - 1) ** 2)
        slope_w = slope_real @ real + slope_fake @ fake + 2 * 2 * (length - 1) * w / length
        w = w - 0.2 * slope_w
        c = c - 0.2 * (slope_real.sum() + slope_fake.sum())
    z = generator.inputs[2]
    fake = z @ a + b
    slope = of_generator(fake @ w + c)[:, None] * w / 4
    np.testing.assert_allclose(state.params["critic"]["w"][:, 0], w, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(state.params["critic"]["b"], c, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        state.params["generator"]["w"], a - 0.3 * z.T @ slope, rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(
        state.params["generator"]["b"], b - 0.3 * slope.sum(0), rtol=1e-4, atol=1e-5
    )

    counted = weight.reshape(2, 4).sum(1)
    values = derive(metrics)
    mean = np.average([(r * s).sum() for r, _, s in losses], weights=counted)
    assert values["critic/real"] == pytest.approx(mean, rel=1e-4)
    assert values["penalty"] == pytest.approx(np.average(penalties, weights=counted), rel=1e-4)
    if loss == "wasserstein":
        both = [((f - r) * s).sum() for r, f, s in losses]
        assert values["loss/critic"] == pytest.approx(np.average(both, weights=counted), rel=1e-4)
        assert values["loss/generator"] == pytest.approx(-(fake @ w + c).mean(), rel=1e-4)
        assert "critic/accuracy" not in values
    else:
        hits = [(((r > 0) * 0.5 + (f < 0) * 0.5) * s).sum() for r, f, s in losses]
        assert values["critic/accuracy"] == pytest.approx(np.average(hits, weights=counted))
    assert {"norm/gradient/critic", "norm/gradient/generator"} <= set(values)


def test_each_net_is_moved_by_its_own_steps_only():
    generator, critic = linear(3, 2), linear(2, 1)
    adam, rest = optax.adam(0.1), optax.set_to_zero()
    batch = {"x": points(6)}

    def moved(generator_optimizer, critic_optimizer):
        learner = gan(
            generator.net,
            critic.net,
            generator_optimizer,
            critic_optimizer,
            latent=3,
            critic_steps=3,
            input_name="x",
        )
        start = learner.init(KEY, batch)
        state, _ = jax.jit(learner.update)(start, batch)
        return start, state

    def same(first, second):
        return all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), first, second)))

    start, state = moved(adam, rest)
    assert same(start.params["critic"], state.params["critic"])
    assert not same(start.params["generator"], state.params["generator"])
    # A net counts its calls in its model state: the critic's own steps have two each, of examples
    # and of samples; the generator has one step, whose call of the critic is not kept.
    assert state.model_state["critic"]["calls"] == 6
    assert state.model_state["generator"]["calls"] == 1
    start, state = moved(rest, adam)
    assert same(start.params["generator"], state.params["generator"])
    assert not same(start.params["critic"], state.params["critic"])
    start, state = moved(adam, adam)
    assert optax.tree_utils.tree_get(state.opt_state["critic"], "count") == 3
    assert optax.tree_utils.tree_get(state.opt_state["generator"], "count") == 1
    assert state.step == 1


def test_a_penalty_leaves_the_critics_statistics_alone():
    critic = linear(2, 1)
    learner = gan(
        linear(3, 2).net, critic.net, SGD, SGD, latent=3, gradient_penalty=1.0, input_name="x"
    )
    state = learner.init(KEY, {"x": points(4)})
    state, _ = jax.jit(learner.update)(state, {"x": points(4)})
    assert state.model_state["critic"]["calls"] == 2


def test_no_penalty_is_reported_where_there_is_none():
    learner = mlp_gan()
    _, metrics = jax.jit(learner.update)(learner.init(KEY, {"x": points(4)}), {"x": points(4)})
    assert "penalty" not in metrics


def test_batch_norm_sees_examples_and_samples_apart():
    generator = linear(3, 2)
    critic = nets.mlp((4,), 1, norm="batch")
    learner = gan(generator.net, critic, SGD, SGD, latent=3, input_name="x")
    x = points(8) + 5
    start = learner.init(KEY, {"x": x})
    state, _ = jax.jit(learner.update)(start, {"x": x})
    params, expected = start.params["critic"], start.model_state["critic"]
    fake = generator.net.apply(
        start.params["generator"], start.model_state["generator"], jnp.asarray(generator.inputs[0])
    )[0]
    for part in (x, fake):
        _, expected = critic.apply(params, expected, part, train=True)
    for ours, theirs in zip(
        *map(jax.tree.leaves, (state.model_state["critic"], expected)), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_the_average_follows_the_generator_and_is_what_evaluation_sees():
    learner, batch = mlp_gan(decay=0.75), {"x": points(6)}
    state = learner.init(KEY, batch)

    def live(state):
        parts = {"params": state.params["generator"], "model_state": state.model_state["generator"]}
        return jax.tree.map(np.float64, parts)

    expected = live(state)
    for _ in range(3):
        state, _ = jax.jit(learner.update)(state, batch)
        expected = jax.tree.map(lambda old, new: 0.75 * old + 0.25 * new, expected, live(state))
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6),
        state.target["generator"],
        expected,
    )
    assert generator_weights(state) is state.target["generator"]
    assert set(state.target) == {"generator"}
    values = derive(jax.jit(learner.evaluate)(state, batch, KEY))
    ruined = state.replace(
        params={**state.params, "generator": jax.tree.map(jnp.zeros_like, live(state)["params"])}
    )
    assert derive(jax.jit(learner.evaluate)(ruined, batch, KEY)) == values
    without = state.replace(target={})
    assert derive(jax.jit(learner.evaluate)(without, batch, KEY)) != values
    assert mlp_gan().init(KEY, batch).target == {}


def test_bytes_are_scaled_and_floats_are_not():
    image = np.uint8([[0, 51], [255, 102]])
    for data, seen in ((image, [[-1, -0.6], [1, -0.2]]), (points(2), points(2))):
        critic = linear(2, 1)
        learner = gan(linear(3, 2).net, critic.net, SGD, SGD, latent=3)
        state = learner.init(KEY, {"image": data})
        jax.jit(learner.update)(state, {"image": data})
        trained, evaluated = critic.inputs[0], len(critic.inputs)
        jax.jit(learner.evaluate)(state, {"image": data}, KEY)
        for given in (trained, critic.inputs[evaluated]):
            np.testing.assert_allclose(given, seen, rtol=1e-5, atol=1e-6)
            assert given.dtype == np.float32


def test_examples_are_augmented_in_training_only():
    critic = linear(2, 1)
    learner = gan(
        linear(3, 2).net,
        critic.net,
        SGD,
        SGD,
        latent=3,
        augment=lambda key, x: x + 100,
        input_name="x",
    )
    x = points(4)
    state = learner.init(KEY, {"x": x})
    jax.jit(learner.update)(state, {"x": x})
    np.testing.assert_allclose(critic.inputs[0], x + 100, rtol=1e-6)
    assert np.abs(critic.inputs[1]).max() < 50  # samples are not
    critic.inputs.clear()
    jax.jit(learner.evaluate)(state, {"x": x}, KEY)
    np.testing.assert_array_equal(critic.inputs[0], x)


# Evaluation -------------------------------------------------------------------------------------


def test_evaluation_by_hand_and_over_batches():
    generator, critic = linear(3, 2, init_seed=1), linear(2, 1, init_seed=2)
    learner = gan(generator.net, critic.net, SGD, SGD, latent=3, loss="hinge", input_name="x")
    x, mask = 3 * points(6), np.float32([1, 1, 1, 1, 1, 0])
    x[5] = np.nan  # what does not count could hold anything
    state = learner.init(KEY, {"x": x})
    values = derive(jax.jit(learner.evaluate)(state, {"x": x, "mask": mask}, KEY))
    assert not any(generator.modes + critic.modes)  # running statistics, no dropout
    real = x[:5]
    fake = generator.inputs[0][:5] @ np.asarray(state.params["generator"]["w"])
    on_real, on_fake = (
        data @ np.asarray(state.params["critic"]["w"])[:, 0] for data in (real, fake)
    )
    hinge = np.maximum(0, 1 - on_real) + np.maximum(0, 1 + on_fake)
    assert values["loss"] == pytest.approx(hinge.mean(), rel=1e-5)
    assert values["loss/generator"] == pytest.approx(-on_fake.mean(), rel=1e-5)
    assert values["critic/real"] == pytest.approx(on_real.mean(), rel=1e-5)
    assert values["critic/fake"] == pytest.approx(on_fake.mean(), rel=1e-5)
    assert values["critic/accuracy"] == pytest.approx(
        ((on_real > 0) + 1.0 * (on_fake < 0)).mean() / 2
    )
    assert values["spread"] == pytest.approx(
        np.sqrt(fake.var(0).sum() / real.var(0).sum()), rel=1e-5
    )
    # Over batches, the last of them padded.
    whole = evaluator(learner, {"x": points(13)}, 5)(state, KEY)
    assert whole["loss"].count == 13
    assert np.isfinite(list(derive(whole).values())).all()


def test_the_spread_shows_collapse():
    x = points(400)

    def spread(kernel, x=x):
        # Latents and data are both standard normal.
        learner = gan(
            linear(2, 2, kernel).net, linear(2, 1).net, SGD, SGD, latent=2, input_name="x"
        )
        state = learner.init(KEY, {"x": x})
        _, trained = jax.jit(learner.update)(state, {"x": x})
        values = derive(jax.jit(learner.evaluate)(state, {"x": x}, KEY)), derive(trained)
        return [value.get("spread") for value in values]

    assert spread(np.eye(2)) == pytest.approx([1, 1], abs=0.1)
    assert spread(2 * np.eye(2)) == pytest.approx([2, 2], abs=0.2)
    assert spread(np.diag([1, 0])) == pytest.approx([np.sqrt(0.5)] * 2, abs=0.1)  # a line
    assert spread(np.zeros((2, 2))) == [0, 0]
    assert spread(np.eye(2), x[:1]) == [None, None]  # one example varies in nothing


def test_samples_do_not_depend_on_the_batches_and_use_running_statistics():
    learner, batch = mlp_gan(), {"x": points(6)}
    state, _ = jax.jit(learner.update)(learner.init(KEY, batch), batch)
    generator = nets.mlp((4,), 2, norm="batch")
    weights = generator_weights(state)
    drawn = sample(generator, weights, KEY, 7, 3, batch_size=3)
    assert drawn.shape == (7, 2)
    np.testing.assert_allclose(drawn, sample(generator, weights, KEY, 7, 3), rtol=1e-5, atol=1e-6)
    z = jax.random.normal(KEY, (7, 3))
    expected, _ = generator.apply(weights["params"], weights["model_state"], z)
    np.testing.assert_allclose(drawn, expected, rtol=1e-5, atol=1e-6)
    assert len(np.unique(np.asarray(drawn), axis=0)) == 7


def test_latents_of_samples_are_standard_normal():
    identity = linear(2, 2, np.eye(2))
    params, model_state = identity.net.init(KEY, None)
    drawn = sample(identity.net, {"params": params, "model_state": model_state}, KEY, 4000, 2)
    np.testing.assert_allclose(drawn.mean(0), 0, atol=4 / np.sqrt(4000))
    np.testing.assert_allclose(np.cov(drawn.T), np.eye(2), atol=0.1)


def test_a_category_is_one_choice_as_frequent_as_the_others():
    z = jax.random.normal(KEY, (40_000, 6))
    drawn = np.asarray(categorical_latents(4)(z))
    np.testing.assert_array_equal(drawn[:, 4:], z[:, 4:])
    high, low = np.sqrt(3), -1 / np.sqrt(3)  # of k = 4: (k - 1) and -1 over the root of k - 1
    np.testing.assert_allclose(np.sort(drawn[:, :4]), [[low, low, low, high]] * len(z), rtol=1e-6)
    chosen = drawn[:, :4].argmax(1)
    np.testing.assert_array_equal(chosen, z[:, :4].argmax(1))
    np.testing.assert_allclose(np.bincount(chosen) / len(z), 0.25, atol=0.01)
    np.testing.assert_allclose(drawn.mean(0), 0, atol=0.03)
    np.testing.assert_allclose(drawn.var(0), 1, atol=0.03)
    # What each of them looks like, others do not tell.
    np.testing.assert_allclose(np.corrcoef(chosen, drawn[:, 4])[0, 1], 0, atol=0.02)


def test_categories_are_two_or_more_and_latents_too():
    with pytest.raises(InputError, match=r"categorical_latents\(1\): expected at least 2"):
        categorical_latents(1)
    with pytest.raises(InputError, match="7 categories are more than 6 latents"):
        categorical_latents(7)(jnp.zeros((2, 6)))


# Transforms, learning, errors -------------------------------------------------------------------


def test_learning_rate_penalty_and_decay_can_be_swept():
    batch = {"x": points(4)}
    grid = {"rate": [0.1, 0.3], "penalty": [0.0, 5.0], "decay": [0.5, 0.9]}

    def make(h):
        sgd = optax.sgd(h["rate"])
        return gan(
            nets.mlp((), 2),
            nets.mlp((3,), 1),
            sgd,
            sgd,
            latent=3,
            loss="wasserstein",
            gradient_penalty=h["penalty"],
            decay=h["decay"],
            input_name="x",
        )

    together = swept(make, grid)
    state, metrics = jax.jit(together.update)(together.init(KEY, batch), batch)
    assert metrics["penalty"].total.shape == (2,)
    for g in range(2):
        alone = make({name: values[g] for name, values in grid.items()})
        single, _ = jax.jit(alone.update)(alone.init(KEY, batch), batch)
        for part in ("params", "target"):
            jax.tree.map(
                lambda ours, theirs, g=g: np.testing.assert_allclose(ours[g], theirs, atol=1e-5),
                getattr(state, part),
                getattr(single, part),
            )


@pytest.mark.parametrize(
    "options",
    [
        {"loss": "non_saturating"},
        {"loss": "hinge"},
        {"loss": "wasserstein", "gradient_penalty": 1.0, "critic_steps": 4},
    ],
    ids=lambda options: options["loss"],
)
def test_a_generator_finds_where_the_data_are(options):
    centre = np.float32([2.0, -1.0])
    data = {"x": jnp.asarray(centre + 0.5 * points(1000))}
    adam = optax.adam(5e-3, b1=0.0, b2=0.9)
    learner = gan(
        nets.mlp((), 2),
        nets.mlp((16,), 1, activation="leaky_relu"),
        adam,
        adam,
        latent=2,
        decay=0.98,
        input_name="x",
        **options,
    )
    batch_size = 32 * options.get("critic_steps", 1)
    learner = repeated(resident(learner, batch_size), 800)
    state = learner.init(KEY, data)
    state, _ = jax.jit(learner.update)(state, data)
    drawn = sample(nets.mlp((), 2), generator_weights(state), KEY, 1000, 2)
    np.testing.assert_allclose(np.asarray(drawn).mean(0), centre, atol=0.3)
    assert derive(jax.jit(learner.evaluate)(state, data, KEY))["spread"] > 0.3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latent": 0}, r"gan\(latent=0\): expected at least 1"),
        ({"loss": "saturating"}, "loss='saturating'.: expected one of 'non_saturating', 'hinge'"),
        ({"critic_steps": 0}, r"critic_steps=0\): expected at least 1"),
        ({"gradient_penalty": -1.0}, r"gradient_penalty=-1.0\): expected 0 \(none\) or more"),
        ({"gradient_penalty": float("nan")}, "gradient_penalty=nan"),
        ({"decay": 1.0}, r"decay=1.0\): expected a number in \[0, 1\), or None"),
        ({"decay": -0.1}, "decay=-0.1"),
        ({"decay": float("nan")}, "decay=nan"),
    ],
)
def test_bad_options_are_one_clear_line(options, message):
    with pytest.raises(InputError, match=message) as error:
        mlp_gan(**options)
    assert "\n" not in str(error.value)


def test_a_batch_divides_into_the_critics_steps():
    learner = mlp_gan(critic_steps=3)
    state = learner.init(KEY, {"x": points(7)})  # only an update is divided
    with pytest.raises(InputError, match="a batch of 7 does not divide into critic_steps=3 equal"):
        jax.jit(learner.update)(state, {"x": points(7)})


def test_nets_that_do_not_fit_are_found_at_the_start():
    batch = {"x": points(4)}

    def start(generator, critic, batch=batch):
        learner = gan(generator, critic, SGD, SGD, latent=3, input_name="x")
        jax.eval_shape(learner.init, KEY, batch)

    fits = nets.mlp((), 2), nets.mlp((), 1)
    start(*fits)
    with pytest.raises(InputError, match=r"generator gives \(4, 5\) and 'x' is \(4, 2\)"):
        start(nets.mlp((), 5), fits[1])
    with pytest.raises(
        InputError, match=r"critic gives \(4, 2\) for 4 inputs: expected one number"
    ):
        start(fits[0], nets.mlp((), 2))
    with pytest.raises(InputError, match="'x' is int32: expected uint8 images or floating data"):
        start(*fits, {"x": np.zeros((4, 2), np.int32)})


@pytest.mark.parametrize("wrong", [{"n": 0}, {"latent": 0}, {"batch_size": 0}])
def test_samples_need_positive_numbers(wrong):
    with pytest.raises(InputError, match="expected at least 1 of each"):
        sample(nets.mlp((), 2), {}, KEY, **{"n": 4, "latent": 3, **wrong})
