"""Gaussian mixtures in the plane, whose modes are known: where a generator's collapse shows."""

import numpy as np

from paradigms.core.errors import InputError
from paradigms.data.cache import Data


def ring_centres(modes: int = 8, radius: float = 2.0) -> np.ndarray:
    """Centres evenly on a circle, float32 `[modes, 2]`, counter-clockwise from `(radius, 0)`.

    All are different; in much public code the last falls on the first, which leaves one fewer.
    """
    if modes < 1 or not radius > 0:
        raise InputError(
            f"ring_centres(modes={modes}, radius={radius}): expected at least 1 mode and a "
            "positive radius"
        )
    angle = 2 * np.pi * np.arange(modes) / modes
    return (radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)).astype(np.float32)


def grid_centres(side: int = 5, spacing: float = 2.0) -> np.ndarray:
    """Centres on a square around the origin, float32 `[side^2, 2]`, row by row from below."""
    if side < 1 or not spacing > 0:
        raise InputError(
            f"grid_centres(side={side}, spacing={spacing}): expected a side of at least 1 and a "
            "positive spacing"
        )
    line = spacing * (np.arange(side) - (side - 1) / 2)
    y, x = np.meshgrid(line, line, indexing="ij")
    return np.stack([x.ravel(), y.ravel()], axis=1).astype(np.float32)


def gaussian_ring(
    n: int, modes: int = 8, *, radius: float = 2.0, std: float = 0.02, seed: int = 0
) -> Data:
    """Points of Gaussians of equal weight on a circle.

    The defaults are those of Metz et al. 2017 (unrolled GANs, arXiv:1611.02163, section 3.1).
    Srivastava et al. 2017 (VEEGAN, arXiv:1705.07761) have radius 1 and std .01 in their code, the
    same at half the size.

    Args:
      n: number of points.
      modes: number of Gaussians.
      radius: of the circle.
      std: of a Gaussian along each axis.
      seed: of numpy's generator.

    Returns:
      `{"x": float32 [n, 2], "label": int32 [n]}`; a label is the row of its mode in
      `ring_centres(modes, radius)`.

    Raises:
      InputError: a number outside its range.
    """
    return _mixture(ring_centres(modes, radius), n, std, seed)


def gaussian_grid(
    n: int, side: int = 5, *, spacing: float = 2.0, std: float = 0.05, seed: int = 0
) -> Data:
    """Points of `side * side` Gaussians of equal weight on a square grid.

    The defaults are those of Srivastava et al. 2017 (VEEGAN, arXiv:1705.07761): 25 modes on
    {-4, -2, 0, 2, 4}^2 with std .05.

    Args:
      n: number of points.
      side: Gaussians along each axis.
      spacing: between neighbouring centres.
      std: of a Gaussian along each axis.
      seed: of numpy's generator.

    Returns:
      `{"x": float32 [n, 2], "label": int32 [n]}`; a label is the row of its mode in
      `grid_centres(side, spacing)`.

    Raises:
      InputError: a number outside its range.
    """
    return _mixture(grid_centres(side, spacing), n, std, seed)


def _mixture(centres: np.ndarray, n: int, std: float, seed: int) -> Data:
    if n < 1 or not std > 0:
        raise InputError(
            f"a mixture of n={n} points with std={std}: expected at least 1 point and a positive "
            "std"
        )
    rng = np.random.default_rng(seed)
    label = rng.integers(len(centres), size=n, dtype=np.int32)
    noise = rng.normal(scale=std, size=(n, 2))
    return {"x": (centres[label] + noise).astype(np.float32), "label": label}
