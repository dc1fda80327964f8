"""Images as patches, and back."""

import jax

from paradigms.core.errors import InputError


def patchify(image: jax.Array, patch_size: int) -> jax.Array:
    """Cuts images into square patches that do not overlap.

    Args:
      image: `[B, H, W, C]` of any dtype.
      patch_size: side of a patch P, in pixels; divides H and W.

    Returns:
      `[B, N, P * P * C]` of the same dtype, N = (H / P)(W / P). Patches go row by row over the
      image, and within each its pixels row by row, each with its channels.

    Raises:
      InputError: another rank, or patches that do not tile the image.
    """
    if image.ndim != 4:
        raise InputError(f"patchify: an image of shape {image.shape}: expected [B, H, W, C]")
    batch, height, width, channels = image.shape
    if patch_size < 1 or height % patch_size or width % patch_size:
        raise InputError(
            f"patchify: images of {height}x{width} cannot be cut into patches of "
            f"{patch_size}x{patch_size}: choose a patch_size that divides both sides"
        )
    rows, columns = height // patch_size, width // patch_size
    cut = image.reshape(batch, rows, patch_size, columns, patch_size, channels)
    return cut.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows * columns, -1)


def unpatchify(patches: jax.Array, patch_size: int, grid: tuple[int, int]) -> jax.Array:
    """Puts patches together: the inverse of `patchify`.

    Args:
      patches: `[B, N, P * P * C]` of any dtype.
      patch_size: side of a patch P.
      grid: rows and columns of patches; their product is N.

    Returns:
      `[B, rows * P, columns * P, C]` of the same dtype.

    Raises:
      InputError: patches of another shape.
    """
    rows, columns = grid
    if (
        patches.ndim != 3
        or patches.shape[1] != rows * columns
        or patch_size < 1
        or patches.shape[2] % patch_size**2
    ):
        raise InputError(
            f"unpatchify: patches of shape {patches.shape}: expected [B, {rows * columns}, "
            f"{patch_size} * {patch_size} * C] for a grid of {rows}x{columns}"
        )
    cut = patches.reshape(patches.shape[0], rows, columns, patch_size, patch_size, -1)
    together = cut.transpose(0, 1, 3, 2, 4, 5)
    return together.reshape(patches.shape[0], rows * patch_size, columns * patch_size, -1)
