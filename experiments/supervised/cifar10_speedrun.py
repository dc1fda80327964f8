"""CIFAR-10 in ten epochs: the recipe of airbench94 (Jordan 2024, arXiv:2404.00498).

Published: 94.01 % test accuracy, the mean of 1,000 runs of 9.9 epochs, 3.83 s each on an A100. The
recipe sums the loss over the batch; here the mean is taken and rates and decays are scaled to the
same updates. All 50,000 training images are used; the test set is read once, after the last update,
with the recipe's six views of each image.

  python -m experiments.supervised.cifar10_speedrun             3 seeds, hours on two CPU cores
  python -m experiments.supervised.cifar10_speedrun --seeds 0   one seed, over an hour on the same
"""

import functools
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import optax

import nets
from experiments import cli, images, tasks, training
from nets.net import Net
from paradigms.core import optimizers, schedules
from paradigms.core.errors import InputError
from paradigms.core.learner import Batch, Learner, Metrics
from paradigms.core.state import PyTree, TrainState, fold_name
from paradigms.core.transforms import lookahead
from paradigms.data import augment
from paradigms.supervised import classifier, derive_classification

PUBLISHED = {"metric": "test/accuracy", "value": 0.9401, "source": "airbench94, mean of 1,000 runs"}


@dataclass(frozen=True)
class Config(cli.Options):
    """Options of this experiment."""

    steps: int = 476
    """9.9 epochs of 48 updates."""
    evaluate_every: int = 34
    batch_size: int = 1024
    learning_rate: float = 11.5
    """Per 1,024 examples, for the sum of the loss, apart from momentum."""
    momentum: float = 0.85
    weight_decay: float = 0.0153
    """Per 1,024 examples, apart from the learning rate."""
    bias_scale: float = 64.0
    """How much faster the biases of batch norm learn."""
    whitening_epochs: int = 3
    """Epochs after which the bias of the whitening layer stays as it is."""
    label_smoothing: float = 0.2
    max_shift: int = 2
    """Largest shift of the augmentation, in pixels."""
    validation: int = 0
    """Training examples that are held out to draw the curves."""

    def rehearsal(self) -> "Config":
        """A few small batches."""
        return replace(self, seeds=self.seeds[:1], steps=16, evaluate_every=8, batch_size=64)


def network(config: Config, whitening: np.ndarray | None = None) -> Net:
    """uint8 images `[B, 32, 32, 3]` to logits `[B, 10]`, of six views each in evaluation."""
    net = nets.preprocess(
        nets.airbench(10, whitening=whitening), augment.normalise(*augment.CIFAR10)
    )
    return images.six_views(nets.with_precision(net, config.precision), "reflect")


def alternating_flip(learner: Learner, steps_per_epoch: int) -> Learner:
    """Shows every image flipped in every other epoch; half of them start flipped."""

    def update(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        flags = augment.alternating_flags(
            fold_name(state.key, "flip"), batch["index"], state.step // steps_per_epoch
        )
        return learner.update(state, {**batch, "image": augment.flip_where(batch["image"], flags)})

    return learner._replace(update=update)


def optimizer(config: Config, steps_per_epoch: int) -> optax.GradientTransformation:
    """Nesterov SGD with faster biases in batch norm, and a whitening bias that stops early."""
    if not (0 <= config.momentum < 1 and config.learning_rate > 0):
        raise InputError(
            f"--momentum {config.momentum} --learning-rate {config.learning_rate}: expected a "
            "momentum in [0, 1) and a rate above 0"
        )
    # A constant gradient moves Nesterov's weights by this factor more than plain descent would.
    scale = 1024 * (1 + 1 / (1 - config.momentum))
    rate = config.learning_rate / scale * config.batch_size
    decay = config.weight_decay * config.batch_size / scale

    def group(rate: float, last_step: int | None = None) -> optax.GradientTransformation:
        schedule = schedules.one_cycle(
            rate, config.steps, start=0.2 * rate, end=0.07 * rate, peak_at=0.23
        )
        if last_step is not None:
            schedule = optax.join_schedules([schedule, schedules.constant(0.0)], [last_step])
        return optimizers.sgd(
            schedule,
            config.momentum,
            nesterov=True,
            weight_decay=decay / rate,
            decay_mask=lambda params: jax.tree.map(lambda _: True, params),
        )

    return optimizers.by_path(
        {
            "BatchNorm_[0-9]+/bias": group(config.bias_scale * rate),
            "whitening_bias": group(rate, config.whitening_epochs * steps_per_epoch),
        },
        default=group(rate),
    )


def slow_weights(state: TrainState) -> dict[str, PyTree]:
    """What lookahead evaluates."""
    return state.target["lookahead"]


def main(config: Config) -> None:
    """Trains on the official training set and tests on the official test set."""
    splits = images.load_splits(config, "cifar10", (32, 32, 3), config.validation)
    steps_per_epoch = len(splits.train["label"]) // config.batch_size
    normalised = augment.normalise(*augment.CIFAR10)(jnp.asarray(splits.train["image"][:5000]))
    net = network(config, nets.whitening_kernel(np.asarray(normalised)))
    learner = classifier(
        net,
        optimizer(config, steps_per_epoch),
        augment=augment.translate(config.max_shift, "reflect"),
        label_smoothing=config.label_smoothing,
    )
    task = tasks.labelled(
        net,
        lookahead(
            alternating_flip(learner, steps_per_epoch),
            lambda step: 0.95**5 * (step / config.steps) ** 3,
        ),
        train=splits.train,
        batch_size=config.batch_size,
        validation=splits.validation,
        test=splits.test,
        derive=derive_classification,
        weights=slow_weights,
        pictures=functools.partial(images.confusion_picture, images.CIFAR10_CLASSES),
    )
    training.train(main, config, task)


if __name__ == "__main__":
    cli.run(main, Config)
