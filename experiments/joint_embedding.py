"""What the joint-embedding experiments share: views, backbones, and how their features are used."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import optax

import nets
from experiments import cli, frozen, training
from nets.net import Net
from paradigms import data
from paradigms.core import optimizers
from paradigms.core.learner import Learner
from paradigms.data import augment, geometry

# Mean and standard deviation of the pixels of scikit-learn's digits.
DIGITS = ((0.305,), (0.376,))


@dataclass(frozen=True)
class Digits(cli.Options):
    """Options of learning scikit-learn's digits without their labels."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    steps: int = 3000
    evaluate_every: int = 300
    batch_size: int = 256
    learning_rate: float = 1e-3
    """Of AdamW, after a warm-up; it falls to 0."""
    weight_decay: float = 1e-4
    validation: int = 197
    """Training examples that are held out to draw the curves."""

    def rehearsal(self) -> "Digits":
        """The set is embedded already; only the length changes."""
        return replace(self, seeds=self.seeds[:1], steps=100, evaluate_every=50)


@dataclass(frozen=True)
class JointDigits(Digits):
    """Those of joint embeddings."""

    width: int = 128
    """Of the representation."""
    hidden: int = 256
    """Of projector and predictor."""
    embedding: int = 64
    """Of what the loss compares."""


def digits_backbone(config: JointDigits) -> Net:
    """uint8 digits `[B, 8, 8, 1]` to representations `[B, width]`."""
    net = nets.cnn(config.width, features=(32, 64), dense=(), norm="batch")
    net = nets.preprocess(net, augment.normalise(*DIGITS))
    return nets.with_precision(net, config.precision)


def digits_views() -> augment.Augmentation:
    """What may happen to a digit: it turns, grows or shrinks, moves a pixel and loses a corner."""
    return augment.compose(
        geometry.rotate(15.0),
        geometry.zoom((0.8, 1.2)),
        augment.translate(1),
        augment.cutout(3, fill=0.0),
    )


def train_digits(
    main: Callable[..., Any],
    config: Digits,
    learner: Learner,
    net: Net,
    part: str = "backbone",
    **options: Any,
) -> None:
    """Trains without labels on split 0 and judges the features with some.

    Args:
      main: the experiment's.
      config: its options.
      learner: sees images alone.
      net: raw images to features.
      part: the name of its weights among those of the learner.
      **options: of `frozen.task`.
    """
    train, validation = data.split(data.digits("train"), config.validation, seed=0)
    task = frozen.task(
        net,
        learner,
        part,
        train=train,
        validation=validation,
        test=data.digits("test"),
        batch_size=config.batch_size,
        protocol=frozen.Protocol(k=20, temperature=0.07),
        **options,
    )
    training.train(main, config, task)


def adamw(config: Digits) -> optax.GradientTransformation:
    """AdamW with a warm-up over a twentieth of the run."""
    schedule = optimizers.warmup_cosine(
        config.learning_rate, config.steps, warmup_steps=config.steps // 20
    )
    return optimizers.adamw(schedule, weight_decay=config.weight_decay)
