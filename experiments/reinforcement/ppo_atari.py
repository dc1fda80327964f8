"""PPO plays Atari: 10 million steps, 40 million frames, of one game.

The recipe of Huang et al. 2022. Published after as many steps: Breakout 414.7, Pong 20.4 and
BeamRider 1916 (CleanRL, three seeds, of the episodes in training). Ours is the interquartile mean
over the seeds of the score of 100 whole greedy games after the last update, in games of their own.
The games run beside JAX: a run that resumes begins them anew.

  python -m experiments.reinforcement.ppo_atari --seeds 0 1 2 3 4     hours each on an accelerator
  python -m experiments.reinforcement.ppo_atari --game pong --seeds 0

Needs `pip install 'paradigms[atari]'`.
"""

from dataclasses import dataclass

import nets
from experiments import agents, cli
from nets.net import Net

PUBLISHED = {
    "metric": "test/return",
    "statistic": "iqm",
    "value": 414.66,
    "source": "CleanRL, Breakout",
    "variants": {
        "pong": {"value": 20.36, "source": "CleanRL"},
        "beam_rider": {"value": 1916.0, "source": "CleanRL"},
    },
}


@dataclass(frozen=True)
class Config(agents.Atari, agents.Ppo):
    """Options of this experiment."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    steps: int = 9760
    """Updates, of 1,024 steps each by default."""
    evaluate_every: int = 976
    num_envs: int = 8
    """Games side by side."""
    clip: float = 0.1

    def rehearsal(self) -> "Config":
        """The beginning of a game in which fleeing upwards saves much."""
        return self.shortened(
            game="journey_escape",
            max_frames=1000,
            episodes=4,
            steps=24,
            evaluate_every=12,
            num_steps=16,
            epochs=2,
            minibatches=1,
            learning_rate=1e-3,
        )


def network(config: Config) -> Net:
    """Observations uint8 `[B, 84, 84, 4]` to logits `[B, A]` and values `[B]`."""
    net = nets.chain(torso=nets.nature_cnn(), head=nets.actor_critic((), config.num_actions))
    return nets.with_precision(net, config.precision)


def main(config: Config) -> None:
    """Trains on games where a lost life ends an episode."""
    net = network(config)
    agents.train_on_host(main, config, net, agents.ppo(config, net))


if __name__ == "__main__":
    cli.run(main, Config)
