"""Mean Teacher learns CIFAR-10 from 250 labels, or as many as `--labels` says.

With WRN-28-2 the errors are 32.32 % with 250 labels and 9.19 % with 4,000 (Sohn et al. 2020,
table 2); ours is that of the teacher.

`--size small` is for two CPU cores, and is held to the share of errors that it takes away from its
twin, the same net on the same labels alone.

  python -m experiments.semi_supervised.mean_teacher_cifar10        an accelerator, days
  python -m experiments.semi_supervised.mean_teacher_cifar10 --size small --steps 3000    a CPU
"""

from dataclasses import dataclass

from experiments import cli, few_labels
from nets.net import Net
from paradigms.core import schedules
from paradigms.semi_supervised import mean_teacher

PUBLISHED = {
    "metric": "test/accuracy",
    "value": 0.6768,
    "source": "Sohn et al. 2020, table 2, WRN-28-2",
    "variants": {
        "4000": {"value": 0.9081, "source": "Sohn et al. 2020, table 2, WRN-28-2"},
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

    unlabelled_weight: float = 50.0
    """It rises to this over the first two fifths of the run."""


def network(config: Config) -> Net:
    """uint8 images `[B, 32, 32, 3]` to logits `[B, 10]`."""
    return few_labels.cifar_net(config)


def main(config: Config) -> None:
    """Trains on the official training images, tests on the official test set."""
    learner = mean_teacher(
        network(config),
        few_labels.cifar_optimizer(config),
        weight=schedules.ramp_up(config.unlabelled_weight, config.steps * 2 // 5),
        decay=config.decay,
        augment=few_labels.weak(),
    )
    few_labels.train_cifar(main, config, learner, weights=few_labels.teacher_weights)


if __name__ == "__main__":
    cli.run(main, Config)
