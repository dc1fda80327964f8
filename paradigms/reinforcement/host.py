"""Worlds on the host: the same agents where environments are stepped in Python."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from paradigms.core.errors import InputError, MissingExtraError
from paradigms.core.learner import Batch, Learner, Metrics
from paradigms.core.loop import LiveSource
from paradigms.core.mesh import constrain_batch
from paradigms.core.state import PyTree, TrainState, fold_name
from paradigms.reinforcement.adapters import check_known
from paradigms.reinforcement.agent import (
    Agent,
    check_actions,
    episode_means,
    example_trajectory,
    no_tally,
    tallied,
)
from paradigms.reinforcement.environment import Box, Discrete, Environment, Timestep, choose

Act = Callable[..., tuple[jax.Array, dict[str, jax.Array], PyTree]]


class HostEnvironment(NamedTuple):
    """`Environment` for worlds that only Python can step; its arrays are those of numpy.

    Attributes:
      reset: `(key, n) -> (world, obs[n, ...])`. The world may be any object, and is a new one.
      step: `(key, world, action[N, ...]) -> (world, Timestep)`; it may change `world` itself.
      observation: shape and dtype of one observation.
      actions: what it takes.
    """

    reset: Callable[[jax.Array, int], tuple[Any, Any]]
    step: Callable[[jax.Array, Any, Any], tuple[Any, Timestep]]
    observation: jax.ShapeDtypeStruct
    actions: Discrete | Box


class Hosted(NamedTuple):
    """An agent in worlds on the host: `fit(repeated(learner, 1), state, source, ...)`.

    Attributes:
      learner: its batch is a trajectory that `source` made. Its `evaluate` is the agent's; in a
        world it is judged by `play_on_host`.
      source: plays with the state that is to be updated, and keeps the worlds.
    """

    learner: Learner
    source: LiveSource


def hosted(agent: Agent, env: HostEnvironment, *, num_envs: int, num_steps: int) -> Hosted:
    """The agent in worlds on the host: `interact` in two parts, one of which is no function of JAX.

    With the same environment, `on_host`, both give the same updates. Here `state.world` has only
    `steps`, `return` and `length`: a run that resumes goes on exactly in all else, and its
    environments start new episodes. `act` sees the state without its `memory` and `opt_state`.

    Several runs that are stacked in one state each have worlds of their own, played one after the
    other; the learner is then `seeded(learner, data_axis=0)`.

    Args:
      agent: acts and learns.
      env: where.
      num_envs: environments side by side, N. On a mesh what they saw is divided over the data axes.
      num_steps: steps of each in one update, T.

    Returns:
      A learner that reports what `interact` does, and its source, which gives one trajectory to a
      call of `update`.

    Raises:
      InputError: the environment does not take this agent's actions, is not one of the host, or a
        number is below 1; when played, a reward that is not finite, or several updates in a call.
    """
    if not isinstance(env, HostEnvironment):
        raise InputError(f"hosted got an {type(env).__name__}: use interact, or wrap it in on_host")
    check_actions("hosted", agent, env, num_envs=num_envs, num_steps=num_steps)
    places: list[tuple[Any, Any, PyTree]] = []  # of each run the world, obs and carry
    due = 0

    def init(key: jax.Array, example: Batch) -> TrainState:
        del example
        state = agent.learner.init(key, example_trajectory(env, num_envs, num_steps))
        return state.replace(world=no_tally(num_envs))

    def update(state: TrainState, trajectory: Batch) -> tuple[TrainState, Metrics]:
        trajectory = constrain_batch(dict(trajectory), axis=1)
        score = trajectory.pop("score")
        done = trajectory["terminated"] | trajectory["truncated"]
        world, come_to = jax.lax.scan(
            lambda world, x: tallied(world, *x), state.world, (score, done)
        )
        state, metrics = agent.learner.update(state.replace(world=world), trajectory)
        return state, {**metrics, **episode_means(come_to, done)}

    def enter(state: TrainState, step: int) -> tuple[Any, Any, PyTree]:
        key = fold_name(state.key, "world")
        # A resumed run does not live through its first episodes again.
        world, obs = env.reset(jax.random.fold_in(key, step) if step else key, num_envs)
        return world, obs, agent.carry(num_envs)

    def play(state: TrainState, run: int) -> Batch:
        world, obs, carry = places[run]
        steps, transitions = state.world["steps"], []
        for t, key in enumerate(jax.random.split(state.rng("interact"), num_steps)):
            now = state.replace(world={**state.world, "steps": steps + t * num_envs})
            action, extras, after, step_key = acted(agent.act, now, obs, carry, key, explore=True)
            action, extras = jax.device_get((action, extras))
            world, timestep = env.step(step_key, world, action)
            answers = timestep._asdict()
            next_obs = answers.pop("obs")
            transitions.append({**extras, "obs": obs, "action": action, **answers})
            done = timestep.terminated | timestep.truncated
            obs, carry = next_obs, choose(done, agent.carry(num_envs), after)
        places[run] = world, obs, carry
        return jax.tree.map(lambda *each: np.stack(each), *transitions)

    def draw(step: int, n: int, state: TrainState) -> Batch:
        nonlocal due
        if n != 1:
            raise InputError(
                f"steps_per_call={n}: a world on the host is played between updates, choose 1"
            )
        runs = _runs(state)
        if step != due or len(runs) != len(places):
            places[:] = []
        if not places:
            places[:] = [enter(run, step) for run in runs]
        played = [play(run, i) for i, run in enumerate(runs)]
        due = step + 1
        for trajectory in played:
            if not np.isfinite(trajectory["reward"]).all():
                raise InputError(
                    f"the environment gave a reward that is NaN or infinite before update {due}: "
                    "mend what computes it"
                )
        if state.step.ndim:
            return jax.tree.map(lambda *each: np.stack(each), *played)
        return played[0]

    return Hosted(Learner(init, update, agent.learner.evaluate), LiveSource(draw))


def play_on_host(
    agent: Agent,
    env: HostEnvironment,
    state: TrainState,
    key: jax.Array,
    episodes: int,
    max_steps: int = 10_000,
    *,
    explore: bool = False,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Plays whole episodes in fresh environments, as `play` does.

    Args:
      agent: the player.
      env: where.
      state: of the agent, or of several runs stacked, which play one after the other.
      key: of the environments and the player, independent of the training's.
      episodes: how many, each the first of its own environment: none is favoured for being short.
      max_steps: when to give up on those that have not ended.
      explore: whether to act as in training, in place of greedily.

    Returns:
      Returns (sums of the scores) float32, lengths float32, and whether each episode ended, bool;
      `[episodes]`, or `[S, episodes]` of S runs.
    """

    def one(state: TrainState) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        world, obs = env.reset(fold_name(key, "reset"), episodes)
        carry, alive = agent.carry(episodes), np.ones(episodes, bool)
        returns, lengths = np.zeros((2, episodes), np.float32)
        for step in range(max_steps):
            if not alive.any():
                break
            action, _, carry, step_key = acted(
                agent.act, state, obs, carry, jax.random.fold_in(key, step), explore=explore
            )
            world, timestep = env.step(step_key, world, np.asarray(action))
            obs = timestep.obs
            returns += np.where(alive, timestep.score, 0)
            lengths += alive
            alive &= ~(timestep.terminated | timestep.truncated)
        return returns, lengths, ~alive

    played = [one(run) for run in _runs(state)]
    if not state.step.ndim:
        return played[0]
    returns, lengths, finished = (np.stack(each) for each in zip(*played, strict=True))
    return returns, lengths, finished


