"""DDPG swings a pendulum up and holds it: Pendulum-v1, 20,000 environment steps.

Published for as many steps: -152.1 (RL Baselines3 Zoo, one agent), with a deviation of about 100
from one episode to the next. Ours is the interquartile mean over ten seeds of the return of 100
whole greedy episodes after the last update, in worlds of their own. A return is minus a cost, about
-1200 at first.

  python -m experiments.reinforcement.ddpg_pendulum      10 seeds, half an hour on two CPU cores
"""

from dataclasses import dataclass

import nets
from experiments import agents, cli, drawings
from nets.net import Net
from paradigms.reinforcement import ddpg, from_gymnax

PUBLISHED = {
    "metric": "test/return",
    "statistic": "iqm",
    "value": -160.0,
    "source": "aim; RL Baselines3 Zoo -152.1",
}


@dataclass(frozen=True)
class Config(agents.ActorCritic):
    """Options of this experiment."""

    exploration: float = 0.1
    """Standard deviation of the noise on actions, in halves of their range."""
    width: int = 256
    """Of both hidden layers, of the actor and of the critics."""


def network(config: Config) -> Net:
    """Observations `[B, 3]` to actions `[B, 1]` in [-1, 1]."""
    return nets.with_precision(
        nets.deterministic_actor((config.width, config.width), 1), config.precision
    )


def main(config: Config) -> None:
    """Trains with the replay memory in the train state."""
    env = from_gymnax("Pendulum-v1")
    actor = network(config)
    critic = nets.with_precision(nets.critic((config.width, config.width)), config.precision)
    agent = agents.actor_critic(ddpg, config, actor, critic, env, exploration=config.exploration)
    agents.train(main, config, actor, agent, env, drawings.pendulum, weights=agents.actor_weights)


if __name__ == "__main__":
    cli.run(main, Config)
