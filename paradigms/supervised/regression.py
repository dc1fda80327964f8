"""Regression: squared error and Huber loss."""

from typing import Any, Literal

import chex
import jax
import jax.numpy as jnp
import optax

from nets.net import Net
from paradigms.core.errors import InputError
from paradigms.core.learner import Batch, Learner, Metrics, minimise
from paradigms.core.mesh import constrain_batch
from paradigms.core.metrics import Mean
from paradigms.core.state import TrainState
from paradigms.data.augment import Augmentation


def squared_error(prediction: jax.Array, target: jax.Array) -> jax.Array:
    """`(prediction - target)^2`, averaged over all axes but the first: float32 `[B]`."""
    chex.assert_equal_shape((prediction, target))
    error = prediction.astype(jnp.float32) - target
    return jnp.square(error).reshape(len(error), -1).mean(-1)


def huber(prediction: jax.Array, target: jax.Array, delta: float = 1.0) -> jax.Array:
    """Huber's loss (1964): `e^2 / 2` up to `|e| = delta`, then linear; float32 `[B]`.

    With delta 1 an error of 0.5 costs 0.125 and an error of 3 costs 2.5.
    """
    chex.assert_equal_shape((prediction, target))
    losses = optax.losses.huber_loss(prediction.astype(jnp.float32), target, delta=delta)
    return losses.reshape(len(losses), -1).mean(-1)


def regressor(
    net: Net,
    optimizer: optax.GradientTransformation,
    *,
    loss: Literal["squared", "huber"] = "squared",
    delta: float = 1.0,
    augment: Augmentation | None = None,
    input_name: str = "x",
) -> Learner:
    """Learns to predict real numbers.

    A batch has `x` `[B, ...]` (or another input, see `input_name`), `target` float `[B, ...]` of
    the shape of the net's output, and optionally `mask` `[B]`, the weight of each example.

    Args:
      net: gives predictions of the shape of `target`.
      optimizer: applied to the gradient of the mean loss over the examples that count.
      loss: "squared" or "huber".
      delta: where Huber's loss becomes linear.
      augment: `(key, x) -> x`, at training only.
      input_name: the entry of the batch that goes into the net.

    Returns:
      A learner that reports `loss`, and in evaluation also `squared_error` and `absolute_error`.
    """
    if loss not in ("squared", "huber"):
        raise InputError(f"regressor(loss={loss!r}): expected 'squared' or 'huber'")
    if not delta > 0:
        raise InputError(f"regressor(delta={delta}): expected a positive number")

    def losses_of(prediction: jax.Array, target: jax.Array) -> jax.Array:
        if prediction.shape != target.shape:
            raise InputError(
                f"regressor: prediction {prediction.shape} and target {target.shape} differ: "
                "expected equal shapes, without broadcasting"
            )
        if loss == "squared":
            return squared_error(prediction, target)
        return huber(prediction, target, delta)

    def init(key: jax.Array, example: Batch) -> tuple[Any, Any]:
        return net.init(key, example[input_name])

    def loss_of(params: Any, state: TrainState, batch: Batch) -> tuple[jax.Array, Any]:
        inputs = batch[input_name]
        if augment is not None:
            inputs = augment(state.rng("augment"), inputs)
        prediction, model_state = net.apply(
            params, state.model_state, inputs, key=state.rng("net"), train=True
        )
        prediction = constrain_batch(prediction)  # as logits in `classification`
        mean = Mean.of(losses_of(prediction, batch["target"]), batch.get("mask"))
        return mean.value(), ({"loss": mean}, model_state)

    def evaluate(state: TrainState, batch: Batch, key: jax.Array) -> Metrics:
        prediction, _ = net.apply(state.params, state.model_state, batch[input_name], key=key)
        target, mask = batch["target"], batch.get("mask")
        error = (prediction - target).reshape(len(target), -1)
        return {
            "loss": Mean.of(losses_of(prediction, target), mask),
            "squared_error": Mean.of(squared_error(prediction, target), mask),
            "absolute_error": Mean.of(jnp.abs(error).mean(-1), mask),
        }

    return minimise(loss_of, optimizer, init=init, evaluate=evaluate)