def on_host(env: Environment) -> HostEnvironment:
    """The same environment, stepped from the host.

    Raises:
      InputError: its worlds share statistics, which would not be kept with the state.
    """
    if env.frozen is not None:
        raise InputError("on_host: statistics of an environment are kept by interact alone")
    start, move = jax.jit(env.reset, static_argnums=1), jax.jit(env.step)

    def reset(key: jax.Array, n: int) -> tuple[Any, Any]:
        world, obs = start(key, n)
        return world, jax.device_get(obs)

    def step(key: jax.Array, world: Any, action: Any) -> tuple[Any, Timestep]:
        world, timestep = move(key, world, action)
        return world, jax.device_get(timestep)

    return HostEnvironment(reset, step, env.observation, env.actions)


def from_gymnasium(make: str | Callable[[], Any], **settings: Any) -> HostEnvironment:
    """Environments of Gymnasium 1.1 or newer, stepped one after the other.

    Args:
      make: a registered name such as "CartPole-v1", or a function that makes one environment.
      **settings: arguments of `gymnasium.make`, or of the function.

    Raises:
      InputError: unknown name, an environment that cannot be made, or one that `from_vector`
        refuses.
      MissingExtraError: gymnasium is not installed.
    """
    gymnasium = _gymnasium(f"the environment {make}")
    if isinstance(make, str):
        check_known("Gymnasium environment", make, sorted(gymnasium.registry))
        single = functools.partial(gymnasium.make, make, **settings)
    else:
        single = functools.partial(make, **settings)

    def vector(n: int) -> Any:
        try:
            return gymnasium.vector.SyncVectorEnv(
                [single] * n, autoreset_mode=gymnasium.vector.AutoresetMode.SAME_STEP
            )
        except (gymnasium.error.Error, TypeError) as error:
            raise InputError(f"{make} cannot be made: {error}") from error

    return from_vector(vector)


