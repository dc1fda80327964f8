"""DQN swings a two-link arm up: Acrobot-v1, 500,000 environment steps.

Published after as many steps, as the return while training: -88.9 (CleanRL, three seeds). Ours is
the interquartile mean over ten seeds of the return of 100 whole greedy episodes after the last
update, in worlds of their own. A return is minus the number of steps that it took, at worst -500.

  python -m experiments.reinforcement.dqn_acrobot      10 seeds, minutes on two CPU cores
"""

from dataclasses import dataclass

import nets
from experiments import agents, cli, drawings
from nets.net import Net
from paradigms.reinforcement import from_gymnax

PUBLISHED = {
    "metric": "test/return",
    "statistic": "iqm",
    "value": -88.0,
    "source": "aim; CleanRL -88.9",
}


@dataclass(frozen=True)
class Config(agents.Dqn):
    """Options of this experiment."""

    steps: int = 50_000
    """Updates, of 10 environment steps each by default."""
    evaluate_every: int = 2500
    num_steps: int = 10
    """Steps of each environment in one update."""

    def rehearsal(self) -> "Config":
        """A fifth of the steps, and less patience before learning begins."""
        return self.shortened(
            steps=10_000, evaluate_every=2500, warm_up=1000, learning_rate=1e-3, exploration=0.2
        )


def network(config: Config) -> Net:
    """Observations `[B, 6]` to the values of the actions `[B, 3]`."""
    return nets.with_precision(nets.q_network((120, 84), 3), config.precision)


def main(config: Config) -> None:
    """Trains with the replay memory in the train state."""
    env = from_gymnax("Acrobot-v1")
    net = network(config)
    agents.train(main, config, net, agents.dqn(config, net), env, drawings.acrobot)


if __name__ == "__main__":
    cli.run(main, Config)
