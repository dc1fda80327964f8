"""What the experiments with variational autoencoders share: images as bits, training, pictures."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

import nets
from experiments import cli, images, tasks, training
from experiments.images import Splits
from nets.net import Net
from paradigms import data
from paradigms.core.learner import Learner
from paradigms.core.loop import evaluator
from paradigms.core.metrics import Means
from paradigms.core.optimizers import adam
from paradigms.core.pictures import draw_images
from paradigms.core.scalars import Schedule
from paradigms.core.schedules import step_decay
from paradigms.core.state import PyTree, TrainState
from paradigms.core.transforms import seeded
from paradigms.data import augment
from paradigms.data.cache import Data
from paradigms.unsupervised import (
    check_support,
    derive_vae,
    reconstruct,
    sample_prior,
    traverse,
    unit_interval,
)
from paradigms.unsupervised.latent_model import init_latent_model

SHAPE = (28, 28, 1)
# Of the key by which held-out images become bits, so that all seeds are judged alike.
_BITS_SEED = 2**31
_PICTURED = 10
_PASSES = 3280
_BATCH = 20


@dataclass(frozen=True)
class MnistOptions(cli.Options):
    """Options of the latent variable models of MNIST; the defaults are those of Burda et al."""

    steps: int = _PASSES * 2980
    """Updates; 3,280 passes over 59,600 images, 20 at a time."""
    evaluate_every: int = 82 * 2980
    batch_size: int = _BATCH
    learning_rate: float = 1e-3
    """At first; see `burda_schedule`."""
    hidden: tuple[int, ...] = (200, 200)
    latent: int = 50
    binarisation: Literal["dynamic", "static"] = "dynamic"
    """Pixels drawn anew by their intensity at every update, or once for all by Larochelle."""
    importance_samples: int = 5000
    """Samples per image in the estimate of the test set's log-likelihood."""
    validation_samples: int = 50
    """The same for the curve, which fewer samples lower."""
    validation: int = 400
    """Training images that are held out to draw the curve; Larochelle's set has 10,000 besides."""

    def rehearsal(self) -> "MnistOptions":
        """Enlarged digits, few latents and few samples."""
        return replace(
            self, steps=600, evaluate_every=300, batch_size=50, importance_samples=50, latent=10
        )


def dense(hidden: tuple[int, ...], latent: int, shape: tuple[int, ...]) -> tuple[Net, Net]:
    """A tanh encoder, `image[B, *shape]` to `[B, 2 * latent]`, and the decoder that mirrors it."""
    encoder = nets.mlp(hidden, 2 * latent, activation="tanh")
    pixels = nets.mlp(hidden[::-1], math.prod(shape), activation="tanh")
    return encoder, nets.postprocess(pixels, lambda x: x.reshape(-1, *shape))


def networks(config: MnistOptions) -> tuple[Net, Net]:
    """Encoder and decoder of MNIST's models."""
    encoder, decoder = dense(config.hidden, config.latent, SHAPE)
    return (
        nets.with_precision(encoder, config.precision),
        nets.with_precision(decoder, config.precision),
    )


def reconstructing(encoder: Net, decoder: Net) -> Net:
    """Both nets as one, `image[B, ...]` to its reconstruction in [0, 1] from the posterior mean."""

    def init(key: jax.Array, image: jax.Array) -> tuple[PyTree, PyTree]:
        return init_latent_model(key, encoder, decoder, image)

    def apply(
        params: PyTree,
        model_state: PyTree,
        image: jax.Array,
        *,
        key: Any = None,
        train: bool = False,
    ) -> tuple[jax.Array, PyTree]:
        del key, train
        return reconstruct(encoder, decoder, params, model_state, image), model_state

    return Net(init, apply)


def burda_schedule(rate: float, steps: int) -> Schedule:
    """`rate * 10 ** (-i / 7)` for `3 ** i` of 3,280 parts of the training, i from 0 to 7.

    Burda et al. 2016 (arXiv:1509.00519, section 5) train for 3,280 passes over the data in this
    way. A shorter training shortens every stage in proportion.
    """
    ends = [max(i + 1, round(steps * (3 ** (i + 1) - 1) / 2 / _PASSES)) for i in range(7)]
    return step_decay(rate, ends, factor=10 ** (-1 / 7))


def burda_adam(config: MnistOptions) -> optax.GradientTransformation:
    """Adam by the same schedule.

    Its epsilon of 1e-4 stands beside gradients that the authors' code sums over the batch; beside
    those of the mean it is as many times smaller.
    """
    schedule = burda_schedule(config.learning_rate, config.steps)
    return adam(schedule, eps=1e-4 / config.batch_size)


