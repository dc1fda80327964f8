"""Augmentations that move pixels to places between pixels: rotation, zoom and resized crops.

They are of the same kind as those of `paradigms.data.augment`, where moves by whole pixels are.
All take any number of channels. `warp` is the one resampling by an affine map; a crop that shrinks
needs antialiasing, which a warp has not, and is two small matrix products instead.
"""

import jax
import jax.numpy as jnp

from paradigms.data.images import (
    Augmentation,
    Fill,
    Number,
    check_image,
    check_range,
    fill_colour,
    require,
)


def warp(
    image: jax.Array, matrix: jax.Array, *, fill: Fill = 0.0, nearest: bool = False
) -> jax.Array:
    """Moves pixels by an affine map about the image's centre.

    The pixel of the result that lies `(down, right)` of the centre is read from
    `matrix @ (down, right, 1)`, relative to the centre too, in pixels: so `matrix` is the inverse
    of the move.

    Args:
      image: `[B, H, W, C]`.
      matrix: float `[B, 2, 3]`.
      fill: what the image is outside its frame, one value or one per channel, on the scale of a
        float image.
      nearest: take the nearest pixel, as Pillow's transforms do by default; else interpolate
        between four, and round to nearest for uint8.
    """
    check_image(image)
    _, height, width, _ = image.shape
    colour = fill_colour(fill, image)
    down = jnp.arange(height, dtype=jnp.float32)[:, None] - (height - 1) / 2
    right = jnp.arange(width, dtype=jnp.float32)[None, :] - (width - 1) / 2
    row_map, column_map = jnp.moveaxis(matrix, 0, -1)[..., None, None]
    rows = row_map[0] * down + row_map[1] * right + row_map[2] + (height - 1) / 2
    columns = column_map[0] * down + column_map[1] * right + column_map[2] + (width - 1) / 2

    def read(row: jax.Array, column: jax.Array) -> jax.Array:
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        pixel = jax.vmap(lambda source, r, c: source[r, c])(
            image,
            jnp.clip(row, 0, height - 1).astype(jnp.int32),
            jnp.clip(column, 0, width - 1).astype(jnp.int32),
        )
        return jnp.where(inside[..., None], pixel, colour)

    if nearest:
        return read(jnp.floor(rows + 0.5), jnp.floor(columns + 0.5))
    top, left = jnp.floor(rows), jnp.floor(columns)
    total = jnp.zeros(image.shape, jnp.float32)
    for row, row_weight in ((top, top + 1 - rows), (top + 1, rows - top)):
        for column, column_weight in ((left, left + 1 - columns), (left + 1, columns - left)):
            total += (row_weight * column_weight)[..., None] * read(row, column)
    return _rounded(total, image)


def rotate(max_degrees: Number, fill: Fill = 0.0) -> Augmentation:
    """Rotates about the centre by an angle uniform over `-max_degrees..max_degrees`.

    Args:
      max_degrees: from 0 to 180.
      fill: what enters; see `warp`.
    """
    require(
        (max_degrees >= 0) & (max_degrees <= 180),
        f"rotate: max_degrees is {max_degrees}; give a number from 0 to 180",
    )

    def apply(key: jax.Array, image: jax.Array) -> jax.Array:
        check_image(image)
        bound = jnp.deg2rad(max_degrees)
        angle = jax.random.uniform(key, (len(image),), minval=-bound, maxval=bound)
        return rotate_by(image, angle, fill)

    return apply


def rotate_by(image: jax.Array, angle: jax.Array, fill: Fill = 0.0) -> jax.Array:
    """Rotates each image counter-clockwise about its centre.

    Bilinear interpolation over an image that is `fill` outside its frame; uint8 is rounded to
    nearest.

    Args:
      image: `[B, H, W, C]`.
      angle: float `[B]`, radians.
      fill: see `warp`.
    """
    cos, sin, zero = jnp.cos(angle), jnp.sin(angle), jnp.zeros_like(angle)
    # Where each pixel of the result comes from: the position turned back by the angle.
    return warp(image, _matrices((cos, sin, zero), (-sin, cos, zero)), fill=fill)


def zoom(scale: tuple[Number, Number] = (0.9, 1.1), fill: Fill = 0.0) -> Augmentation:
    """Magnifies about the centre by a factor uniform over `scale`; suits digits.

    Args:
      scale: least and greatest factor, above 0; 1 keeps the size.
      fill: what enters where the factor is below 1; see `warp`.
    """
    low, high = scale
    check_range("zoom", "scale", low, high)

    def apply(key: jax.Array, image: jax.Array) -> jax.Array:
        check_image(image)
        factor = jax.random.uniform(key, (len(image),), minval=low, maxval=high)
        return zoom_by(image, factor, fill)

    return apply


