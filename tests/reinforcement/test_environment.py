"""The contract, and the check that finds what breaks it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import worlds

from paradigms.core.errors import InputError
from paradigms.reinforcement import Box, Discrete, batched, check_environment
from paradigms.reinforcement.environment import _random_actions


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
    for env in (worlds.clock(2), worlds.bandit(), loose()):
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


def loose():
    """A world that counts in Python numbers, whose types are weak when fresh; it observes bools."""

    def step(key, time, action):
        time = jnp.float32(1) + time
        return time, time[None] > 1, 1, time > 2, False

    return batched(lambda key: (0.0, jnp.zeros(1, bool)), step, Discrete(2))


def altered(reset=lambda obs: obs, **changes):
    """A good environment but for some fields, `changes`, of what it answers."""
    env = worlds.clock(3)

    def start(key, n):
        world, obs = env.reset(key, n)
        return world, reset(obs)

    def step(key, world, action):
        world, timestep = env.step(key, world, action)
        changed = {name: change(getattr(timestep, name)) for name, change in changes.items()}
        return world, timestep._replace(**changed)

    return env._replace(reset=start, step=step)


@pytest.mark.parametrize(
    "env", [worlds.clock(3), worlds.bandit(), worlds.truncation_probe(Discrete(2)), loose()]
)
def test_good_environments_pass(env):
    check_environment(env, steps=3, bounded=True)


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (altered(lambda obs: obs[:, 0]), r"obs of `reset` is float32\[2\].*: expected float32\["),
        (altered(lambda obs: obs[:1]), r"obs of `reset` is float32\[1, 1\] for 2 environments"),
        (altered(obs=lambda x: x.astype(int)), r"obs of `step` is int32\[2, 1\].* float32\[2, 1\]"),
        (altered(final_obs=lambda x: x[:, 0]), r"final_obs is float32\[2\] .*float32\[2, 1\]"),
        (altered(final_obs=lambda x: None), "cannot supply final_obs.*`batched`"),
        (altered(reward=lambda x: x.astype(jnp.int32)), r"reward is int32\[2\].* float32\[2\]"),
        (altered(reward=lambda x: x[:, None]), r"reward is float32\[2, 1\]"),
        (altered(terminated=lambda x: 1.0 * x), r"terminated is float32\[2\].* bool\[2\]"),
        (altered(truncated=lambda x: x.any()), r"truncated is bool\[\].* bool\[2\]"),
        (altered(score=lambda x: None), r"score is NoneType.* float32\[2\]"),
        (worlds.clock(3)._replace(actions=Discrete(0)), "has 0 actions: expected at least one"),
        (
            worlds.bandit()._replace(actions=Box(np.float32([0, 1]), np.float32([1, 1]))),
            r"between \[0.0, 1.0\] and \[1.0, 1.0\]: expected two arrays \[D\]",
        ),
        (
            worlds.bandit()._replace(actions=Box(np.float32([0, 1]), np.float32([2]))),
            r"between \[0.0, 1.0\] and \[2.0\]: expected two arrays \[D\]",
        ),
    ],
)
def test_forms_are_found_without_playing(env, message, compilations):
    jax.random.key(0)
    compilations.clear()
    with pytest.raises(InputError, match=message):
        check_environment(env)
    assert not compilations


@pytest.mark.parametrize(("field", "value"), [("obs", np.nan), ("reward", -np.inf)])
def test_values_that_are_not_finite(field, value):
    """They come at the fifth step."""

    def step(key, time, action):
        answer = {"obs": jnp.ones(1), "reward": 1.0}
        answer[field] = jnp.where(time == 4, value, answer[field])
        return time + 1, answer["obs"], answer["reward"], jnp.zeros((), bool), time >= 8

    env = batched(lambda key: (jnp.zeros((), jnp.int32), jnp.ones(1)), step, Discrete(2))
    check_environment(env, steps=4, num_envs=1)
    with pytest.raises(InputError, match=f"^{field} is NaN or infinite at step 5 of a random"):
        check_environment(env, steps=6, num_envs=1)


def test_what_a_reset_gives_is_looked_at_too():
    with pytest.raises(InputError, match="^obs is NaN or infinite after a reset"):
        check_environment(altered(lambda obs: obs.at[1].set(jnp.nan)), steps=1)
    # Only of the observation before a reset.
    env = altered(final_obs=lambda x: jnp.where(x == 3, jnp.nan, x))
    check_environment(env, steps=2)
    with pytest.raises(InputError, match="^final_obs is NaN or infinite at step 3 of a random"):
        check_environment(env, steps=3)
    # The first to break is told.
    env = altered(
        obs=lambda x: jnp.where(x == 2, jnp.nan, x), reward=lambda x: jnp.full_like(x, jnp.inf)
    )
    with pytest.raises(InputError, match="^reward is NaN or infinite at step 1 of a random"):
        check_environment(env, steps=3)


def test_bounds_only_where_they_are_asked_for():
    env = worlds.bandit()._replace(actions=Box(np.float32([-1]), np.float32([np.inf])))
    check_environment(env, steps=1)
    with pytest.raises(InputError, match=r"between \[-1.0\] and \[inf\].* needs finite bounds"):
        check_environment(env, bounded=True)


def test_random_actions_keep_to_what_is_allowed():
    key = jax.random.key(0)
    drawn = _random_actions(Discrete(3), key, 99)
    assert drawn.dtype == jnp.int32 and set(drawn.tolist()) == {0, 1, 2}
    box = Box(np.float32([2, -np.inf, 0]), np.float32([4, np.inf, np.inf]))
    drawn = np.asarray(_random_actions(box, key, 2000))
    assert drawn.dtype == np.float32 and drawn.shape == (2000, 3) and np.isfinite(drawn).all()
    # Uniform on [2, 4]: mean 3, deviation 2 / sqrt(12). Normal. Normal, cut at 0.
    np.testing.assert_allclose(drawn[:, :2].mean(0), [3, 0], atol=0.1)
    np.testing.assert_allclose(drawn[:, :2].std(0), [0.577, 1], atol=0.05)
    assert drawn[:, 0].min() >= 2 and drawn[:, 0].max() <= 4
    assert drawn[:, 2].min() == 0 and drawn[:, 2].max() > 2


@pytest.mark.parametrize("name", ["steps", "num_envs"])
def test_numbers_below_one_are_refused(name):
    with pytest.raises(InputError, match=rf"check_environment\({name}=0\): expected at least 1"):
        check_environment(worlds.clock(3), **{name: 0})
