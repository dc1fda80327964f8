"""DQN: its targets by hand, when it learns, and values that it must find."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import worlds

import nets
from nets.net import Net
from paradigms.core.errors import InputError
from paradigms.core.transforms import repeated, seeded
from paradigms.reinforcement import (
    Discrete,
    categorical_target,
    dqn,
    interact,
    prioritised_replay,
    q_target,
    uniform_replay,
)

# Q for each state of a world whose observations are one-hot; from 0, where all actions are alike.
TABLE = Net(
    lambda key, obs: ({"q": jnp.zeros((obs.shape[-1], 2))}, {}),
    lambda params, model_state, obs, **_: (obs @ params["q"], model_state),
)
ALWAYS = {"warm_up": 0, "train_every": 1, "target_every": 20, "batch_size": 16}


def train(agent, env, updates, *, num_envs=2, num_steps=8, seed=0):
    learner = interact(agent, env, num_envs=num_envs, num_steps=num_steps)
    state = jax.jit(learner.init)(jax.random.key(seed), ())
    return learner, *jax.jit(repeated(learner, updates).update)(state, ())


def test_targets_by_hand():
    reward, discount = jnp.float32([1, 2, 3]), jnp.float32([0.9, 0.5, 0])
    q_next = jnp.float32([[1, 2], [4, 3], [9, 9]])
    np.testing.assert_allclose(q_target(reward, discount, q_next), [2.8, 4, 3])
    # The online net prefers the other action: its value, not its own maximum, counts.
    chooser = jnp.float32([[5, 0], [0, 5], [0, 0]])
    np.testing.assert_allclose(q_target(reward, discount, q_next, chooser), [1.9, 3.5, 3])


def test_the_projection_by_hand():
    """51 atoms on [-10, 10], 0.4 apart: 0.1 lies a quarter of the way from atom 25 to 26."""
    support = jnp.linspace(-10, 10, 51)
    some = jnp.full((4, 51), 1 / 51)
    reward, discount = jnp.float32([0.1, -10, 99, 0]), jnp.float32([0, 0, 0, 1])
    found = categorical_target(reward, discount, some, support)
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(found[0, 25:27], [0.75, 0.25], atol=1e-4)
    assert found[1, 0] == pytest.approx(1, abs=1e-5) and found[2, -1] == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(found[3], some[3], atol=1e-5)  # exact atoms stay


def test_the_projection_keeps_the_mean_within_the_support():
    support = jnp.linspace(-3, 5, 9)
    draw = np.random.default_rng(0)
    probabilities = draw.dirichlet(np.ones(9), 20).astype(np.float32)
    reward = draw.uniform(-1, 1, 20).astype(np.float32)
    discount = np.full(20, 0.5, np.float32)
    found = categorical_target(jnp.asarray(reward), jnp.asarray(discount), probabilities, support)
    np.testing.assert_allclose(
        found @ support, reward + discount * (probabilities @ support), atol=1e-5
    )


# All three at once, and none of them; what is between is slow.
CORNERS = [(False, 1, uniform_replay), (True, 3, prioritised_replay)]


@pytest.mark.parametrize(
    ("double", "n_step", "replay"),
    [
        pytest.param(*choice, marks=[] if choice in CORNERS else pytest.mark.slow)
        for choice in itertools.product((False, True), (1, 3), (uniform_replay, prioritised_replay))
    ],
)
def test_values_see_beyond_a_time_limit(double, n_step, replay):
    """V(B) = 10 and V(A) = -1; about 3 where a limit is taken for an end."""
    agent = dqn(
        TABLE,
        optax.sgd(0.2),
        replay(320, n_step=n_step),
        epsilon=1.0,
        discount=worlds.DISCOUNT,
        double=double,
        **ALWAYS,
    )
    _, state, _ = train(agent, worlds.truncation_probe(Discrete(2)), 150)
    np.testing.assert_allclose(state.params["q"], [[-1, -1], [10, 10]], rtol=0.01)


def test_a_distribution_sees_beyond_a_time_limit_too():
    table = Net(
        lambda key, obs: ({"q": jnp.zeros((obs.shape[-1], 2 * 31))}, {}),
        lambda params, model_state, obs, **_: (
            (obs @ params["q"]).reshape(len(obs), 2, 31),
            model_state,
        ),
    )
    agent = dqn(
        table,
        optax.adam(0.1),
        uniform_replay(320),
        epsilon=1.0,
        discount=worlds.DISCOUNT,
        support=(-15.0, 15.0),
        **ALWAYS,
    )
    _, state, _ = train(agent, worlds.truncation_probe(Discrete(2)), 150)
    values = jax.nn.softmax(state.params["q"].reshape(2, 2, 31)) @ jnp.linspace(-15, 15, 31)
    np.testing.assert_allclose(values, [[-1, -1], [10, 10]], rtol=0.01)


def test_it_learns_the_way_to_the_end_of_a_chain():
    agent = dqn(TABLE, optax.sgd(0.5), uniform_replay(1600), epsilon=0.5, discount=0.9, **ALWAYS)
    learner, state, _ = train(agent, worlds.chain(4), 100)
    evaluated = learner.evaluate(state, (), jax.random.key(9))
    assert evaluated["length"].value() == 4 and evaluated["return"].value() == 1
    np.testing.assert_allclose(state.params["q"][:, 1], 0.9 ** np.arange(3, -1, -1), rtol=0.02)


@pytest.mark.parametrize(("num_envs", "num_steps"), [(1, 1), (7, 1), (8, 1), (5, 2), (4, 10)])
def test_intervals_are_in_environment_steps(num_envs, num_steps):
    agent = dqn(
        TABLE,
        optax.adam(0.1),
        uniform_replay(560),
        batch_size=4,
        warm_up=50,
        train_every=10,
        target_every=35,
    )
    learner = interact(agent, worlds.chain(3), num_envs=num_envs, num_steps=num_steps)
    state = jax.jit(learner.init)(jax.random.key(0), ())
    update = jax.jit(learner.update)
    size, renewed = num_envs * num_steps, 0
    for number in range(1, 280 // size + 1):
        before = state
        state, metrics = update(state, ())
        steps = number * size
        expected = steps // 10 - before_or_warm(steps - size, steps)
        assert metrics["loss"].count == 4 * expected
        renewed = steps if steps // 35 > (steps - size) // 35 else renewed
        if renewed == steps:
            same(state.target["q"]["params"], state.params)
        else:
            same(state.target["q"], before.target["q"])
    assert state.opt_state[0].count > 15


def test_what_was_drawn_while_nothing_was_learnt_keeps_the_highest_priority():
    agent = dqn(
        TABLE, optax.adam(0.1), prioritised_replay(64), batch_size=8, warm_up=48, train_every=8
    )
    learner, state, metrics = train(agent, worlds.chain(3), 2)
    assert not metrics["loss"].count.any()
    np.testing.assert_array_equal(np.ravel(state.memory.tree[0])[:32], 1)
    state, metrics = jax.jit(learner.update)(state, ())
    assert metrics["loss"].count > 0 and (np.ravel(state.memory.tree[0])[:48] != 1).any()


def before_or_warm(before, after):
    """Multiples of ten that are past, or all of them until it is warm."""
    return before // 10 if after >= 50 else after // 10


def same(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_epsilon_follows_its_schedule_and_greed_is_greedy():
    agent = dqn(
        TABLE,
        optax.sgd(0.0),
        uniform_replay(64),
        epsilon=lambda steps: jnp.clip(1 - steps / 32, 0, 1),
        batch_size=4,
        warm_up=0,
    )
    learner = interact(
        agent, worlds.clock(4)._replace(actions=Discrete(2)), num_envs=4, num_steps=4
    )
    state = jax.jit(learner.init)(jax.random.key(0), ())
    found = []
    for _ in range(3):
        state, metrics = jax.jit(learner.update)(state, ())
        found.append(float(metrics["epsilon"].value()))
    np.testing.assert_allclose(found, [0.5, 0, 0])  # after 16, 32 and 48 steps

    obs = jnp.eye(2)[jnp.zeros(4000, int)]

    def share(steps, explore):
        world = {**state.world, "steps": jnp.int32(steps)}
        held = state.replace(params={"q": jnp.float32([[0, 1], [0, 0]])}, world=world)
        action, _, _ = agent.act(held, obs, (), jax.random.key(3), explore=explore)
        return float((action == 0).mean())

    assert share(0, True) == pytest.approx(0.5, abs=0.03)
    assert share(16, True) == pytest.approx(0.25, abs=0.03)
    assert share(32, True) == 0 and share(0, False) == 0


def test_the_target_net_gets_no_gradient_and_noise_explores():
    net = nets.q_network((8,), 2, duelling=True, atoms=5, noisy=True)
    agent = dqn(
        net,
        optax.adam(1e-2),
        prioritised_replay(64, n_step=3),
        epsilon=0.0,
        support=(0.0, 1.0),
        noisy=True,
        warm_up=0,
        train_every=8,
        target_every=10_000,
        batch_size=4,
    )
    learner, state, metrics = train(agent, worlds.chain(3), 2)
    start = jax.jit(learner.init)(jax.random.key(0), ())
    same(state.target["q"], start.target["q"])
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), state.params, start.params)
    assert all(jax.tree.leaves(changed)), changed
    assert np.isfinite(metrics["loss"].total).all()
    obs = jnp.eye(3)
    greedy = [agent.act(state, obs, (), jax.random.key(i), explore=False)[0] for i in range(2)]
    same(*greedy)
    drawn = [agent.act(state, obs, (), jax.random.key(i), explore=True)[0] for i in range(40)]
    assert len({tuple(action.tolist()) for action in drawn}) > 1


def test_runs_side_by_side_are_those_of_single_seeds():
    agent = dqn(TABLE, optax.sgd(0.5), prioritised_replay(160), **ALWAYS)
    learner = interact(agent, worlds.chain(3), num_envs=2, num_steps=4)
    keys = jax.random.split(jax.random.key(0), 2)
    both = seeded(learner, method="map")
    state, _ = jax.jit(repeated(both, 5).update)(jax.jit(both.init)(keys, ()), ())
    for i in range(2):
        alone = jax.jit(learner.init)(keys[i], ())
        alone, _ = jax.jit(repeated(learner, 5).update)(alone, ())
        same(jax.tree.map(lambda leaf: leaf[i], state.params), alone.params)  # noqa: B023
        same(jax.tree.map(lambda leaf: leaf[i], state.memory.tree), alone.memory.tree)  # noqa: B023


def test_mistakes():
    replay = uniform_replay(20_000)
    with pytest.raises(InputError, match=r"train_every=0"):
        dqn(TABLE, optax.sgd(0.1), replay, train_every=0)
    with pytest.raises(InputError, match=r"loss='mse'.*'squared' or 'huber'"):
        dqn(TABLE, optax.sgd(0.1), replay, loss="mse")
    with pytest.raises(InputError, match="the lower one first"):
        dqn(TABLE, optax.sgd(0.1), replay, support=(1.0, 1.0))
    with pytest.raises(InputError, match=r"warm_up=20001.*capacity of 20000"):
        dqn(TABLE, optax.sgd(0.1), replay, warm_up=20_001)
