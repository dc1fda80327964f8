"""SAC swings a pendulum up and holds it: Pendulum-v1, 20,000 environment steps.

Published for as many steps: -157.0 (RL Baselines3 Zoo, one agent), with a deviation of about 100
from one episode to the next. Ours is the interquartile mean over ten seeds of the return of 100
whole greedy episodes after the last update, in worlds of their own. A return is minus a cost, about
-1200 at first.

  python -m experiments.reinforcement.sac_pendulum      10 seeds, half an hour on two CPU cores
"""

from dataclasses import dataclass

import nets
from experiments import agents, cli, drawings
from nets.net import Net
from paradigms.core import optimizers
from paradigms.reinforcement import from_gymnax, sac

PUBLISHED = {
    "metric": "test/return",
    "statistic": "iqm",
    "value": -160.0,
    "source": "aim; RL Baselines3 Zoo -157.0",
}


@dataclass(frozen=True)
class Config(agents.ActorCritic):
    """Options of this experiment."""

    width: int = 256
    """Of both hidden layers, of the actor and of the critics."""


def network(config: Config) -> Net:
    """Observations `[B, 3]` to mean and log deviation, each `[B, 1]`, below the tanh."""
    return nets.with_precision(
        nets.squashed_gaussian((config.width, config.width), 1), config.precision
    )


def main(config: Config) -> None:
    """Trains with the replay memory in the train state."""
    env = from_gymnax("Pendulum-v1")
    actor = network(config)
    critic = nets.with_precision(nets.critic((config.width, config.width)), config.precision)
    agent = agents.actor_critic(
        sac, config, actor, critic, env, temperature_optimizer=optimizers.adam(config.learning_rate)
    )
    agents.train(main, config, actor, agent, env, drawings.pendulum, weights=agents.actor_weights)


if __name__ == "__main__":
    cli.run(main, Config)
