"""Wrappers, against what numpy makes of everything that the bare environment did."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import worlds

from paradigms.core.errors import InputError
from paradigms.core.learner import Learner
from paradigms.core.state import TrainState
from paradigms.core.transforms import seeded
from paradigms.reinforcement import Agent, Discrete, Environment, Timestep, batched, interact
from paradigms.reinforcement.wrappers import (
    cast_observations,
    clip_actions,
    clip_rewards,
    normalise_observations,
    normalise_rewards,
    repeat_actions,
    stack_frames,
    time_limit,
)

STEPS, WORLDS = 20, 3


PLACES = 64
_draw = np.random.default_rng(0)
OBSERVATIONS = _draw.normal([1000, -5], 4, (PLACES, 2)).astype(np.float32)
REWARDS = _draw.normal(0, 3, PLACES).astype(np.float32)
ENDS = _draw.choice(["no", "terminated", "truncated"], PLACES, p=[0.6, 0.2, 0.2])


def noise(dtype=jnp.float32):
    """Random observations `[2]`, one far from 0, random rewards and random ends of both kinds.

    They were drawn beforehand for 64 places, all of which a world visits in turn. The reward has
    the action added. Worlds begin anywhere.
    """

    def observe(place):
        return jnp.asarray(OBSERVATIONS)[place].astype(dtype)

    def reset(key, n):
        place = jax.random.randint(key, (n,), 0, PLACES)
        return place, observe(place)

    def step(key, place, action):
        place = (5 * place + 3) % PLACES
        terminated = jnp.asarray(ENDS == "terminated")[place]
        truncated = jnp.asarray(ENDS == "truncated")[place]
        reward = jnp.asarray(REWARDS)[place] + action
        # Where an episode ends, the next begins on the other side.
        after = jnp.where(terminated | truncated, (place + PLACES // 2) % PLACES, place)
        return after, Timestep(
            observe(after), reward, terminated, truncated, observe(place), score=reward
        )

    return Environment(reset, step, jax.ShapeDtypeStruct((2,), dtype), Discrete(2))


def run(env, key=0, steps=STEPS, action=0):
    """`(first_obs, worlds[T], timesteps[T])`, in numpy, of `WORLDS` worlds that take one action."""
    lived = jax.jit(lambda key: lives(env, key, steps, action))(jax.random.key(key))
    return jax.device_get(lived)


def lives(env, key, steps=STEPS, action=0):
    world, first_obs = env.reset(key, WORLDS)
    kind = jnp.int32 if isinstance(env.actions, Discrete) else jnp.float32
    shape = (WORLDS,) if isinstance(env.actions, Discrete) else (WORLDS, env.actions.size)

    def one(world, key):
        world, timestep = env.step(key, world, jnp.full(shape, action, kind))
        return world, (world, timestep)

    _, (after, timesteps) = jax.lax.scan(one, world, jax.random.split(key, steps))
    return first_obs, after, timesteps


def at(tree, time):
    return jax.tree.map(lambda leaf: leaf[time], tree)


def ends(timesteps):
    return timesteps.terminated | timesteps.truncated


def seen_until(first_obs, timesteps, time):
    """Every observation up to a step, once: float64 `[observations, ...]`."""
    done = ends(timesteps)[: time + 1]
    parts = [
        first_obs,
        *timesteps.final_obs[: time + 1],
        timesteps.obs[: time + 1][done],
    ]
    return np.concatenate([np.asarray(part, np.float64) for part in parts])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.int16])
def test_observations_are_normalised_by_all_that_was_seen(dtype):
    env = noise(dtype)
    first_obs, _, raw = run(env)
    normalised_first, world, found = run(normalise_observations(env, clip=1.5))
    assert raw.terminated.any() and raw.truncated.any() and not ends(raw).all()
    statistics = world["statistics"]
    for time in range(STEPS):
        seen = seen_until(first_obs, raw, time)
        mean, deviation = seen.mean(0), seen.std(0)
        assert statistics.weight[time] == len(seen)
        np.testing.assert_allclose(statistics.mean[time], mean, rtol=1e-6)
        np.testing.assert_allclose(statistics.variance[time], deviation**2, rtol=1e-4)
        for name in ("obs", "final_obs"):
            expected = (getattr(raw, name)[time] - mean) / deviation
            np.testing.assert_allclose(
                getattr(found, name)[time], np.clip(expected, -1.5, 1.5), atol=1e-4
            )
    assert np.abs(found.obs).max() == 1.5
    expected = (first_obs - first_obs.mean(0)) / np.std(first_obs, 0)
    np.testing.assert_allclose(normalised_first, np.clip(expected, -1.5, 1.5), atol=1e-4)
    for name in ("reward", "terminated", "truncated", "score"):
        np.testing.assert_array_equal(getattr(found, name), getattr(raw, name))


def test_statistics_stay_right_when_there_are_many():
    """Float32 counts no further than 2^24; the statistics are to neither drift nor overflow."""
    env = normalise_observations(worlds.clock(2))
    world, _ = env.reset(jax.random.key(0), 4)
    old = {"mean": jnp.ones(1), "variance": jnp.full(1, 0.5), "weight": jnp.float32(2**24)}
    world["statistics"] = world["statistics"]._replace(**old)
    for _ in range(2):
        world, _ = jax.jit(env.step)(jax.random.key(0), world, jnp.zeros(4, jnp.int32))
    np.testing.assert_allclose(world["statistics"].mean, 1, rtol=1e-5)
    np.testing.assert_allclose(world["statistics"].variance, 0.5, rtol=1e-5)
    assert world["statistics"].weight == 2**24 + 12


def test_rewards_are_divided_by_the_deviation_of_returns():
    """Of rewards, not of scores; for two discounts at once, which are traced."""
    env = clip_rewards(noise(), -4, 2)
    discounts = np.array([0.5, 0.9], np.float32)
    _, _, raw = run(env)
    assert (raw.reward != raw.score).any()

    def train(discount):
        return lives(normalise_rewards(env, discount, clip=0.7), jax.random.key(0))

    _, world, found = jax.device_get(jax.jit(jax.vmap(train))(discounts))
    done = ends(raw)
    assert raw.terminated.any() and raw.truncated.any() and not done.all()
    for i, discount in enumerate(discounts):
        returned, returns = np.zeros(WORLDS), []
        for time in range(STEPS):
            reward = np.asarray(raw.reward[time], np.float64)
            returned = discount * returned + reward
            returns.extend(returned)
            expected = np.clip(reward / np.std(returns), -0.7, 0.7)
            np.testing.assert_allclose(found.reward[i, time], expected, rtol=1e-4)
            returned = np.where(done[time], 0, returned)
            np.testing.assert_allclose(world["return"][i, time], returned, rtol=1e-5)
        for name in ("obs", "final_obs", "terminated", "truncated", "score"):
            np.testing.assert_array_equal(getattr(found, name)[i], getattr(raw, name))
    assert np.abs(found.reward).max() == np.float32(0.7)


def test_equal_returns_divide_by_no_zero():
    _, _, found = run(normalise_rewards(worlds.clock(1), 0.9), steps=2)
    np.testing.assert_array_equal(found.reward, 0)
    _, _, found = run(normalise_rewards(worlds.clock(1), 0.9), steps=2, action=1)
    np.testing.assert_array_equal(found.reward, 10)


def test_frozen_statistics_stay():
    env = normalise_rewards(normalise_observations(noise()), 0.9)
    _, after, _ = run(env)
    world = at(after, -1)
    first_obs, _, raw = run(noise(), key=1)
    frozen = env.frozen(world)
    frozen_first, _, found = run(frozen, key=1)
    assert frozen.frozen is None and frozen.observation == env.observation
    seen = world["env"]["statistics"]
    for expected, obs in ((first_obs, frozen_first), (raw.obs, found.obs)):
        np.testing.assert_allclose(obs, (expected - seen.mean) / np.sqrt(seen.variance), atol=1e-4)
    np.testing.assert_allclose(
        found.final_obs, (raw.final_obs - seen.mean) / np.sqrt(seen.variance), atol=1e-4
    )
    deviation = np.sqrt(world["statistics"].variance)
    np.testing.assert_allclose(found.reward, raw.reward / deviation, rtol=1e-5)
    np.testing.assert_array_equal(found.score, raw.score)


def test_freezing_goes_through_every_wrapper():
    """However they are nested, evaluation sees the statistics of training and changes none."""
    raw_first, _, raw = run(noise(), key=1, action=1)
    inside = normalise_observations(noise())
    _, after, _ = run(inside)
    seen = at(after, -1)["statistics"]
    around = clip_rewards(stack_frames(inside, 2))
    world = {"env": at(after, -1), "frames": jnp.zeros((WORLDS, 4))}
    _, _, found = run(around.frozen(world), key=1, action=1)
    expected = (raw.obs - seen.mean) / np.sqrt(seen.variance)
    np.testing.assert_allclose(found.obs[..., 2:], expected, atol=1e-4)
    np.testing.assert_allclose(
        found.obs[1:, :, :2],
        np.where(ends(raw)[1:, :, None], expected[1:], expected[:-1]),
        atol=1e-4,
    )
    np.testing.assert_array_equal(found.reward, np.clip(raw.reward, -1, 1))
    np.testing.assert_array_equal(found.score, raw.score)

    outside = normalise_observations(stack_frames(noise(), 2))
    world, _ = outside.reset(jax.random.key(0), 20 * WORLDS)
    seen = world["statistics"]
    _, first_obs = outside.frozen(world).reset(jax.random.key(1), WORLDS)
    twice = np.concatenate([raw_first] * 2, -1)
    np.testing.assert_allclose(first_obs, (twice - seen.mean) / np.sqrt(seen.variance), atol=1e-4)

    assert stack_frames(noise(), 2).frozen is None and clip_rewards(noise()).frozen is None
    box = normalise_observations(worlds.bandit())
    world, _ = box.reset(jax.random.key(0), WORLDS)
    _, _, found = run(clip_actions(box).frozen(world), steps=1, action=5)
    np.testing.assert_allclose(found.reward, -0.49, rtol=1e-6)
    assert clip_actions(worlds.bandit()).frozen is None


def test_evaluation_applies_the_statistics_of_training():
    """The agent takes action 1, which pays 1, where an observation is above the mean.

    The mean of 0, and of 1, 2, 3, 4 and 0 again in every episode, is just below 2, so that it pays
    at 2 and 3. Statistics begun anew, or none, would pay at 1 as well.
    """

    def act(state, obs, carry, key, explore):
        return (obs[:, 0] > 0).astype(jnp.int32), {}, carry

    learner = Learner(
        lambda key, example: TrainState.create(key, {}),
        lambda state, batch: (state.replace(step=state.step + 1), {}),
        lambda state, batch, key: {},
    )
    env = clip_rewards(stack_frames(normalise_observations(worlds.clock(4)), 1))
    runs = interact(Agent(learner, act, Discrete), env, num_envs=2, num_steps=12, episodes=3)
    runs = seeded(runs, method="vmap")
    state = jax.jit(runs.init)(jax.random.split(jax.random.key(0), 2), ())
    state, _ = jax.jit(runs.update)(state, ())
    metrics = jax.jit(runs.evaluate)(state, (), jax.random.key(1))
    np.testing.assert_array_equal(metrics["return"].total, [6, 6])
    np.testing.assert_array_equal(metrics["return"].count, [3, 3])


def test_a_time_limit_truncates_and_begins_anew():
    """The probe's own limit is 5: were it not begun anew, it would cut the second episode at 2."""
    first_obs, _, found = run(time_limit(worlds.truncation_probe(Discrete(2)), 3), steps=7)
    in_a, in_b = np.eye(2)
    np.testing.assert_array_equal(first_obs, [in_a] * WORLDS)
    for i in range(WORLDS):
        np.testing.assert_array_equal(found.truncated[:, i], [0, 0, 1, 0, 0, 1, 0])
        np.testing.assert_array_equal(found.reward[:, i], [-10, 1, 1, -10, 1, 1, -10])
        np.testing.assert_array_equal(found.obs[:, i], [in_b, in_b, in_a, in_b, in_b, in_a, in_b])
        np.testing.assert_array_equal(found.final_obs[:, i], [in_b] * 7)
    assert not found.terminated.any()


