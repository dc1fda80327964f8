"""The features of CIFAR-10 that labels make, judged as those of `simclr_cifar10` and its kin.

The same net and views, trained as a classifier. There is no published number for this protocol; the
aim is what the features are there for, to be above those that are learnt without labels.

  python -m experiments.self_supervised.supervised_cifar10        an accelerator, hours
  python -m experiments.self_supervised.supervised_cifar10 --size small --steps 1053    a CPU
"""

from dataclasses import dataclass

import nets
from experiments import cli, joint_embedding
from nets.net import Net
from paradigms.supervised import classifier

PUBLISHED = {
    "metric": "test/knn",
    "value": 0.869,
    "source": "BYOL in lightly's table, which it must exceed",
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


def network(config: Config) -> Net:
    """uint8 images `[B, 32, 32, 3]` to representations."""
    return joint_embedding.cifar_backbone(config)


def main(config: Config) -> None:
    """Trains on 45,000 of the official training images, tests on the official test set."""
    learner = classifier(
        nets.chain(backbone=network(config), head=nets.mlp((), 10)),
        joint_embedding.sgd(config),
        augment=joint_embedding.cifar_views(config),
    )
    joint_embedding.train_cifar(main, config, learner, network(config), sees=("image", "label"))


if __name__ == "__main__":
    cli.run(main, Config)
