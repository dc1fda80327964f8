"""What the semi-supervised experiments share: draws of labels, and a twin without the rest.

Every seed is a draw of the labels too, by the same number. All draws train in one program, each on
its own labels and on all training images as unlabelled ones. The twin is a classifier on the same
labels alone, with the same net, views, optimiser and number of updates. Both are judged by a moving
average of the weights where the method has one. A validation set far larger than the labels draws
the curves; no option was chosen by looking at test images.
"""

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import jax
import numpy as np
import optax

import nets
from experiments import cli, images, summaries, tasks, training
from nets.net import Net
from paradigms import data
from paradigms.core import optimizers, schedules
from paradigms.core.errors import InputError
from paradigms.core.learner import Learner
from paradigms.core.provenance import environment
from paradigms.core.state import PyTree, TrainState
from paradigms.core.transforms import averaged
from paradigms.data import augment
from paradigms.data.images import unit
from paradigms.data.patches import patchify
from paradigms.data.rand_augment import rand_augment
from paradigms.semi_supervised import derive_pseudo_labels
from paradigms.supervised import classifier


@dataclass(frozen=True)
class Options(cli.Options):
    """Options of learning from few labels."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """One run for each, with its own initial weights and its own draw of the labels."""
    labels: int = 100
    """How many are kept."""
    balanced: bool = True
    """Whether as many of each class, else at random."""
    batch_size: int = 64
    """Labelled examples of a minibatch."""
    ratio: int = 4
    """Unlabelled examples to a labelled one."""
    validation: int = 1000
    """Training examples that are held out to draw the curves."""


@dataclass(frozen=True)
class Mnist(Options):
    """Options of learning MNIST from 100 labels by a net that knows nothing of images."""

    steps: int = 10_000
    evaluate_every: int = 1000
    batch_size: int = 100
    widths: tuple[int, ...] = (512, 256)
    """Of the hidden layers."""
    final_norm: bool = False
    """Whether the logits have batch norm too."""
    learning_rate: float = 2e-3
    """Of Adam; it falls linearly to 0 in the second half."""
    dropout: float = 0.0
    noise: float = 0.0
    """Standard deviation of noise on the pixels, which go from 0 to 1."""
    hidden_noise: float = 0.0
    """Of noise before each activation, on what batch norm has scaled."""
    decay: float = 0.999
    """Of the moving average of the weights that is evaluated."""

    def rehearsal(self) -> Self:
        """Enlarged digits, and a short run."""
        return replace(
            self,
            seeds=self.seeds[:1],
            steps=200,
            evaluate_every=100,
            widths=(64,),
            decay=0.9,
            validation=200,
        )


def mnist_mlp(config: Mnist) -> Net:
    """uint8 or float32 images `[B, 28, 28, 1]` to logits `[B, 10]`."""
    net = nets.mlp(
        config.widths,
        10,
        norm="batch",
        dropout=config.dropout,
        final_norm=config.final_norm,
        noise=config.hidden_noise,
    )
    net = nets.preprocess(net, augment.normalise((0.0,), (1.0,)))
    return nets.with_precision(net, config.precision)


def mnist_optimizer(config: Mnist) -> optax.GradientTransformation:
    """Adam, whose rate falls in the second half of the run."""
    half = config.steps // 2
    falling = optax.linear_schedule(config.learning_rate, 0.0, config.steps - half, half)
    return optimizers.adam(falling)


def noisy(config: Mnist) -> augment.Augmentation:
    """Gaussian noise on each pixel, whose place does not matter; images become float32."""

    def add(key: jax.Array, image: jax.Array) -> jax.Array:
        return unit(image) + config.noise * jax.random.normal(key, image.shape)

    return add


def train_mnist(main: Callable[..., Any], config: Mnist, learner: Learner, **options: Any) -> None:
    """`train` on MNIST, with a twin that has the same noise."""
    net = mnist_mlp(config)
    twin = classifier(net, mnist_optimizer(config), augment=noisy(config))
    train(
        main,
        config,
        net,
        learner,
        ema(twin, config.decay),
        images.load_splits(config, "mnist", (28, 28, 1), config.validation),
        images.DIGITS,
        **{"weights": ema_weights, **options},
    )


@dataclass(frozen=True)
class Cifar(Options):
    """Options of learning CIFAR-10 from few labels: FixMatch's; the small net is for a CPU."""

    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 2**20
    evaluate_every: int = 2**13
    labels: int = 250
    size: Literal["full", "small"] = "full"
    batch_size: int = 64
    ratio: int = 7
    learning_rate: float = 0.03
    """Of SGD with Nesterov momentum; it falls by seven sixteenths of a cosine."""
    weight_decay: float = 5e-4
    decay: float = 0.999
    """Of the moving average of the weights that is evaluated."""
    validation: int = 5000

    def rehearsal(self) -> Self:
        """Enlarged digits and the small net."""
        return replace(
            self,
            seeds=self.seeds[:1],
            size="small",
            steps=60,
            evaluate_every=30,
            labels=100,
            batch_size=16,
            ratio=2,
            decay=0.9,
        )


def cifar_net(config: Cifar) -> Net:
    """uint8 or float32 images `[B, 32, 32, 3]` to logits `[B, 10]`, by WRN-28-2 or a small net."""
    full = config.size == "full"
    net = nets.wide_resnet(28, 2, 10) if full else small_cnn()
    net = nets.preprocess(net, augment.normalise(*augment.CIFAR10))
    return nets.with_precision(net, config.precision)