def test_worlds_reach_the_limit_one_by_one():
    """Episodes of three steps, limited to two: one is begun a step later than the other two."""
    env = time_limit(worlds.clock(3), 2)
    world = {"env": jnp.array([0, 1, 0]), "time": jnp.array([0, 1, 0])}
    step = jax.jit(env.step)
    expected = [  # obs, final_obs, truncated, time
        ([1, 0, 1], [1, 2, 1], [0, 1, 0], [1, 0, 1]),
        ([0, 1, 0], [2, 1, 2], [1, 0, 1], [0, 1, 0]),
        ([1, 0, 1], [1, 2, 1], [0, 1, 0], [1, 0, 1]),
    ]
    for obs, final_obs, truncated, time in expected:
        world, found = step(jax.random.key(0), world, jnp.zeros(3, jnp.int32))
        np.testing.assert_array_equal(found.obs[:, 0], obs)
        np.testing.assert_array_equal(found.final_obs[:, 0], final_obs)
        np.testing.assert_array_equal(found.truncated, truncated)
        np.testing.assert_array_equal(world["time"], time)
        assert not found.terminated.any()


def test_an_end_of_its_own_is_no_time_limit():
    _, world, found = run(time_limit(worlds.clock(3), 3), steps=6)
    np.testing.assert_array_equal(found.terminated[:, 0], [0, 0, 1, 0, 0, 1])
    assert not found.truncated.any()
    # One that ends before the limit has all of its time again in the next episode.
    _, world, found = run(time_limit(worlds.clock(3), 4), steps=6)
    np.testing.assert_array_equal(world["time"][:, 0], [1, 2, 0, 1, 2, 0])
    assert not found.truncated.any()
    _, world, found = run(time_limit(worlds.truncation_probe(Discrete(2)), 6), steps=7)
    np.testing.assert_array_equal(found.truncated[:, 0], [0, 0, 0, 0, 1, 0, 0])


