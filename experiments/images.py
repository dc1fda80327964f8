"""Labelled images for experiments: the real set, or its stand-in for a rehearsal."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import cli
from nets.net import Net
from paradigms import data
from paradigms.core.metrics import Means
from paradigms.core.pictures import draw_confusion
from paradigms.core.state import PyTree, TrainState
from paradigms.data import augment
from paradigms.data.cache import Data

FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
CIFAR10_CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
DIGITS = tuple(str(digit) for digit in range(10))

# Validation examples are drawn with a seed of their own, so that every seed of a run shares them.
_SPLIT_SEED = 0


class Splits(NamedTuple):
    """Three parts of a data set, each `{"image": uint8 [N, H, W, C], "label": int32 [N]}`."""

    train: Data
    validation: Data | None
    test: Data


def load_splits(
    config: cli.Options, name: str, shape: tuple[int, int, int], validation: int
) -> Splits:
    """Training, validation and test images of data set `name`.

    Args:
      config: `--data-dir` and `--smoke`. A rehearsal takes scikit-learn's digits, enlarged.
      name: as for `paradigms.data.load`.
      shape: `[H, W, C]` of its images.
      validation: how many training examples to hold out, 0 for none.
    """
    if config.smoke:
        train, test = (enlarged(data.digits(split), shape) for split in ("train", "test"))
        validation = min(validation, 200) or 200
    else:
        train, test = (data.load(name, split, config.data_dir) for split in ("train", "test"))
    for part in (train, test):
        data.check_labels(part["label"], 10)
    if not validation:
        return Splits(train, None, test)
    rest, held_out = data.split(train, validation, seed=_SPLIT_SEED)
    return Splits(rest, held_out, test)


def six_views(net: Net, padding: augment.Padding) -> Net:
    """Averages logits in evaluation over both flips of the image and of two diagonal shifts.

    The unshifted views weigh a quarter each, those shifted by a pixel an eighth (Jordan 2024,
    arXiv:2404.00498, section 3.6).

    Args:
      net: images `[B, H, W, C]` to logits `[B, K]`; in training it stays as it is.
      padding: what a shift brings in, as for `augment.shift`.
    """

    def apply(
        params: PyTree,
        model_state: PyTree,
        image: jax.Array,
        *,
        key: jax.Array | None = None,
        train: bool = False,
    ) -> tuple[jax.Array, PyTree]:
        if train:
            return net.apply(params, model_state, image, key=key, train=True)
        logits = jnp.zeros(())
        for pixels, weight in ((0, 0.5), (1, 0.25), (-1, 0.25)):
            offset = jnp.full((len(image), 2), pixels)
            view = augment.shift(image, offset, padding)
            for mirrored in (view, view[:, :, ::-1]):
                logits += weight / 2 * net.apply(params, model_state, mirrored)[0]
        return logits, model_state

    return Net(net.init, apply)


def confusion_picture(
    class_names: Sequence[str], directory: Path, test: Means, state: TrainState
) -> None:
    """Draws the confusion matrix of one run's test metrics."""
    del state
    matrix = np.asarray(test["confusion"].total)
    draw_confusion(matrix, class_names, directory / "confusion.png")


def enlarged(digits: Data, shape: tuple[int, int, int]) -> Data:
    """8x8 digits as images of `shape`: whole-number magnification, centred on black."""
    height, width, channels = shape
    factor = min(height, width) // 8
    image = digits["image"].repeat(factor, 1).repeat(factor, 2).repeat(channels, 3)
    rows, columns = height - 8 * factor, width - 8 * factor
    padding = (
        (0, 0),
        (rows // 2, rows - rows // 2),
        (columns // 2, columns - columns // 2),
        (0, 0),
    )
    return {"image": np.pad(image, padding), "label": digits["label"]}