def load_bits(config: MnistOptions) -> Splits:
    """MNIST for a Bernoulli decoder: held-out images are bits, and with "static" all are."""
    if config.binarisation == "static" and not config.smoke:
        parts = (data.binarized_mnist(part, config.data_dir) for part in ("train", "valid", "test"))
        return Splits(*parts)
    splits = images.load_splits(config, "mnist", SHAPE, config.validation)
    train = {"image": splits.train["image"]}
    return Splits(
        bits(train) if config.binarisation == "static" else train,
        None if splits.validation is None else bits(splits.validation),
        bits(splits.test),
    )


def bits(part: Data) -> Data:
    """Images as 0 and 255, drawn once by their intensities; their labels are left behind."""
    key = jax.random.key(_BITS_SEED)
    return {"image": np.asarray(augment.binarise()(key, jnp.asarray(part["image"])))}


def train_on_mnist(
    main: Callable[..., Any],
    config: MnistOptions,
    encoder: Net,
    decoder: Net,
    make: Callable[[int, augment.Augmentation | None], Learner],
) -> None:
    """Trains one latent variable model, and estimates the log-likelihood of the test set.

    Args:
      main: the experiment's.
      config: its options.
      encoder: of the learner.
      decoder: of the learner.
      make: from the number of importance samples and the augmentation to the learner.
    """
    drawn = augment.binarise() if config.binarisation == "dynamic" else None
    task = task_of(
        encoder,
        decoder,
        make(config.validation_samples, drawn),
        make(config.importance_samples, drawn),
        load_bits(config),
        config.batch_size,
    )
    training.train(main, config, task)


def check_splits(splits: Splits) -> None:
    """Raises InputError where an image is outside the support of a Bernoulli decoder."""
    for name, part in splits._asdict().items():
        if part is not None:
            check_support(part["image"], "bernoulli", f"image of the {name} split")


def task_of(
    encoder: Net,
    decoder: Net,
    learner: Learner,
    judge: Learner,
    splits: Splits,
    batch_size: int,
) -> tasks.Task:
    """The task of a latent variable model, with pictures of what it draws.

    Args:
      encoder: of the learner.
      decoder: of the learner.
      learner: trained, and evaluated on the validation set.
      judge: the same learner with as many importance samples as the test set deserves.
      splits: with images to be learnt as they are, but for the augmentation.
      batch_size: of the minibatch.

    Raises:
      InputError: images that no Bernoulli decoder can explain.
    """
    check_splits(splits)

    def test() -> tasks.Judge:
        return evaluator(seeded(judge), splits.test, batch_size=500)

    def picture(directory: Path, means: Means, state: TrainState) -> None:
        used = np.asarray(means["latent_kl"].total).argsort()[::-1]
        draw(directory, encoder, decoder, state, splits.test["image"], used)

    task = tasks.labelled(
        reconstructing(encoder, decoder),
        learner,
        train=splits.train,
        batch_size=batch_size,
        validation=splits.validation,
        test=splits.test,
        derive=derive_vae,
        headline="log_likelihood",
        pictures=picture,
    )
    return task._replace(test=test)


def draw(
    directory: Path,
    encoder: Net,
    decoder: Net,
    state: TrainState,
    image: np.ndarray,
    latents: np.ndarray,
) -> None:
    """Draws reconstructions of images, means of x for draws of the prior, and a traversal.

    Args:
      directory: of the pictures.
      encoder: of the learner.
      decoder: of the learner.
      state: of one run.
      image: `[N, H, W, C]`, of which the first are reconstructed.
      latents: which to vary from -3 to 3, one to a row.
    """
    weights = state.params, state.model_state
    shown = jnp.asarray(image[:_PICTURED])
    again = reconstruct(encoder, decoder, *weights, shown)
    pairs = np.stack([unit_interval(shown), again])
    draw_images(pairs, directory / "reconstructions.png")

    latent = (
        encoder.apply(state.params["encoder"], state.model_state["encoder"], unit_interval(shown))[
            0
        ].shape[1]
        // 2
    )
    shape = (_PICTURED, _PICTURED, latent)
    samples = sample_prior(decoder, *weights, jax.random.key(0), shape)
    draw_images(np.asarray(samples), directory / "samples.png")

    table = traverse(decoder, *weights, jnp.zeros(latent), jnp.linspace(-3, 3, _PICTURED))
    draw_images(np.asarray(table)[latents[:_PICTURED]], directory / "traversal.png")
