"""What every augmentation shares: its type, its checks, and the two scales of an image."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from paradigms.core.errors import InputError

Augmentation = Callable[[jax.Array, jax.Array], jax.Array]
Number = float | jax.Array
# A number of the caller's, or one per channel.
Fill = float | Sequence[float]


def require(holds: bool | jax.Array, message: str) -> None:
    """Raises `InputError` with the message unless the condition holds or is traced."""
    if not isinstance(holds, jax.core.Tracer) and not holds:
        raise InputError(message)


def check_image(image: jax.Array) -> None:
    """Raises `InputError` unless it is `[B, H, W, C]`, uint8 or float32."""
    require(
        image.ndim == 4 and image.dtype in (jnp.uint8, jnp.float32),
        f"image is {image.dtype}{list(image.shape)}; "
        "augmentation takes uint8 or float32 of shape [B, H, W, C]",
    )


def check_probability(name: str, probability: Number) -> None:
    """Raises `InputError` unless it is from 0 to 1."""
    require(
        (probability >= 0) & (probability <= 1),
        f"{name}: probability is {probability}; give a number from 0 to 1",
    )


def check_range(name: str, argument: str, low: Number, high: Number) -> None:
    """Raises `InputError` unless `0 < low <= high`."""
    require(
        (low > 0) & (low <= high),
        f"{name}: {argument} is ({low}, {high}); give two numbers above 0, the smaller one first",
    )


def unit(image: jax.Array) -> jax.Array:
    """The image as float32 in [0, 1]."""
    return image.astype(jnp.float32) / (255 if image.dtype == jnp.uint8 else 1)


def from_unit(values: jax.Array, image: jax.Array) -> jax.Array:
    """Values on the scale [0, 1], clipped to it, as `image`'s dtype; uint8 is rounded."""
    values = jnp.clip(values, 0, 1)
    return as_bytes(values) if image.dtype == jnp.uint8 else values


def as_bytes(image: jax.Array) -> jax.Array:
    """The image as uint8; float32 in [0, 1] is rounded to the nearest of 256 levels."""
    return image if image.dtype == jnp.uint8 else jnp.round(255 * image).astype(jnp.uint8)


def fill_colour(fill: Fill, image: jax.Array) -> jax.Array:
    """`fill`, on the scale of a float image, as `image` holds it: `[]`, `[1]` or `[C]`.

    Raises:
      InputError: another number of values than channels, or a fill of uint8 outside [0, 1].
    """
    colour, channels = np.asarray(fill, np.float32), image.shape[-1]
    require(
        colour.shape in ((), (1,), (channels,)),
        f"fill has shape {colour.shape}; give one number or {channels}, one per channel",
    )
    if image.dtype == jnp.uint8:
        require(
            bool(((colour >= 0) & (colour <= 1)).all()),
            f"fill of a uint8 image is {fill}; give numbers from 0 to 1",
        )
        colour = np.round(255 * colour)
    return jnp.asarray(colour, image.dtype)
