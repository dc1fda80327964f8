"""The masked autoencoder: an encoder that sees a quarter of the patches, and learns from the rest.

A patch is one of the N squares of `p` by `p` pixels that an image is cut into, row by row.
"""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from nets.net import Net
from paradigms.core.errors import InputError
from paradigms.core.learner import Batch, Learner, Metrics, minimise
from paradigms.core.mesh import constrain_batch
from paradigms.core.metrics import Mean
from paradigms.core.state import PyTree, TrainState, fold_name
from paradigms.data.augment import Augmentation, identity
from paradigms.data.images import unit
from paradigms.data.patches import patchify, unpatchify

# Both as in the official code.
_EPSILON = 1e-6
_GREY = 0.5


def random_masking(
    key: jax.Array, batch: int, patches: int, kept: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Keeps some patches of each image, all subsets being equally likely.

    Args:
      key: of the one draw for all images; the rows of a smaller batch are those of a larger one.
      batch: images, B.
      patches: of an image, N.
      kept: patches to keep, K.

    Returns:
      `(kept, place, masked)`: the numbers of the kept patches, int32 `[B, K]`, in random order;
      where each patch stands among the kept ones followed by the masked ones, int32 `[B, N]`, so
      that `take_along_axis(tokens, place, axis=1)` puts tokens back in the order of the image; and
      whether a patch is masked, bool `[B, N]`.
    """
    noise = jax.random.bits(key, (batch, patches), jnp.uint32)
    order = jnp.argsort(noise, axis=1).astype(jnp.int32)
    place = jnp.argsort(order, axis=1).astype(jnp.int32)
    return order[:, :kept], place, place >= kept


def patch_targets(image: jax.Array, patch_size: int, *, normalised: bool = True) -> jax.Array:
    """What the decoder has to say of each patch, float32 `[B, N, p * p * C]`.

    Args:
      image: `[B, H, W, C]`; uint8 is divided by 255, floats are taken as they are. A normalisation
        within the nets (`nets.preprocess`) has no part in the targets.
      patch_size: pixels, p.
      normalised: subtract each patch's own mean and divide by its standard deviation,
        `(x - mean) / sqrt(var + 1e-6)`, with the unbiased variance as the official code has it. To
        predict 0 then costs (n - 1) / n for patches of n values.
    """
    patches = patchify(unit(image), patch_size)
    if not normalised:
        return patches
    mean, deviation = _moments(patches)
    return (patches - mean) / deviation


def masked_error(prediction: jax.Array, target: jax.Array, masked: jax.Array) -> jax.Array:
    """Mean squared error of the masked patches (He et al. 2022, section 3), one number per image.

    Args:
      prediction: `[B, N, P]`, in float32 whatever the dtype.
      target: `[B, N, P]`.
      masked: bool `[B, N]`, at least one in each image.

    Returns:
      float32 `[B]`. Patches that are not masked neither count nor get a gradient.
    """
    chex.assert_equal_shape([prediction, target])
    error = jnp.square(prediction.astype(jnp.float32) - target).mean(-1)
    return jnp.where(masked, error, 0).sum(1) / masked.sum(1)


def mae(
    encoder: Net,
    decoder: Net,
    optimizer: optax.GradientTransformation,
    *,
    patch_size: int,
    mask_ratio: float = 0.75,
    normalised: bool = True,
    augment: Augmentation = identity,
) -> Learner:
    """The masked autoencoder (He et al. 2022, arXiv:2111.06377, section 3).

    A batch has `image` `[B, H, W, C]`, uint8 or float32 in [0, 1], and optionally `mask` `[B]`, the
    weight of each example (not to be mistaken for the masked patches).

    Args:
      encoder: `(image [B, H, W, C], kept int32 [B, K])` to `[B, 1 + K, D]`, a class token and the
        kept patches; it must look at no other. It gets the image as the batch has it, so that its
        normalisation goes into `nets.preprocess`.
      decoder: `(latent [B, 1 + K, D], place int32 [B, N])` to `[B, N, p * p * C]`; for `place` see
        `random_masking`.
      optimizer: applied to the gradient of the mean loss over the examples that count.
      patch_size: pixels, p, a divisor of H and W.
      mask_ratio: `int(mask_ratio * N)` patches are masked; in (0, 1). It decides shapes, so that
        it cannot be swept within one program.
      normalised: see `patch_targets`.
      augment: `(key, image) -> image`, at training only.

    Returns:
      A learner with params and model state `{"encoder": ..., "decoder": ...}`. `update` reports
      `loss` (`masked_error`) and norms, `evaluate` the same `loss` with masks drawn from its key.

    Raises:
      InputError: an option out of its range; when it is traced, an image that cannot be cut into
        patches, a ratio that masks or keeps no patch, or a decoder whose output has another shape
        than the targets.
    """
    _check_ratio(mask_ratio)

    def measure(
        params: PyTree,
        state: TrainState,
        batch: Batch,
        image: jax.Array,
        key: jax.Array,
        train: bool,
    ) -> tuple[Metrics, PyTree]:
        masks = _draw_masks(fold_name(key, "mask"), image, patch_size, mask_ratio)
        kept, place, masked = constrain_batch(masks)
        prediction, model_state = _predict(
            encoder, decoder, params, state.model_state, image, kept, place, key, train
        )
        # Tied to the masks, the targets stay within a loop of runs, and are rounded there as in a
        # run alone; XLA would else take them out of it.
        image, masked = jax.lax.optimization_barrier((image, masked))
        target = patch_targets(image, patch_size, normalised=normalised)
        error = masked_error(prediction, target, masked)
        return {"loss": Mean.of(error, batch.get("mask"))}, model_state

    def init(key: jax.Array, example: Batch) -> tuple[PyTree, PyTree]:
        image, params, model_state = example["image"], {}, {}
        kept, place, _ = _draw_masks(key, image, patch_size, mask_ratio)
        params["encoder"], model_state["encoder"] = encoder.init(
            fold_name(key, "encoder"), image, kept
        )
        # Only the shape of what the decoder will see matters.
        latent, _ = jax.eval_shape(
            encoder.apply, params["encoder"], model_state["encoder"], image, kept
        )
        params["decoder"], model_state["decoder"] = decoder.init(
            fold_name(key, "decoder"), jnp.zeros(latent.shape, latent.dtype), place
        )
        return params, model_state

    def loss_of(params: PyTree, state: TrainState, batch: Batch) -> tuple[jax.Array, Any]:
        image = constrain_batch(augment(state.rng("augment"), batch["image"]))
        metrics, model_state = measure(params, state, batch, image, state.rng("mae"), True)
        return metrics["loss"].value(), (metrics, model_state)

    def evaluate(state: TrainState, batch: Batch, key: jax.Array) -> Metrics:
        return measure(state.params, state, batch, batch["image"], key, False)[0]

    return minimise(loss_of, optimizer, init=init, evaluate=evaluate)


class Reconstruction(NamedTuple):
    """Pictures of what a masked autoencoder sees and makes of it, float32 `[B, H, W, C]` in [0, 1].

    Attributes:
      masked: the image with grey in place of the masked patches.
      filled: the image with the decoder's patches in place of the masked ones.
      original: the image.
    """

    masked: jax.Array
    filled: jax.Array
    original: jax.Array


def reconstruct(
    encoder: Net,
    decoder: Net,
    params: PyTree,
    model_state: PyTree,
    key: jax.Array,
    image: jax.Array,
    *,
    patch_size: int,
    mask_ratio: float = 0.75,
    normalised: bool = True,
) -> Reconstruction:
    """Fills in masked patches, for pictures.

    A decoder of normalised patches knows neither their mean nor their contrast: both are taken from
    the true patch, or the pictures would look like noise. They flatter the net by as much.

    Args:
      encoder: as given to the learner.
      decoder: likewise.
      params: of the learner, `{"encoder": ..., "decoder": ...}`.
      model_state: likewise.
      key: draws the masks.
      image: `[B, H, W, C]`, uint8 or float32 in [0, 1].
      patch_size: of the learner.
      mask_ratio: of the learner, or another.
      normalised: of the learner.
    """
    _check_ratio(mask_ratio)
    kept, place, masked = _draw_masks(key, image, patch_size, mask_ratio)
    prediction, _ = _predict(
        encoder, decoder, params, model_state, image, kept, place, key, train=False
    )
    original = unit(image)
    patches = patchify(original, patch_size)
    if normalised:
        mean, deviation = _moments(patches)
        prediction = prediction * deviation + mean

    grid = image.shape[1] // patch_size, image.shape[2] // patch_size

    def paste(patch: jax.Array | float) -> jax.Array:
        pasted = jnp.where(masked[..., None], patch, patches)
        return jnp.clip(unpatchify(pasted, patch_size, grid), 0, 1)

    return Reconstruction(paste(_GREY), paste(prediction), original)


def _predict(
    encoder: Net,
    decoder: Net,
    params: PyTree,
    model_state: PyTree,
    image: jax.Array,
    kept: jax.Array,
    place: jax.Array,
    key: jax.Array,
    train: bool,
) -> tuple[jax.Array, PyTree]:
    """The decoder's patches, float32 `[B, N, p * p * C]`, and the model state."""
    after = {}
    latent, after["encoder"] = encoder.apply(
        params["encoder"],
        model_state["encoder"],
        image,
        kept,
        key=fold_name(key, "encoder"),
        train=train,
    )
    prediction, after["decoder"] = decoder.apply(
        params["decoder"],
        model_state["decoder"],
        latent,
        place,
        key=fold_name(key, "decoder"),
        train=train,
    )
    values = image[0].size // place.shape[1]
    if prediction.shape != (*place.shape, values):
        raise InputError(
            f"mae: the decoder gives {prediction.shape}: expected {(*place.shape, values)}, "
            "that is [B, patches, values of a patch]"
        )
    return prediction.astype(jnp.float32), after


def _draw_masks(
    key: jax.Array, image: jax.Array, patch_size: int, mask_ratio: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`random_masking` of images `[B, H, W, C]`."""
    patches = jax.eval_shape(lambda image: patchify(image, patch_size), image).shape[1]
    masked = int(mask_ratio * patches)
    if not 0 < masked < patches:
        raise InputError(
            f"mask_ratio={mask_ratio} masks {masked} of {patches} patches: expected some to be "
            "masked and some kept; choose another ratio, or a smaller patch_size"
        )
    return random_masking(key, len(image), patches, patches - masked)


def _check_ratio(mask_ratio: float) -> None:
    if not 0 < mask_ratio < 1:
        raise InputError(f"mask_ratio={mask_ratio}: expected a number above 0 and below 1")


def _moments(patches: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and standard deviation `[B, N, 1]` of each patch."""
    if patches.shape[-1] < 2:
        raise InputError(
            "normalised=True with patches of one value, which have no variance: choose a larger "
            "patch_size or normalised=False"
        )
    variance = patches.var(-1, ddof=1, keepdims=True)
    return patches.mean(-1, keepdims=True), jnp.sqrt(variance + _EPSILON)
