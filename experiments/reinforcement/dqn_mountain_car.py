"""DQN drives a weak car up a mountain: MountainCar-v0, 120,000 environment steps.

Nothing is paid before the top is reached, so that it takes luck to begin and a long memory of it.
Published for this recipe: -100.8 (RL Baselines3 Zoo, one agent). Ours is the interquartile mean
over ten seeds of the return of 100 whole greedy episodes after the last update, in worlds of their
own. A return is minus the number of steps that it took, at worst -200.

  python -m experiments.reinforcement.dqn_mountain_car      10 seeds, minutes on two CPU cores
"""

from dataclasses import dataclass

import nets
from experiments import agents, cli, drawings
from nets.net import Net
from paradigms.reinforcement import from_gymnax

PUBLISHED = {
    "metric": "test/return",
    "statistic": "iqm",
    "value": -115.0,
    "source": "aim; RL Baselines3 Zoo -100.8",
}


@dataclass(frozen=True)
class Config(agents.Dqn):
    """Options of this experiment."""

    steps: int = 7500
    """Updates, of 16 environment steps and 8 gradient steps each by default."""
    evaluate_every: int = 500
    num_steps: int = 16
    """Steps of each environment in one update."""
    discount: float = 0.98
    learning_rate: float = 4e-3
    train_every: int = 2
    """Environment steps to a gradient step."""
    warm_up: int = 1000
    """Environment steps before the first gradient step."""
    target_every: int = 600
    """Environment steps from one copy of the target net to the next."""
    epsilon: float = 0.07
    """Fraction of random actions, at the end."""
    exploration: float = 0.2
    """Fraction of the environment steps in which it falls from 1."""
    width: int = 256
    """Of both hidden layers."""

    def rehearsal(self) -> "Config":
        """Most of the steps, without which the top is not found, with a smaller net."""
        return self.shortened(steps=6000, evaluate_every=1500, width=128)


def network(config: Config) -> Net:
    """Observations `[B, 2]` to the values of the actions `[B, 3]`."""
    return nets.with_precision(nets.q_network((config.width, config.width), 3), config.precision)


def main(config: Config) -> None:
    """Trains with the replay memory in the train state."""
    env = from_gymnax("MountainCar-v0")
    net = network(config)
    agents.train(
        main, config, net, agents.dqn(config, net, loss="huber"), env, drawings.mountain_car
    )


if __name__ == "__main__":
    cli.run(main, Config)