def from_vector(make: Callable[[int], Any]) -> HostEnvironment:
    """Vector environments of Gymnasium's interface.

    Actions beyond the bounds of a box are clipped to them. Seeds come from the key of `reset`.

    Args:
      make: `(n) -> VectorEnv` of n environments. They have to reset in the step that ends an
        episode: the usual, a step later, makes transitions that lead from one episode to the next.

    Raises:
      InputError: environments that reset in another way, and so do not supply the observation that
        an episode ended with; observations that are not one array; actions that are neither
        discrete nor a box of one dimension.
      MissingExtraError: gymnasium is not installed.
    """
    gymnasium = _gymnasium("a vector environment")
    sample = make(1)
    mode = sample.metadata.get("autoreset_mode")
    if mode != gymnasium.vector.AutoresetMode.SAME_STEP:
        raise InputError(
            f"the vector environment resets by {mode}, which hides the last observation of an "
            "episode or follows it by a step that is none: make it with AutoresetMode.SAME_STEP"
        )
    space, action_space = sample.single_observation_space, sample.single_action_space
    sample.close()
    if not isinstance(space, gymnasium.spaces.Box):
        raise InputError(
            f"the environment observes {space}: wrap it in gymnasium.wrappers.FlattenObservation"
        )
    observation = jax.ShapeDtypeStruct(space.shape, jax.dtypes.canonicalize_dtype(space.dtype))
    actions: Discrete | Box
    if isinstance(action_space, gymnasium.spaces.Discrete):
        actions = Discrete(int(action_space.n))
    elif isinstance(action_space, gymnasium.spaces.Box) and len(action_space.shape) == 1:
        low, high = (np.asarray(b, np.float32) for b in (action_space.low, action_space.high))
        actions = Box(low, high)
    else:
        raise InputError(
            f"the environment takes {action_space}: expected Discrete, or a Box of one dimension"
        )

    def reset(key: jax.Array, n: int) -> tuple[Any, Any]:
        world = make(n)
        # Environment i gets this seed plus i.
        obs, _ = world.reset(seed=int(jax.random.randint(key, (), 0, 2**30)))
        return world, np.array(obs, observation.dtype)

    def step(key: jax.Array, world: Any, action: Any) -> tuple[Any, Timestep]:
        del key
        if isinstance(actions, Box):
            action = np.clip(action, action_space.low, action_space.high)
        else:
            action = action + action_space.start
        answer, reward, terminated, truncated, info = world.step(action)
        obs: Any = np.array(answer, observation.dtype)
        final_obs: Any = obs.copy()
        for i in np.flatnonzero(terminated | truncated):
            if "final_obs" not in info:
                raise InputError("an episode ended and the environment did not give its final_obs")
            final_obs[i] = info["final_obs"][i]
        score: Any = np.asarray(reward, np.float32)
        return world, Timestep(obs, score, terminated, truncated, final_obs, score)

    return HostEnvironment(reset, step, observation, actions)


