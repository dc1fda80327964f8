"""What the experiments of reinforcement learning share: options, and the agents made from them."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import cli, tasks, training
from nets.net import Net
from paradigms import reinforcement
from paradigms.core import optimizers, schedules
from paradigms.core.learner import Metrics
from paradigms.core.metrics import Means
from paradigms.core.state import PyTree, TrainState, fold_name
from paradigms.reinforcement import (
    Agent,
    Box,
    Discrete,
    Environment,
    HostEnvironment,
    cast_observations,
    check_environment,
    draw_rollout,
    from_atari,
    from_gymnax,
    hosted,
    interact,
    judgement,
    play_on_host,
    record,
    uniform_replay,
)

Game = Literal["asterix", "breakout", "freeway", "seaquest", "space_invaders"]
"""MinAtar (Young & Tian 2019), as gymnax has it: only the actions that a game uses, none of them
sticky, and at most 1,000 steps to an episode (Freeway: 2,500)."""

MINATAR_ACTIONS = {"asterix": 5, "breakout": 3, "freeway": 3, "seaquest": 6, "space_invaders": 4}


def minatar(game: Game) -> Environment:
    """Observations bool `[10, 10, C]`, one channel for each kind of thing."""
    name = "".join(word.capitalize() for word in game.split("_"))
    return cast_observations(from_gymnax(f"{name}-MinAtar"), bool)


@dataclass(frozen=True)
class Options(cli.Options):
    """Options of every agent; counts of steps that no other unit is given are updates."""

    seeds: tuple[int, ...] = tuple(range(10))
    num_envs: int = 1
    """Environments side by side."""
    num_steps: int = 1
    """Steps of each environment in one update."""
    discount: float = 0.99
    learning_rate: float = 2.5e-4

    @property
    def steps_per_update(self) -> int:
        """Environment steps of one update."""
        return self.num_envs * self.num_steps

    def shortened(self, **values: Any) -> Self:
        """The first seed and some other values, for a rehearsal."""
        return replace(self, seeds=self.seeds[:1], **values)


@dataclass(frozen=True)
class Ppo(Options):
    """The recipe of Huang et al. 2022 for classic control."""

    num_envs: int = 4
    num_steps: int = 128
    """Steps of each environment in one update."""
    learning_rate: float = 2.5e-4
    """Annealed to 0, update by update."""
    trace: float = 0.95
    """Lambda of the advantages."""
    clip: float = 0.2
    entropy_weight: float = 0.01
    epochs: int = 4
    minibatches: int = 4


def ppo(config: Ppo, net: Net) -> Agent:
    """PPO by these options."""
    annealed = schedules.held(
        schedules.warmup_linear(config.learning_rate, config.steps),
        config.epochs * config.minibatches,
    )
    return reinforcement.ppo(
        net,
        optimizers.adam(annealed, eps=1e-5, max_norm=0.5),
        discount=config.discount,
        trace=config.trace,
        clip=config.clip,
        entropy_weight=config.entropy_weight,
        epochs=config.epochs,
        minibatches=config.minibatches,
    )


@dataclass(frozen=True)
class Dqn(Options):
    """Deep Q-learning, every interval in environment steps."""

    train_every: int = 10
    """Environment steps to a gradient step."""
    capacity: int = 10_000
    """Transitions in the replay memory."""
    batch_size: int = 128
    warm_up: int = 10_000
    """Environment steps before the first gradient step."""
    target_every: int = 500
    """Environment steps from one copy of the target net to the next."""
    epsilon: float = 0.05
    """Fraction of random actions, at the end."""
    exploration: float = 0.5
    """Fraction of the environment steps in which it falls from 1."""
    double: bool = False


def dqn(config: Dqn, net: Net, **options: Any) -> Agent:
    """DQN by these options; `options` go to `reinforcement.dqn` over them."""
    falling = int(config.exploration * config.steps * config.steps_per_update)
    defaults: dict[str, Any] = {
        "optimizer": optimizers.adam(config.learning_rate),
        "replay": uniform_replay(config.capacity),
        "epsilon": optax.linear_schedule(1.0, config.epsilon, falling),
        "discount": config.discount,
        "batch_size": config.batch_size,
        "warm_up": config.warm_up,
        "train_every": config.train_every,
        "target_every": config.target_every,
        "double": config.double,
    }
    return reinforcement.dqn(net, **{**defaults, **options})


@dataclass(frozen=True)
class ActorCritic(Options):
    """DDPG, TD3 and SAC for a short budget: a gradient step after every environment step."""

    steps: int = 20_000
    evaluate_every: int = 1000
    learning_rate: float = 1e-3
    """Of actor and critics."""
    discount: float = 0.98
    capacity: int = 20_000
    """Transitions in the replay memory."""
    batch_size: int = 256
    warm_up: int = 1000
    """Environment steps with random actions, before the first gradient step."""
    train_every: int = 1
    """Environment steps to a gradient step."""
    decay: float = 0.995
    """Of the moving averages that the target nets are."""

    def rehearsal(self) -> Self:
        """A quarter of the steps, with smaller batches."""
        return self.shortened(steps=4000, evaluate_every=2000, warm_up=500, batch_size=64)


def actor_critic(
    algorithm: Callable[..., Agent],
    config: ActorCritic,
    actor: Net,
    critic: Net,
    env: Environment,
    **options: Any,
) -> Agent:
    """`reinforcement.ddpg`, `td3` or `sac` by these options."""
    assert isinstance(env.actions, Box)
    return algorithm(
        actor,
        critic,
        optimizers.adam(config.learning_rate),
        optimizers.adam(config.learning_rate),
        uniform_replay(config.capacity),
        actions=env.actions,
        discount=config.discount,
        decay=config.decay,
        batch_size=config.batch_size,
        warm_up=config.warm_up,
        train_every=config.train_every,
        **options,
    )


@dataclass(frozen=True)
class Atari(Options):
    """The protocol of Mnih et al. 2015: up to 30 idle frames first, and games of half an hour."""

    game: str = "breakout"
    """As ale-py calls it."""
    sticky: float = 0.0
    """How often an action is not heard (Machado et al. 2018: 0.25)."""
    max_frames: int = 108_000
    """When a game is cut short, four frames to a step."""
    episodes: int = 100
    """Of an evaluation."""

    @property
    def num_actions(self) -> int:
        """Those that the game uses."""
        actions = from_atari(self.game).actions
        assert isinstance(actions, Discrete)
        return actions.n


def actor_weights(state: TrainState) -> dict[str, PyTree]:
    """What `experiments.load` gives back of an actor with critics: the actor."""
    return {"params": state.params["actor"], "model_state": state.model_state["actor"]}


def train(
    main: Callable[..., Any],
    config: Options,
    net: Net,
    agent: Agent,
    env: Environment,
    draw: Callable[[np.ndarray], np.ndarray] | None = None,
    **options: Any,
) -> None:
    """Trains in worlds that are kept in the train state, and draws an episode of the first run.

    Args:
      main: the experiment's.
      config: its options.
      net: what the experiment's `network` made.
      agent: made with it.
      env: where it lives.
      draw: a picture of one observation, where that is not an image.
      **options: fields of `tasks.Task`.
    """
    check_environment(env, bounded=isinstance(agent.actions, Box))
    learner = interact(agent, env, num_envs=config.num_envs, num_steps=config.num_steps)

    def frozen(state: TrainState) -> Environment:
        return env if env.frozen is None else env.frozen(state.world["env"])

    task = tasks.living(
        net,
        learner,
        env.observation,
        config.steps_per_update,
        pictures=_pictures(agent, frozen, draw),
        **options,
    )
    training.train(main, config, task)


def train_on_host(main: Callable[..., Any], config: Atari, net: Net, agent: Agent) -> None:
    """Trains on a game that runs beside JAX; the arguments are those of `train`."""
    game = functools.partial(
        from_atari, config.game, sticky=config.sticky, max_frames=config.max_frames
    )
    env, held_out = game(life_is_episode=True), game()
    host = hosted(agent, env, num_envs=config.num_envs, num_steps=config.num_steps)

    def judge(state: TrainState, key: jax.Array) -> Metrics:
        played = play_on_host(agent, held_out, state, key, config.episodes, config.max_frames // 4)
        return jax.vmap(judgement)(*map(jnp.asarray, played))

    task = tasks.living(
        net,
        host.learner,
        env.observation,
        config.steps_per_update,
        judge,
        source=host.source,
        pictures=_pictures(agent, lambda state: held_out),
    )
    training.train(main, config, task)


def _pictures(
    agent: Agent,
    env_of: Callable[[TrainState], Environment | HostEnvironment],
    draw: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Callable[[Path, Means, TrainState], None]:
    """Draws a whole episode of the first run."""

    def picture(directory: Path, test: Means, state: TrainState) -> None:
        del test
        episode = record(agent, env_of(state), state, fold_name(jax.random.key(0), "picture"))
        draw_rollout(episode, directory / "episode", draw)

    return picture
