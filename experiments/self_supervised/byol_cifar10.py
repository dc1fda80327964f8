"""BYOL learns CIFAR-10 without a label.

lightly's table has 86.9 % after 200 epochs in batches of 128. A ResNet-18 with a 3x3 stem, views
without blur, 200 epochs; the accuracy of 200 weighted neighbours (temperature 0.1) at the last
update, where the published one is of the best epoch on the test images. `--size small` is for two
CPU cores, and is held to what it gains over its own features before training.

  python -m experiments.self_supervised.byol_cifar10        an accelerator, hours
  python -m experiments.self_supervised.byol_cifar10 --size small --steps 1053    a CPU, 3 epochs
"""

from dataclasses import dataclass, replace
from typing import Self

import nets
from experiments import cli, joint_embedding
from nets.net import Net
from paradigms.self_supervised import byol

PUBLISHED = {
    "metric": "test/knn",
    "value": 0.869,
    "source": "lightly, 200 epochs, best epoch",
    "variants": {
        "small": {
            "metric": "test/knn_gain",
            "value": 0.1,
            "source": "aim: 10 points above the same net before training",
        }
    },
}


@dataclass(frozen=True)
class Config(joint_embedding.Cifar):
    """Options of this experiment."""

    decay: float = 0.99
    """Of the teacher at first; it rises to 1."""

    def rehearsal(self) -> Self:
        """Longer than the others: it learns from its own beginnings, which are poor."""
        return replace(super().rehearsal(), steps=400, evaluate_every=200)


def network(config: Config) -> Net:
    """uint8 images `[B, 32, 32, 3]` to representations."""
    return joint_embedding.cifar_backbone(config)


def main(config: Config) -> None:
    """Trains on 45,000 of the official training images, tests on the official test set."""
    learner = byol(
        network(config),
        nets.projector((1024,), 256),
        nets.projector((1024,), 256),
        joint_embedding.sgd(config),
        joint_embedding.cifar_views(config),
        steps=config.steps,
        decay=config.decay,
    )
    joint_embedding.train_cifar(main, config, learner, network(config))


if __name__ == "__main__":
    cli.run(main, Config)