def small_cnn() -> Net:
    """A plain convolutional net for a CPU: images `[B, 32, 32, 3]` to logits `[B, 10]`.

    It sees blocks of 2x2 pixels as channels, for layers on 32x32 places are slow.
    """
    net = nets.cnn(
        10,
        features=(48, 96),
        convolutions=(1, 2),
        dense=(),
        pool="mean",
        pool_first=True,
        norm="batch",
    )

    def blocks(image: jax.Array) -> jax.Array:
        return patchify(image, 2).reshape(len(image), 16, 16, 12)

    return nets.preprocess(net, blocks)


def cifar_optimizer(config: Cifar) -> optax.GradientTransformation:
    """FixMatch's."""
    return optimizers.sgd(
        schedules.cosine_arc(config.learning_rate, config.steps),
        0.9,
        nesterov=True,
        weight_decay=config.weight_decay,
    )


def weak() -> augment.Augmentation:
    """A flip and a shift by up to four pixels (Sohn et al. 2020, section 2.3)."""
    return augment.compose(augment.flip(), augment.pad_crop(4))


def strong() -> augment.Augmentation:
    """The same, RandAugment and a cutout of half the image's side (likewise)."""
    return augment.compose(weak(), rand_augment(), augment.cutout(16))


def cifar(config: Cifar) -> images.Splits:
    """The images, of which all but the validation ones are there to learn from."""
    return images.load_splits(config, "cifar10", (32, 32, 3), config.validation)


def train_cifar(
    main: Callable[..., Any],
    config: Cifar,
    learner: Learner,
    splits: images.Splits | None = None,
    **options: Any,
) -> None:
    """`train` on CIFAR-10, with a twin that learns from weak views."""
    net = cifar_net(config)
    twin = classifier(net, cifar_optimizer(config), augment=weak())
    train(
        main,
        config,
        net,
        learner,
        ema(twin, config.decay),
        splits or cifar(config),
        images.CIFAR10_CLASSES,
        **{"weights": ema_weights, **options},
    )


def train(
    main: Callable[..., Any],
    config: Options,
    net: Net,
    learner: Learner,
    twin: Learner,
    splits: images.Splits,
    class_names: Sequence[str],
    *,
    weights: Callable[[TrainState], dict[str, PyTree]] | None = None,
    start: Callable[[TrainState], TrainState] | None = None,
) -> None:
    """Trains with unlabelled examples and without, and reports both and the gain.

    Args:
      main: the experiment's.
      config: its options.
      net: raw images to logits.
      learner: takes labelled and unlabelled parts.
      twin: takes labelled examples.
      splits: training images, of which few keep their labels; validation and test images.
      class_names: for the picture of what is taken for what.
      weights: which the evaluation of `learner` uses; the current ones by default.
      start: changes the fresh state of `learner`.
    """
    started = environment()
    if config.ratio < 1 or config.batch_size < 1:
        raise InputError(
            f"--ratio {config.ratio} --batch-size {config.batch_size}: expected at least 1"
        )
    alone_size = min(config.batch_size, config.labels)
    cli.check_parts(config, config.batch_size, alone_size)
    draws = [
        data.hide_labels(splits.train, config.labels, seed, balanced=config.balanced)[0]
        for seed in config.seeds
    ]
    labelled = {name: np.stack([draw[name] for draw in draws]) for name in draws[0]}
    rows = labelled.pop("row")
    # All parts go into one directory, whatever their own options.
    config = replace(config, run_dir=training.directory_of(main, config))
    with training.open_run(main, config) as run:
        if run.finished:
            return
        recorded = {str(seed): row.tolist() for seed, row in zip(config.seeds, rows, strict=True)}
        (run.directory / "labelled.json").write_text(json.dumps(recorded) + "\n")
        common: dict[str, Any] = {
            "validation": splits.validation,
            "test": splits.test,
            "derive": derive_pseudo_labels,
            "pictures": functools.partial(images.confusion_picture, class_names),
        }
        whole = {"labelled": labelled, "unlabelled": dict(splits.train)}
        options: dict[str, Any] = {"weights": weights, "start": start}
        task = tasks.labelled(
            net,
            learner,
            train=whole,
            batch_size={
                "labelled": config.batch_size,
                "unlabelled": config.ratio * config.batch_size,
            },
            data_axis={"labelled": 0, "unlabelled": None},
            **common,
            **{name: value for name, value in options.items() if value is not None},
        )
        values = _accuracy(training.train(main, config, task, part="few_labels"))
        alone = tasks.labelled(
            net,
            twin,
            train=labelled,
            batch_size=alone_size,
            data_axis=0,
            **common,
        )
        of_twin = _accuracy(training.train(main, config, alone, part="labels_alone"))
        final = {
            "test/accuracy": values,
            "labels_alone/accuracy": of_twin,
            "gain/accuracy": [a - b for a, b in zip(values, of_twin, strict=True)],
            # The share of the twin's errors that unlabelled examples take away.
            "gain/errors": [
                1 - (1 - a) / max(1 - b, 1e-9) for a, b in zip(values, of_twin, strict=True)
            ],
        }
        summaries.finish(run, config, final, started)


def ema(learner: Learner, decay: float) -> Learner:
    """Evaluated by a moving average of the weights, with the accuracy of the current ones beside.

    Batch statistics are those of the current weights, as in the code of FixMatch.
    """
    return averaged(learner, decay, model_state="live", beside=("accuracy",))


def ema_weights(state: TrainState) -> dict[str, PyTree]:
    """What `ema` evaluates."""
    return state.target["average"]


def teacher_weights(state: TrainState) -> dict[str, PyTree]:
    """What `mean_teacher` evaluates."""
    return state.target["teacher"]


def _accuracy(summary: dict[str, Any]) -> list[float]:
    return [run["metrics"]["test/accuracy"] for run in summary["runs"]]
