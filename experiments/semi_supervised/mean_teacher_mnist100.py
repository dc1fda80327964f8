"""Mean Teacher learns MNIST from 100 labels, by a net to which pixels have no order.

The aim is an error of at most 6 %, by noise on the pixels and in the net alone, judged by the
teacher. As in `pi_model_mnist100` the entropy of the outputs falls with their inconsistency. The
teacher follows closely: one of decay 0.99 confirmed more of what few labels had made of the digits
at first. The twin is a classifier of the same 100 images under the same noise.

  python -m experiments.semi_supervised.mean_teacher_mnist100        5 draws, on a CPU
"""

from dataclasses import dataclass

from experiments import cli, few_labels
from nets.net import Net
from paradigms.core import schedules
from paradigms.semi_supervised import mean_teacher

PUBLISHED = {
    "metric": "test/accuracy",
    "value": 0.94,
    "source": "aim: an error of 6 %",
}


@dataclass(frozen=True)
class Config(few_labels.Mnist):
    """Options of this experiment."""

    steps: int = 4000
    evaluate_every: int = 400
    noise: float = 0.3
    hidden_noise: float = 0.3
    final_norm: bool = True
    decay: float = 0.9
    unlabelled_weight: float = 40.0
    """It rises to this over the first two fifths of the run."""
    entropy_weight: float = 0.025
    """Of the entropy beside the consistency, within that weight."""


def network(config: Config) -> Net:
    """uint8 images `[B, 28, 28, 1]` to logits `[B, 10]`."""
    return few_labels.mnist_mlp(config)


def main(config: Config) -> None:
    """Trains on the official training images, tests on the official test set."""
    learner = mean_teacher(
        network(config),
        few_labels.mnist_optimizer(config),
        weight=schedules.ramp_up(config.unlabelled_weight, config.steps * 2 // 5),
        decay=config.decay,
        entropy_weight=config.entropy_weight,
        augment=few_labels.noisy(config),
    )
    few_labels.train_mnist(main, config, learner, weights=few_labels.teacher_weights)


if __name__ == "__main__":
    cli.run(main, Config)
