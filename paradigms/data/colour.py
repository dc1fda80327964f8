"""Augmentations of colour and tone, by Pillow's definitions, which are torchvision's too.

They are of the same kind as those of `paradigms.data.augment`. Every deterministic function clips
its result to [0, 1] and gives back the image's dtype; uint8 is rounded to nearest, where Pillow
drops the fraction, so the two may differ by one level. What needs red, green and blue (contrast,
saturation, hue, grayscale, jitter) refuses images with another number of channels; the others work
on each channel by itself.

dm-pix supplies the hue. Its other operations are TensorFlow's: brightness is added, contrast is
about each channel's own mean, saturation is scaled in HSV, and the blur darkens the edges.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from paradigms.core.errors import MissingExtraError
from paradigms.data.augment import sometimes
from paradigms.data.images import (
    Augmentation,
    Number,
    as_bytes,
    check_image,
    check_probability,
    check_range,
    from_unit,
    require,
    unit,
)

# ITU-R 601, in the sixteen bits of Pillow's conversion to "L".
_LUMA = np.array([19595, 38470, 7471], np.float32) / 65536


def colour_jitter(
    brightness: Number = 0.4,
    contrast: Number = 0.4,
    saturation: Number = 0.4,
    hue: Number = 0.1,
    probability: Number = 0.8,
) -> Augmentation:
    """Changes brightness, contrast, saturation and hue, in random order, clipping in between.

    Chen et al. 2020 (SimCLR), appendix A: the defaults are their colour distortion of strength 0.5,
    for CIFAR-10; ImageNet has 0.8, 0.8, 0.8 and 0.2. Three factors are uniform over
    `[max(0, 1 - strength), 1 + strength]` and the hue turns by a share of the circle uniform over
    `-hue..hue`, all drawn per image. The order is drawn once per batch: a `lax.switch` then runs
    one operation per place. Under `vmap` over seeds it runs all four at each of the four places,
    some twenty times slower on a CPU; map over seeds instead.

    Args:
      brightness: strength, 0 or more.
      contrast: strength, 0 or more.
      saturation: strength, 0 or more.
      hue: from 0 to 0.5, half of the circle.
      probability: of changing an image at all.
    """
    names = ("brightness", "contrast", "saturation")
    for name, value in zip(names, (brightness, contrast, saturation), strict=True):
        require(value >= 0, f"colour_jitter: {name} is {value}; give 0 or more")
    require((hue >= 0) & (hue <= 0.5), f"colour_jitter: hue is {hue}; give a number from 0 to 0.5")
    check_probability("colour_jitter", probability)

    def jitter(key: jax.Array, image: jax.Array) -> jax.Array:
        check_rgb("colour_jitter", image)
        strength_key, order_key = jax.random.split(key)
        draw = jax.random.uniform(strength_key, (4, len(image)))

        def factor(position: int, strength: Number) -> jax.Array:
            low = jnp.maximum(1 - strength, 0)
            return low + draw[position] * (1 + strength - low)

        operations = (
            lambda x: adjust_brightness(x, factor(0, brightness)),
            lambda x: adjust_contrast(x, factor(1, contrast)),
            lambda x: adjust_saturation(x, factor(2, saturation)),
            lambda x: adjust_hue(x, hue * (2 * draw[3] - 1)),
        )
        order = jax.random.permutation(order_key, 4)
        result = jax.lax.fori_loop(
            0, 4, lambda place, x: jax.lax.switch(order[place], operations, x), unit(image)
        )
        return from_unit(result, image)

    return sometimes(jitter, probability)


def blend(image: jax.Array, other: Number, factor: jax.Array) -> jax.Array:
    """`factor[B]` of each image and `1 - factor` of `other`, on the scale [0, 1].

    Factor 0 gives the other, 1 the image, and above 1 leads away from the other (Haeberli and
    Voorhies 1994, "Image Processing by Interpolation and Extrapolation"; Pillow's `ImageEnhance`).
    """
    factor = factor[:, None, None, None]
    return from_unit(factor * unit(image) + (1 - factor) * other, image)


def adjust_brightness(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Scales every value by `factor[B]`, 0 or more; 0 is black, 1 the image."""
    check_image(image)
    return blend(image, 0.0, factor)


def adjust_contrast(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Scales the distance from the mean luminance by `factor[B]`, 0 or more.

    Pillow rounds the mean to a whole level, which this does not.
    """
    check_rgb("contrast", image)
    return blend(image, luma(image).mean((1, 2, 3), keepdims=True), factor)


def adjust_saturation(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Scales the distance from grey by `factor[B]`, 0 or more; 0 is grayscale, 1 the image."""
    check_rgb("saturation", image)
    return blend(image, luma(image), factor)


def adjust_sharpness(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Scales the distance from the smoothed image by `factor[B]`, 0 or more; 0 is `smooth`."""
    check_image(image)
    return blend(image, smooth(image), factor)


def adjust_hue(image: jax.Array, turn: jax.Array) -> jax.Array:
    """Turns each image's hue by `turn[B]` of the circle, in float32.

    Pillow's HSV holds the hue in 256 levels, so what torchvision does to bytes is coarser.
    """
    check_rgb("hue", image)
    turned = _dm_pix().adjust_hue(unit(image), turn[:, None, None])
    return from_unit(turned, image)


def grayscale(probability: Number = 0.2) -> Augmentation:
    """Replaces colour by luminance with the given probability (Chen et al. 2020, appendix A)."""
    check_probability("grayscale", probability)
    return sometimes(lambda key, image: to_grayscale(image), probability)


def to_grayscale(image: jax.Array) -> jax.Array:
    """The luminance of each pixel (ITU-R 601) in all three channels."""
    check_rgb("grayscale", image)
    return from_unit(jnp.broadcast_to(luma(image), image.shape), image)


def luma(image: jax.Array) -> jax.Array:
    """`[B, H, W, 1]` float32 in [0, 1], the luminance of each pixel (ITU-R 601)."""
    return jnp.einsum("bhwc,c->bhw", unit(image), _LUMA, precision="highest")[..., None]


def smooth(image: jax.Array) -> jax.Array:
    """Float32 in [0, 1]: 3 x 3 means that weigh the middle five times; the border stays.

    Pillow's `ImageFilter.SMOOTH`, from which sharpness is measured.
    """
    values = unit(image)
    rows = values[:, :-2] + values[:, 1:-1] + values[:, 2:]
    box = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]
    inner = values[:, 1:-1, 1:-1]
    return values.at[:, 1:-1, 1:-1].set((box + 4 * inner) / 13)


def gaussian_blur(
    sigma: tuple[Number, Number] = (0.1, 2.0), probability: Number = 0.5, size: int | None = None
) -> Augmentation:
    """Blurs with the given probability (Chen et al. 2020, appendix A).

    Args:
      sigma: least and greatest standard deviation in pixels, above 0; uniform in between.
      probability: of blurring an image at all.
      size: see `blur`.
    """
    low, high = sigma
    check_range("gaussian_blur", "sigma", low, high)
    check_probability("gaussian_blur", probability)

    def apply(key: jax.Array, image: jax.Array) -> jax.Array:
        check_image(image)
        return blur(image, jax.random.uniform(key, (len(image),), minval=low, maxval=high), size)

    return sometimes(apply, probability)


def blur(image: jax.Array, sigma: jax.Array, size: int | None = None) -> jax.Array:
    """Gaussian blur over an image mirrored at its edges, rows and columns one after the other.

    Args:
      image: `[B, H, W, C]`.
      sigma: float `[B]`, pixels, above 0.
      size: odd width of the kernel in pixels; by default a tenth of the smaller side, made odd,
        and no less than 3. It cuts off what a wide sigma would reach, as in the paper.

    Raises:
      InputError: a size that is not odd, or reaches further than a mirror image does.
    """
    check_image(image)
    side = min(image.shape[1:3])
    size = max(3, side // 10 | 1) if size is None else size
    reach = size // 2
    require(
        size % 2 == 1 and 0 <= reach < side,
        f"blur: size is {size} for an image of {image.shape[1]} x {image.shape[2]}; "
        f"give an odd number of pixels from 1 to {2 * side - 1}",
    )
    offsets = jnp.arange(-reach, reach + 1)
    kernel = jnp.exp(-((offsets / sigma[:, None]) ** 2) / 2)
    kernel = (kernel / kernel.sum(1, keepdims=True))[:, :, None, None, None]
    values = unit(image)
    # A sum of shifted images: a kernel per image as a convolution is slow on every backend.
    for axis in (1, 2):
        margin = [(0, 0)] * 4
        margin[axis] = (reach, reach)
        padded, length = jnp.pad(values, margin, mode="reflect"), values.shape[axis]
        values = sum(
            (
                kernel[:, place] * jax.lax.slice_in_dim(padded, place, place + length, axis=axis)
                for place in range(size)
            ),
            start=jnp.zeros_like(values),
        )
    return from_unit(values, image)


def solarise(threshold: Number = 0.5, probability: Number = 0.2) -> Augmentation:
    """Inverts what is bright, with the given probability (Grill et al. 2020 (BYOL), appendix B).

    Args:
      threshold: from 0 (inverts all) to 1 (inverts nothing); see `solarise_from`.
      probability: of changing an image at all.
    """
    require(
        (threshold >= 0) & (threshold <= 1),
        f"solarise: threshold is {threshold}; give a number from 0 to 1",
    )
    check_probability("solarise", probability)
    return sometimes(
        lambda key, image: solarise_from(image, jnp.full(len(image), threshold)), probability
    )


def solarise_from(image: jax.Array, threshold: jax.Array) -> jax.Array:
    """Inverts the values from `threshold[B]` on, a share of the 256 levels.

    So 0.5 inverts 128 and above as Pillow's default does, 0 inverts all, and 1 nothing, not even
    white. Float images are compared on the same scale, `255 * value >= 256 * threshold`.
    """
    check_image(image)
    most = 255 if image.dtype == jnp.uint8 else 1
    bright = image * (255.0 / most) >= 256 * threshold[:, None, None, None]
    return jnp.where(bright, jnp.asarray(most, image.dtype) - image, image)


def posterise(image: jax.Array, bits: jax.Array) -> jax.Array:
    """Keeps the highest `bits[B]` (int, 0 to 8) of the eight of each value.

    A float image is rounded to the 256 levels first.
    """
    check_image(image)
    low = (8 - bits)[:, None, None, None]
    kept = (as_bytes(image).astype(jnp.int32) >> low) << low
    return _as(kept.astype(jnp.uint8), image)


def autocontrast(image: jax.Array) -> jax.Array:
    """Stretches each channel so that its darkest value becomes 0 and its brightest 255.

    A float image is rounded to the 256 levels first. A channel of one value stays as it is.
    """
    check_image(image)
    return look_up(image, autocontrast_table(image))


def autocontrast_table(image: jax.Array) -> jax.Array:
    """Uint8 `[B, 256, C]`, what `autocontrast` puts in place of each level; for `look_up`."""
    data = as_bytes(image).astype(jnp.float32)
    low, high = data.min((1, 2))[:, None], data.max((1, 2))[:, None]
    levels = jnp.arange(256.0)[:, None]
    stretched = jnp.clip((levels - low) * 255 / jnp.maximum(high - low, 1), 0, 255)
    return jnp.round(jnp.where(high > low, stretched, levels)).astype(jnp.uint8)


def equalise(image: jax.Array) -> jax.Array:
    """Equalises the histogram of each channel, in Pillow's whole numbers.

    A float image is rounded to the 256 levels first. With fewer than 255 pixels below the brightest
    value a channel stays as it is: so does every image of 8 x 8.
    """
    check_image(image)
    return look_up(image, equalise_table(image))


def equalise_table(image: jax.Array) -> jax.Array:
    """Uint8 `[B, 256, C]`, what `equalise` puts in place of each level; for `look_up`."""
    batch, height, width, channels = image.shape
    data = as_bytes(image).reshape(batch, height * width, channels).astype(jnp.int32)
    step = (data < data.max(1, keepdims=True)).sum(1, keepdims=True) // 255

    def count(values: jax.Array) -> jax.Array:
        return jnp.zeros(256, jnp.int32).at[values].add(1, mode="promise_in_bounds")

    counts = jax.vmap(jax.vmap(count, 1, 1))(data)
    below = jnp.cumsum(counts, 1) - counts
    levels = jnp.arange(256)[:, None]
    spread = jnp.minimum((step // 2 + below) // jnp.maximum(step, 1), 255)
    return jnp.where(step > 0, spread, levels).astype(jnp.uint8)


def look_up(image: jax.Array, table: jax.Array) -> jax.Array:
    """Puts `table[B, 256, C]` in place of each level; floats are rounded to the 256 levels."""
    batch, height, width, channels = image.shape
    levels = as_bytes(image).reshape(batch, height * width, channels).astype(jnp.int32)
    values = jax.vmap(jax.vmap(lambda entries, level: entries[level], 1, 1))(table, levels)
    return _as(values.reshape(image.shape), image)


def check_rgb(name: str, image: jax.Array) -> None:
    """Raises `InputError` unless the image has three channels."""
    check_image(image)
    require(
        image.shape[-1] == 3,
        f"{name}: the image has {image.shape[-1]} channel(s); give red, green and blue",
    )


def _as(levels: jax.Array, image: jax.Array) -> jax.Array:
    return levels if image.dtype == jnp.uint8 else unit(levels)


def _dm_pix() -> Any:
    try:
        import dm_pix
    except ImportError as error:
        raise MissingExtraError("dm-pix", "augment", "adjusting the hue") from error
    return dm_pix
