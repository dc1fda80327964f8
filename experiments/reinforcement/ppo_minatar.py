"""PPO plays MinAtar: 10 million environment steps of one game.

Published after as many steps, greedy, without sticky actions: Breakout 28, Space Invaders 131,
Asterix 15, Freeway 58 (gymnax, one agent each). Ours is the mean over the seeds of the return of
100 whole greedy episodes after the last update, in worlds of their own. Of the three protocols in
use this is gymnax's: minimal actions, none sticky, 1,000 steps to an episode.

  python -m experiments.reinforcement.ppo_minatar --seeds 0 1 2      hours on two CPU cores
  python -m experiments.reinforcement.ppo_minatar --game space_invaders      10 seeds
"""

from dataclasses import dataclass

import nets
from experiments import agents, cli
from nets.net import Net

PUBLISHED = {
    "metric": "test/return",
    "value": 28.0,
    "source": "gymnax, Breakout",
    "variants": {
        "space_invaders": {"value": 131.0, "source": "gymnax"},
        "asterix": {"value": 15.0, "source": "gymnax"},
        "freeway": {"value": 58.0, "source": "gymnax"},
    },
}


@dataclass(frozen=True)
class Config(agents.Ppo):
    """Options of this experiment."""

    steps: int = 1220
    """Updates, of 8,192 environment steps each by default."""
    evaluate_every: int = 61
    game: agents.Game = "breakout"
    num_envs: int = 64
    """Environments side by side."""
    discount: float = 0.99
    learning_rate: float = 1e-3
    """Annealed to 0, update by update."""
    minibatches: int = 8

    def rehearsal(self) -> "Config":
        """A hundred and fifty thousand steps."""
        return self.shortened(steps=150, evaluate_every=75, num_envs=8)


def network(config: Config) -> Net:
    """Observations `[B, 10, 10, C]` to logits `[B, A]` and values `[B]`."""
    net = nets.chain(
        torso=nets.minatar_cnn(), head=nets.actor_critic((), agents.MINATAR_ACTIONS[config.game])
    )
    return nets.with_precision(net, config.precision)


def main(config: Config) -> None:
    """Trains in worlds that are kept in the train state."""
    env = agents.minatar(config.game)
    net = network(config)
    agents.train(main, config, net, agents.ppo(config, net), env)


if __name__ == "__main__":
    cli.run(main, Config)
