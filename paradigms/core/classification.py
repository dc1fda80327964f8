"""What every learner of classes shares: cross entropy, and what is reported about predictions."""

from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from paradigms.core import metrics as metrics_lib
from paradigms.core.learner import Batch, Metrics
from paradigms.core.metrics import Mean, Means

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
    target = as_probabilities(label, logits.shape[-1])
    target = optax.smooth_labels(target, label_smoothing)
    if class_weights is not None:
        target = target * jnp.asarray(class_weights, jnp.float32)
    return -jnp.sum(target * jax.nn.log_softmax(logits), axis=-1)


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
    hits = top_k_hits(logits, label, 1)
    confidence = probabilities.max(-1)
    # Bins are (0, 1/15], (1/15, 2/15], ... as in Guo et al. 2017.
    bins = jnp.clip(jnp.ceil(confidence * CALIBRATION_BINS) - 1, 0, CALIBRATION_BINS - 1)
    in_bin = mask[:, None] * jax.nn.one_hot(bins.astype(jnp.int32), CALIBRATION_BINS)
    true = as_probabilities(label, classes) * mask[:, None]
    predicted = jax.nn.one_hot(logits.argmax(-1), classes)
    metrics = {
        "loss": infinite_at_wrong_labels(
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
        metrics["top5"] = Mean.of(top_k_hits(logits, label, 5), mask)
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


def as_probabilities(label: jax.Array, classes: int) -> jax.Array:
    """Labels as float32 `[B, K]`, whether they came as integers or as probabilities."""
    if jnp.issubdtype(label.dtype, jnp.integer):
        return jax.nn.one_hot(label, classes)
    return label.astype(jnp.float32)


def infinite_at_wrong_labels(loss: Mean, label: jax.Array, classes: int, weight: jax.Array) -> Mean:
    """The loss, or infinity where a label that counts is no class, so that `fit` stops at it."""
    if not jnp.issubdtype(label.dtype, jnp.integer):
        return loss
    wrong = ((label < 0) | (label >= classes)) & (weight > 0)
    # Not NaN, which `--debug` would find in the mere constant.
    return loss.replace(total=jnp.where(wrong.any(), jnp.inf, loss.total))


def top_k_hits(logits: jax.Array, label: jax.Array, k: int) -> jax.Array:
    """Whether the (most probable) true class is among the k largest logits, float32 `[B]`."""
    true = label if jnp.issubdtype(label.dtype, jnp.integer) else label.argmax(-1)
    if k == 1:
        return (logits.argmax(-1) == true).astype(jnp.float32)
    best = jax.lax.top_k(logits, k)[1]
    return (best == true[:, None]).any(-1).astype(jnp.float32)


def example_weights(batch: Batch, size: int) -> jax.Array:
    """The `mask` of a batch, float32 `[B]`: how much each of its `size` examples counts."""
    return jnp.asarray(batch.get("mask", jnp.ones(size)), jnp.float32)
