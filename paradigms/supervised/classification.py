"""Classification: a network is shown inputs with their classes."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from nets.net import Net
from paradigms.core.classification import (
    as_probabilities,
    classification_metrics,
    cross_entropy,
    example_weights,
    infinite_at_wrong_labels,
    top_k_hits,
)
from paradigms.core.errors import InputError
from paradigms.core.learner import Batch, Learner, Metrics, minimise
from paradigms.core.mesh import constrain_batch
from paradigms.core.metrics import Mean
from paradigms.core.state import TrainState
from paradigms.data.augment import Augmentation, LabelMixing


def classifier(
    net: Net,
    optimizer: optax.GradientTransformation,
    *,
    augment: Augmentation | None = None,
    mix: LabelMixing | None = None,
    label_smoothing: float = 0.0,
    class_weights: Sequence[float] | None = None,
    input_name: str = "image",
) -> Learner:
    """Learns to classify by minimising cross entropy.

    A batch has `image` `[B, H, W, C]` (or another input, see `input_name`), `label` int `[B]` or
    probabilities `[B, K]`, and optionally `mask` `[B]`, the weight of each example.

    Args:
      net: gives logits `[B, K]`.
      optimizer: applied to the gradient of the mean loss over the examples that count.
      augment: `(key, image) -> image`, drawn anew at every update and never in evaluation.
      mix: `(key, image, probabilities) -> (image, probabilities)`: mixup, cutmix; after `augment`.
      label_smoothing: see `cross_entropy`; evaluation never smooths.
      class_weights: see `cross_entropy`; the loss is divided by the sum of the examples' weights
        under the labels they have. Evaluation is unweighted.
      input_name: the entry of the batch that goes into the net.

    Returns:
      A learner. `update` reports `loss` (smoothed and weighted as trained; infinite, at which `fit`
      stops, where an integer label is outside 0 to K - 1 and its mask is not 0), `accuracy` and
      norms.
      `evaluate` reports `loss` (negative log-likelihood in nats), `accuracy`, `top5` where K > 5,
      and the ingredients of `derive_classification`.

    Raises:
      InputError: label smoothing outside [0, 1), or class weights that do not fit the logits.
    """
    if not 0 <= label_smoothing < 1:
        raise InputError(f"label_smoothing={label_smoothing}: expected a number in [0, 1)")

    def init(key: jax.Array, example: Batch) -> tuple[Any, Any]:
        return net.init(key, example[input_name])

    def loss_of(params: Any, state: TrainState, batch: Batch) -> tuple[jax.Array, Any]:
        inputs, label = batch[input_name], batch["label"]
        if augment is not None:
            inputs = augment(state.rng("augment"), inputs)
        if mix is not None:
            classes = _num_classes(net, state, inputs)
            inputs, label = mix(state.rng("mix"), inputs, as_probabilities(label, classes))
        logits, model_state = net.apply(
            params, state.model_state, inputs, key=state.rng("net"), train=True
        )
        # Whole rows: of classes that are divided too XLA mixes up the rows of a transformer's
        # gradients on a mesh of three axes (jax 0.10.2), and the softmax costs more exchanges.
        logits = constrain_batch(logits)
        _check_logits(logits, label, class_weights)
        losses = cross_entropy(
            logits, label, label_smoothing=label_smoothing, class_weights=class_weights
        )
        weight = example_weights(batch, len(losses))
        if class_weights is not None:
            # The weighted mean divides by the weights, so that equal weights change nothing.
            share = as_probabilities(label, logits.shape[-1]) @ jnp.asarray(class_weights)
            total = jnp.where(weight > 0, losses * weight, 0).sum()
            loss = Mean(total=total, count=(share * weight).sum())
        else:
            loss = Mean.of(losses, weight)
        metrics = {
            "loss": infinite_at_wrong_labels(loss, batch["label"], logits.shape[-1], weight),
            "accuracy": Mean.of(top_k_hits(logits, label, 1), weight),
        }
        return loss.value(), (metrics, model_state)

    def evaluate(state: TrainState, batch: Batch, key: jax.Array) -> Metrics:
        logits, _ = net.apply(state.params, state.model_state, batch[input_name], key=key)
        _check_logits(logits, batch["label"], class_weights)
        return classification_metrics(logits, batch["label"], example_weights(batch, len(logits)))

    return minimise(loss_of, optimizer, init=init, evaluate=evaluate)


def _num_classes(net: Net, state: TrainState, inputs: jax.Array) -> int:
    logits, _ = jax.eval_shape(net.apply, state.params, state.model_state, inputs)
    return logits.shape[-1]


def _check_logits(
    logits: jax.Array, label: jax.Array, class_weights: Sequence[float] | None
) -> None:
    """Shapes are static, so a mismatch is one clear line while tracing, not a broadcast."""
    if logits.ndim != 2 or label.shape not in ((len(logits),), logits.shape):
        raise InputError(
            f"classifier: logits {logits.shape} and label {label.shape} do not fit: expected "
            "logits [B, K] and label int [B] or probabilities [B, K]"
        )
    if label.ndim == 1 and not jnp.issubdtype(label.dtype, jnp.integer):
        raise InputError(
            f"classifier: label has dtype {label.dtype}: expected integers, or probabilities [B, K]"
        )
    if class_weights is not None and len(class_weights) != logits.shape[-1]:
        raise InputError(
            f"classifier: {len(class_weights)} class weights for {logits.shape[-1]} classes"
        )
