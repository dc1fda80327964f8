"""Examples with labels to learn from, without a data set: noisy copies of one pattern a class."""

import math

import numpy as np


def patterns(
    shape: tuple[int, ...], examples: int, contrast: float, classes: int = 10
) -> dict[str, np.ndarray]:
    """Arrays of examples whose values have mean 0 and variance 1, the same ones at every call.

    Args:
      shape: of one example.
      examples: how many.
      contrast: standard deviation of the patterns, below 1; the rest is noise. The smaller it is,
        the longer it takes to learn.
      classes: how many; each is as likely.

    Returns:
      `x` float32 `[examples, *shape]` and `label` int32 `[examples]`.
    """
    generator = np.random.default_rng(0)
    label = generator.integers(0, classes, examples, np.int32)
    pattern = generator.normal(size=(classes, *shape)).astype(np.float32)
    noise = generator.normal(size=(examples, *shape)).astype(np.float32)
    return {"x": contrast * pattern[label] + math.sqrt(1 - contrast**2) * noise, "label": label}


def pictures(shape: tuple[int, ...], examples: int, contrast: float) -> dict[str, np.ndarray]:
    """The same as `image` uint8 `[examples, *shape]`, around 128, with `label`."""
    arrays = patterns(shape, examples, contrast)
    image = np.clip(128 + 48 * arrays["x"], 0, 255).astype(np.uint8)
    return {"image": image, "label": arrays["label"]}
