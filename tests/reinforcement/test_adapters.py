"""The environments of gymnax and pgx behind the contract."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paradigms.core.errors import InputError, MissingExtraError
from paradigms.reinforcement import Box, Discrete, check_environment, from_gymnax, from_pgx

gymnax = pytest.importorskip("gymnax", reason="the extra `rl` is not installed")
pgx = pytest.importorskip("pgx", reason="the extra `rl` is not installed")


def unstack(world):
    return [jax.tree.map(lambda leaf: leaf[i], world) for i in range(2)]  # noqa: B023


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


def test_pendulum_has_bounds():
    env = from_gymnax("Pendulum-v1")
    assert isinstance(env.actions, Box) and env.actions.size == 1
    np.testing.assert_array_equal([env.actions.low[0], env.actions.high[0]], [-2, 2])
    check_environment(env, steps=2, bounded=True)


def test_breakout_is_that_of_pgx():
    """The same transitions as its own functions give with the same keys, then a new game."""
    env, theirs = from_pgx("minatar-breakout"), pgx.make("minatar-breakout")
    assert env.actions == Discrete(3)

    @jax.jit
    def step(world, action, key):
        # The environment splits its key over the worlds, and each of those for step and reset.
        keys = jax.random.split(key, (4, 2))
        return env.step(key, world, action), jax.vmap(theirs.step)(world, action, keys[:, 0])

    world, obs = jax.jit(env.reset, static_argnums=1)(jax.random.key(0), 4)
    np.testing.assert_array_equal(obs, world.observation)
    ends = 0
    for time in range(10):
        action = jnp.arange(4) % 3
        (world, found), moved = step(world, action, jax.random.key(time))
        np.testing.assert_array_equal(found.final_obs, moved.observation)
        np.testing.assert_array_equal(found.reward, moved.rewards[:, 0])
        np.testing.assert_array_equal(found.terminated, moved.terminated)
        np.testing.assert_array_equal(found.obs, world.observation)
        np.testing.assert_array_equal(
            world._step_count, np.where(found.terminated, 0, moved._step_count)
        )
        assert not found.truncated.any()
        ends += found.terminated.sum()
    assert ends > 0


def test_a_move_that_is_not_legal_loses_the_game():
    env = from_pgx("2048")
    assert env.actions == Discrete(4) and env.observation.shape == (4, 4, 31)
    world, _ = jax.eval_shape(lambda: env.reset(jax.random.key(0), 2))
    world = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), world)
    # Tiles 2 and 4 at the left end of the first row: "left" (0) moves nothing, "right" (2) does.
    board = jnp.tile(jnp.zeros(16, jnp.int32).at[:2].set(jnp.array([1, 2])), (2, 1))
    legal = jnp.array([[False, False, True, True]] * 2)
    world = world.replace(_board=board, legal_action_mask=legal)
    _, step = jax.jit(env.step)(jax.random.key(1), world, jnp.array([0, 2]))
    np.testing.assert_array_equal(step.reward, [-1, 0])
    np.testing.assert_array_equal(step.terminated, [True, False])
    assert step.final_obs[1, 0, 2, 1] and step.final_obs[1, 0, 3, 2]
    assert not step.truncated.any()


@pytest.mark.parametrize("make", [lambda: from_gymnax("CartPole-v1"), lambda: from_pgx("2048")])
def test_stepping_keeps_shapes_dtypes_and_weak_types(make):
    env = make()
    world, obs = jax.eval_shape(lambda: env.reset(jax.random.key(0), 2))
    action = jnp.zeros(2, jnp.int32)
    moved, step = jax.eval_shape(env.step, jax.random.key(0), world, action)

    def forms(tree):
        return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.weak_type), tree)

    assert forms(moved) == forms(world)
    assert forms(step.obs) == forms(obs) == forms(step.final_obs)
    assert (obs.shape, obs.dtype) == ((2, *env.observation.shape), env.observation.dtype)


def test_games_that_are_played_alone():
    """The list for those who mistype is right, whatever pgx adds."""
    from paradigms.reinforcement.adapters import _PGX_ALONE

    cheap = ["tic_tac_toe", "connect_four", "kuhn_poker", *_PGX_ALONE]
    assert [name for name in cheap if pgx.make(name).num_players == 1] == list(_PGX_ALONE)


def test_mistakes_with_gymnax(monkeypatch):
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


def test_mistakes_with_pgx(monkeypatch):
    with pytest.raises(InputError, match="'minatar-brekout': did you mean minatar-breakout"):
        from_pgx("minatar-brekout")
    with pytest.raises(InputError, match="unknown pgx game 'zzz': known are 2048, minatar-"):
        from_pgx("zzz")
    with pytest.raises(InputError, match="tic_tac_toe is a game of 2 players.*choose from 2048, "):
        from_pgx("tic_tac_toe")
    monkeypatch.setitem(sys.modules, "pgx", None)
    with pytest.raises(MissingExtraError, match=r"game 2048 needs .*'pgx'.*paradigms\[rl\]"):
        from_pgx("2048")
