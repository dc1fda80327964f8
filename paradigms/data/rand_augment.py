"""RandAugment in the form that FixMatch uses."""

import jax
import jax.numpy as jnp

from paradigms.data import colour
from paradigms.data.geometry import warp
from paradigms.data.images import Augmentation, Fill, Number, as_bytes, require, unit

# Sohn et al. 2020 (FixMatch), table 12; `transform` takes positions in this list.
OPERATIONS = (
    "autocontrast",
    "brightness",
    "colour",
    "contrast",
    "equalise",
    "identity",
    "posterise",
    "rotate",
    "sharpness",
    "shear_x",
    "shear_y",
    "solarise",
    "translate_x",
    "translate_y",
)


def rand_augment(n: int = 2, magnitude: Number | None = None, fill: Fill = 0.5) -> Augmentation:
    """`n` random operations one after the other (Cubuk et al. 2020, arXiv:1909.13719).

    The list and the ranges are FixMatch's (Sohn et al. 2020, arXiv:2001.07685, table 12; see
    `transform`). Operations and magnitudes are drawn per image, with replacement, as in both
    papers. Yet a round is not all 14 of them: the five moves are one warp, brightness, colour,
    contrast and sharpness one blend, and the other tones one table of 256 levels. `vmap` over seeds
    adds no work, where a `lax.switch` per batch would run every branch. FixMatch adds a cutout:
    `compose(flip(), pad_crop(4), rand_augment(), cutout(16))`.

    Args:
      n: how many operations, 1 or more.
      magnitude: by default drawn per image and operation, uniform over the operation's range; a
        number from 0 to 1 is the place in every range, from its weakest to its strongest end, with
        the direction of a move still drawn. It may be traced.
      fill: what enters where pixels move, one value or one per channel; grey by default.

    Returns:
      An augmentation of images with three channels. It works on 256 levels, as Pillow does: a float
      image comes back on multiples of 1/255.
    """
    require(n >= 1, f"rand_augment: n is {n}; give 1 or more operations")
    if magnitude is not None:
        require(
            (magnitude >= 0) & (magnitude <= 1),
            f"rand_augment: magnitude is {magnitude}; give a number from 0 to 1, or None",
        )

    def apply(key: jax.Array, image: jax.Array) -> jax.Array:
        colour.check_rgb("rand_augment", image)
        result = as_bytes(image)
        shape = (n, len(image))
        operation_key, magnitude_key = jax.random.split(key)
        operation = jax.random.randint(operation_key, shape, 0, len(OPERATIONS))
        # The sign is the direction; both ends of a range are equally likely.
        signed = jax.random.uniform(magnitude_key, shape, minval=-1.0)
        if magnitude is not None:
            signed = jnp.where(signed < 0, -magnitude, magnitude)
        # A loop, since rounds in one piece are fused, and the earlier is run for every reader.
        result, _ = jax.lax.scan(
            lambda x, drawn: (transform(x, *drawn, fill), None), result, (operation, signed)
        )
        return result if image.dtype == jnp.uint8 else unit(result)

    return apply


def transform(
    image: jax.Array, operation: jax.Array, magnitude: jax.Array, fill: Fill = 0.5
) -> jax.Array:
    """Applies to each image one of `OPERATIONS`.

    The size `m` of the magnitude leads from the weakest to the strongest end of the range:
    brightness, colour, contrast and sharpness scale by `0.95 - 0.9 m`, posterise keeps 8 to 4 bits,
    solarise inverts from the share `1 - m` of the levels on. Its sign gives the direction of a
    move: rotate turns by `30 m` degrees, counter-clockwise if positive, a shear reads `0.3 m`
    pixels further per pixel from the top or left edge, and a translation reads `0.3 m` of the side
    further to the right or down (Pillow's signs). Moves take the nearest pixel, as Pillow does.

    Args:
      image: uint8 `[B, H, W, 3]`.
      operation: int `[B]`, positions in `OPERATIONS`.
      magnitude: float `[B]`, from -1 to 1.
      fill: what enters where pixels move.

    Returns:
      uint8 `[B, H, W, 3]`.
    """
    _, height, width, _ = image.shape
    size = jnp.abs(magnitude)

    def chosen(*names: str) -> jax.Array:
        return jnp.isin(operation, jnp.array([OPERATIONS.index(name) for name in names]))

    def amount(name: str, strongest: float) -> jax.Array:
        return jnp.where(chosen(name), strongest * magnitude, 0.0)

    def pick(choices: dict[str, jax.Array], default: jax.Array) -> jax.Array:
        flags = [chosen(name).reshape(-1, *[1] * (default.ndim - 1)) for name in choices]
        return jnp.select(flags, list(choices.values()), default)

    grey = colour.luma(image)
    others = {
        "contrast": grey.mean((1, 2, 3), keepdims=True),
        "colour": grey,
        "sharpness": colour.smooth(image),
    }
    factor = jnp.where(chosen("brightness", *others), 0.95 - 0.9 * size, 1.0)
    blended = colour.blend(image, pick(others, jnp.zeros((1, 1, 1, 1))), factor)

    levels = jnp.broadcast_to(
        jnp.arange(256, dtype=jnp.uint8)[:, None, None], (len(image), 256, 1, 3)
    )
    # Where an image takes one of these it was not blended, so they are of the image itself.
    tables = {
        "posterise": colour.posterise(levels, 8 - jnp.minimum(jnp.floor(5 * size), 4).astype(int))[
            :, :, 0
        ],
        "solarise": colour.solarise_from(levels, 1 - size)[:, :, 0],
        "autocontrast": colour.autocontrast_table(image),
        "equalise": colour.equalise_table(image),
    }
    toned = colour.look_up(blended, pick(tables, levels[:, :, 0]))

    angle = amount("rotate", jnp.pi / 6)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    shear_x, shear_y = amount("shear_x", 0.3), amount("shear_y", 0.3)
    # A shear is about the top left corner, not the centre; hence its part in the translation.
    down = amount("translate_y", 0.3 * height) + shear_y * width / 2
    right = amount("translate_x", 0.3 * width) + shear_x * height / 2
    matrix = jnp.array([[cos, sin + shear_y, down], [shear_x - sin, cos, right]])
    return warp(toned, jnp.moveaxis(matrix, -1, 0), fill=fill, nearest=True)
