"""What self-supervised experiments on images share: options, views, backbones, pictures."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax

import nets
from experiments import cli, frozen, images, training
from nets.net import Net
from paradigms import data
from paradigms.core import optimizers, schedules
from paradigms.core.learner import Learner
from paradigms.core.pictures import draw_images
from paradigms.core.state import TrainState
from paradigms.data import augment, colour, geometry
from paradigms.self_supervised import reconstruct

# Mean and standard deviation of the pixels of scikit-learn's digits.
DIGITS = ((0.305,), (0.376,))

_PICTURED = 10


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

    def rehearsal(self) -> Self:
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
    schedule = schedules.warmup_cosine(
        config.learning_rate, config.steps, warmup_steps=config.steps // 20
    )
    return optimizers.adamw(schedule, weight_decay=config.weight_decay)


@dataclass(frozen=True)
class Cifar(cli.Options):
    """Options of learning CIFAR-10 without its labels; the defaults are those of lightly's table.

    The small net is for a CPU: a plain convolutional one and few updates.
    """

    steps: int = 200 * 351
    """Updates; 200 epochs."""
    evaluate_every: int = 351
    size: Literal["full", "small"] = "full"
    batch_size: int = 128
    learning_rate: float = 0.06
    """Of SGD at the start; it falls to 0 by a cosine."""
    weight_decay: float = 5e-4
    validation: int = 5000
    """Training images that are held out to draw the curves."""

    def rehearsal(self) -> Self:
        """Enlarged digits and the small net."""
        return replace(
            self,
            seeds=self.seeds[:1],
            size="small",
            steps=120,
            evaluate_every=60,
            batch_size=32,
        )


def cifar_backbone(config: Cifar) -> Net:
    """uint8 images `[B, 32, 32, 3]` to representations, `[B, 512]` or `[B, 128]`."""
    full = config.size == "full"
    net = nets.resnet(18, None, stem="cifar") if full else small_cnn(None)
    net = nets.preprocess(net, augment.normalise(*augment.CIFAR10))
    return nets.with_precision(net, config.precision)


def small_cnn(classes: int | None) -> Net:
    """A plain convolutional net that a CPU trains on CIFAR-10; None for its features `[B, 128]`."""
    return nets.cnn(
        classes,
        features=(32, 64, 128),
        convolutions=(1, 1, 2),
        dense=(),
        pool="mean",
        pool_first=True,
        norm="batch",
    )


def cifar_views(config: Cifar) -> augment.Augmentation:
    """SimCLR's for CIFAR-10 (Chen et al. 2020, appendix B.9): without blur.

    In a rehearsal half of a digit is left at least, and it is not mirrored: little of one looks
    like much of another.
    """
    crop = geometry.random_resized_crop((0.5, 1.0) if config.smoke else (0.08, 1.0))
    return augment.compose(
        crop,
        augment.identity if config.smoke else augment.flip(),
        colour.colour_jitter(0.4, 0.4, 0.4, 0.1, probability=0.8),
        colour.grayscale(0.2),
    )


def sgd(config: Cifar) -> optax.GradientTransformation:
    """SGD with momentum, whose rate is for batches of 128."""
    schedule = schedules.warmup_cosine(config.learning_rate, config.steps)
    return optimizers.sgd(schedule, 0.9, weight_decay=config.weight_decay)


def train_cifar(
    main: Callable[..., Any],
    config: Cifar,
    learner: Learner,
    net: Net,
    part: str = "backbone",
    fine_tuning: frozen.FineTuning | None = None,
    into: str = "",
    **options: Any,
) -> None:
    """Trains on 45,000 images without labels and judges the features with them.

    Nearest neighbours are as in lightly's table (k=200, temperature 0.1), but at the last update,
    where theirs are of the best epoch on test images.

    Args:
      main: the experiment's.
      config: its options.
      learner: sees images alone, unless `options` say otherwise.
      net: raw images to features.
      part: the name of its weights among those of the learner.
      fine_tuning: see `frozen.Protocol`.
      into: sub-directory of the run.
      **options: of `frozen.task`.
    """
    splits = images.load_splits(config, "cifar10", (32, 32, 3), config.validation)
    assert splits.validation is not None
    task = frozen.task(
        net,
        learner,
        part,
        train=splits.train,
        validation=splits.validation,
        test=splits.test,
        batch_size=config.batch_size,
        protocol=frozen.Protocol(k=200, temperature=0.1, fine_tuning=fine_tuning),
        **options,
    )
    training.train(main, config, task, part=into)


def draw_masked(
    encoder: Net, decoder: Net, attention: Net, **masking: Any
) -> Callable[[Path, TrainState, np.ndarray], None]:
    """Pictures of a masked autoencoder: what it makes of hidden patches, and where it looks.

    `reconstructions.png` has masked images, filled ones and originals; `attention.png` images, and
    below them how much the class token looks at each patch, by the heads of the last block, the
    most in white.

    Args:
      encoder: as given to the learner.
      decoder: likewise.
      attention: `nets.mae_attention`, with the preprocessing of the encoder.
      **masking: options of the learner, as `reconstruct` takes them.
    """

    def draw(directory: Path, state: TrainState, images: np.ndarray) -> None:
        shown = jnp.asarray(images[:_PICTURED])
        rows = reconstruct(
            encoder,
            decoder,
            state.params,
            state.model_state,
            jax.random.key(0),
            shown,
            **masking,
        )
        draw_images(np.stack(rows), directory / "reconstructions.png")
        weights, _ = attention.apply(state.params["encoder"], state.model_state["encoder"], shown)
        looks = np.asarray(weights)[-1, :, :, 0, 1:].swapaxes(0, 1)  # [H, B, N]
        looks = looks / looks.max(-1, keepdims=True)
        side = images.shape[1] // masking["patch_size"]
        maps = looks.reshape(*looks.shape[:2], side, -1)
        for axis in (2, 3):
            maps = maps.repeat(masking["patch_size"], axis)
        maps = np.repeat(maps[..., None], images.shape[-1], -1)
        draw_images(np.stack([rows.original, *maps]), directory / "attention.png")

    return draw