def zoom_by(image: jax.Array, factor: jax.Array, fill: Fill = 0.0) -> jax.Array:
    """Magnifies each image about its centre by `factor[B]`, above 0, by bilinear interpolation."""
    zero = jnp.zeros_like(factor)
    return warp(image, _matrices((1 / factor, zero, zero), (zero, 1 / factor, zero)), fill=fill)


def random_resized_crop(
    scale: tuple[Number, Number] = (0.08, 1.0),
    ratio: tuple[Number, Number] = (3 / 4, 4 / 3),
    size: int | tuple[int, int] | None = None,
) -> Augmentation:
    """Cuts out a box of random area and shape, and resizes it (Szegedy et al. 2015, section 6).

    The box's share of the image's area is uniform over `scale`, and the logarithm of width by
    height uniform over those ratios in `ratio` at which a box of this area fits. So no box is drawn
    again: torchvision draws area and ratio anew up to ten times, then cuts from the centre, which
    favours small areas slightly. Where no ratio of the range fits (a long image and a large area)
    the box has the nearest ratio and is shrunk until it fits. Its place is uniform over all places
    inside the image. Box and place are real numbers; see `crop_resize`.

    Args:
      scale: least and greatest share of the area, above 0 and at most 1.
      ratio: least and greatest width by height, above 0.
      size: pixels of the result, one number or (height, width); by default the image's own.

    Returns:
      An augmentation, which keeps the shape unless `size` says otherwise.
    """
    check_range("random_resized_crop", "scale", *scale)
    require(
        scale[1] <= 1,
        f"random_resized_crop: scale is {scale}, and a crop cannot exceed the image; "
        "give shares of its area up to 1",
    )
    check_range("random_resized_crop", "ratio", *ratio)

    def apply(key: jax.Array, image: jax.Array) -> jax.Array:
        check_image(image)
        batch, height, width, _ = image.shape
        draw = jax.random.uniform(key, (4, batch))
        area = height * width * (scale[0] + draw[0] * (scale[1] - scale[0]))
        # A box of this area is no taller than the image from `low` on, and no wider up to `high`.
        bounds = jnp.log(ratio[0]), jnp.log(ratio[1])
        low = jnp.clip(jnp.log(area / height**2), *bounds)
        high = jnp.clip(jnp.log(width**2 / area), *bounds)
        root = jnp.exp((low + draw[1] * (high - low)) / 2)
        sides = jnp.sqrt(area) * jnp.stack([1 / root, root])
        frame = jnp.array([height, width], jnp.float32)[:, None]
        sides *= jnp.minimum(1, (frame / sides).min(0))
        start = draw[2:] * (frame - sides)
        return crop_resize(image, jnp.concatenate([start, sides]).T, size)

    return apply


def crop_resize(
    image: jax.Array, box: jax.Array, size: int | tuple[int, int] | None = None
) -> jax.Array:
    """Resizes a box of each image, by bilinear interpolation with antialiasing.

    As Pillow's `resize(size, BILINEAR, box)` does, it reads pixels beside the box where the filter
    reaches over the box's edge, and none beyond the image's edge.

    Args:
      image: `[B, H, W, C]`.
      box: float `[B, 4]`: top, left, height and width in pixels; (0, 0, H, W) is the whole image.
      size: pixels of the result, one number or (height, width); by default the image's own.

    Returns:
      `[B, *size, C]` in the image's dtype; uint8 is rounded to nearest.

    Raises:
      InputError: a size below 1 or, outside jit, a box that is empty or exceeds the image.
    """
    check_image(image)
    _, height, width, channels = image.shape
    rows, columns = (size, size) if isinstance(size, int) else size or (height, width)
    require(min(rows, columns) >= 1, f"crop_resize: size is {size}; give 1 or more pixels")
    start, sides = box[:, :2], box[:, 2:]
    frame = jnp.array([height, width])
    # A thousandth of a pixel is for the rounding of start + sides.
    require(
        ((start >= 0) & (sides > 0) & (start + sides <= frame + 1e-3)).all(),
        f"crop_resize: a box is empty or exceeds the image of {height} x {width}; "
        "give (top, left, height, width) inside it",
    )

    def resize(source: jax.Array, start: jax.Array, sides: jax.Array) -> jax.Array:
        scale = jnp.array([rows, columns]) / sides
        return jax.image.scale_and_translate(
            source, (rows, columns, channels), (0, 1), scale, -start * scale, "linear"
        )

    return _rounded(jax.vmap(resize)(image.astype(jnp.float32), start, sides), image)


def _matrices(row_map: tuple[jax.Array, ...], column_map: tuple[jax.Array, ...]) -> jax.Array:
    return jnp.stack([jnp.stack(row_map, -1), jnp.stack(column_map, -1)], -2)


def _rounded(values: jax.Array, image: jax.Array) -> jax.Array:
    return jnp.round(values).astype(image.dtype) if image.dtype == jnp.uint8 else values
