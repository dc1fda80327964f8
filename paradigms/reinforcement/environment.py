"""The environment contract: a batch of worlds as two pure functions, and adapters into it."""

import difflib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from paradigms.core.errors import InputError, MissingExtraError
from paradigms.core.state import PyTree


class Discrete(NamedTuple):
    """Actions `0 ... n - 1`, int32."""

    n: int


class Box(NamedTuple):
    """Actions float32 between two bounds, arrays `[D]`."""

    low: np.ndarray
    high: np.ndarray

    @property
    def size(self) -> int:
        """The number of dimensions, D."""
        return len(self.low)


class Timestep(NamedTuple):
    """What N environments answer to their actions.

    Attributes:
      obs: `[N, ...]`, what to act on next: of a new episode where the last one has ended.
      reward: float32 `[N]`.
      terminated: bool `[N]`, the episode ended in a state without a future.
      truncated: bool `[N]`, it was cut short, and its future has a value.
      final_obs: `[N, ...]`, what the actions led to, before any reset. Values are bootstrapped
        from it, never from `obs`.
      score: float32 `[N]`, what to report: the reward before any wrapper changed it.
    """

    obs: jax.Array
    reward: jax.Array
    terminated: jax.Array
    truncated: jax.Array
    final_obs: jax.Array
    score: jax.Array


class Environment(NamedTuple):
    """N worlds that are stepped together; an episode that ends begins anew in the same step.

    Attributes:
      reset: `(key, n) -> (world, obs[n, ...])`; every array of `world` has the worlds on its first
        axis, but for what they share (statistics).
      step: `(key, world, action[N, ...]) -> (world, Timestep)`.
      observation: shape and dtype of one observation.
      actions: what it takes.
      frozen: `(world) -> Environment`, the environment as evaluation sees it, with what it shares
        (statistics) as it is in `world`; None where it shares nothing.
    """

    reset: Callable[[jax.Array, int], tuple[PyTree, jax.Array]]
    step: Callable[[jax.Array, PyTree, jax.Array], tuple[PyTree, Timestep]]
    observation: jax.ShapeDtypeStruct
    actions: Discrete | Box
    frozen: Callable[[PyTree], "Environment"] | None = None


def batched(
    reset: Callable[[jax.Array], tuple[PyTree, jax.Array]],
    step: Callable[
        [jax.Array, PyTree, jax.Array],
        tuple[PyTree, jax.Array, jax.Array, jax.Array, jax.Array],
    ],
    actions: Discrete | Box,
) -> Environment:
    """An environment from the functions of one world that does not reset by itself.

    Args:
      reset: `(key) -> (world, obs)`.
      step: `(key, world, action) -> (world, obs, reward, terminated, truncated)`, where `obs` is
        what the action led to.
      actions: what `step` takes.
    """

    def start(key: jax.Array) -> tuple[PyTree, jax.Array]:
        return jax.tree.map(_strong, reset(key))

    def reset_all(key: jax.Array, n: int) -> tuple[PyTree, jax.Array]:
        return jax.vmap(start)(jax.random.split(key, n))

    def step_one(key: jax.Array, world: PyTree, action: jax.Array) -> tuple[PyTree, Timestep]:
        step_key, reset_key = jax.random.split(key)
        moved, final_obs, reward, terminated, truncated = step(step_key, world, action)
        fresh, first_obs = start(reset_key)
        done = terminated | truncated
        world, obs = jax.tree.map(
            lambda new, old: jnp.where(done, new, old.astype(new.dtype)),
            (fresh, first_obs),
            (moved, final_obs),
        )
        reward = jnp.asarray(reward, jnp.float32)
        timestep = Timestep(
            obs,
            reward,
            jnp.asarray(terminated, bool),
            jnp.asarray(truncated, bool),
            final_obs.astype(first_obs.dtype),
            score=reward,
        )
        return world, timestep

    def step_all(key: jax.Array, world: PyTree, action: jax.Array) -> tuple[PyTree, Timestep]:
        return jax.vmap(step_one)(jax.random.split(key, len(action)), world, action)

    _, obs = jax.eval_shape(start, jax.random.key(0))
    return Environment(reset_all, step_all, jax.ShapeDtypeStruct(obs.shape, obs.dtype), actions)


def from_gymnax(name: str, **settings: Any) -> Environment:
    """An environment of gymnax 1.0.1 or newer.

    Args:
      name: for instance "CartPole-v1" or "Breakout-MinAtar".
      **settings: values of its parameters other than the usual, for instance
        `max_steps_in_episode=200`.

    Raises:
      InputError: unknown name or setting, or a gymnax that merges the two ends of an episode.
      MissingExtraError: gymnax is not installed.
    """
    try:
        import gymnax
    except ImportError as error:
        raise MissingExtraError("gymnax", "rl", f"the environment {name}") from error
    if not hasattr(gymnax.environments.environment.Environment, "is_truncated"):
        raise InputError(
            "gymnax below 1.0.1 cannot tell a time limit from an end: "
            "run `pip install 'paradigms[rl]'`"
        )
    known = gymnax.registered_envs
    if name not in known:
        near = difflib.get_close_matches(name, known)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(known)}"
        raise InputError(f"unknown gymnax environment '{name}': {hint}")
    environment, params = gymnax.make(name)
    if unknown := sorted(set(settings) - set(vars(params))):
        raise InputError(f"{name} has no setting '{unknown[0]}', only {sorted(vars(params))}")
    params = params.replace(**settings)

    def reset(key: jax.Array) -> tuple[PyTree, jax.Array]:
        obs, world = environment.reset_env(key, params)
        return world, obs

    def step(
        key: jax.Array, world: PyTree, action: jax.Array
    ) -> tuple[PyTree, jax.Array, jax.Array, jax.Array, jax.Array]:
        obs, world, reward, terminated, _ = environment.step_env(key, world, action, params)
        return world, obs, reward, terminated, environment.is_truncated(world, params)

    return batched(reset, step, _actions_of(name, environment.action_space(params)))


def _actions_of(name: str, space: Any) -> Discrete | Box:
    if hasattr(space, "n"):
        return Discrete(int(space.n))
    shape = tuple(space.shape)
    low, high = (np.broadcast_to(np.float32(bound), shape) for bound in (space.low, space.high))
    if len(shape) != 1:
        raise InputError(f"{name} takes actions of shape {shape}: expected one dimension")
    return Box(low, high)


def _strong(leaf: Any) -> jax.Array:
    # Python numbers in a fresh world are weakly typed, in a stepped one they are not.
    leaf = jnp.asarray(leaf)
    return jnp.asarray(leaf, leaf.dtype)
