"""What learners from few labels share: their batches, passes over them, losses and diagnostics.

A batch is `{"labelled": {"image", "label"}, "unlabelled": {"image"}}`, as `resident` with a size
for each draws it; "image" stands for whatever input the learner is told to take. Both parts are
full batches, without a `mask`. The unlabelled part may have a `label` of its own, the hidden truth:
it is there to measure pseudo-labels by, and nothing is learnt from it. Evaluation takes plain
batches `{"image", "label"}` and honours their `mask`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nets.net import Net
from paradigms.core.classification import (
    classification_metrics,
    cross_entropy,
    derive_classification,
    example_weights,
    top_k_hits,
)
from paradigms.core.errors import InputError
from paradigms.core.learner import Batch, Metrics
from paradigms.core.mesh import constrain_batch
from paradigms.core.metrics import Mean, Means
from paradigms.core.scalars import Scalar
from paradigms.core.state import PyTree, TrainState


def both_parts(name: str, batch: Batch, input_name: str) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The labelled inputs, their labels, and the unlabelled inputs of a batch.

    Raises:
      InputError: a part is missing, labels are not int `[B]`, or inputs differ in shape or dtype.
    """
    if not {"labelled", "unlabelled"} <= set(batch):
        raise InputError(
            f"{name}: a batch of {sorted(batch)}: expected 'labelled' and 'unlabelled', each a "
            f"dict with {input_name!r}; `resident` with a size for each makes them"
        )
    labelled, unlabelled = batch["labelled"], batch["unlabelled"]
    x, u, label = labelled[input_name], unlabelled[input_name], labelled["label"]
    if x.shape[1:] != u.shape[1:] or x.dtype != u.dtype:
        raise InputError(
            f"{name}: labelled inputs are {x.dtype}{list(x.shape)}, unlabelled ones "
            f"{u.dtype}{list(u.shape)}: expected the same but for the number of examples"
        )
    if label.shape != (len(x),) or not jnp.issubdtype(label.dtype, jnp.integer):
        raise InputError(
            f"{name}: label is {label.dtype}{list(label.shape)} for {len(x)} labelled inputs: "
            "expected integers, one for each"
        )
    return x, label, u


def together(
    net: Net,
    params: PyTree,
    model_state: PyTree,
    parts: Sequence[jax.Array],
    key: jax.Array,
) -> tuple[list[jax.Array], PyTree]:
    """One pass in training mode over several batches, and the logits of each.

    Batch norm sees all of them as one batch, and its running statistics are theirs.

    Returns:
      `(logits, model_state)`, the logits `[B_i, K]` of each part.
    """
    inputs = constrain_batch(jnp.concatenate(parts))
    logits, model_state = net.apply(params, model_state, inputs, key=key, train=True)
    logits = constrain_batch(logits)  # as the classifier of `paradigms.supervised` does
    ends = np.cumsum([len(part) for part in parts])
    return jnp.split(logits, ends[:-1]), model_state


def alone(
    net: Net, params: PyTree, model_state: PyTree, inputs: jax.Array, key: jax.Array
) -> tuple[jax.Array, PyTree]:
    """One pass in training mode over one batch, which has its own batch statistics.

    Returns:
      `(logits[B, K], model_state)`.
    """
    (logits,), model_state = together(net, params, model_state, (inputs,), key)
    return logits, model_state


def labelled_metrics(logits: jax.Array, label: jax.Array) -> Metrics:
    """`loss/labelled`, the cross entropy in nats, and `accuracy`, of the labelled part."""
    return {
        "loss/labelled": Mean.of(cross_entropy(logits, label)),
        "accuracy": Mean.of(top_k_hits(logits, label, 1)),
    }


def entropy(logits: jax.Array) -> jax.Array:
    """Of the softmax, float32 `[B]`, in nats."""
    logits = logits.astype(jnp.float32)
    return -(jax.nn.softmax(logits) * jax.nn.log_softmax(logits)).sum(-1)


