"""Pseudo-Label learns MNIST from 100 labels, by a net to which pixels have no order.

Lee 2013 has an error of 16.15 % by one hidden layer of 5,000 units, without the pretraining that
brings 10.49 %. The hidden layers have noise here. The twin is a classifier of the same 100 images
under the same noise.

  python -m experiments.semi_supervised.pseudo_label_mnist100        5 draws, on a CPU
"""

from dataclasses import dataclass

import optax

from experiments import cli, few_labels
from nets.net import Net
from paradigms.semi_supervised import pseudo_label

PUBLISHED = {
    "metric": "test/accuracy",
    "value": 0.838,
    "source": "Lee 2013, without pretraining: 16.15 % error",
}


@dataclass(frozen=True)
class Config(few_labels.Mnist):
    """Options of this experiment."""

    steps: int = 4000
    evaluate_every: int = 400
    hidden_noise: float = 0.5
    final_norm: bool = True
    decay: float = 0.99
    unlabelled_weight: float = 3.0
    """It rises linearly to this between a tenth and six tenths of the run."""


def network(config: Config) -> Net:
    """uint8 images `[B, 28, 28, 1]` to logits `[B, 10]`."""
    return few_labels.mnist_mlp(config)


def main(config: Config) -> None:
    """Trains on the official training images, tests on the official test set."""
    learner = pseudo_label(
        network(config),
        few_labels.mnist_optimizer(config),
        weight=optax.linear_schedule(
            0.0, config.unlabelled_weight, config.steps // 2, config.steps // 10
        ),
        augment=few_labels.noisy(config),
    )
    few_labels.train_mnist(main, config, few_labels.ema(learner, config.decay))


if __name__ == "__main__":
    cli.run(main, Config)
