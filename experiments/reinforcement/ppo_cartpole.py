"""PPO balances a pole: CartPole-v1, 500,000 environment steps.

Published after as many steps, as returns while training: 490.0 (CleanRL) and 497.5 (OpenAI
baselines), three seeds each. Ours is the interquartile mean over ten seeds of the return of 100
whole greedy episodes after the last update, in worlds of their own; the highest possible is 500.

  python -m experiments.reinforcement.ppo_cartpole      10 seeds, a minute on two CPU cores
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
    "source": "aim; CleanRL 490.0, OpenAI baselines 497.5",
}


@dataclass(frozen=True)
class Config(agents.Ppo):
    """Options of this experiment."""

    steps: int = 976
    """Updates, of 512 environment steps each by default."""
    evaluate_every: int = 122
    width: int = 64
    """Of both hidden layers, of the policy and of the value."""

    def rehearsal(self) -> "Config":
        """A tenth of the steps."""
        return self.shortened(steps=100, evaluate_every=50)


def network(config: Config) -> Net:
    """Observations `[B, 4]` to logits `[B, 2]` and values `[B]`."""
    net = nets.actor_critic((config.width, config.width), 2)
    return nets.with_precision(net, config.precision)


def main(config: Config) -> None:
    """Trains in worlds that are kept in the train state."""
    env = from_gymnax("CartPole-v1")
    net = network(config)
    agents.train(main, config, net, agents.ppo(config, net), env, drawings.cart_pole)


if __name__ == "__main__":
    cli.run(main, Config)
