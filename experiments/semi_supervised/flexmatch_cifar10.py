"""FlexMatch learns CIFAR-10 from 250 labels, or as many as `--labels` says.

With WRN-28-2 the errors are 5.21 % with 40 labels, 5.00 % with 250 and 4.28 % with 4,000 (USB).

`--size small` is for two CPU cores, and is held to the share of errors that it takes away from its
twin, the same net on the same labels alone.

  python -m experiments.semi_supervised.flexmatch_cifar10        an accelerator, days
  python -m experiments.semi_supervised.flexmatch_cifar10 --size small --steps 3000    a CPU
"""

from dataclasses import dataclass

from experiments import cli, few_labels
from nets.net import Net
from paradigms.semi_supervised import flexmatch

PUBLISHED = {
    "metric": "test/accuracy",
    "value": 0.95,
    "source": "USB's results, WRN-28-2",
    "variants": {
        "4000": {"value": 0.9572, "source": "USB's results, WRN-28-2"},
        "small": {
            "metric": "gain/errors",
            "value": 0.25,
            "source": "aim: a quarter of its twin's errors",
        },
    },
}


@dataclass(frozen=True)
class Config(few_labels.Cifar):
    """Options of this experiment."""

    threshold: float = 0.95
    unlabelled_weight: float = 1.0


def network(config: Config) -> Net:
    """uint8 images `[B, 32, 32, 3]` to logits `[B, 10]`."""
    return few_labels.cifar_net(config)


def main(config: Config) -> None:
    """Trains on the official training images, tests on the official test set."""
    splits = few_labels.cifar(config)
    learner = flexmatch(
        network(config),
        few_labels.cifar_optimizer(config),
        few_labels.weak(),
        few_labels.strong(),
        examples=len(splits.train["label"]),
        threshold=config.threshold,
        weight=config.unlabelled_weight,
    )
    few_labels.train_cifar(main, config, few_labels.ema(learner, config.decay), splits)


if __name__ == "__main__":
    cli.run(main, Config)
