"""The environment contract: a batch of worlds as two pure functions, and a check of it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from paradigms.core.errors import InputError
from paradigms.core.state import PyTree

_FEW = 16  # worlds


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

    _, obs = jax.eval_shape(start, jax.random.key(0))

    def reset_all(key: jax.Array, n: int) -> tuple[PyTree, jax.Array]:
        return jax.vmap(start)(jax.random.split(key, n))

    def step_all(key: jax.Array, world: PyTree, action: jax.Array) -> tuple[PyTree, Timestep]:
        keys = jax.random.split(key, (len(action), 2))
        moved, final_obs, reward, terminated, truncated = jax.vmap(step)(keys[:, 0], world, action)
        terminated, truncated = jnp.asarray(terminated, bool), jnp.asarray(truncated, bool)
        reward, final_obs = jnp.asarray(reward, jnp.float32), final_obs.astype(obs.dtype)
        world, next_obs = renewed(
            terminated | truncated, lambda: jax.vmap(start)(keys[:, 1]), (moved, final_obs)
        )
        return world, Timestep(next_obs, reward, terminated, truncated, final_obs, score=reward)

    return Environment(reset_all, step_all, jax.ShapeDtypeStruct(obs.shape, obs.dtype), actions)


def choose(chosen: jax.Array, new: PyTree, old: PyTree) -> PyTree:
    """World by world, what is `new` where `chosen[N]` and what is `old` elsewhere.

    Args:
      chosen: bool `[N]`.
      new: arrays `[N, ...]`.
      old: likewise.
    """

    def one(new: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(chosen.reshape(-1, *[1] * (old.ndim - 1)), new, old)

    return jax.tree.map(one, new, old)


def renewed(done: jax.Array, fresh: Callable[[], PyTree], old: PyTree) -> PyTree:
    """`choose(done, fresh(), old)`, in the dtypes of `fresh()`.

    On a CPU a few worlds are made anew only if one of them needs it.

    Args:
      done: bool `[N]`, whose episodes are over.
      fresh: makes N worlds that begin, arrays `[N, ...]`.
      old: the worlds as they are, likewise.
    """
    old = jax.tree.map(lambda leaf, new: leaf.astype(new.dtype), old, jax.eval_shape(fresh))
    # Of few worlds hardly ever one is over: four poles are played a seventh faster. One alone does
    # not win back what a branch costs, and of many some are always over. On an accelerator, and
    # over a mesh of them, all would wait for the answer.
    if jax.default_backend() != "cpu" or not 1 < len(done) <= _FEW:
        return choose(done, fresh(), old)
    return jax.lax.cond(done.any(), lambda old: choose(done, fresh(), old), lambda old: old, old)


def check_environment(
    env: Environment, *, steps: int = 16, num_envs: int = 2, bounded: bool = False
) -> None:
    """Plays a few random steps, to find before training what is wrong with an environment.

    Shapes and dtypes are found by tracing alone; the steps are there to find values that are NaN or
    infinite. Actions are drawn uniformly, or normally where a `Box` has no bounds.

    Args:
      env: to be checked.
      steps: number of random steps.
      num_envs: environments side by side, N.
      bounded: whether the agent needs actions with finite bounds.

    Raises:
      InputError: there is no action to take, or its bounds are not finite though they have to be;
        `final_obs` is missing; shape or dtype of an observation or of what a step answers is not
        that of the contract; an observation, a reward or a score is NaN or infinite; `steps` or
        `num_envs` is below 1.
    """
    for name, number in (("steps", steps), ("num_envs", num_envs)):
        if number < 1:
            raise InputError(f"check_environment({name}={number}): expected at least 1")
    _check_actions(env.actions, bounded)

    def reset(key: jax.Array) -> tuple[PyTree, jax.Array]:
        return env.reset(key, num_envs)

    def step(world: PyTree, key: jax.Array) -> tuple[PyTree, Timestep]:
        action_key, step_key = jax.random.split(key)
        return env.step(step_key, world, _random_actions(env.actions, action_key, num_envs))

    key = jax.random.key(0)
    world, obs = jax.eval_shape(reset, key)
    _check_forms(obs, jax.eval_shape(step, world, key)[1], env.observation, num_envs)

    @jax.jit
    def rollout(key: jax.Array) -> tuple[jax.Array, Timestep]:
        """Whether the first observations are finite, and whether what each step answers is."""

        def one(world: PyTree, key: jax.Array) -> tuple[PyTree, Timestep]:
            world, timestep = step(world, key)
            return world, Timestep(*(jnp.isfinite(answer).all() for answer in timestep))

        world, obs = reset(key)
        return jnp.isfinite(obs).all(), jax.lax.scan(one, world, jax.random.split(key, steps))[1]

    first, later = jax.device_get(rollout(key))
    if not first:
        raise InputError("obs is NaN or infinite after a reset: look at what `reset` gives")
    answers = later._asdict().items()
    broken = [(int(np.argmin(fine)), name) for name, fine in answers if not fine.all()]
    if broken:
        i, name = min(broken, key=lambda found: found[0])
        raise InputError(
            f"{name} is NaN or infinite at step {i + 1} of a random rollout: look at what `step` "
            "gives"
        )


def _check_actions(actions: Discrete | Box, bounded: bool) -> None:
    if isinstance(actions, Discrete):
        if actions.n < 1:
            raise InputError(f"the environment has {actions.n} actions: expected at least one")
        return
    low, high = np.asarray(actions.low), np.asarray(actions.high)
    bounds = f"{low.tolist()} and {high.tolist()}"
    if low.ndim != 1 or low.shape != high.shape or not (low < high).all():
        raise InputError(
            f"the environment's actions lie between {bounds}: expected two arrays [D], the first "
            "of them lower"
        )
    if bounded and not np.isfinite([low, high]).all():
        raise InputError(
            f"the environment's actions lie between {bounds}, and this agent needs finite bounds: "
            "give the environment some"
        )


def _check_forms(
    first: jax.Array, timestep: Timestep, observation: jax.ShapeDtypeStruct, num_envs: int
) -> None:
    """Compares shapes and dtypes with those of the contract."""
    if timestep.final_obs is None:
        raise InputError(
            "the environment cannot supply final_obs, the observation before a reset, and without "
            "it the value of a truncated episode would be a guess: make the environment by "
            "`batched`, which keeps it"
        )

    def form(value: Any) -> str:
        is_array = hasattr(value, "dtype")
        return f"{value.dtype}{list(value.shape)}" if is_array else type(value).__name__

    seen = form(jax.ShapeDtypeStruct((num_envs, *observation.shape), observation.dtype))
    number, flag = f"float32[{num_envs}]", f"bool[{num_envs}]"
    for name, value, expected in [
        ("obs of `reset`", first, seen),
        ("obs of `step`", timestep.obs, seen),
        ("reward", timestep.reward, number),
        ("terminated", timestep.terminated, flag),
        ("truncated", timestep.truncated, flag),
        ("final_obs", timestep.final_obs, seen),
        ("score", timestep.score, number),
    ]:
        if form(value) != expected:
            raise InputError(
                f"{name} is {form(value)} for {num_envs} environments: expected {expected}"
            )


def _random_actions(actions: Discrete | Box, key: jax.Array, n: int) -> jax.Array:
    if isinstance(actions, Discrete):
        return jax.random.randint(key, (n,), 0, actions.n)
    shape = (n, actions.size)
    finite = np.isfinite(actions.low) & np.isfinite(actions.high)
    low, high = np.where(finite, actions.low, 0), np.where(finite, actions.high, 1)
    within = jax.random.uniform(key, shape, minval=low, maxval=high)
    return jnp.where(
        finite, within, jnp.clip(jax.random.normal(key, shape), actions.low, actions.high)
    )


def _strong(leaf: Any) -> jax.Array:
    # Python numbers in a fresh world are weakly typed, in a stepped one they are not.
    leaf = jnp.asarray(leaf)
    return jnp.asarray(leaf, leaf.dtype)