def test_frames_never_leak_across_an_episode():
    first_obs, _, found = run(stack_frames(worlds.clock(3), 3), steps=5)
    np.testing.assert_array_equal(first_obs, np.zeros((WORLDS, 3)))
    expected = {
        "obs": [[0, 0, 1], [0, 1, 2], [0, 0, 0], [0, 0, 1], [0, 1, 2]],
        "final_obs": [[0, 0, 1], [0, 1, 2], [1, 2, 3], [0, 0, 1], [0, 1, 2]],
    }
    for i in range(WORLDS):
        np.testing.assert_array_equal(found.obs[:, i], expected["obs"])
        np.testing.assert_array_equal(found.final_obs[:, i], expected["final_obs"])


def test_frames_of_images_are_joined_by_channels():
    """Worlds that end at different times, in images `[4, 5]` of two channels."""

    def look(obs):
        return jnp.broadcast_to(obs[:, None, None], (WORLDS, 4, 5, 2)).astype(jnp.uint8)

    def reset(key, n):
        world, obs = noise(jnp.int16).reset(key, n)
        return world, look(obs)

    def step(key, world, action):
        world, timestep = noise(jnp.int16).step(key, world, action)
        shown = {"obs": look(timestep.obs), "final_obs": look(timestep.final_obs)}
        return world, timestep._replace(**shown)

    env = Environment(reset, step, jax.ShapeDtypeStruct((4, 5, 2), jnp.uint8), Discrete(2))
    first_obs, _, raw = run(env)
    stacked = stack_frames(env, 2)
    stacked_first, _, found = run(stacked)
    assert stacked.observation == jax.ShapeDtypeStruct((4, 5, 4), jnp.uint8)
    assert found.obs.dtype == found.final_obs.dtype == stacked_first.dtype == jnp.uint8
    np.testing.assert_array_equal(stacked_first, np.concatenate([first_obs] * 2, -1))
    assert len({tuple(row) for row in ends(raw).T}) > 1
    shown = np.concatenate([first_obs[None], raw.obs[:-1]])  # what was acted on
    np.testing.assert_array_equal(found.final_obs, np.concatenate([shown, raw.final_obs], -1))
    before = np.where(ends(raw)[..., None, None, None], raw.obs, shown)
    np.testing.assert_array_equal(found.obs, np.concatenate([before, raw.obs], -1))


