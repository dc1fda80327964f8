"""`Agent`: a learner that acts; `interact`: the learner that its world and it make together."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from paradigms.core.errors import InputError
from paradigms.core.learner import Batch, Learner, Metrics
from paradigms.core.mesh import constrain_batch
from paradigms.core.metrics import Mean
from paradigms.core.state import PyTree, TrainState, fold_name
from paradigms.reinforcement.environment import Box, Discrete, Environment, choose

Trajectory = dict[str, jax.Array]
"""`obs`, `action`, `reward`, `terminated`, `truncated` and `final_obs`, arrays `[T, N, ...]` as in
`Timestep` but for `obs`, which is what was acted on; and whatever `act` added."""


class Agent(NamedTuple):
    """What learns from trajectories and makes them.

    Attributes:
      learner: its `update` takes a `Trajectory`. Its `init` gets one of zeros, without what `act`
        adds. Its `evaluate` reports nothing: an agent is judged in its world.
      act: `(state, obs[N, ...], carry, key, explore) -> (action[N, ...], extras, carry)`. With
        `explore=False` it acts as well as it can; `extras`, arrays `[N, ...]` by name, join the
        trajectory. `state.world["steps"]` has the environment steps done.
      actions: the kind of actions that it gives, `Discrete` or `Box`, or the one box that it was
        made for.
      carry: `(n) -> carry`, what a recurrent policy remembers at the start of an episode.
    """

    learner: Learner
    act: Callable[..., tuple[jax.Array, dict[str, jax.Array], PyTree]]
    actions: type[Discrete] | type[Box] | Box
    carry: Callable[[int], PyTree] = lambda n: ()


def interact(
    agent: Agent,
    env: Environment,
    *,
    num_envs: int,
    num_steps: int,
    episodes: int = 100,
    max_episode_steps: int = 10_000,
) -> Learner:
    """The learner that lives in its world: an update makes a trajectory and learns from it.

    The world is kept in `state.world`, a dict of the environments' state `env`, the observations
    `obs` to act on, the agent's `carry`, the number `steps` of environment steps done, int32, and
    of the episodes under way `return` and `length`. Its `batch` is `()`.

    Args:
      agent: acts and learns.
      env: where.
      num_envs: environments side by side, N. On a mesh they are divided over the data axes.
      num_steps: steps of each in one update, T.
      episodes: whole episodes of an evaluation, each in an environment of its own.
      max_episode_steps: when an evaluation gives an episode up, which `unfinished` then tells.

    Returns:
      A learner that adds `episode/return` and `episode/length` to the agent's metrics: means over
      the episodes that ended during the update. Its `evaluate` acts greedily in fresh worlds and
      reports `return`, `length` and the fraction `unfinished`. A return is a sum of scores, which
      no wrapper has changed.

    Raises:
      InputError: the environment does not take this agent's actions, or a number below 1.
    """
    if not isinstance(env, Environment):
        raise InputError(
            f"interact steps its world inside jit, and a {type(env).__name__} cannot be: use hosted"
        )
    check_actions("interact", agent, env, num_envs=num_envs, num_steps=num_steps, episodes=episodes)

    def init(key: jax.Array, example: Batch) -> TrainState:
        del example
        world, obs = env.reset(fold_name(key, "world"), num_envs)
        state = agent.learner.init(key, example_trajectory(env, num_envs, num_steps))
        return state.replace(
            world={
                "env": world,
                "obs": obs,
                "carry": agent.carry(num_envs),
                **no_tally(num_envs),
            }
        )

    def update(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        del batch

        def one(world: PyTree, keys: jax.Array) -> tuple[PyTree, Any]:
            act_key, step_key = keys
            action, extras, carry = agent.act(
                state.replace(world=world), world["obs"], world["carry"], act_key, explore=True
            )
            env_world, timestep = env.step(step_key, world["env"], action)
            done = timestep.terminated | timestep.truncated
            tally, come_to = tallied(world, timestep.score, done)
            moved = {
                "env": env_world,
                "obs": timestep.obs,
                "carry": choose(done, agent.carry(num_envs), carry),
                **tally,
            }
            transition = {
                **extras,
                "obs": world["obs"],
                "action": action,
                "reward": timestep.reward,
                "terminated": timestep.terminated,
                "truncated": timestep.truncated,
                "final_obs": timestep.final_obs,
            }
            return _over_devices(moved, num_envs), (constrain_batch(transition), come_to)

        # Of all steps at once: a split of one key costs a CPU as much as one of a thousand.
        keys = jax.vmap(jax.random.split)(jax.random.split(state.rng("interact"), num_steps))
        world, (trajectory, come_to) = jax.lax.scan(one, state.world, keys)
        state, metrics = agent.learner.update(state.replace(world=world), trajectory)
        done = trajectory["terminated"] | trajectory["truncated"]
        return state, {**metrics, **episode_means(come_to, done)}

    def evaluate(state: TrainState, batch: Batch, key: jax.Array) -> Metrics:
        del batch
        held_out = env if env.frozen is None else env.frozen(state.world["env"])
        return judgement(*play(agent, held_out, state, key, episodes, max_episode_steps))

    return Learner(init, update, evaluate)


def play(
    agent: Agent,
    env: Environment,
    state: TrainState,
    key: jax.Array,
    episodes: int,
    max_steps: int = 10_000,
    *,
    explore: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Plays whole episodes in fresh environments, all of them at once, until the last one ends.

    Args:
      agent: the player.
      env: where; as it is, so frozen if it has statistics.
      state: of the agent.
      key: of the environments and the player, independent of the training's.
      episodes: how many, each the first of its own environment: none is favoured for being short.
      max_steps: when to give up on those that have not ended.
      explore: whether to act as in training, in place of greedily.

    Returns:
      Returns (sums of the scores) float32 `[episodes]`, lengths float32 `[episodes]`, and whether
      each episode ended, bool `[episodes]`.
    """

    def under_way(loop: PyTree) -> jax.Array:
        return loop["alive"].any() & (loop["step"] < max_steps)

    def one(loop: PyTree) -> PyTree:
        act_key, step_key = jax.random.split(jax.random.fold_in(key, loop["step"]))
        action, _, carry = agent.act(state, loop["obs"], loop["carry"], act_key, explore=explore)
        world, timestep = env.step(step_key, loop["world"], action)
        return {
            "step": loop["step"] + 1,
            "world": world,
            "obs": timestep.obs,
            "carry": carry,
            "alive": loop["alive"] & ~(timestep.terminated | timestep.truncated),
            "return": loop["return"] + jnp.where(loop["alive"], timestep.score, 0),
            "length": loop["length"] + loop["alive"],
        }

    world, obs = env.reset(fold_name(key, "reset"), episodes)
    start = {
        "step": jnp.zeros((), jnp.int32),
        "world": world,
        "obs": obs,
        "carry": agent.carry(episodes),
        "alive": jnp.ones(episodes, bool),
        "return": jnp.zeros(episodes),
        "length": jnp.zeros(episodes),
    }
    end = jax.lax.while_loop(under_way, one, start)
    return end["return"], end["length"], ~end["alive"]


