"""Labels image files with a trained net: an example of what `experiments.load` is for.

python -m experiments.predict runs/supervised/mnist_cnn digit.png another.png
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import jax
import numpy as np
import tyro

from experiments import load
from paradigms.core.errors import InputError


@dataclass(frozen=True)
class Config:
    """Options of the prediction."""

    run_dir: Annotated[Path, tyro.conf.Positional]
    """A finished run of an image classifier."""
    images: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Image files, of any size; they are scaled to what the net was trained on."""
    run: int = 0
    """Which of the run's seeds to use, counted from 0."""


def read_image(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """One file as uint8 of `shape` `[H, W, C]`, bright on dark as in the training data.

    Raises:
      InputError: the file cannot be read as an image.
    """
    from PIL import Image, UnidentifiedImageError

    height, width, channels = shape
    try:
        with Image.open(path) as image:
            scaled = image.convert("L" if channels == 1 else "RGB").resize((width, height))
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise InputError(f"{path} cannot be read as an image: {error}") from error
    return np.asarray(scaled, np.uint8).reshape(shape)


def main(config: Config) -> None:
    """Prints the three most probable classes of each file."""
    if not config.images:
        raise InputError("no image files were given: name some after the run directory")
    trained = load(config.run_dir)
    shape = trained.example.shape[1:]
    if len(shape) != 3:
        raise InputError(f"{config.run_dir} is not an image classifier: its inputs are {shape}")
    batch = np.stack([read_image(path, shape) for path in config.images])
    probabilities = np.asarray(jax.nn.softmax(trained(batch, config.run)))
    for path, values in zip(config.images, probabilities, strict=True):
        best = np.argsort(-values)[:3]
        print(f"{path}: " + ", ".join(f"class {i} {values[i]:.1%}" for i in best))


if __name__ == "__main__":
    try:
        main(tyro.cli(Config, description=__doc__))
    except InputError as error:
        sys.exit(f"error: {error}")
