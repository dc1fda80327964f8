"""FixMatch learns CIFAR-10 from 250 labels, or as many as `--labels` says.

The paper has errors of 13.81 % with 40 labels, 5.07 % with 250 and 4.26 % with 4,000, by WRN-28-2
after 2^20 updates of 64 labelled and 448 unlabelled images. The aims are what a run of twenty
minutes on an accelerator can reach: 12 % with 250 labels, 8 % with 4,000. `--size small` is for two
CPU cores, and is held to the share of errors that it takes away from its twin, the same net on the
same labels alone.

  python -m experiments.semi_supervised.fixmatch_cifar10        an accelerator
  python -m experiments.semi_supervised.fixmatch_cifar10 --size small --seeds 0 --steps 20000
      --evaluate-every 1000 --batch-size 32 --ratio 3 --learning-rate 0.06    a CPU
"""

from dataclasses import dataclass

from experiments import cli, few_labels
from nets.net import Net
from paradigms.semi_supervised import fixmatch

PUBLISHED = {
    "metric": "test/accuracy",
    "value": 0.88,
    "source": "aim with 250 labels in 20 minutes; Sohn et al. 2020: 94.93 %",
    "variants": {
        "4000": {"value": 0.92, "source": "aim in 20 minutes; Sohn et al. 2020: 95.74 %"},
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
    learner = fixmatch(
        network(config),
        few_labels.cifar_optimizer(config),
        few_labels.weak(),
        few_labels.strong(),
        threshold=config.threshold,
        weight=config.unlabelled_weight,
    )
    few_labels.train_cifar(main, config, few_labels.ema(learner, config.decay))


if __name__ == "__main__":
    cli.run(main, Config)