def judgement(returns: jax.Array, lengths: jax.Array, finished: jax.Array) -> Metrics:
    """The metrics of an evaluation, from what `play` or `play_on_host` gave."""
    return {
        "return": Mean.of(returns),
        "length": Mean.of(lengths),
        "unfinished": Mean.of(~finished),
    }


def check_actions(caller: str, agent: Agent, env: Any, **numbers: int) -> None:
    """Raises `InputError` where agent and environment do not fit, or a number is below 1."""
    kind = Box if isinstance(agent.actions, Box) else agent.actions
    if not isinstance(env.actions, kind):
        raise InputError(
            f"the environment takes {type(env.actions).__name__} actions and the agent gives "
            f"{kind.__name__}: choose an algorithm for the other kind"
        )
    if isinstance(agent.actions, Box) and not np.array_equal(agent.actions, env.actions):
        raise InputError(
            f"the environment takes actions from {env.actions} and the agent was made for "
            f"{agent.actions}: make it with actions=env.actions"
        )
    for name, number in numbers.items():
        if number < 1:
            raise InputError(f"{caller}({name}={number}): expected at least 1")


def example_trajectory(env: Any, num_envs: int, num_steps: int) -> Trajectory:
    """A trajectory of zeros, for its shapes."""
    axes = (num_steps, num_envs)
    obs = jnp.zeros((*axes, *env.observation.shape), env.observation.dtype)
    if isinstance(env.actions, Discrete):
        action = jnp.zeros(axes, jnp.int32)
    else:
        action = jnp.zeros((*axes, env.actions.size))
    return {
        "obs": obs,
        "action": action,
        "reward": jnp.zeros(axes),
        "terminated": jnp.zeros(axes, bool),
        "truncated": jnp.zeros(axes, bool),
        "final_obs": obs,
    }


def no_tally(num_envs: int) -> PyTree:
    """What `tallied` starts from."""
    return {
        "steps": jnp.zeros((), jnp.int32),
        "return": jnp.zeros(num_envs),
        "length": jnp.zeros(num_envs),
    }


def tallied(world: PyTree, score: jax.Array, done: jax.Array) -> tuple[PyTree, PyTree]:
    """Counts a step: what changes in the world, and what the episodes have come to, `[N]` each."""
    returned, length = world["return"] + score, world["length"] + 1
    tally = {
        "steps": world["steps"] + len(done),
        "return": jnp.where(done, 0, returned),
        "length": jnp.where(done, 0, length),
    }
    return tally, {"return": returned, "length": length}


def episode_means(come_to: dict[str, jax.Array], done: jax.Array) -> Metrics:
    """The metrics of the episodes that ended, from what `tallied` gave for every step."""
    return {f"episode/{name}": Mean.of(values, done) for name, values in come_to.items()}


def _over_devices(world: PyTree, num_envs: int) -> PyTree:
    """Divides over the mesh what has the environments on its first axis."""

    def place(leaf: jax.Array) -> jax.Array:
        return constrain_batch(leaf) if leaf.shape[:1] == (num_envs,) else leaf

    return jax.tree.map(place, world)
