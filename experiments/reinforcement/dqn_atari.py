"""DQN plays Atari: 10 million steps, 40 million frames, of one game.

The recipe of the RL Baselines3 Zoo, which is that of Mnih et al. 2015 with a tenth of the replay
memory and Adam. Published after as many steps: Breakout 358, Pong 20.6 and BeamRider 4296 (one
agent each). Ours is the interquartile mean over the seeds of the score of 100 whole greedy games
after the last update, in games of their own. The games run beside JAX: a run that resumes begins
them anew. The memory takes 5.6 GB a run, and each checkpoint as much.

  python -m experiments.reinforcement.dqn_atari --seeds 0     most of a day on an accelerator
  python -m experiments.reinforcement.dqn_atari --game pong --seeds 0

Needs `pip install 'paradigms[atari]'`.
"""

from dataclasses import dataclass

import nets
from experiments import agents, cli
from nets.net import Net

PUBLISHED = {
    "metric": "test/return",
    "statistic": "iqm",
    "value": 358.0,
    "source": "RL Baselines3 Zoo, Breakout",
    "variants": {
        "pong": {"value": 20.6, "source": "RL Baselines3 Zoo"},
        "beam_rider": {"value": 4296.0, "source": "RL Baselines3 Zoo"},
    },
}


@dataclass(frozen=True)
class Config(agents.Atari, agents.Dqn):
    """Options of this experiment."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    steps: int = 2_500_000
    """Updates, of 4 steps each by default."""
    evaluate_every: int = 250_000
    num_steps: int = 4
    """Steps of each game in one update."""
    learning_rate: float = 1e-4
    train_every: int = 4
    """Steps to a gradient step."""
    capacity: int = 100_000
    """Transitions in the replay memory."""
    batch_size: int = 32
    warm_up: int = 100_000
    """Steps before the first gradient step."""
    target_every: int = 4000
    """Steps from one copy of the target net to the next."""
    epsilon: float = 0.01
    """Fraction of random actions, at the end."""
    exploration: float = 0.1
    """Fraction of the steps in which it falls from 1."""

    def rehearsal(self) -> "Config":
        """The beginning of a game in which whoever shoots at all hits something."""
        return self.shortened(
            game="space_invaders",
            max_frames=1000,
            episodes=4,
            steps=500,
            evaluate_every=500,
            learning_rate=5e-4,
            discount=0.9,
            capacity=2000,
            batch_size=16,
            warm_up=200,
            target_every=100,
            exploration=0.8,
        )


def network(config: Config) -> Net:
    """Observations uint8 `[B, 84, 84, 4]` to the values of the actions `[B, A]`."""
    net = nets.chain(torso=nets.nature_cnn(), head=nets.q_network((), config.num_actions))
    return nets.with_precision(net, config.precision)


def main(config: Config) -> None:
    """Trains on games where a lost life ends an episode."""
    net = network(config)
    agents.train_on_host(main, config, net, agents.dqn(config, net, loss="huber"))


if __name__ == "__main__":
    cli.run(main, Config)
