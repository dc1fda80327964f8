"""DQN balances a pole: CartPole-v1, 500,000 environment steps.

Published after as many steps, as the return while training: 498.4 (CleanRL, three seeds). Ours is
the interquartile mean over ten seeds of the return of 100 whole greedy episodes after the last
update, in worlds of their own; the highest possible is 500.

  python -m experiments.reinforcement.dqn_cartpole      10 seeds, minutes on two CPU cores
"""

from dataclasses import dataclass

import nets
from experiments import agents, cli, drawings
from nets.net import Net
from paradigms.reinforcement import from_gymnax

PUBLISHED = {
    "metric": "test/return",
    "statistic": "iqm",
    "value": 495.0,
    "source": "aim; CleanRL 498.4",
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
        """A twentieth of the steps, and less patience before learning begins."""
        return self.shortened(steps=2500, evaluate_every=1250, warm_up=1000, learning_rate=1e-3)


def network(config: Config) -> Net:
    """Observations `[B, 4]` to the values of both actions `[B, 2]`."""
    return nets.with_precision(nets.q_network((120, 84), 2), config.precision)


def main(config: Config) -> None:
    """Trains with the replay memory in the train state."""
    env = from_gymnax("CartPole-v1")
    net = network(config)
    agents.train(main, config, net, agents.dqn(config, net), env, drawings.cart_pole)


if __name__ == "__main__":
    cli.run(main, Config)
