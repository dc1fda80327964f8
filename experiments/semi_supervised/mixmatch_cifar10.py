"""MixMatch learns CIFAR-10 from 250 labels, or as many as `--labels` says.

With WRN-28-2 the errors are 11.05 % with 250 labels and 6.42 % with 4,000 (Sohn et al. 2020,
table 2).

`--size small` is for two CPU cores, and is held to the share of errors that it takes away from its
twin, the same net on the same labels alone.

  python -m experiments.semi_supervised.mixmatch_cifar10        an accelerator, days
  python -m experiments.semi_supervised.mixmatch_cifar10 --size small --steps 3000    a CPU
"""

from dataclasses import dataclass, replace

import optax

from experiments import cli, few_labels
from nets.net import Net
from paradigms.semi_supervised import mixmatch

PUBLISHED = {
    "metric": "test/accuracy",
    "value": 0.8895,
    "source": "Sohn et al. 2020, table 2, WRN-28-2",
    "variants": {
        "4000": {"value": 0.9358, "source": "Sohn et al. 2020, table 2, WRN-28-2"},
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

    ratio: int = 1
    temperature: float = 0.5
    alpha: float = 0.75
    unlabelled_weight: float = 75.0
    """It rises linearly to this over the first two fifths of the run."""

    def rehearsal(self) -> "Config":
        """As the others; so few updates bear no such weight."""
        return replace(super().rehearsal(), unlabelled_weight=1.0)


def network(config: Config) -> Net:
    """uint8 images `[B, 32, 32, 3]` to logits `[B, 10]`."""
    return few_labels.cifar_net(config)


def main(config: Config) -> None:
    """Trains on the official training images, tests on the official test set."""
    learner = mixmatch(
        network(config),
        few_labels.cifar_optimizer(config),
        few_labels.weak(),
        temperature=config.temperature,
        alpha=config.alpha,
        weight=optax.linear_schedule(0.0, config.unlabelled_weight, config.steps * 2 // 5),
    )
    few_labels.train_cifar(main, config, few_labels.ema(learner, config.decay))


if __name__ == "__main__":
    cli.run(main, Config)