def from_atari(
    game: str,
    *,
    sticky: float = 0.0,
    life_is_episode: bool = False,
    clip_rewards: bool = True,
    max_frames: int = 108_000,
    threads: int = 0,
) -> HostEnvironment:
    """A game of the Atari 2600, as agents are used to see it (Mnih et al. 2015).

    An observation is the last four pictures, uint8 `[84, 84, 4]`, grey, the newest last. An action
    is held for four frames, of which the brighter of the last two makes the picture. A game starts
    with up to 30 frames without an action, and then the fire button where that starts it.

    Args:
      game: as ale-py calls it, for instance "breakout" or "ms_pacman".
      sticky: how often an action is not heard and the last one goes on (Machado et al. 2018: 0.25).
      life_is_episode: whether each lost life is a terminal state; the game goes on after it. For
        training only: a return is then that of a life.
      clip_rewards: whether a reward is the sign of the score.
      max_frames: when a game is cut short, in frames.
      threads: that step the games; 0 for one on each core.

    Raises:
      InputError: unknown game.
      MissingExtraError: ale-py is not installed.
    """
    try:
        from ale_py import roms
        from ale_py.vector_env import AtariVectorEnv
    except ImportError as error:
        raise MissingExtraError("ale-py", "atari", f"the game {game}") from error
    check_known("Atari game", game, roms.get_all_rom_ids())
    mode = _gymnasium(f"the game {game}").vector.AutoresetMode.SAME_STEP

    def make(n: int) -> Any:
        games = AtariVectorEnv(
            game,
            n,
            num_threads=threads,
            max_num_frames_per_episode=max_frames,
            repeat_action_probability=sticky,
            reward_clipping=False,  # the score is needed as it is
            autoreset_mode=mode,
        )
        return _Lives(games) if life_is_episode else games

    games = from_vector(make)

    def seen(obs: Any) -> Any:
        return np.moveaxis(obs, 1, -1)

    def reset(key: jax.Array, n: int) -> tuple[Any, Any]:
        world, obs = games.reset(key, n)
        return world, seen(obs)

    def step(key: jax.Array, world: Any, action: Any) -> tuple[Any, Timestep]:
        world, timestep = games.step(key, world, action)
        reward: Any = np.sign(timestep.score) if clip_rewards else timestep.score
        return world, timestep._replace(
            obs=seen(timestep.obs), final_obs=seen(timestep.final_obs), reward=reward
        )

    stack, height, width = games.observation.shape
    observation = jax.ShapeDtypeStruct((height, width, stack), games.observation.dtype)
    return HostEnvironment(reset, step, observation, games.actions)


class _Lives:
    """Atari games of which a lost life is the end of an episode, and no reason to start again.

    ale-py itself either starts the game anew with every life, or gives no `final_obs` for it.
    """

    def __init__(self, games: Any) -> None:
        self._games = games
        self.metadata, self.close = games.metadata, games.close
        self.single_observation_space = games.single_observation_space
        self.single_action_space = games.single_action_space

    def reset(self, *, seed: int) -> tuple[Any, dict[str, Any]]:
        obs, info = self._games.reset(seed=seed)
        self._lives = info["lives"]
        return obs, info

    def step(self, action: Any) -> tuple[Any, ...]:
        obs, reward, terminated, truncated, info = self._games.step(action)
        lost = (info["lives"] < self._lives) & ~(terminated | truncated)
        self._lives = info["lives"]
        final_obs = np.array(info.get("final_obs", obs))
        final_obs[lost] = obs[lost]
        return obs, reward, terminated | lost, truncated, {**info, "final_obs": final_obs}


@functools.partial(jax.jit, static_argnames=("act", "explore"))
def acted(
    act: Act, state: TrainState, obs: jax.Array, carry: PyTree, key: jax.Array, explore: bool
) -> tuple[jax.Array, dict[str, jax.Array], PyTree, jax.Array]:
    """What `act` gives, compiled, and the key of the environments' step."""
    act_key, step_key = jax.random.split(key)
    action, extras, carry = act(state, obs, carry, act_key, explore=explore)
    return action, extras, carry, step_key


def _runs(state: TrainState) -> list[TrainState]:
    """The runs that are stacked in a state, without what is large and no agent acts by."""
    state = state.replace(memory=(), opt_state=())
    if not state.step.ndim:
        return [state]
    return [jax.tree.map(lambda leaf, i=i: leaf[i], state) for i in range(len(state.step))]


def _gymnasium(purpose: str) -> Any:
    try:
        import gymnasium
    except ImportError as error:
        raise MissingExtraError("gymnasium", "rl", purpose) from error
    if not hasattr(gymnasium.vector, "AutoresetMode"):
        raise InputError(
            "gymnasium below 1.1 cannot give the last observation of an episode: "
            "run `pip install 'paradigms[rl]'`"
        )
    return gymnasium
