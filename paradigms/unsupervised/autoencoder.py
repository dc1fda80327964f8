"""Autoencoders: plain, denoising and sparse; and how far a linear one is from PCA."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nets.net import Net
from paradigms.core.errors import InputError
from paradigms.core.learner import Batch, Learner, Metrics, minimise
from paradigms.core.metrics import Mean
from paradigms.core.scalars import Scalar
from paradigms.core.state import PyTree, TrainState, fold_name
from paradigms.data.augment import Augmentation
from paradigms.unsupervised.likelihoods import bernoulli_log_prob, unit_interval


def autoencoder(
    encoder: Net,
    decoder: Net,
    optimizer: optax.GradientTransformation,
    *,
    loss: Literal["squared", "bernoulli"] = "squared",
    corrupt: Augmentation | None = None,
    sparsity: Scalar = 0.0,
    augment: Augmentation | None = None,
    input_name: str = "image",
) -> Learner:
    """Learns to give back its input through a code.

    With `corrupt` a denoising autoencoder (Vincent et al. 2008, "Extracting and Composing Robust
    Features with Denoising Autoencoders", section 2.3): the encoder sees a corrupted input, and the
    target is the clean one. With `sparsity` a sparse one (Goodfellow et al. 2016, "Deep Learning",
    section 14.2.1): the loss has `sparsity * sum_j |code_j|` added. Weight decay on the decoder
    keeps that term from being met by a small code and large weights.

    A batch has `image` `[B, ...]` (or another input, see `input_name`), uint8 that is divided by
    255 or float32 that is taken as it is, and optionally `mask` `[B]`, the weight of each example.

    Args:
      encoder: `[B, ...]` float32 to a code `[B, ...]`.
      decoder: the code to the shape of the input; logits where `loss` is "bernoulli".
      optimizer: applied to the gradient of the mean loss over the examples that count.
      loss: "squared" is `sum_i (x_i - output_i)^2`, "bernoulli" the cross entropy in nats; both
        are summed over an example.
      corrupt: `(key, image) -> image`, on the encoder's input at training only; on the batch's
        values, as `augment`, after it.
      sparsity: weight of the penalty, at least 0; may be traced.
      augment: `(key, image) -> image`, on input and target alike, at training only.
      input_name: the entry of the batch that is learnt.

    Returns:
      A learner with params and model state `{"encoder": ..., "decoder": ...}`. It reports `loss`,
      `squared_error` (the mean over the values of an example, on the scale of [0, 1]) and `code_l1`
      (`sum_j |code_j|`, without its weight). Evaluation corrupts nothing.

    Raises:
      InputError: an unknown loss, a negative weight, or a decoder that gives another shape.
    """
    if loss not in ("squared", "bernoulli"):
        raise InputError(f"autoencoder(loss={loss!r}): expected 'squared' or 'bernoulli'")
    if not isinstance(sparsity, jax.core.Tracer) and not 0 <= float(sparsity) < float("inf"):
        raise InputError(f"autoencoder(sparsity={sparsity}): expected a number of at least 0")

    def report(output: jax.Array, code: jax.Array, x: jax.Array, batch: Batch) -> Metrics:
        check_shape(output, x)
        output = output.astype(jnp.float32)
        prediction = output if loss == "squared" else jax.nn.sigmoid(output)
        error = jnp.square(prediction - x).reshape(len(x), -1)
        code_l1 = jnp.abs(code.astype(jnp.float32)).reshape(len(x), -1).sum(-1)
        cost = error.sum(-1) if loss == "squared" else -bernoulli_log_prob(output, x)
        mask = batch.get("mask")
        return {
            "loss": Mean.of(cost + sparsity * code_l1, mask),
            "squared_error": Mean.of(error.mean(-1), mask),
            "code_l1": Mean.of(code_l1, mask),
        }

    def init(key: jax.Array, example: Batch) -> tuple[PyTree, PyTree]:
        return init_nets(key, encoder, decoder, unit_interval(example[input_name]))

    def loss_of(params: PyTree, state: TrainState, batch: Batch) -> tuple[jax.Array, Any]:
        clean = batch[input_name]
        if augment is not None:
            clean = augment(state.rng("augment"), clean)
        seen = clean if corrupt is None else corrupt(state.rng("corrupt"), clean)
        model_state = dict(state.model_state)
        code, model_state["encoder"] = encoder.apply(
            params["encoder"],
            model_state["encoder"],
            unit_interval(seen),
            key=state.rng("encoder"),
            train=True,
        )
        output, model_state["decoder"] = decoder.apply(
            params["decoder"], model_state["decoder"], code, key=state.rng("decoder"), train=True
        )
        metrics = report(output, code, unit_interval(clean), batch)
        return metrics["loss"].value(), (metrics, model_state)

    def evaluate(state: TrainState, batch: Batch, key: jax.Array) -> Metrics:
        x, (params, model_state) = (
            unit_interval(batch[input_name]),
            (state.params, state.model_state),
        )
        code, _ = encoder.apply(params["encoder"], model_state["encoder"], x)
        output, _ = decoder.apply(params["decoder"], model_state["decoder"], code)
        return report(output, code, x, batch)

    return minimise(loss_of, optimizer, init=init, evaluate=evaluate)


def masking_noise(probability: Scalar) -> Augmentation:
    """Sets each value to 0 with the given probability, for `corrupt`; any shape and dtype.

    Vincent et al. 2008, section 2.3, set a fixed number of values to 0; here it is their number
    only on average.
    """
    if not isinstance(probability, jax.core.Tracer) and not 0 <= float(probability) <= 1:
        raise InputError(f"masking_noise({probability}): expected a probability from 0 to 1")

    def apply(key: jax.Array, image: jax.Array) -> jax.Array:
        kept = jax.random.bernoulli(key, 1 - probability, image.shape)
        return jnp.where(kept, image, jnp.zeros((), image.dtype))

    return apply


def subspace_distance(weights: np.ndarray, components: np.ndarray) -> float:
    """The sine of the largest angle between two subspaces, in [0, 1].

    It is the spectral norm of the difference of the orthogonal projectors, and 1 where the spaces
    differ in dimension. A linear autoencoder at its minimum has distance 0 to the subspace of PCA
    (Baldi and Hornik 1989, "Neural Networks and Principal Component Analysis").

    Args:
      weights: `[D, K]`, whose columns span a subspace of D dimensions; a decoder's kernel `[K, D]`
        transposed.
      components: `[D, M]`, or `[M, D]` as scikit-learn has them.

    Raises:
      InputError: the two do not live in a space of the same dimension, or are not finite.
    """
    first, second = np.asarray(weights, np.float64), np.asarray(components, np.float64)
    if second.ndim == 2 and len(second) != len(first):
        second = second.T
    if first.ndim != 2 or second.ndim != 2 or len(first) != len(second):
        raise InputError(
            f"subspace_distance: weights {np.shape(weights)} and components "
            f"{np.shape(components)}: expected [D, K], and [D, M] or [M, D] with the same D"
        )
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise InputError("subspace_distance: NaN or infinity: expected weights that have converged")
    return float(np.linalg.norm(_projector(first) - _projector(second), ord=2))


def init_nets(
    key: jax.Array,
    encoder: Net,
    decoder: Net,
    x: jax.Array,
    latent_of: Callable[[jax.Array], jax.Array] = lambda code: code,
) -> tuple[PyTree, PyTree]:
    """Parameters and model state of both nets, `{"encoder": ..., "decoder": ...}`.

    Args:
      key: each net gets its own, by its name.
      encoder: takes x.
      decoder: takes what `latent_of` makes of the encoder's output.
      x: an example `[B, ...]`.
      latent_of: from the encoder's output to the decoder's input.

    Raises:
      InputError: the decoder gives another shape than that of x.
    """
    params, model_state = {}, {}
    params["encoder"], model_state["encoder"] = encoder.init(fold_name(key, "encoder"), x)
    # Only the shape of what the decoder will see matters.
    latent = jax.eval_shape(
        lambda: latent_of(encoder.apply(params["encoder"], model_state["encoder"], x)[0])
    )
    zeros = jnp.zeros(latent.shape, latent.dtype)
    params["decoder"], model_state["decoder"] = decoder.init(fold_name(key, "decoder"), zeros)
    output, _ = jax.eval_shape(decoder.apply, params["decoder"], model_state["decoder"], zeros)
    check_shape(output, x)
    return params, model_state


def check_shape(output: Any, x: jax.Array) -> None:
    """Raises InputError where a decoder's output has not the shape of the data."""
    if output.shape != x.shape:
        raise InputError(
            f"the decoder's output {output.shape} and the data {x.shape} differ: expected one "
            "shape; let the decoder end in that of the data"
        )


def _projector(columns: np.ndarray) -> np.ndarray:
    basis, sizes, _ = np.linalg.svd(columns, full_matrices=False)
    # Columns that depend on the others span nothing.
    basis = basis[:, sizes > sizes.max() * max(columns.shape) * np.finfo(np.float32).eps]
    return basis @ basis.T
