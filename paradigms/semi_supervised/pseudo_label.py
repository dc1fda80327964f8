"""Pseudo-Label: what the net says of an unlabelled example is taken for its label."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from nets.net import Net
from paradigms.core.classification import cross_entropy
from paradigms.core.learner import Batch, Learner, minimise
from paradigms.core.metrics import Mean
from paradigms.core.scalars import Scalar, Scheduled, current
from paradigms.core.state import PyTree, TrainState
from paradigms.data.augment import Augmentation
from paradigms.semi_supervised.streams import (
    alone,
    both_parts,
    check_threshold,
    classifying,
    labelled_metrics,
    pseudo_label_metrics,
    total,
)


def pseudo_label(
    net: Net,
    optimizer: optax.GradientTransformation,
    *,
    weight: Scheduled = 1.0,
    threshold: Scalar = 0.0,
    augment: Augmentation | None = None,
    input_name: str = "image",
) -> Learner:
    """Pseudo-Label (Lee 2013, "Pseudo-Label: the simple and efficient semi-supervised learning
    method", equations 15 and 16).

    The class of the largest probability of an unlabelled example is its label, found anew in every
    update by the pass that learns from it; the choice has no gradient. Each part goes through the
    net by itself, and running batch statistics are of the unlabelled one: where batch norm sees
    both at once, few labels are learnt by heart and the guesses are worse for it. Batches are as in
    `streams`.

    Args:
      net: gives logits `[B, K]`.
      optimizer: applied to the gradient of the sum of both losses.
      weight: of the unlabelled loss, a number or a schedule of updates. The paper's rises linearly
        from 0 to 3: `optax.linear_schedule(0.0, 3.0, steps, transition_begin)`.
      threshold: the least confidence of a label that is learnt from; the paper has none. The
        unlabelled loss is the mean over all unlabelled examples, the others counting as 0.
      augment: `(key, image) -> image`, of both parts.
      input_name: the entry of both parts that goes into the net.

    Returns:
      A learner. `update` reports `loss`, `loss/labelled`, `loss/unlabelled`, `weight`, `accuracy`
      on the labelled part, `pseudo_label_metrics` and norms; `evaluate` is the classifier's.

    Raises:
      InputError: a threshold outside [0, 1]; when traced, parts that are missing or do not match.
    """
    check_threshold("pseudo_label", threshold)

    def loss_of(params: PyTree, state: TrainState, batch: Batch) -> tuple[jax.Array, Any]:
        x, label, u = both_parts("pseudo_label", batch, input_name)
        if augment is not None:
            x, u = augment(state.rng("labelled"), x), augment(state.rng("unlabelled"), u)
        logits, _ = alone(net, params, state.model_state, x, state.rng("labelled_net"))
        others, model_state = alone(net, params, state.model_state, u, state.rng("net"))
        confidence = jax.nn.softmax(others.astype(jnp.float32)).max(-1)
        guess, accepted = others.argmax(-1), confidence >= threshold
        losses = jnp.where(accepted, cross_entropy(others, guess), 0.0)
        metrics = {
            **labelled_metrics(logits, label),
            "loss/unlabelled": Mean.of(losses),
            **pseudo_label_metrics(guess, accepted, others.shape[-1], batch["unlabelled"]),
        }
        loss, metrics = total(metrics, current(weight, state.step))
        return loss, (metrics, model_state)

    return minimise(loss_of, optimizer, **classifying(net, input_name))
