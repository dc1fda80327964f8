"""PPO balances a pole: CartPole-v1, 500,000 environment steps.

Published after as many steps, as returns while training: 490.0 (CleanRL) and 497.5 (OpenAI
baselines), three seeds each. Ours is the interquartile mean over ten seeds of the return of 100
whole greedy episodes after the last update, in worlds of their own; the highest possible is 500.

  python -m experiments.reinforcement.ppo_cartpole      10 seeds, a minute on two CPU cores
"""

from dataclasses import dataclass, replace

import nets
from experiments import cli, training
from nets.net import Net
from paradigms.core import optimizers
from paradigms.reinforcement import from_gymnax, interact, ppo

PUBLISHED = {
    "metric": "test/return",
    "statistic": "iqm",
    "value": 495.0,
    "source": "aim; CleanRL 490.0, OpenAI baselines 497.5",
}


@dataclass(frozen=True)
class Config(cli.Options):
    """Options of this experiment."""

    seeds: tuple[int, ...] = tuple(range(10))
    steps: int = 976
    """Updates, of 512 environment steps each by default."""
    evaluate_every: int = 61
    num_envs: int = 4
    num_steps: int = 128
    """Steps of each environment between two updates."""
    learning_rate: float = 2.5e-4
    """Annealed to 0, update by update."""
    discount: float = 0.99
    trace: float = 0.95
    clip: float = 0.2
    entropy_weight: float = 0.01
    epochs: int = 4
    minibatches: int = 4
    width: int = 64
    """Of both hidden layers, of the policy and of the value."""

    def rehearsal(self) -> "Config":
        """A tenth of the steps."""
        return replace(self, seeds=self.seeds[:1], steps=100, evaluate_every=50)


def network(config: Config) -> Net:
    """Observations `[B, 4]` to logits `[B, 2]` and values `[B]`."""
    net = nets.actor_critic((config.width, config.width), 2)
    return nets.with_precision(net, config.precision)


def main(config: Config) -> None:
    """Trains in worlds that are kept in the train state."""
    env = from_gymnax("CartPole-v1")
    net = network(config)
    annealed = optimizers.held(
        optimizers.warmup_linear(config.learning_rate, config.steps),
        config.epochs * config.minibatches,
    )
    agent = ppo(
        net,
        optimizers.adam(annealed, eps=1e-5, max_norm=0.5),
        discount=config.discount,
        trace=config.trace,
        clip=config.clip,
        entropy_weight=config.entropy_weight,
        epochs=config.epochs,
        minibatches=config.minibatches,
    )
    learner = interact(agent, env, num_envs=config.num_envs, num_steps=config.num_steps)
    steps = config.num_envs * config.num_steps
    training.train(main, config, training.living(net, learner, env.observation, steps))


if __name__ == "__main__":
    cli.run(main, Config)
