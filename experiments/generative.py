"""What the experiments with variational autoencoders share: images as bits, training, pictures."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

import nets
from experiments import cli, images, training
from experiments.images import Splits
from nets.net import Net
from paradigms import data
from paradigms.core.learner import Learner
from paradigms.core.loop import evaluator
from paradigms.core.metrics import Means
from paradigms.core.optimizers import Schedule, step_decay
from paradigms.core.pictures import draw_images
from paradigms.core.state import PyTree, TrainState
from paradigms.core.transforms import seeded
from paradigms.data import augment
from paradigms.data.cache import Data
from paradigms.unsupervised import derive_vae, reconstruct, sample_prior, traverse, unit_interval
from paradigms.unsupervised.latent_model import init_latent_model

SHAPE = (28, 28, 1)
# Held-out images become bits once, with a key of their own, so that all seeds are judged alike.
_BITS = jax.random.key(2**31)
_PICTURED = 10
_PASSES = 3280
_BATCH = 20


@dataclass(frozen=True)
class MnistOptions(cli.Options):
    """Options of the latent variable models of MNIST; the defaults are those of Burda et al."""

    seeds: tuple[int, ...] = (0,)
    steps: int = _PASSES * 2950
    """Updates; 3,280 passes over 59,000 images, 20 at a time."""
    evaluate_every: int = 82 * 2950
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
    validation: int = 1000
    """Training images that are held out to draw the curve."""

    def rehearsal(self) -> "MnistOptions":
        """Enlarged digits, large steps and few samples."""
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


def load_bits(config: MnistOptions) -> Splits:
    """MNIST for a Bernoulli decoder: held-out images are bits, and with "static" all are."""
    if config.binarisation == "static" and not config.smoke:
        parts = (data.binarized_mnist(part, config.data_dir) for part in ("train", "valid", "test"))
        return Splits(*parts)
    splits = images.load_splits(config, "mnist", SHAPE, config.validation)
    held_out = (bits(part) for part in (splits.validation, splits.test) if part is not None)
    return Splits({"image": splits.train["image"]}, *held_out)


def bits(part: Data) -> Data:
    """Images as 0 and 255, drawn once by their intensities; their labels are left behind."""
    return {"image": np.asarray(augment.binarise()(_BITS, jnp.asarray(part["image"])))}


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


def task_of(
    encoder: Net,
    decoder: Net,
    learner: Learner,
    judge: Learner,
    splits: Splits,
    batch_size: int,
    **options: Any,
) -> training.Task:
    """The task of a latent variable model, with pictures of what it draws.

    Args:
      encoder: of the learner.
      decoder: of the learner.
      learner: trained, and evaluated on the validation set.
      judge: the same learner with as many importance samples as the test set deserves.
      splits: with images to be learnt as they are, but for the augmentation.
      batch_size: of the minibatch.
      **options: other fields of `training.Task`.
    """

    def test() -> training.Judge:
        return evaluator(seeded(judge), splits.test, batch_size=500)

    def picture(directory: Path, means: Means, state: TrainState) -> None:
        del means
        draw(directory, encoder, decoder, state, splits.test["image"])

    fields = {"derive": derive_vae, "headline": "log_likelihood", "pictures": picture, **options}
    task = training.labelled(
        reconstructing(encoder, decoder),
        learner,
        train=splits.train,
        batch_size=batch_size,
        validation=splits.validation,
        test=splits.test,
        **fields,
    )
    return task._replace(test=test)


def draw(directory: Path, encoder: Net, decoder: Net, state: TrainState, image: np.ndarray) -> None:
    """Draws reconstructions of images, samples of the prior and a traversal of the latents."""
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
    draw_images(np.asarray(table[:_PICTURED]), directory / "traversal.png")
