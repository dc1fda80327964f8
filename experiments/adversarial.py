"""What the experiments with generative adversarial networks share: options, judges, pictures."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax

import nets
from experiments import cli, images, summaries, tasks, training
from experiments.images import Splits
from experiments.prediction import load_weights
from nets.net import Net
from paradigms.core import optimizers, schedules
from paradigms.core.errors import InputError
from paradigms.core.learner import Learner, Metrics
from paradigms.core.metrics import Mean, Means
from paradigms.core.pictures import draw_images
from paradigms.core.provenance import environment
from paradigms.core.state import TrainState, fold_name
from paradigms.core.transforms import resident
from paradigms.data import augment
from paradigms.supervised import classifier, derive_classification
from paradigms.unsupervised import (
    categorical_latents,
    classifier_score,
    frechet_distance,
    generator_weights,
    sample,
)

Measure = Callable[[np.ndarray], Mapping[str, float]]
"""From the samples of one run, `[n, ...]`, to numbers."""

_PICTURED = 10  # rows, and columns
_FEATURES = 64
_VALIDATION = 5000


@dataclass(frozen=True)
class Options(cli.Options):
    """Options of every generative adversarial network."""

    latent: int = 128
    """Length of the vector that a sample is made of."""
    batch_size: int = 64
    """Examples of one step of the critic."""
    critic_steps: int = 1
    """Steps of the critic to one of the generator."""
    learning_rate: float = 2e-4
    """Of both nets."""
    samples: int = 10_000
    """Drawn to judge the generator by."""

    @property
    def examples_per_update(self) -> int:
        """Examples that an update sees, all of its critic steps together."""
        return self.critic_steps * self.batch_size


@dataclass(frozen=True)
class ImageOptions(Options):
    """Options of those that draw images, which a classifier of our own judges."""

    categories: int = 0
    """Latents that are one choice among so many; 0 for none."""
    width: int = 32
    """Channels of the map nearest to the image; twice as many in the one before."""
    hidden: int = 1024
    """Units of the dense layer between latents and map, and of the one before the score."""
    decay: float = 0.999
    """Of the moving average of the generator, which is judged."""
    classifier_steps: int = 2345
    """Updates of the classifier; 5 epochs."""

    def rehearsal(self) -> Self:
        """A narrow net on enlarged digits."""
        return replace(
            self,
            seeds=self.seeds[:1],
            steps=300,
            evaluate_every=150,
            width=8,
            hidden=32,
            decay=0.95,
            learning_rate=1e-3,
            samples=500,
            batch_size=32,
            classifier_steps=200,
        )


def check(config: Options) -> None:
    """Raises InputError for options that would fail after much has been trained."""
    least = _FEATURES + 1 if isinstance(config, ImageOptions) else 1
    for option, count, smallest in (
        ("--critic-steps", config.critic_steps, 1),
        ("--samples", config.samples, least),
    ):
        if count < smallest:
            raise InputError(f"{option} {count}: expected at least {smallest}")
    categories = getattr(config, "categories", 0)
    if categories and not 2 <= categories <= config.latent:
        raise InputError(
            f"--categories {categories}: expected 0 for none, or 2 to --latent {config.latent}"
        )
    if config.accumulate > 1:
        raise InputError("--accumulate: adversaries take turns, each with a whole batch")


def falling_adam(config: Options, steps: int) -> optax.GradientTransformation:
    """Adam without a first momentum, its rate falling to 0 over its own steps.

    As Gulrajani et al. 2017 (arXiv:1704.00028, appendix F) train with a gradient penalty.
    """
    return optimizers.adam(schedules.warmup_linear(config.learning_rate, steps), 0.0, 0.9)


def task_of(
    config: Options,
    generator: Net,
    learner: Learner,
    data: np.ndarray,
    validate: Measure,
    test: Measure,
    pictures: Callable[[Path, Means, TrainState], None],
    *,
    headline: str,
    input_name: str = "image",
) -> tasks.Task:
    """Trains on `data`, and judges the generator by its samples alone.

    Args:
      config: the experiment's options.
      generator: what `experiments.load` gives back, from latents to samples.
      learner: made by `gan`.
      data: `[N, ...]`.
      validate: what the samples are judged by during training.
      test: what they are judged by after the last update.
      pictures: as for `tasks.Task`.
      headline: the number to show while training.
      input_name: the entry of a batch that the learner takes.
    """

    def judge(measure: Measure, state: TrainState, key: jax.Array) -> Metrics:
        runs = range(len(state.step))
        one = [jax.tree.map(lambda leaf, i=i: leaf[i], state) for i in runs]
        values = [measure(drawn(config, generator, run, key)) for run in one]
        return {
            name: Mean(jnp.asarray([value[name] for value in values]), jnp.ones(len(values)))
            for name in values[0]
        }

    def by(measure: Measure, name: str) -> Callable[[], tasks.Judge]:
        return lambda: lambda state, key: judge(measure, state, fold_name(key, name))

    return tasks.Task(
        net=generator,
        learner=resident(learner, config.examples_per_update),
        data={input_name: data},
        examples_per_update=config.examples_per_update,
        example=jax.ShapeDtypeStruct((config.latent,), jnp.float32),
        validation=by(validate, "validation"),
        test=by(test, "test"),
        headline=headline,
        weights=generator_weights,
        pictures=pictures,
    )


def drawn(config: Options, generator: Net, state: TrainState, key: jax.Array) -> np.ndarray:
    """Samples `[config.samples, ...]` of one run."""
    weights = generator_weights(state)
    return np.asarray(sample(generator, weights, key, config.samples, config.latent))


def train_on_images(
    main: Callable[..., Any], config: ImageOptions, learner: Learner, name: str
) -> None:
    """Trains a classifier and then the adversaries, whose samples it judges.

    The classifier, and its accuracy beside every number, is ours: `score` and `frechet` are no
    inception score and no FID, and can be compared with other figures of this experiment only.
    `score_ratio` is the score of the samples over that of real images, which are held out of the
    training set while it lasts and are the test set's after it; `score_gap` is its distance from 1.

    Args:
      main: the experiment's.
      config: its options.
      learner: made by `gan`.
      name: of the data set, 28x28 images in grey.
    """
    started = environment()
    config = replace(config, run_dir=training.directory_of(main, config))
    with training.open_run(main, config) as run:
        if run.finished:
            return
        splits = images.load_splits(config, name, (28, 28, 1), _VALIDATION)
        assert splits.validation is not None
        classify, accuracy = _classifier(main, config, splits)

        def against(real: np.ndarray) -> Measure:
            real_features, real_logits = classify(real)
            real_score = classifier_score(real_logits)

            def measure(samples: np.ndarray) -> dict[str, float]:
                features, logits = classify(_bytes(samples))
                ratio = classifier_score(logits) / real_score
                return {
                    "score": ratio * real_score,
                    "score_ratio": ratio,
                    "score_gap": abs(ratio - 1),
                    "frechet": frechet_distance(features, real_features),
                    "classifier_accuracy": accuracy,
                }

            return measure

        def picture(directory: Path, test: Means, state: TrainState) -> None:
            del test
            small = replace(config, samples=_PICTURED**2)
            shown = _bytes(drawn(small, generator, state, jax.random.key(0)))
            table = shown.reshape(_PICTURED, _PICTURED, *shown.shape[1:])
            draw_images(table, directory / "samples.png")

        generator = image_generator(config)
        task = task_of(
            config,
            generator,
            learner,
            splits.train["image"],
            against(splits.validation["image"]),
            against(splits.test["image"]),
            picture,
            headline="score_ratio",
        )
        trained = training.train(main, config, task, part="gan")
        for file in ("curves.png", "samples.png"):
            if (run.directory / "gan" / file).exists():  # not without matplotlib
                shutil.copyfile(run.directory / "gan" / file, run.directory / file)
        values = {name: metric["values"] for name, metric in trained["metrics"].items()}
        details = {name: trained[name] for name in ("examples", "parameters", "speed", "before")}
        summaries.finish(run, config, values, started, **details)


def image_generator(config: ImageOptions) -> Net:
    """Latents `[B, latent]` to images `[B, 28, 28, 1]` in [-1, 1]."""
    generator = nets.dcgan_generator(width=config.width, hidden=config.hidden)
    generator = nets.with_precision(generator, config.precision)
    if config.categories:  # chosen before latents are rounded, which would favour the first
        generator = nets.preprocess(generator, categorical_latents(config.categories))
    return generator


def _bytes(samples: np.ndarray) -> np.ndarray:
    """Images in [-1, 1] as uint8."""
    return np.rint(np.clip(127.5 * (samples + 1), 0, 255)).astype(np.uint8)


def _classifier(
    main: Callable[..., Any], config: ImageOptions, splits: Splits
) -> tuple[Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]], float]:
    """Trains a small convolutional net; gives it back with its accuracy on the test set.

    Returns:
      `image[N, 28, 28, 1] -> (features[N, 64], logits[N, 10])`, and the accuracy.
    """
    steps = config.classifier_steps
    once = replace(config, seeds=(0,), steps=steps, evaluate_every=steps)
    backbone = nets.preprocess(
        nets.cnn(_FEATURES, features=(32, 64), dense=(128,), norm="batch"),
        augment.normalise(*augment.MNIST),
    )
    head = nets.mlp((), 10)
    net = nets.chain(backbone=backbone, head=head)
    schedule = schedules.warmup_cosine(0.05, steps, warmup_steps=steps // 20)
    task = tasks.labelled(
        net,
        classifier(
            net,
            optimizers.sgd(schedule, 0.9, nesterov=True, weight_decay=5e-4),
            augment=augment.translate(2),
        ),
        train=splits.train,
        batch_size=128,
        validation=None,
        test=splits.test,
        derive=derive_classification,
    )
    summary = training.train(main, once, task, part="classifier")
    weights = load_weights(training.directory_of(main, config) / "classifier", net)
    weights = jax.tree.map(lambda leaf: leaf[0], weights)

    @jax.jit
    def batch(image: jax.Array) -> tuple[jax.Array, jax.Array]:
        params, model_state = weights["params"], weights["model_state"]
        features, _ = backbone.apply(params["backbone"], model_state["backbone"], image)
        return features, head.apply(params["head"], model_state["head"], features)[0]

    def classify(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        parts = [batch(image[i : i + 500]) for i in range(0, len(image), 500)]
        features, logits = zip(*parts, strict=True)
        return np.concatenate(features), np.concatenate(logits)

    return classify, summary["runs"][0]["metrics"]["test/accuracy"]
