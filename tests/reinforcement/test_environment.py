"""The contract, and gymnax behind it."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import worlds

from paradigms.core.errors import InputError, MissingExtraError
from paradigms.reinforcement import Box, Discrete, from_gymnax

gymnax = pytest.importorskip("gymnax", reason="the extra `rl` is not installed")


def test_worlds_go_on_by_themselves_and_alone():
    env = worlds.clock(2)
    world, obs = env.reset(jax.random.key(0), 3)
    world = jnp.array([0, 1, 0])  # the second is ahead
    world, step = jax.jit(env.step)(jax.random.key(1), world, jnp.array([0, 1, 2]))
    np.testing.assert_array_equal(step.terminated, [False, True, False])
    np.testing.assert_array_equal(step.final_obs[:, 0], [1, 2, 1])
    np.testing.assert_array_equal(step.obs[:, 0], [1, 0, 1])
    np.testing.assert_array_equal(step.reward, [0, 1, 2])
    assert step.reward.dtype == jnp.float32


def test_stepping_keeps_shapes_dtypes_and_weak_types():
    for env in (worlds.clock(2), worlds.bandit(), from_gymnax("CartPole-v1")):
        start = jax.eval_shape(lambda key, env=env: env.reset(key, 2), jax.random.key(0))
        discrete = isinstance(env.actions, Discrete)
        action = jnp.zeros(2, jnp.int32) if discrete else jnp.zeros((2, env.actions.size))
        world, step = jax.eval_shape(env.step, jax.random.key(0), start[0], action)

        def forms(tree):
            return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.weak_type), tree)

        assert forms(world) == forms(start[0])
        assert forms(step.obs) == forms(start[1]) == forms(step.final_obs)
        assert (env.observation.shape, env.observation.dtype) == (
            start[1].shape[1:],
            start[1].dtype,
        )


def test_cartpole_is_that_of_gymnax():
    """The same transitions as its own functions give, and a time limit that is no end."""
    env = from_gymnax("CartPole-v1", max_steps_in_episode=9)
    assert env.actions == Discrete(2)
    theirs, params = gymnax.make("CartPole-v1")
    world, obs = env.reset(jax.random.key(0), 2)
    step = jax.jit(env.step)
    for time in range(1, 12):
        action = jnp.array([time % 2, 1])  # balances a while, and falls
        expected = [
            theirs.step_env(jax.random.key(0), one, a, params)
            for one, a in zip(unstack(world), action, strict=True)
        ]
        world, found = step(jax.random.key(time), world, action)
        for i, (obs, _, reward, terminated, _) in enumerate(expected):
            np.testing.assert_allclose(found.final_obs[i], obs, rtol=1e-6)
            assert found.reward[i] == reward and found.terminated[i] == terminated
            ended = found.terminated[i] | found.truncated[i]
            assert (jnp.abs(found.obs[i]) <= 0.05).all() if ended else True
        assert found.truncated[0] == (time == 9)
        assert not found.terminated[0]


def unstack(world):
    return [jax.tree.map(lambda leaf: leaf[i], world) for i in range(2)]  # noqa: B023


def test_pendulum_has_bounds():
    env = from_gymnax("Pendulum-v1")
    assert isinstance(env.actions, Box) and env.actions.size == 1
    np.testing.assert_array_equal([env.actions.low[0], env.actions.high[0]], [-2, 2])
    world, _ = env.reset(jax.random.key(0), 3)
    _, step = env.step(jax.random.key(1), world, jnp.zeros((3, 1)))
    assert step.reward.shape == (3,) and (step.reward <= 0).all()


def test_mistakes(monkeypatch):
    with pytest.raises(InputError, match=r"unknown .* 'Cartpole-v1': did you mean CartPole-v1"):
        from_gymnax("Cartpole-v1")
    with pytest.raises(InputError, match="known are CartPole-v1, "):
        from_gymnax("zzz")
    with pytest.raises(InputError, match="CartPole-v1 has no setting 'gravitas', only"):
        from_gymnax("CartPole-v1", gravitas=1)
    monkeypatch.delattr("gymnax.environments.environment.Environment.is_truncated")
    with pytest.raises(InputError, match="gymnax below 1.0.1 .*pip install"):
        from_gymnax("CartPole-v1")
    monkeypatch.setitem(sys.modules, "gymnax", None)
    with pytest.raises(MissingExtraError, match=r"paradigms\[rl\]"):
        from_gymnax("CartPole-v1")
