"""DQN plays MinAtar: one million frames of one game.

The network, memory and schedule of Young & Tian 2019 (arXiv:1903.03176), with Adam and a gradient
step every fourth frame. Published after five million frames, with sticky actions, while training:
Breakout 10. `rainbow_minatar` has the same budget. Ours is the mean over the seeds of the return of
100 whole greedy episodes after the last update, in worlds of their own, by gymnax's protocol:
minimal actions, none sticky, 1,000 steps to an episode.

  python -m experiments.reinforcement.dqn_minatar --seeds 0 1 2      16 minutes on two CPU cores
"""

from dataclasses import dataclass
from typing import Self

import nets
from experiments import agents, cli
from nets.net import Net

PUBLISHED = {
    "metric": "test/return",
    "value": 10.0,
    "source": "Young & Tian 2019, Breakout, 5M frames",
}


@dataclass(frozen=True)
class Config(agents.Dqn):
    """Options of this experiment."""

    steps: int = 250_000
    """Updates, of 4 frames each by default."""
    evaluate_every: int = 12_500
    game: agents.Game = "breakout"
    num_steps: int = 4
    """Steps of each environment in one update."""
    train_every: int = 4
    """Frames to a gradient step."""
    learning_rate: float = 2.5e-4
    capacity: int = 100_000
    """Transitions in the replay memory."""
    batch_size: int = 32
    warm_up: int = 5000
    """Frames before the first gradient step."""
    target_every: int = 4000
    """Frames from one copy of the target net to the next."""
    epsilon: float = 0.05
    """Fraction of random actions, at the end."""
    exploration: float = 0.1
    """Fraction of the frames in which it falls from 1."""

    def rehearsal(self) -> Self:
        """Forty thousand frames, and larger steps."""
        return self.shortened(
            steps=10_000, evaluate_every=5000, capacity=20_000, warm_up=1000, learning_rate=1e-3
        )


def network(config: Config) -> Net:
    """Observations `[B, 10, 10, C]` to the values of the actions `[B, A]`."""
    net = nets.chain(
        torso=nets.minatar_cnn(), head=nets.q_network((), agents.MINATAR_ACTIONS[config.game])
    )
    return nets.with_precision(net, config.precision)


def main(config: Config) -> None:
    """Trains with the replay memory in the train state."""
    net = network(config)
    agent = agents.dqn(config, net, loss="huber")
    agents.train(main, config, net, agent, agents.minatar(config.game))


if __name__ == "__main__":
    cli.run(main, Config)
