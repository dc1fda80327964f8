"""DQN balances a pole: CartPole-v1, 500,000 environment steps.

Published after as many steps, as the return while training: 498.4 (CleanRL, three seeds). Ours is
the interquartile mean over ten seeds of the return of 100 whole greedy episodes after the last
update, in worlds of their own; the highest possible is 500.

  python -m experiments.reinforcement.dqn_cartpole      10 seeds, minutes on two CPU cores
"""

from dataclasses import dataclass, replace

import optax

import nets
from experiments import cli, training
from nets.net import Net
from paradigms.core import optimizers
from paradigms.core.errors import InputError
from paradigms.reinforcement import dqn, from_gymnax, interact, uniform_replay

PUBLISHED = {
    "metric": "test/return",
    "statistic": "iqm",
    "value": 495.0,
    "source": "aim; CleanRL 498.4",
}


@dataclass(frozen=True)
class Config(cli.Options):
    """Options of this experiment."""

    seeds: tuple[int, ...] = tuple(range(10))
    steps: int = 50_000
    """Updates, of `train_every` environment steps each."""
    evaluate_every: int = 2500
    num_envs: int = 1
    train_every: int = 10
    """Environment steps to a gradient step; a multiple of the number of environments."""
    learning_rate: float = 2.5e-4
    discount: float = 0.99
    capacity: int = 10_000
    """Transitions in the replay memory."""
    batch_size: int = 128
    warm_up: int = 10_000
    """Environment steps before the first gradient step."""
    target_every: int = 500
    """Environment steps from one copy of the target net to the next."""
    epsilon: float = 0.05
    """Fraction of random actions, at the end."""
    exploration: float = 0.5
    """Fraction of the environment steps in which it falls from 1."""
    double: bool = False

    def rehearsal(self) -> "Config":
        """A twentieth of the steps, and less patience before learning begins."""
        return replace(
            self,
            seeds=self.seeds[:1],
            steps=2500,
            evaluate_every=1250,
            warm_up=1000,
            learning_rate=1e-3,
        )


def network(config: Config) -> Net:
    """Observations `[B, 4]` to the values of both actions `[B, 2]`."""
    return nets.with_precision(nets.q_network((120, 84), 2), config.precision)


def main(config: Config) -> None:
    """Trains with the replay memory in the train state."""
    num_steps, rest = divmod(config.train_every, config.num_envs)
    if rest or not num_steps:
        raise InputError(
            f"--train-every {config.train_every} --num-envs {config.num_envs}: expected a multiple "
            "of the number of environments"
        )
    env = from_gymnax("CartPole-v1")
    net = network(config)
    falling = int(config.exploration * config.steps * config.train_every)
    agent = dqn(
        net,
        optimizers.adam(config.learning_rate),
        uniform_replay(config.capacity),
        epsilon=optax.linear_schedule(1.0, config.epsilon, falling),
        discount=config.discount,
        batch_size=config.batch_size,
        warm_up=config.warm_up,
        train_every=config.train_every,
        target_every=config.target_every,
        double=config.double,
    )
    learner = interact(agent, env, num_envs=config.num_envs, num_steps=num_steps)
    task = training.living(net, learner, env.observation, config.train_every)
    training.train(main, config, task)


if __name__ == "__main__":
    cli.run(main, Config)
