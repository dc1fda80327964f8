"""ResNet-20 on CIFAR-10 (He et al. 2016, arXiv:1512.03385, section 4.2).

Published: 91.25 % test accuracy after 64,000 updates of 128 images (rate 0.1, divided by 10 at
32,000 and 48,000; crops from 4 pixels of zero padding, flips; decay 1e-4; 45,000 images to train
on). On two CPU cores an epoch takes minutes, so the full length wants an accelerator; a shorter run
keeps the schedule's shape.

  python -m experiments.supervised.cifar10_resnet20                         full length
  python -m experiments.supervised.cifar10_resnet20 --steps 1760 --seeds 0  5 epochs, a CPU curve
"""

import functools
from dataclasses import dataclass, replace

import nets
from experiments import cli, images, tasks, training
from nets.net import Net
from paradigms.core import optimizers, schedules
from paradigms.data import augment
from paradigms.supervised import classifier, derive_classification

PUBLISHED = {"metric": "test/accuracy", "value": 0.9125, "source": "He et al. 2016, table 6"}


@dataclass(frozen=True)
class Config(cli.Options):
    """Options of this experiment."""

    steps: int = 64000
    evaluate_every: int = 352
    batch_size: int = 128
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    validation: int = 5000
    """Training examples that are held out to draw the curves."""

    def rehearsal(self) -> "Config":
        """A few small batches."""
        return replace(self, seeds=self.seeds[:1], steps=40, evaluate_every=20, batch_size=32)


def network(config: Config) -> Net:
    """uint8 images `[B, 32, 32, 3]` to logits `[B, 10]`."""
    net = nets.preprocess(nets.resnet_cifar(20), augment.normalise(*augment.CIFAR10))
    return nets.with_precision(net, config.precision)


def main(config: Config) -> None:
    """Trains on 45,000 of the official training images and tests on the official test set."""
    splits = images.load_splits(config, "cifar10", (32, 32, 3), config.validation)
    schedule = schedules.step_decay(
        config.learning_rate, (config.steps // 2, config.steps * 3 // 4)
    )
    net = network(config)
    task = tasks.labelled(
        net,
        classifier(
            net,
            optimizers.sgd(schedule, config.momentum, weight_decay=config.weight_decay),
            augment=augment.compose(augment.pad_crop(4, "constant"), augment.flip()),
        ),
        train=splits.train,
        batch_size=config.batch_size,
        validation=splits.validation,
        test=splits.test,
        derive=derive_classification,
        pictures=functools.partial(images.confusion_picture, images.CIFAR10_CLASSES),
    )
    training.train(main, config, task)


if __name__ == "__main__":
    cli.run(main, Config)