def test_repeated_actions_stop_at_the_end():
    env = repeat_actions(clip_rewards(worlds.clock(5)), 3)
    world = jnp.array([0, 2, 4])
    step = jax.jit(env.step)
    # The third ends at the first of the repeats, the second at the last, then the first at the
    # second: each of the new episodes waits.
    expected = [  # world, final_obs, scores of action 2
        ([3, 0, 0], [3, 5, 5], [6, 6, 2]),
        ([0, 3, 3], [5, 3, 3], [4, 6, 6]),
        ([3, 0, 0], [3, 5, 5], [6, 4, 4]),
    ]
    for after, final_obs, score in expected:
        world, found = step(jax.random.key(0), world, jnp.full(3, 2))
        np.testing.assert_array_equal(world, after)
        np.testing.assert_array_equal(found.obs[:, 0], after)
        np.testing.assert_array_equal(found.final_obs[:, 0], final_obs)
        np.testing.assert_array_equal(found.terminated, np.array(final_obs) == 5)
        np.testing.assert_array_equal(found.score, score)
        np.testing.assert_array_equal(found.reward, np.array(score) / 2)
        assert not found.truncated.any()


def test_repeats_stop_at_time_limits():
    _, _, found = run(repeat_actions(worlds.truncation_probe(Discrete(2)), 3), steps=3)
    np.testing.assert_array_equal(found.reward[:, 0], [-8, 2, -8])
    np.testing.assert_array_equal(found.truncated[:, 0], [0, 1, 0])
    assert not found.terminated.any()