def unlabelled_metrics(losses: jax.Array, logits: jax.Array, entropy_weight: Scalar) -> Metrics:
    """`loss/unlabelled`, the mean of losses `[B]` with the weighted entropy of logits `[B, K]`.

    Beside it `entropy`, without its weight. To minimise it is to trust in gaps between the classes
    (Grandvalet & Bengio 2004).
    """
    uncertain = entropy(logits)
    return {
        "loss/unlabelled": Mean.of(losses + entropy_weight * uncertain),
        "entropy": Mean.of(uncertain),
    }


def total(metrics: Metrics, weight: Scalar) -> tuple[jax.Array, Metrics]:
    """The labelled loss and `weight` times the unlabelled one, and the metrics with it."""
    loss = metrics["loss/labelled"].value() + weight * metrics["loss/unlabelled"].value()
    return loss, {**metrics, "loss": Mean.of(loss), "weight": Mean.of(jnp.asarray(weight))}


def pseudo_label_metrics(
    label: jax.Array, accepted: jax.Array, classes: int, unlabelled: Batch
) -> Metrics:
    """How pseudo-labels do: none of it is trained.

    Args:
      label: int `[B]`, the pseudo-labels.
      accepted: bool `[B]`, which of them are trained on.
      classes: number of classes, K.
      unlabelled: the part of the batch; its `label`, where there is one, is the truth.

    Returns:
      `pseudo/accepted`, the share that is trained on; of these `pseudo/histogram` `[K]`, the share
      of each class, and where the truth is known `pseudo/accuracy`.
    """
    weight = accepted.astype(jnp.float32)
    metrics = {
        "pseudo/accepted": Mean.of(weight),
        "pseudo/histogram": Mean(
            total=weight @ jax.nn.one_hot(label, classes),
            count=jnp.broadcast_to(weight.sum(), (classes,)),
        ),
    }
    if "label" in unlabelled:
        metrics["pseudo/accuracy"] = Mean.of(label == unlabelled["label"], weight)
    return metrics


def derive_pseudo_labels(means: Means) -> dict[str, float]:
    """`derive_classification`, and how accepted pseudo-labels are spread over the classes.

    `pseudo/share[k]` is the share of class k, and `pseudo/rarest` and `pseudo/commonest` are the
    least and the largest of them: the first sign that some class is forgotten.
    """
    values = derive_classification(means)
    if "pseudo/histogram" in means:
        histogram = means["pseudo/histogram"]
        if np.min(histogram.count) > 0:
            share = np.asarray(histogram.total) / np.asarray(histogram.count)
            values["pseudo/rarest"] = float(share.min())
            values["pseudo/commonest"] = float(share.max())
            values |= {f"pseudo/share[{k}]": float(one) for k, one in enumerate(share)}
    return values


def evaluate_classes(
    net: Net, weights: PyTree, batch: Batch, key: jax.Array, input_name: str
) -> Metrics:
    """`classification_metrics` of a plain batch, by weights `{"params", "model_state"}`."""
    logits, _ = net.apply(weights["params"], weights["model_state"], batch[input_name], key=key)
    return classification_metrics(logits, batch["label"], example_weights(batch, len(logits)))


def classifying(
    net: Net,
    input_name: str,
    prepare: Callable[[jax.Array], jax.Array] = lambda inputs: inputs,
) -> dict[str, Any]:
    """How a learner of one net begins and is evaluated, for `minimise`.

    Args:
      net: gives logits.
      input_name: the entry of a part that goes into it.
      prepare: what is done to inputs before, in training too.
    """

    def init(key: jax.Array, example: Batch) -> tuple[PyTree, PyTree]:
        return net.init(key, prepare(example["labelled"][input_name]))

    def evaluate(state: TrainState, batch: Batch, key: jax.Array) -> Metrics:
        batch = {**batch, input_name: prepare(batch[input_name])}
        return evaluate_classes(net, live(state), batch, key, input_name)

    return {"init": init, "evaluate": evaluate}


def live(state: TrainState) -> dict[str, PyTree]:
    """The weights that are trained."""
    return {"params": state.params, "model_state": state.model_state}


def check_threshold(name: str, threshold: Scalar) -> None:
    """Raises `InputError` unless it is a confidence, or traced."""
    if not isinstance(threshold, jax.core.Tracer) and not 0 <= threshold <= 1:
        raise InputError(f"{name}(threshold={threshold}): expected a confidence from 0 to 1")
