"""Classification: cross entropy on integer or soft labels, and what is reported about it."""

from collections.abc import Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from nets.net import Net
from paradigms.core import metrics as metrics_lib
from paradigms.core.errors import InputError
from paradigms.core.learner import Batch, Learner, Metrics, minimise
from paradigms.core.metrics import Mean, Means
from paradigms.core.state import TrainState
from paradigms.data.augment import Augmentation, LabelMixing

CALIBRATION_BINS = 15


def cross_entropy(
    logits: jax.Array,
    label: jax.Array,
    *,
    label_smoothing: float = 0.0,
    class_weights: Sequence[float] | None = None,
) -> jax.Array:
    """Cross entropy in nats, one value per example.

    Args:
      logits: floating `[B, K]`; computed in float32 whatever the dtype.
      label: integer `[B]`, or probabilities `[B, K]`.
      label_smoothing: in [0, 1). The target is `(1 - e) * label + e / K`, so the true class gets
        its share of the uniform part too (Szegedy et al. 2016, arXiv:1512.00567, section 7).
      class_weights: K factors, one for each class's term of the sum.

    Returns:
      float32 `[B]`; 0, like its gradient, for an integer label outside 0 to K - 1. `classifier`
      tells of such labels.
    """
    chex.assert_rank(logits, 2)
    logits = logits.astype(jnp.float32)
    target = _probabilities(label, logits.shape[-1])
    target = optax.smooth_labels(target, label_smoothing)
    if class_weights is not None:
        target = target * jnp.asarray(class_weights, jnp.float32)
    return -jnp.sum(target * jax.nn.log_softmax(logits), axis=-1)


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
            inputs, label = mix(state.rng("mix"), inputs, _probabilities(label, classes))
        logits, model_state = net.apply(
            params, state.model_state, inputs, key=state.rng("net"), train=True
        )
        _check_logits(logits, label, class_weights)
        losses = cross_entropy(
            logits, label, label_smoothing=label_smoothing, class_weights=class_weights
        )
        weight = _mask(batch, len(losses))
        if class_weights is not None:
            # The weighted mean divides by the weights, so that equal weights change nothing.
            share = _probabilities(label, logits.shape[-1]) @ jnp.asarray(class_weights)
            total = jnp.where(weight > 0, losses * weight, 0).sum()
            loss = Mean(total=total, count=(share * weight).sum())
        else:
            loss = Mean.of(losses, weight)
        metrics = {
            "loss": _infinite_at_wrong_labels(loss, batch["label"], logits.shape[-1], weight),
            "accuracy": Mean.of(_hits(logits, label, 1), weight),
        }
        return loss.value(), (metrics, model_state)

    def evaluate(state: TrainState, batch: Batch, key: jax.Array) -> Metrics:
        logits, _ = net.apply(state.params, state.model_state, batch[input_name], key=key)
        _check_logits(logits, batch["label"], class_weights)
        return classification_metrics(logits, batch["label"], _mask(batch, len(logits)))

    return minimise(loss_of, optimizer, init=init, evaluate=evaluate)


def classification_metrics(logits: jax.Array, label: jax.Array, mask: jax.Array) -> Metrics:
    """What evaluation reports: scalars, and the ingredients of `derive_classification`.

    Args:
      logits: `[B, K]`.
      label: int `[B]`, or probabilities `[B, K]`.
      mask: `[B]`, the weight of each example.

    Returns:
      `loss`, `accuracy`, `top5` (K > 5), and array-valued `calibration/confidence`,
      `calibration/accuracy` `[15]`, `confusion` `[K, K]` (rows are the true classes).
    """
    probabilities = jax.nn.softmax(logits.astype(jnp.float32))
    classes = logits.shape[-1]
    hits = _hits(logits, label, 1)
    confidence = probabilities.max(-1)
    # Bins are (0, 1/15], (1/15, 2/15], ... as in Guo et al. 2017.
    bins = jnp.clip(jnp.ceil(confidence * CALIBRATION_BINS) - 1, 0, CALIBRATION_BINS - 1)
    in_bin = mask[:, None] * jax.nn.one_hot(bins.astype(jnp.int32), CALIBRATION_BINS)
    true = _probabilities(label, classes) * mask[:, None]
    predicted = jax.nn.one_hot(logits.argmax(-1), classes)
    metrics = {
        "loss": _infinite_at_wrong_labels(
            Mean.of(cross_entropy(logits, label), mask), label, classes, mask
        ),
        "accuracy": Mean.of(hits, mask),
        "calibration/confidence": Mean(total=confidence @ in_bin, count=in_bin.sum(0)),
        "calibration/accuracy": Mean(total=hits @ in_bin, count=in_bin.sum(0)),
        "confusion": Mean(
            total=true.T @ predicted, count=jnp.broadcast_to(mask.sum(), (classes, classes))
        ),
    }
    if classes > 5:
        metrics["top5"] = Mean.of(_hits(logits, label, 5), mask)
    return metrics


def calibration_error(confidence: Mean, accuracy: Mean) -> float:
    """Expected calibration error (Guo et al. 2017, arXiv:1706.04599, equation 3), in [0, 1].

    Args:
      confidence: mean of the largest probability in each bin, `[bins]`.
      accuracy: mean of the hits in each bin, `[bins]`.
    """
    gaps = np.abs(np.asarray(confidence.total) - np.asarray(accuracy.total))
    return float(gaps.sum() / max(float(np.sum(accuracy.count)), 1.0))


def derive_classification(means: Means) -> dict[str, float]:
    """`metrics.derive`, and the expected calibration error where its ingredients are there."""
    values = metrics_lib.derive(means)
    if "calibration/confidence" in means:
        values["calibration_error"] = calibration_error(
            means["calibration/confidence"], means["calibration/accuracy"]
        )
    return values


def _probabilities(label: jax.Array, classes: int) -> jax.Array:
    """Labels as float32 `[B, K]`, whether they came as integers or as probabilities."""
    if jnp.issubdtype(label.dtype, jnp.integer):
        return jax.nn.one_hot(label, classes)
    return label.astype(jnp.float32)


def _infinite_at_wrong_labels(
    loss: Mean, label: jax.Array, classes: int, weight: jax.Array
) -> Mean:
    """The loss, or infinity where a label that counts is no class, so that `fit` stops at it."""
    if not jnp.issubdtype(label.dtype, jnp.integer):
        return loss
    wrong = ((label < 0) | (label >= classes)) & (weight > 0)
    # Not NaN, which `--debug` would find in the mere constant.
    return loss.replace(total=jnp.where(wrong.any(), jnp.inf, loss.total))


def _hits(logits: jax.Array, label: jax.Array, k: int) -> jax.Array:
    """Whether the (most probable) true class is among the k largest logits, float32 `[B]`."""
    true = label if jnp.issubdtype(label.dtype, jnp.integer) else label.argmax(-1)
    if k == 1:
        return (logits.argmax(-1) == true).astype(jnp.float32)
    best = jax.lax.top_k(logits, k)[1]
    return (best == true[:, None]).any(-1).astype(jnp.float32)


def _mask(batch: Batch, size: int) -> jax.Array:
    return jnp.asarray(batch.get("mask", jnp.ones(size)), jnp.float32)


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