def test_every_repeat_draws_for_itself():
    """Drawn once for all three, the sum would be three times an integer."""

    def step(key, world, action):
        _, timestep = worlds.clock(9).step(key, world, action)
        drawn = jax.random.randint(key, world.shape, 0, 100).astype(jnp.float32)
        return world, timestep._replace(reward=drawn)

    env = repeat_actions(worlds.clock(9)._replace(step=step), 3)
    _, found = jax.jit(env.step)(jax.random.key(0), jnp.zeros(8, jnp.int32), jnp.zeros(8))
    assert (found.reward % 3 != 0).any()


def test_actions_are_clipped_on_their_way():
    bare = worlds.bandit()
    env = clip_actions(bare)
    assert env.actions == bare.actions and env.observation == bare.observation
    for action, taken in ((5, 1), (-5, -1), (0.2, 0.2)):
        _, _, found = run(env, steps=1, action=action)
        np.testing.assert_allclose(found.reward, -((taken - 0.3) ** 2), rtol=1e-5)


def test_clipped_rewards_leave_the_score():
    _, _, raw = run(noise())
    _, _, found = run(clip_rewards(noise(), -0.5, 2))
    np.testing.assert_array_equal(found.reward, np.clip(raw.reward, -0.5, 2))
    np.testing.assert_array_equal(found.score, raw.score)
    assert found.reward.min() == -0.5 and found.reward.max() == 2


