"""Pure wrappers, each from an environment to an environment; what they remember is in the world.

None changes `Timestep.score` but `repeat_actions`, which sums it: returns are reported in the units
of the environment.

`normalise_observations` and `normalise_rewards` keep statistics that all worlds share. They go
outside `time_limit` and `repeat_actions`, which start or hold single worlds. Otherwise any order
will do.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from paradigms.core.errors import InputError
from paradigms.core.state import PyTree
from paradigms.reinforcement.environment import (
    Box,
    Environment,
    Timestep,
    choose,
    renewed,
)

Scalar = float | jax.Array


class Statistics(NamedTuple):
    """Of all that was counted so far.

    Attributes:
      mean: float32 `[...]`, the shape of one observation, or a scalar for returns.
      variance: float32 `[...]`, likewise, divided by the weight itself.
      weight: float32 scalar, how many they are.
    """

    mean: jax.Array
    variance: jax.Array
    weight: jax.Array


def normalise_observations(
    env: Environment, *, clip: Scalar = 10.0, epsilon: Scalar = 1e-8
) -> Environment:
    """Gives observations mean 0 and variance 1, by running statistics of each of their elements.

    Every observation counts once, the first and the last of an episode too. `obs` and `final_obs`
    of a step are normalised alike, by statistics that include both. A replay keeps observations
    as they were normalised when made.

    Args:
      env: with observations of any dtype; they become float32.
      clip: bound of the normalised observations.
      epsilon: added to the variance.

    Returns:
      An environment whose world is `env` and the `statistics`; `frozen` applies them as they are.
    """

    def normalised(statistics: Statistics, obs: jax.Array) -> jax.Array:
        centred = obs - statistics.mean
        return jnp.clip(centred / jnp.sqrt(statistics.variance + epsilon), -clip, clip)

    def reset(key: jax.Array, n: int) -> tuple[PyTree, jax.Array]:
        inner, obs = env.reset(key, n)
        obs = obs.astype(jnp.float32)
        statistics = _merged(_nothing(env.observation.shape), obs, jnp.ones(n))
        return {"env": inner, "statistics": statistics}, normalised(statistics, obs)

    def step(key: jax.Array, world: PyTree, action: jax.Array) -> tuple[PyTree, Timestep]:
        inner, timestep = env.step(key, world["env"], action)
        # Where no episode ended, `obs` and `final_obs` are the same.
        fresh = timestep.terminated | timestep.truncated
        seen = jnp.stack([timestep.final_obs, timestep.obs]).astype(jnp.float32)
        counted = jnp.stack([jnp.ones_like(fresh), fresh])
        statistics = _merged(world["statistics"], seen, counted)
        final_obs, obs = normalised(statistics, seen)
        timestep = timestep._replace(obs=obs, final_obs=final_obs)
        return {"env": inner, "statistics": statistics}, timestep

    def frozen(world: PyTree) -> Environment:
        inner, statistics = _frozen_inside(env, world), world["statistics"]

        def reset(key: jax.Array, n: int) -> tuple[PyTree, jax.Array]:
            inner_world, obs = inner.reset(key, n)
            return inner_world, normalised(statistics, obs)

        def step(key: jax.Array, world: PyTree, action: jax.Array) -> tuple[PyTree, Timestep]:
            world, timestep = inner.step(key, world, action)
            return world, timestep._replace(
                obs=normalised(statistics, timestep.obs),
                final_obs=normalised(statistics, timestep.final_obs),
            )

        return Environment(reset, step, observation, env.actions)

    observation = jax.ShapeDtypeStruct(env.observation.shape, jnp.float32)
    return Environment(reset, step, observation, env.actions, frozen)


def normalise_rewards(
    env: Environment, discount: Scalar, *, clip: Scalar = 10.0, epsilon: Scalar = 1e-8
) -> Environment:
    """Divides rewards by the running standard deviation of discounted returns; moves no mean.

    The return of a world is `discount` times what it was, plus the reward; it begins at 0 with
    every episode (Engstrom et al. 2020, appendix A.2, with the reset). Until returns differ, any
    reward that is not 0 comes out as `clip` or its negative.

    Args:
      env: with rewards in any unit.
      discount: gamma of the learner, in [0, 1]; may be traced.
      clip: bound of the divided rewards.
      epsilon: added to the variance.

    Returns:
      An environment whose world is `env`, the `return` float32 `[N]` of each episode under way and
      the `statistics`; `frozen` divides by them as they are.

    Raises:
      InputError: a discount outside [0, 1].
    """
    if not isinstance(discount, jax.core.Tracer) and not 0 <= discount <= 1:
        raise InputError(f"normalise_rewards(discount={discount}): expected a number in [0, 1]")

    def divided(statistics: Statistics, timestep: Timestep) -> Timestep:
        reward = timestep.reward / jnp.sqrt(statistics.variance + epsilon)
        return timestep._replace(reward=jnp.clip(reward, -clip, clip))

    def reset(key: jax.Array, n: int) -> tuple[PyTree, jax.Array]:
        inner, obs = env.reset(key, n)
        return {"env": inner, "return": jnp.zeros(n), "statistics": _nothing(())}, obs

    def step(key: jax.Array, world: PyTree, action: jax.Array) -> tuple[PyTree, Timestep]:
        inner, timestep = env.step(key, world["env"], action)
        returned = discount * world["return"] + timestep.reward
        statistics = _merged(world["statistics"], returned, jnp.ones_like(returned))
        done = timestep.terminated | timestep.truncated
        world = {
            "env": inner,
            "return": jnp.where(done, 0, returned),
            "statistics": statistics,
        }
        return world, divided(statistics, timestep)

    def frozen(world: PyTree) -> Environment:
        inner, statistics = _frozen_inside(env, world), world["statistics"]

        def step(key: jax.Array, world: PyTree, action: jax.Array) -> tuple[PyTree, Timestep]:
            world, timestep = inner.step(key, world, action)
            return world, divided(statistics, timestep)

        return inner._replace(step=step)

    return env._replace(reset=reset, step=step, frozen=frozen)


def time_limit(env: Environment, max_steps: int) -> Environment:
    """Truncates episodes after `max_steps` steps.

    One that ends by itself, at the limit too, keeps its own kind of end.

    Args:
      env: without statistics.
      max_steps: of the longest episode.

    Returns:
      An environment whose world is `env` and the `time` int32 `[N]` in the episode.

    Raises:
      InputError: `max_steps` below 1, or an environment with statistics.
    """
    _check_at_least_one("time_limit", max_steps=max_steps)
    _check_no_statistics("time_limit", env)

    def reset(key: jax.Array, n: int) -> tuple[PyTree, jax.Array]:
        inner, obs = env.reset(key, n)
        return {"env": inner, "time": jnp.zeros(n, jnp.int32)}, obs

    def step(key: jax.Array, world: PyTree, action: jax.Array) -> tuple[PyTree, Timestep]:
        step_key, reset_key = jax.random.split(key)
        inner, timestep = env.step(step_key, world["env"], action)
        time = world["time"] + 1
        done = timestep.terminated | timestep.truncated
        cut = (time >= max_steps) & ~done
        # The environment does not know that these episodes are over.
        inner, obs = renewed(cut, lambda: env.reset(reset_key, len(time)), (inner, timestep.obs))
        timestep = timestep._replace(obs=obs, truncated=timestep.truncated | cut)
        return {"env": inner, "time": jnp.where(done | cut, 0, time)}, timestep

    return env._replace(reset=reset, step=step)


def stack_frames(env: Environment, n: int) -> Environment:
    """Shows the last `n` observations, the oldest first, joined along the last axis.

    Images `[H, W, C]` become `[H, W, n * C]` and vectors `[D]` become `[n * D]`, in their own
    dtype. An episode begins with its first observation `n` times; `final_obs` is still of the old.

    Args:
      env: with observations of at least one axis.
      n: how many.

    Returns:
      An environment whose world is `env` and the `frames` shown last.

    Raises:
      InputError: `n` below 1, or observations that are scalars.
    """
    _check_at_least_one("stack_frames", n=n)
    if not env.observation.shape:
        raise InputError("stack_frames: observations are scalars: expected at least one axis")
    *outer, size = env.observation.shape

    def reset(key: jax.Array, worlds: int) -> tuple[PyTree, jax.Array]:
        inner, obs = env.reset(key, worlds)
        frames = jnp.concatenate([obs] * n, -1)
        # A copy, because one buffer under two names cannot be donated.
        return {"env": inner, "frames": frames}, jnp.copy(frames)

    def step(key: jax.Array, world: PyTree, action: jax.Array) -> tuple[PyTree, Timestep]:
        inner, timestep = env.step(key, world["env"], action)
        final_obs = jnp.concatenate([world["frames"][..., size:], timestep.final_obs], -1)
        first = jnp.concatenate([timestep.obs] * n, -1)
        obs = choose(timestep.terminated | timestep.truncated, first, final_obs)
        timestep = timestep._replace(obs=obs, final_obs=final_obs)
        return {"env": inner, "frames": obs}, timestep

    return Environment(
        reset,
        step,
        jax.ShapeDtypeStruct((*outer, n * size), env.observation.dtype),
        env.actions,
        _frozen_around(
            env, lambda frozen: stack_frames(frozen, n), inside=lambda world: world["env"]
        ),
    )


def repeat_actions(env: Environment, n: int) -> Environment:
    """Takes every action `n` times, and gives the sums of rewards and of scores.

    It stops where an episode ends: the new one waits for an action of its own.

    Args:
      env: without statistics.
      n: how many of its steps make one.

    Returns:
      An environment with the world of `env`.

    Raises:
      InputError: `n` below 1, or an environment with statistics.
    """
    _check_at_least_one("repeat_actions", n=n)
    _check_no_statistics("repeat_actions", env)

    def step(key: jax.Array, world: PyTree, action: jax.Array) -> tuple[PyTree, Timestep]:
        def again(so_far: PyTree, key: jax.Array) -> tuple[PyTree, None]:
            held, before = so_far
            moved, timestep = env.step(key, held, action)
            timestep = timestep._replace(
                reward=before.reward + timestep.reward, score=before.score + timestep.score
            )
            ended = before.terminated | before.truncated
            return choose(ended, so_far, (moved, timestep)), None

        keys = jax.random.split(key, n)
        return jax.lax.scan(again, env.step(keys[0], world, action), keys[1:])[0]

    return env._replace(step=step)


def clip_actions(env: Environment) -> Environment:
    """Brings actions into their bounds, for policies without bounds such as a Gaussian.

    A trajectory holds the actions as they were drawn, to which their log-probabilities belong.

    Args:
      env: with actions from a box, which stays the same.

    Raises:
      InputError: discrete actions.
    """
    box = env.actions
    if not isinstance(box, Box):
        raise InputError("clip_actions: the environment takes Discrete actions: expected a Box")

    def step(key: jax.Array, world: PyTree, action: jax.Array) -> tuple[PyTree, Timestep]:
        return env.step(key, world, jnp.clip(action, box.low, box.high))

    return env._replace(step=step, frozen=_frozen_around(env, clip_actions))


def clip_rewards(env: Environment, low: float = -1.0, high: float = 1.0) -> Environment:
    """Clips rewards to `[low, high]`, as Mnih et al. 2015 did on Atari.

    Raises:
      InputError: `low` is not below `high`.
    """
    if not low < high:
        raise InputError(f"clip_rewards(low={low}, high={high}): expected low below high")

    def step(key: jax.Array, world: PyTree, action: jax.Array) -> tuple[PyTree, Timestep]:
        world, timestep = env.step(key, world, action)
        return world, timestep._replace(reward=jnp.clip(timestep.reward, low, high))

    frozen = _frozen_around(env, lambda frozen: clip_rewards(frozen, low, high))
    return env._replace(step=step, frozen=frozen)


def cast_observations(env: Environment, dtype: Any) -> Environment:
    """Gives observations another dtype: a replay of pixels that are 0 or 1 is a quarter as bool."""

    def reset(key: jax.Array, n: int) -> tuple[PyTree, jax.Array]:
        world, obs = env.reset(key, n)
        return world, obs.astype(dtype)

    def step(key: jax.Array, world: PyTree, action: jax.Array) -> tuple[PyTree, Timestep]:
        world, timestep = env.step(key, world, action)
        obs, final_obs = timestep.obs.astype(dtype), timestep.final_obs.astype(dtype)
        return world, timestep._replace(obs=obs, final_obs=final_obs)

    observation = jax.ShapeDtypeStruct(env.observation.shape, dtype)
    frozen = _frozen_around(env, lambda frozen: cast_observations(frozen, dtype))
    return Environment(reset, step, observation, env.actions, frozen)


def _nothing(shape: tuple[int, ...]) -> Statistics:
    return Statistics(jnp.zeros(shape), jnp.zeros(shape), jnp.zeros(()))


def _merged(statistics: Statistics, seen: jax.Array, counted: jax.Array) -> Statistics:
    """Statistics of what they were of and of `seen[K, ...]` together, where `counted[K]`.

    The pairwise formula of Chan et al. 1979 (STAN-CS-79-773), for means in place of sums: sums
    would lose digits as they grow. `K` may be several axes. At least one must count.
    """
    axes = tuple(range(counted.ndim))
    weight = counted.reshape(*counted.shape, *[1] * (seen.ndim - counted.ndim)).astype(jnp.float32)
    added = weight.sum()
    mean = (weight * seen).sum(axes) / added
    variance = (weight * jnp.square(seen - mean)).sum(axes) / added
    # Beyond 2^24 times `added` the weight stands still, and the share with it.
    total = statistics.weight + added
    share = added / total
    apart = mean - statistics.mean
    return Statistics(
        statistics.mean + share * apart,
        statistics.variance
        + share * (variance - statistics.variance)
        + share * (1 - share) * jnp.square(apart),
        total,
    )


def _frozen_inside(env: Environment, world: PyTree) -> Environment:
    """The environment within a wrapper as evaluation sees it."""
    return env if env.frozen is None else env.frozen(world["env"])


def _frozen_around(
    env: Environment,
    wrap: Callable[[Environment], Environment],
    inside: Callable[[PyTree], PyTree] = lambda world: world,
) -> Callable[[PyTree], Environment] | None:
    """`frozen` of a wrapper without statistics: that of `env`, if it has one, wrapped again."""
    frozen = env.frozen
    return None if frozen is None else lambda world: wrap(frozen(inside(world)))


def _check_at_least_one(wrapper: str, **numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise InputError(f"{wrapper}({name}={number}): expected at least 1")


def _check_no_statistics(wrapper: str, env: Environment) -> None:
    # To start or to hold a single world would start or hold what it shares with the others.
    if env.frozen is not None:
        raise InputError(
            f"{wrapper}: the environment has statistics that its worlds share: wrap it the other "
            f"way round, as in normalise_observations({wrapper}(env, ...))"
        )
