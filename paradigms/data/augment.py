"""Image augmentation inside jit: pure functions of a key and a batch.

An `Augmentation` is `(key, image) -> image` with the same shape and dtype. Images are
`[B, H, W, C]`, either uint8 in 0..255 or float32 in [0, 1]. Every image of the batch gets its own
draw, all of them from one random call on the batch's key, so that the result depends neither on
the number of devices nor on their order. Moving pixels (crop, flip, translate, cutout) never
leaves uint8.

Each random operation is a constructor that reads like its paper, on top of a deterministic function
that takes the drawn numbers: `flip()` on `flip_where`, `translate(4)` on `shift`, `rotate(15)` on
`rotate_by`, `cutout(8)` on `erase`. Label-mixing operations are of another type, for they return
new labels as well. More operations are in `paradigms.data.geometry` (moves between pixels, resized
crops), `paradigms.data.colour` and `paradigms.data.rand_augment`.

A constructor raises `InputError` for arguments that no image can meet; an operation raises it, when
it is traced, for an image that does not fit. Strengths may be traced, as under a sweep.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from paradigms.data.geometry import rotate as rotate
from paradigms.data.geometry import rotate_by as rotate_by
from paradigms.data.images import Augmentation as Augmentation
from paradigms.data.images import (
    Fill,
    Number,
    check_image,
    check_probability,
    fill_colour,
    require,
    unit,
)

LabelMixing = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
Padding = Literal["reflect", "constant"]

# Per-channel mean and standard deviation of the training images in [0, 1]: `normalise(*CIFAR10)`.
MNIST = ((0.1307,), (0.3081,))
FASHION_MNIST = ((0.2860,), (0.3530,))
CIFAR10 = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))


def identity(key: jax.Array, image: jax.Array) -> jax.Array:
    """The augmentation that changes nothing."""
    del key
    check_image(image)
    return image


def compose(*operations: Augmentation) -> Augmentation:
    """Applies `operations` from left to right, each with a key of its own by its position."""

    def apply(key: jax.Array, image: jax.Array) -> jax.Array:
        check_image(image)
        for position, operation in enumerate(operations):
            image = operation(jax.random.fold_in(key, position), image)
        return image

    return apply


def sometimes(operation: Augmentation, probability: Number) -> Augmentation:
    """Applies `operation`, which keeps the shape, to each image with the given probability.

    It runs on the whole batch, and each image takes its result or stays as it is.
    """
    check_probability("sometimes", probability)

    def apply(key: jax.Array, image: jax.Array) -> jax.Array:
        check_image(image)
        flag_key, operation_key = jax.random.split(key)
        flag = jax.random.bernoulli(flag_key, jnp.float32(probability), (len(image),))
        changed = operation(operation_key, image)
        require(
            changed.shape == image.shape and changed.dtype == image.dtype,
            f"sometimes: the operation made {changed.dtype}{list(changed.shape)} of "
            f"{image.dtype}{list(image.shape)}; give one that keeps shape and dtype",
        )
        return jnp.where(flag[:, None, None, None], changed, image)

    return apply


def pad_crop(padding: int, mode: Padding = "reflect") -> Augmentation:
    """Pads every side by `padding` pixels and crops the original size at a random place.

    All `(2 * padding + 1) ** 2` places are equally likely (He et al. 2016, section 4.2, pad with
    zeros: `mode="constant"`; later recipes reflect).

    Args:
      padding: pixels; with `mode="reflect"` less than the image's height and width.
      mode: `"reflect"` mirrors about the edge pixel without repeating it, `"constant"` pads with 0.
    """
    _check_shift("pad_crop", "padding", padding, mode)
    return _random_shift(padding, mode)


def translate(max_shift: int, mode: Padding = "constant") -> Augmentation:
    """Moves by whole pixels, uniform over `-max_shift..max_shift` down and to the right.

    It draws as `pad_crop(max_shift)` does and differs in its default only: what enters is 0, as
    suits digits on an empty ground.

    Args:
      max_shift: pixels; with `mode="reflect"` less than the image's height and width.
      mode: as in `shift`.
    """
    _check_shift("translate", "max_shift", max_shift, mode)
    return _random_shift(max_shift, mode)


def shift(image: jax.Array, offset: jax.Array, mode: Padding = "constant") -> jax.Array:
    """Moves each image down by `offset[:, 0]` and to the right by `offset[:, 1]` pixels.

    Args:
      image: `[B, H, W, C]`.
      offset: `[B, 2]` integers; with `mode="reflect"` smaller in size than H and W.
      mode: what enters, `"reflect"` (mirrored about the edge pixel) or `"constant"` (0).
    """
    check_image(image)
    _, height, width, _ = image.shape
    rows = jnp.arange(height) - offset[:, :1]
    columns = jnp.arange(width) - offset[:, 1:]
    # One gather on the source, with no padded copy, is the fastest form on a CPU (a select per
    # offset or a one-hot matmul is some 50 times slower), and vmap keeps the batch axis of the
    # gather apart, so that a sharded batch stays where it is.
    if mode == "reflect":
        return jax.vmap(_take)(image, _reflect(rows, height), _reflect(columns, width))
    moved = jax.vmap(_take)(image, jnp.clip(rows, 0, height - 1), jnp.clip(columns, 0, width - 1))
    inside_rows = (rows >= 0) & (rows < height)
    inside_columns = (columns >= 0) & (columns < width)
    inside = inside_rows[:, :, None] & inside_columns[:, None, :]
    return jnp.where(inside[..., None], moved, jnp.zeros((), image.dtype))


def flip(probability: Number = 0.5) -> Augmentation:
    """Mirrors left and right with the given probability. Digits and letters do not survive it."""
    check_probability("flip", probability)

    def apply(key: jax.Array, image: jax.Array) -> jax.Array:
        check_image(image)
        return flip_where(image, jax.random.bernoulli(key, probability, (len(image),)))

    return apply


def flip_where(image: jax.Array, flag: jax.Array) -> jax.Array:
    """Mirrors left and right those images of `[B, H, W, C]` whose bool `flag[B]` is set."""
    check_image(image)
    return jnp.where(flag[:, None, None, None], image[:, :, ::-1], image)


def alternating_flags(key: jax.Array, index: jax.Array, epoch: jax.Array) -> jax.Array:
    """Flags for `flip_where` by which each example is seen flipped in every other epoch.

    Half of the examples, drawn once, start flipped (Jordan 2024, "94% on CIFAR-10 in 3.29 Seconds
    on a Single GPU", section 3.6). Two epochs in a row thus show every example both ways, where
    independent flips repeat half of the views.

    Args:
      key: the same in every epoch (a key of the run, not of the step).
      index: int `[B]`, the example's place in the data set.
      epoch: int scalar, from 0.

    Returns:
      bool `[B]`.
    """
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, index)
    start = jax.vmap(jax.random.bernoulli)(keys)
    return start ^ (epoch % 2 == 1)


def cutout(size: int, fill: Fill = 0.5) -> Augmentation:
    """Paints over a square whose centre is uniform over the image (DeVries & Taylor 2017).

    The square covers `size` rows from `centre - size // 2` on and as many columns, and is clipped
    at the edges: on average less than `size ** 2` pixels change.

    Args:
      size: pixels, from 0 to the image's smaller side.
      fill: one value, or one per channel, on the scale of a float image; a uint8 image gets
        `round(255 * fill)`. The paper's fill is the mean of the training set.
    """
    require(size >= 0, f"cutout: size is {size}; give 0 or more pixels")

    def apply(key: jax.Array, image: jax.Array) -> jax.Array:
        check_image(image)
        batch, height, width, _ = image.shape
        require(
            size <= min(height, width),
            f"cutout: size {size} exceeds the image of {height} x {width}; "
            f"give at most {min(height, width)}",
        )
        centre = jax.random.randint(key, (batch, 2), 0, jnp.array([height, width]))
        return erase(image, centre, size, fill)

    return apply


def erase(image: jax.Array, centre: jax.Array, size: int, fill: Fill = 0.5) -> jax.Array:
    """Paints over the square around `centre` (int `[B, 2]`: row, column); see `cutout`."""
    check_image(image)
    colour = fill_colour(fill, image)
    start = centre - size // 2
    inside = _inside(start[:, 0], start[:, 0] + size, start[:, 1], start[:, 1] + size, image)
    return jnp.where(inside, colour, image)


def binarise() -> Augmentation:
    """Each value becomes its maximum (255 or 1.0) with a probability equal to its intensity, or 0.

    Drawn anew at every update this is the dynamic binarisation of MNIST (Salakhutdinov and Murray
    2008; Burda et al. 2016, section 5.1). Drawn once, it makes the held-out images.
    """

    def apply(key: jax.Array, image: jax.Array) -> jax.Array:
        check_image(image)
        bright = jax.random.bernoulli(key, unit(image), image.shape)
        return bright.astype(image.dtype) * (255 if image.dtype == jnp.uint8 else 1)

    return apply


def normalise(mean: Sequence[float], std: Sequence[float]) -> Callable[[jax.Array], jax.Array]:
    """`image -> (image - mean) / std` in float32; uint8 is divided by 255 first.

    It draws nothing and belongs to training and evaluation alike. It comes last, since the result
    is no longer in [0, 1].

    Args:
      mean: per channel, on the scale [0, 1], for instance `normalise(*CIFAR10)`.
      std: per channel, above 0.
    """
    centre, scale = np.asarray(mean, np.float32), np.asarray(std, np.float32)
    require(
        centre.ndim == 1 and centre.shape == scale.shape,
        f"normalise: mean has shape {centre.shape} and std {scale.shape}; "
        "give one number per channel in each",
    )
    require(bool((scale > 0).all()), f"normalise: std is {std}; give numbers above 0")

    def apply(image: jax.Array) -> jax.Array:
        check_image(image)
        require(
            image.shape[-1] == len(centre),
            f"normalise: the image has {image.shape[-1]} channels and mean {len(centre)} values; "
            "give one per channel",
        )
        return (unit(image) - centre) / scale

    return apply


def mixup(alpha: Number) -> LabelMixing:
    """Convex combinations of pairs of examples (Zhang et al. 2018).

    `(key, image, labels) -> (image, labels)`, where `labels` are class probabilities `[B, K]` and
    the image comes back as float32 in [0, 1]. One lambda ~ Beta(alpha, alpha) per batch, and pairs
    by a random permutation of the batch, as in the paper's own code. Metrics belong on clean
    inputs.

    Args:
      alpha: above 0; small values stay near the clean images, 1 draws lambda uniformly.
    """
    _check_alpha("mixup", alpha)

    def apply(key: jax.Array, image: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
        _check_labels("mixup", image, labels)
        share_key, pair_key = jax.random.split(key)
        share = jax.random.beta(share_key, alpha, alpha)
        partner = jax.random.permutation(pair_key, len(image))
        return mix(image, labels, partner, share)

    return apply


def mix(
    image: jax.Array, labels: jax.Array, partner: jax.Array, share: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """`share` of each example plus `1 - share` of its partner, images and labels alike.

    Args:
      image: `[B, H, W, C]`.
      labels: probabilities `[B, K]`.
      partner: int `[B]`, a permutation of the batch.
      share: float scalar in [0, 1], the lambda of mixup; 1 leaves the batch clean.
    """
    image = unit(image)
    return (
        share * image + (1 - share) * image[partner],
        share * labels + (1 - share) * labels[partner],
    )


def cutmix(alpha: Number) -> LabelMixing:
    """Pastes a box of another image of the batch (Yun et al. 2019, equations 1 and 2).

    `(key, image, labels) -> (image, labels)` as for `mixup`. One lambda ~ Beta(alpha, alpha), one
    box and one permutation per batch, as in the paper's own code. The box has sides
    `sqrt(1 - lambda)` times the image's, rounded down, and a centre uniform over the pixels. Labels
    are mixed by the area that is left after clipping at the edges, not by the lambda drawn.

    Args:
      alpha: above 0; the paper uses 1.
    """
    _check_alpha("cutmix", alpha)

    def apply(key: jax.Array, image: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
        _check_labels("cutmix", image, labels)
        share_key, pair_key, centre_key = jax.random.split(key, 3)
        share = jax.random.beta(share_key, alpha, alpha)
        partner = jax.random.permutation(pair_key, len(image))
        frame = jnp.array(image.shape[1:3])
        size = jnp.floor(frame * jnp.sqrt(1 - share)).astype(jnp.int32)
        start = jax.random.randint(centre_key, (2,), 0, frame) - size // 2
        return paste(image, labels, partner, start, start + size)

    return apply


def paste(
    image: jax.Array, labels: jax.Array, partner: jax.Array, start: jax.Array, stop: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Fills a box with the partner's pixels and mixes labels by the box's area in the image.

    Args:
      image: `[B, H, W, C]`.
      labels: probabilities `[B, K]`.
      partner: int `[B]`, a permutation of the batch.
      start: int `[2]`, the box's first row and column; may lie outside the image.
      stop: int `[2]`, the row and column after its last.
    """
    inside = _inside(start[:1], stop[:1], start[1:], stop[1:], image)
    share = 1 - inside.mean(dtype=jnp.float32)
    image = unit(image)
    return (
        jnp.where(inside, image[partner], image),
        share * labels + (1 - share) * labels[partner],
    )


def _random_shift(bound: int, mode: Padding) -> Augmentation:
    def apply(key: jax.Array, image: jax.Array) -> jax.Array:
        check_image(image)
        batch, height, width, _ = image.shape
        require(
            mode == "constant" or bound < min(height, width),
            f"{bound} pixels cannot be reflected in an image of {height} x {width}; "
            f"give at most {min(height, width) - 1}, or mode='constant'",
        )
        offset = jax.random.randint(key, (batch, 2), -bound, bound + 1)
        return shift(image, offset, mode)

    return apply


def _take(image: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    return image.at[rows[:, None], columns[None, :]].get(mode="promise_in_bounds")


def _reflect(place: jax.Array, size: int) -> jax.Array:
    return (size - 1) - jnp.abs((size - 1) - jnp.abs(place))


def _inside(
    top: jax.Array, bottom: jax.Array, left: jax.Array, right: jax.Array, image: jax.Array
) -> jax.Array:
    """Where boxes lie: bool `[N, H, W, 1]` from bounds `[N]`, those at the far side excluded."""
    rows, columns = jnp.arange(image.shape[1]), jnp.arange(image.shape[2])
    inside_rows = (rows >= top[:, None]) & (rows < bottom[:, None])
    inside_columns = (columns >= left[:, None]) & (columns < right[:, None])
    return (inside_rows[:, :, None] & inside_columns[:, None, :])[..., None]


def _check_labels(name: str, image: jax.Array, labels: jax.Array) -> None:
    check_image(image)
    require(
        labels.ndim == 2 and len(labels) == len(image) and labels.dtype == jnp.float32,
        f"{name}: labels are {labels.dtype}{list(labels.shape)} for {len(image)} images; give "
        "float32 class probabilities [B, K], such as jax.nn.one_hot(label, classes)",
    )


def _check_alpha(name: str, alpha: Number) -> None:
    require(alpha > 0, f"{name}: alpha is {alpha}; give a number above 0")


def _check_shift(name: str, argument: str, pixels: int, mode: str) -> None:
    require(pixels >= 0, f"{name}: {argument} is {pixels}; give 0 or more pixels")
    require(
        mode in ("reflect", "constant"),
        f"{name}: mode is {mode!r}; give 'reflect' or 'constant'",
    )