def test_observations_are_cast():
    env = cast_observations(noise(), jnp.int16)
    for ours, theirs in zip(run(env), run(noise(jnp.int16)), strict=True):
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    shared = cast_observations(normalise_observations(noise()), jnp.float16)
    world, obs = shared.reset(jax.random.key(0), WORLDS)
    frozen = shared.frozen(world)
    np.testing.assert_array_equal(frozen.reset(jax.random.key(0), WORLDS)[1], obs)
    assert obs.dtype == frozen.observation.dtype == jnp.float16


WRAPPED = {
    "cast_observations": lambda: cast_observations(noise(), jnp.int16),
    "normalise_observations": lambda: normalise_observations(noise(jnp.int16)),
    "normalise_rewards": lambda: normalise_rewards(noise(), 0.9),
    "time_limit": lambda: time_limit(noise(), 2),
    "stack_frames": lambda: stack_frames(noise(jnp.int16), 2),
    "repeat_actions": lambda: repeat_actions(noise(), 2),
    "clip_rewards": lambda: clip_rewards(noise(), -1, 1),
    "all": lambda: normalise_rewards(
        stack_frames(
            normalise_observations(clip_rewards(time_limit(repeat_actions(noise(), 2), 3))), 2
        ),
        0.9,
    ),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_stepping_keeps_shapes_dtypes_and_weak_types(name):
    env = WRAPPED[name]()
    envs = [env] if env.frozen is None else [env, env.frozen(env.reset(jax.random.key(0), 3)[0])]
    for env in envs:
        start = jax.eval_shape(lambda key, env=env: env.reset(key, 3), jax.random.key(0))
        action = jnp.zeros(3, jnp.int32)
        world, step = jax.eval_shape(env.step, jax.random.key(0), start[0], action)

        def forms(tree):
            return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.weak_type), tree)

        assert forms(world) == forms(start[0])
        assert forms(step.obs) == forms(start[1]) == forms(step.final_obs)
        assert (env.observation.shape, env.observation.dtype) == (
            start[1].shape[1:],
            start[1].dtype,
        )


def test_all_of_them_together_map_over_seeds():
    env = WRAPPED["all"]()
    keys = jnp.stack([jax.random.key(seed) for seed in range(2)])
    both = jax.jit(jax.vmap(lambda key: lives(env, key)))(keys)
    alone = jax.jit(lambda key: lives(env, key))
    for seed in range(2):
        jax.tree.map(
            lambda many, one: np.testing.assert_allclose(many[seed], one, rtol=1e-4, atol=1e-4),  # noqa: B023
            both,
            alone(keys[seed]),
        )


def test_mistakes():
    bare, shared = worlds.clock(3), normalise_observations(worlds.clock(3))
    for wrapper, number in ((time_limit, "max_steps"), (stack_frames, "n"), (repeat_actions, "n")):
        name = wrapper.__name__
        with pytest.raises(InputError, match=rf"{name}\({number}=0\): expected at least 1"):
            wrapper(bare, 0)
    for wrapper in (time_limit, repeat_actions):
        with pytest.raises(InputError, match=rf"normalise_observations\({wrapper.__name__}\(env"):
            wrapper(shared, 2)
    with pytest.raises(InputError, match="takes Discrete actions: expected a Box"):
        clip_actions(bare)
    with pytest.raises(InputError, match=r"clip_rewards\(low=1, high=1\): expected low below"):
        clip_rewards(bare, 1, 1)
    for discount in (1.1, -0.1, float("nan")):
        with pytest.raises(InputError, match=r"discount=.*expected a number in \[0, 1\]"):
            normalise_rewards(bare, discount)
    scalar = batched(
        lambda key: (jnp.zeros(()), jnp.zeros(())),
        lambda key, world, action: (world, world, 0.0, jnp.zeros((), bool), jnp.zeros((), bool)),
        Discrete(2),
    )
    with pytest.raises(InputError, match="observations are scalars"):
        stack_frames(scalar, 2)
