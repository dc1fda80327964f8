"""PPO swings a two-link arm up: Acrobot-v1, 500,000 environment steps.

Published after as many steps, as returns while training: -86.4 (CleanRL) and -81.8 (OpenAI
baselines), three seeds each. Ours is the interquartile mean over ten seeds of the return of 100
whole greedy episodes after the last update, in worlds of their own. A return is minus the number of
steps that it took, at worst -500.

  python -m experiments.reinforcement.ppo_acrobot      10 seeds, minutes on two CPU cores
"""

from dataclasses import dataclass

import nets
from experiments import agents, cli, drawings
from nets.net import Net
from paradigms.reinforcement import from_gymnax

PUBLISHED = {
    "metric": "test/return",
    "statistic": "iqm",
    "value": -84.0,
    "source": "aim; CleanRL -86.4, OpenAI baselines -81.8",
}


@dataclass(frozen=True)
class Config(agents.Ppo):
    """Options of this experiment."""

    steps: int = 976
    """Updates, of 512 environment steps each by default."""
    evaluate_every: int = 61
    learning_rate: float = 1e-3
    """Annealed to 0, update by update; four times that of the recipe, which gives -84.2."""
    width: int = 64
    """Of both hidden layers, of the policy and of the value."""

    def rehearsal(self) -> "Config":
        """A fifth of the updates."""
        return self.shortened(steps=200, evaluate_every=100)


def network(config: Config) -> Net:
    """Observations `[B, 6]` to logits `[B, 3]` and values `[B]`."""
    net = nets.actor_critic((config.width, config.width), 3)
    return nets.with_precision(net, config.precision)


def main(config: Config) -> None:
    """Trains in worlds that are kept in the train state."""
    env = from_gymnax("Acrobot-v1")
    net = network(config)
    agents.train(main, config, net, agents.ppo(config, net), env, drawings.acrobot)


if __name__ == "__main__":
    cli.run(main, Config)
