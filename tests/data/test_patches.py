"""Patches and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paradigms.core.errors import InputError
from paradigms.data.patches import patchify, unpatchify


def test_four_patches_by_hand():
    image = np.arange(16, dtype=np.uint8).reshape(1, 4, 4, 1)
    patches = [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    np.testing.assert_array_equal(patchify(image, 2), [patches])


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize(("grid", "size", "channels"), [((2, 3), 4, 3), ((5, 1), 2, 1)])
def test_there_and_back_is_exact(dtype, grid, size, channels):
    shape = (2, grid[0] * size, grid[1] * size, channels)
    image = jnp.asarray(np.random.default_rng(0).integers(0, 256, shape), dtype)
    patches = jax.jit(patchify, static_argnums=1)(image, size)
    assert patches.shape == (2, grid[0] * grid[1], size * size * channels)
    assert patches.dtype == dtype
    for n, (row, column) in enumerate(np.ndindex(*grid)):
        own = image[:, row * size : (row + 1) * size, column * size : (column + 1) * size]
        np.testing.assert_array_equal(patches[:, n], own.reshape(2, -1))
    back = jax.jit(unpatchify, static_argnums=(1, 2))(patches, size, grid)
    assert back.dtype == dtype
    np.testing.assert_array_equal(back, image)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: patchify(np.zeros((4, 4, 1)), 2), r"shape \(4, 4, 1\): expected \[B, H, W, C\]"),
        (
            lambda: patchify(np.zeros((1, 4, 6, 1)), 4),
            "images of 4x6 cannot be cut into patches of 4x4: choose a patch_size that divides",
        ),
        (lambda: patchify(np.zeros((1, 6, 4, 1)), 4), "images of 6x4 cannot be cut"),
        (lambda: patchify(np.zeros((1, 4, 4, 1)), 0), "patches of 0x0"),
        (
            lambda: unpatchify(np.zeros((1, 4, 12)), 2, (2, 3)),
            r"patches of shape \(1, 4, 12\): expected \[B, 6, 2 \* 2 \* C\] for a grid of 2x3",
        ),
        (lambda: unpatchify(np.zeros((1, 6, 10)), 2, (2, 3)), r"shape \(1, 6, 10\)"),
        (lambda: unpatchify(np.zeros((6, 12)), 2, (2, 3)), r"shape \(6, 12\)"),
        (lambda: unpatchify(np.zeros((1, 6, 12)), 0, (2, 3)), r"shape \(1, 6, 12\)"),
    ],
)
def test_what_does_not_fit_is_named_in_one_line(make, message):
    with pytest.raises(InputError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
