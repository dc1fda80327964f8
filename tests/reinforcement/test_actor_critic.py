"""DDPG, TD3 and SAC: their losses by hand, and what each must find in worlds with known answers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import worlds

from nets.net import Net
from paradigms.core.errors import InputError
from paradigms.core.transforms import repeated
from paradigms.reinforcement import (
    Box,
    Discrete,
    batched,
    critic_loss,
    ddpg,
    interact,
    pessimistic_target,
    prioritised_replay,
    sac,
    td3,
    temperature_loss,
    uniform_replay,
)

UNIT = Box(np.float32([-1]), np.float32([1]))
PUMP = Box(np.float32([0]), np.float32([4]))
SGD = optax.sgd(0.1)
STILL = optax.sgd(0.0)


def affine(width: int, start: float = 0.0) -> Net:
    """An actor without state: tanh of a number for each state."""
    return Net(
        lambda key, obs: (jnp.full((obs.shape[-1], width), start), {}),
        lambda params, model_state, obs, **_: (jnp.tanh(obs @ params), model_state),
    )


def gaussian(mean: float = 0.0, log_std: float = -1.0) -> Net:
    """A soft actor: a mean and a log standard deviation for each state."""
    return Net(
        lambda key, obs: (jnp.tile(jnp.float32([[mean], [log_std]]), (1, obs.shape[-1])), {}),
        lambda params, model_state, obs, **_: (
            ((obs @ params[0])[:, None], (obs @ params[1])[:, None]),
            model_state,
        ),
    )


# A value for each state, with which the action has nothing to do; never two alike at the start.
VALUE = Net(
    lambda key, obs, action: (jax.random.normal(key, (obs.shape[-1],)), {}),
    lambda params, model_state, obs, action, **_: (obs @ params, model_state),
)
# Every parabola of the action.
PARABOLA = Net(
    lambda key, obs, action: (jax.random.normal(key, (3,)), {}),
    lambda params, model_state, obs, action, **_: (
        params[0] + params[1] * action[:, 0] + params[2] * action[:, 0] ** 2,
        model_state,
    ),
)
ALWAYS = {"warm_up": 0, "batch_size": 32, "actions": UNIT, "decay": 0.9}


def train(agent, env, updates, *, num_envs=2, num_steps=8):
    learner = interact(agent, env, num_envs=num_envs, num_steps=num_steps)
    state = jax.jit(learner.init)(jax.random.key(0), ())
    return jax.jit(repeated(learner, updates).update)(state, ())


def test_the_target_and_the_loss_by_hand():
    q_next = jnp.float32([[1, 5, 2], [3, 4, 2]])
    reward, discount = jnp.float32([1, 2, 3]), jnp.float32([0.9, 0.5, 0])
    np.testing.assert_allclose(pessimistic_target(reward, discount, q_next), [1.9, 4, 3])
    q = jnp.float32([[0, 0], [1, 3]])
    # (1 + 0) * 1 and (4 + 1) * 0.5, over two transitions.
    loss = critic_loss(q, jnp.float32([1, 2]), jnp.float32([1, 0.5]))
    assert loss == pytest.approx(1.75)
    assert not jax.grad(critic_loss, argnums=1)(q, jnp.ones(2), jnp.ones(2)).any()


def test_the_temperature_rises_where_entropy_is_below_its_target():
    slope = jax.grad(temperature_loss)
    assert slope(jnp.float32(0), -2.0, -1.0) == -1  # descending it raises log alpha
    assert slope(jnp.float32(math.log(2)), 1.5, 1.0) == pytest.approx(1.0)


AGENTS = {
    "ddpg": lambda replay: ddpg(affine(1), VALUE, SGD, SGD, replay, discount=0.9, **ALWAYS),
    "td3": lambda replay: td3(affine(1), VALUE, SGD, SGD, replay, discount=0.9, **ALWAYS),
    "sac": lambda replay: sac(
        gaussian(), VALUE, SGD, SGD, replay, discount=0.9, temperature=0.0, **ALWAYS
    ),
}


@pytest.mark.parametrize(
    "replay",
    [
        pytest.param(uniform_replay(320), id="uniform", marks=pytest.mark.slow),
        pytest.param(prioritised_replay(320, n_step=3), id="prioritised"),
    ],
)
@pytest.mark.parametrize("name", AGENTS)
def test_values_see_beyond_a_time_limit(name, replay):
    """V(B) = 10 and V(A) = -1; about 3 where a limit is taken for an end."""
    agent = AGENTS[name](replay)
    state, _ = train(agent, worlds.truncation_probe(UNIT), 300)
    for value in state.params["critic"]:
        np.testing.assert_allclose(value, [-1, 10], rtol=0.01)


@pytest.mark.parametrize("algorithm", [ddpg, td3])
def test_the_actor_finds_the_best_action(algorithm):
    agent = algorithm(
        affine(1), PARABOLA, SGD, SGD, uniform_replay(1600), exploration=0.5, **ALWAYS
    )
    state, _ = train(agent, worlds.bandit(0.3), 100)
    assert jnp.tanh(state.params["actor"]).item() == pytest.approx(0.3, abs=0.01)


def test_a_soft_actor_is_as_random_as_its_temperature_says():
    """The best policy of reward -(a - .3)^2 at .02 is normal with mean .3 and deviation .1."""
    agent = sac(
        gaussian(),
        PARABOLA,
        optax.adam(optax.linear_schedule(0.05, 0.0, 3000)),
        SGD,
        uniform_replay(3200),
        temperature=0.02,
        **ALWAYS,
    )
    state, metrics = train(agent, worlds.bandit(0.3), 200)
    mean, log_std = state.params["actor"][:, 0]
    draws = jnp.tanh(mean + jnp.exp(log_std) * jax.random.normal(jax.random.key(1), (20_000,)))
    assert draws.mean() == pytest.approx(0.3, abs=0.01)
    assert draws.std() == pytest.approx(0.1, abs=0.01)
    tail = metrics["entropy"].total[-20:].sum() / metrics["entropy"].count[-20:].sum()
    soft_value = -jnp.square(draws - 0.3).mean() + 0.02 * tail
    assert soft_value == pytest.approx(-0.0277, abs=0.002)


@pytest.mark.parametrize(("target", "rises"), [(0.6, True), (-3.0, False)])
def test_the_temperature_is_learnt(target, rises):
    """The first policy, a Gaussian with deviation e^-1, has entropy 0.3 or so."""
    agent = sac(
        gaussian(),
        PARABOLA,
        STILL,
        STILL,
        uniform_replay(160),
        temperature=0.5,
        temperature_optimizer=SGD,
        target_entropy=target,
        **ALWAYS,
    )
    state, metrics = train(agent, worlds.bandit(), 2)
    assert (state.params["temperature"] > math.log(0.5)) == rises
    assert metrics["entropy"].total[-1] / metrics["entropy"].count[-1] == pytest.approx(
        0.3, abs=0.2
    )


def test_the_entropy_aimed_at_is_minus_the_dimension():
    """With the temperature alone moving, log alpha changes by rate * alpha * (target - entropy)."""
    agent = sac(
        gaussian(),
        PARABOLA,
        STILL,
        STILL,
        uniform_replay(32),
        temperature_optimizer=SGD,
        **ALWAYS,
        train_every=16,
    )
    state, metrics = train(agent, worlds.bandit(), 1)
    entropy = metrics["entropy"].total[0]
    assert float(state.params["temperature"]) == pytest.approx(0.1 * (-1 - float(entropy)))


@pytest.mark.parametrize("every", [1, 3])
def test_actor_and_targets_wait_for_the_critics(every):
    agent = td3(
        affine(1),
        PARABOLA,
        SGD,
        SGD,
        uniform_replay(64),
        **ALWAYS,
        train_every=2,
        policy_every=every,
    )
    learner = interact(agent, worlds.bandit(), num_envs=2, num_steps=1)
    state, update = learner.init(jax.random.key(0), ()), jax.jit(learner.update)
    moved = []
    for _ in range(7):
        before = jax.device_get(state)
        state, metrics = update(state, ())
        changed = [
            bool((jax.tree.leaves(tree)[0] != jax.tree.leaves(old)[0]).any())
            for tree, old in (
                (state.params["actor"], before.params["actor"]),
                (state.target["critic"], before.target["critic"]),
                (state.params["critic"], before.params["critic"]),
            )
        ]
        moved.append(changed)
        assert metrics["loss/actor"].count == changed[0] and metrics["loss/critic"].count == 1
    due = [(i + 1) % every == 0 for i in range(7)]
    assert moved == [[now, now, True] for now in due]


def test_the_actor_climbs_the_first_critic_and_leaves_it_alone():
    agent = td3(
        affine(1),
        PARABOLA,
        SGD,
        STILL,
        uniform_replay(32),
        **ALWAYS,
        policy_every=1,
        train_every=16,
    )
    learner = interact(agent, worlds.bandit(), num_envs=2, num_steps=8)
    before = learner.init(jax.random.key(0), ())
    after, _ = jax.jit(learner.update)(before, ())
    critics = before.params["critic"]
    np.testing.assert_array_equal(after.params["critic"], critics)
    # At action 0 the parabola's slope is its second coefficient, and so is that of tanh 1.
    np.testing.assert_allclose(after.params["actor"][0, 0], 0.1 * critics[0, 1], rtol=1e-5)


@pytest.mark.parametrize("name", ["td3", "sac"])
def test_actions_are_scaled_once_and_stay_in_the_box(name):
    """States are one-hot, and in the first the actor is at the middle of the range, 2."""
    options = {"warm_up": 8, "batch_size": 4, "actions": PUMP}
    if name == "td3":
        agent = td3(affine(1), VALUE, STILL, STILL, uniform_replay(64), exploration=1.0, **options)
    else:
        agent = sac(gaussian(0.0, 1.0), VALUE, STILL, STILL, uniform_replay(64), **options)
    env = worlds.truncation_probe(PUMP)
    learner = interact(agent, env, num_envs=2, num_steps=2)
    state = learner.init(jax.random.key(0), ())
    obs = jnp.tile(jnp.float32([[1, 0]]), (4000, 1))

    def act(steps, explore):
        world = {**state.world, "steps": jnp.int32(steps)}
        key = jax.random.key(steps)
        return agent.act(state.replace(world=world), obs, (), key, explore=explore)[0]

    np.testing.assert_allclose(act(100, False), 2.0)
    early, late = act(7, True), act(8, True)
    for action in (early, late):
        assert action.shape == (4000, 1) and action.min() >= 0 and action.max() <= 4
    # Uniform on [0, 4]: mean 2, deviation 4 / sqrt(12), and no mass at the edges.
    assert early.std() == pytest.approx(4 / math.sqrt(12), rel=0.03)
    assert ((early == 0) | (early == 4)).mean() < 0.01
    assert ((late < 0.1) | (late > 3.9)).mean() > 0.1


def endless(reward, actions):
    """One state, which pays and stays."""

    def step(key, world, action):
        return world, jnp.ones(1), jnp.float32(reward), jnp.zeros((), bool), jnp.zeros((), bool)

    return batched(lambda key: (jnp.zeros(()), jnp.ones(1)), step, actions)


def power(exponent, start=1.0):
    """A critic whose value is a power of the action."""
    return Net(
        lambda key, obs, action: (jnp.full(1, start), {}),
        lambda params, model_state, obs, action, **_: (params * action[:, 0] ** exponent, {}),
    )


# One gradient update, on 4000 transitions with random actions.
ONCE = {"warm_up": 4000, "batch_size": 4000, "train_every": 4000, "discount": 0.5}


def once(agent, env):
    learner = interact(agent, env, num_envs=1000, num_steps=4)
    _, metrics = jax.jit(learner.update)(learner.init(jax.random.key(0), ()), ())
    return {name: float(mean.value()) for name, mean in metrics.items()}


@pytest.mark.parametrize(("clip", "mean"), [(0.05, 0.9), (0.5, 0.7)])
def test_noise_on_the_target_is_clipped_and_so_is_the_action(clip, mean):
    """The target critic's value of a' is a' itself, and a' is 0.9 +- clip, but at most 1."""
    agent = td3(
        affine(1, math.atanh(0.9)),
        power(1),
        STILL,
        STILL,
        uniform_replay(4000),
        actions=UNIT,
        target_noise=10.0,
        noise_clip=clip,
        **ONCE,
    )
    # |a - (1 + a' / 2)|, the actions a being 0 +- 1.
    assert once(agent, endless(1, UNIT))["error"] == pytest.approx(1 + mean / 2, abs=0.03)


@pytest.mark.parametrize("name", ["td3", "sac"])
def test_critics_see_actions_between_minus_one_and_one(name):
    """The mean square of what is uniform there is a third; from 0 to 4 it would be 16 thirds."""
    options = {"actions": PUMP, **ONCE}
    if name == "td3":
        agent = td3(affine(1), power(2), STILL, STILL, uniform_replay(4000), **options)
    else:
        agent = sac(gaussian(), power(2), STILL, STILL, uniform_replay(4000), **options)
    assert once(agent, endless(1, PUMP))["q"] == pytest.approx(1 / 3, abs=0.02)


def test_the_soft_value_adds_what_entropy_is_worth():
    """Critics say 0, and a narrow Gaussian's entropy is 1.419 - 4, the tanh being all but linear:
    the target is 10 + 0.5 * 0.8 * -2.581."""
    agent = sac(
        gaussian(log_std=-4.0),
        power(1, start=0.0),
        STILL,
        STILL,
        uniform_replay(4000),
        actions=UNIT,
        temperature=0.8,
        **ONCE,
    )
    assert once(agent, endless(10, UNIT))["error"] == pytest.approx(8.968, abs=0.02)


def test_mistakes():
    replay = uniform_replay(64)
    endless = Box(np.float32([-1]), np.float32([np.inf]))
    for algorithm in (ddpg, td3):
        with pytest.raises(InputError, match="action bounds are .*inf.*finite"):
            algorithm(affine(1), VALUE, SGD, SGD, replay, actions=endless)
    with pytest.raises(InputError, match="action bounds are .*inf.*finite"):
        sac(gaussian(), VALUE, SGD, SGD, replay, actions=endless)
    with pytest.raises(InputError, match=r"temperature=0.*above 0"):
        sac(
            gaussian(),
            VALUE,
            SGD,
            SGD,
            replay,
            temperature=0,
            temperature_optimizer=SGD,
            **ALWAYS,
        )
    with pytest.raises(InputError, match="policy_every=0"):
        td3(affine(1), VALUE, SGD, SGD, replay, policy_every=0, **ALWAYS)
    agent = sac(gaussian(), VALUE, SGD, SGD, replay, **ALWAYS)
    with pytest.raises(InputError, match="takes Discrete actions and the agent gives Box"):
        interact(agent, worlds.truncation_probe(Discrete(2)), num_envs=1, num_steps=1)
    with pytest.raises(InputError, match="make it with actions=env.actions"):
        interact(agent, worlds.truncation_probe(PUMP), num_envs=1, num_steps=1)
