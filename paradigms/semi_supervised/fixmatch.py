"""FixMatch: a confident guess at a weak view is the label of a strong one; and FlexMatch."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from nets.net import Net
from paradigms.core.classification import cross_entropy
from paradigms.core.errors import InputError
from paradigms.core.learner import Batch, Learner, Metrics, advance, minimise
from paradigms.core.metrics import Mean
from paradigms.core.scalars import Scalar, Scheduled, current
from paradigms.core.state import PyTree, TrainState
from paradigms.data.augment import Augmentation
from paradigms.semi_supervised.streams import (
    both_parts,
    check_threshold,
    classifying,
    evaluate_classes,
    labelled_metrics,
    live,
    pseudo_label_metrics,
    together,
    total,
)


def fixmatch(
    net: Net,
    optimizer: optax.GradientTransformation,
    weak: Augmentation,
    strong: Augmentation,
    *,
    threshold: Scalar = 0.95,
    weight: Scheduled = 1.0,
    input_name: str = "image",
) -> Learner:
    """FixMatch (Sohn et al. 2020, arXiv:2001.07685, equations 3 and 4).

    The class that the net finds in a weak view, if its probability is at least `threshold`, is the
    label of a strong view of the same example; the guess has no gradient. The unlabelled loss is
    the mean over all unlabelled examples, those that are not accepted counting as 0. One pass takes
    labelled, weak and strong views, so that batch norm sees them as one batch. The paper evaluates
    a moving average of the weights: `averaged(..., 0.999, model_state="live")`, as its code does;
    decays kernels only, as our optimisers do; and lets the rate fall by `cosine_arc`.

    Args:
      net: gives logits `[B, K]`.
      optimizer: applied to the gradient of the sum of both losses.
      weak: `(key, image) -> image`, of labelled and unlabelled examples; a flip and a shift.
      strong: of the unlabelled ones; for the paper's see `data.rand_augment`.
      threshold: tau, in [0, 1]; may be traced.
      weight: of the unlabelled loss, a number or a schedule of updates.
      input_name: the entry of both parts of the batch, as in `streams`, that goes into the net.

    Returns:
      A learner. `update` reports `loss`, `loss/labelled`, `loss/unlabelled`, `weight`, `accuracy`
      on the labelled part, `pseudo_label_metrics` and norms; `evaluate` is the classifier's.

    Raises:
      InputError: a threshold outside [0, 1]; when traced, parts that are missing or do not match.
    """
    check_threshold("fixmatch", threshold)

    def loss_of(params: PyTree, state: TrainState, batch: Batch) -> tuple[jax.Array, Any]:
        logits, guesses, others, label, model_state = _views(
            "fixmatch", net, params, state, batch, weak, strong, input_name
        )
        guess, confidence = _guess(guesses)
        metrics = _metrics(
            logits, label, others, guess, confidence >= threshold, batch["unlabelled"]
        )
        loss, metrics = total(metrics, current(weight, state.step))
        return loss, (metrics, model_state)

    return minimise(loss_of, optimizer, **classifying(net, input_name))


def class_thresholds(label: jax.Array, classes: int, threshold: Scalar) -> jax.Array:
    """FlexMatch's threshold of each class, float32 `[K]` (Zhang et al. 2021, equations 6 to 12).

    `M(beta) threshold` with `M(beta) = beta / (2 - beta)`, where beta is the number of examples
    that a class has won over that of the class with the most, or over the number of examples that
    none has won while these are more (the warm-up).

    Args:
      label: int `[N]`, the class that each unlabelled example was last won by, or -1.
      classes: number of classes, K.
      threshold: tau.
    """
    won = jax.nn.one_hot(label, classes).sum(0)
    beta = won / jnp.maximum(jnp.maximum(won.max(), (label < 0).sum()), 1)
    return beta / (2 - beta) * threshold


def flexmatch(
    net: Net,
    optimizer: optax.GradientTransformation,
    weak: Augmentation,
    strong: Augmentation,
    *,
    examples: int,
    threshold: Scalar = 0.95,
    weight: Scheduled = 1.0,
    input_name: str = "image",
) -> Learner:
    """FlexMatch (Zhang et al. 2021, arXiv:2110.08263, algorithm 1): easy classes wait for others.

    `fixmatch` with a threshold for each class, `class_thresholds`, that is lower the fewer examples
    have been won for it, that is guessed with at least `threshold`. Which class won an example last
    is kept in `state.memory["won"]`, int32 `[examples]`, -1 at first; thresholds are those before
    the update.

    Args:
      net: see `fixmatch`.
      optimizer: likewise.
      weak: likewise.
      strong: likewise.
      examples: in the unlabelled set, N; the unlabelled part of a batch needs `index` int `[B]`,
        in 0 to N - 1, as `resident` gives it.
      threshold: tau, of the class that is won most often.
      weight: see `fixmatch`.
      input_name: likewise.

    Returns:
      A learner that reports what `fixmatch` does, and `threshold`, the mean over classes.

    Raises:
      InputError: as `fixmatch`, no examples, or unlabelled parts without `index`.
    """
    check_threshold("flexmatch", threshold)
    if examples < 1:
        raise InputError(f"flexmatch(examples={examples}): expected the size of the unlabelled set")

    def init(key: jax.Array, example: Batch) -> TrainState:
        params, model_state = net.init(key, example["labelled"][input_name])
        return TrainState.create(
            key,
            params,
            opt_state=optimizer.init(params),
            model_state=model_state,
            memory={"won": jnp.full(examples, -1, jnp.int32)},
        )

    def update(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        if "index" not in batch["unlabelled"]:
            raise InputError("flexmatch: the unlabelled part has no 'index': expected int [B]")
        won = state.memory["won"]

        def loss_of(params: PyTree) -> tuple[jax.Array, Any]:
            logits, guesses, others, label, model_state = _views(
                "flexmatch", net, params, state, batch, weak, strong, input_name
            )
            guess, confidence = _guess(guesses)
            thresholds = class_thresholds(won, logits.shape[-1], threshold)
            accepted = confidence >= thresholds[guess]
            metrics = _metrics(logits, label, others, guess, accepted, batch["unlabelled"])
            metrics["threshold"] = Mean.of(thresholds.mean())
            loss, metrics = total(metrics, current(weight, state.step))
            return loss, ((metrics, guess, confidence), model_state)

        state, (metrics, guess, confidence), norms = advance(state, loss_of, optimizer)
        index = batch["unlabelled"]["index"]
        winner = jnp.where(confidence >= threshold, guess, won[index]).astype(jnp.int32)
        state = state.replace(memory={**state.memory, "won": won.at[index].set(winner)})
        return state, {**metrics, **norms}

    def evaluate(state: TrainState, batch: Batch, key: jax.Array) -> Metrics:
        return evaluate_classes(net, live(state), batch, key, input_name)

    return Learner(init, update, evaluate)


def _views(
    name: str,
    net: Net,
    params: PyTree,
    state: TrainState,
    batch: Batch,
    weak: Augmentation,
    strong: Augmentation,
    input_name: str,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array, PyTree]:
    """Logits of labelled, weak and strong views, the labels, and the model state."""
    x, label, u = both_parts(name, batch, input_name)
    views = (
        weak(state.rng("labelled"), x),
        weak(state.rng("weak"), u),
        strong(state.rng("strong"), u),
    )
    (logits, guesses, others), model_state = together(
        net, params, state.model_state, views, state.rng("net")
    )
    return logits, guesses, others, label, model_state


def _guess(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The class and its probability, `[B]` each, without a gradient."""
    probabilities = jax.nn.softmax(jax.lax.stop_gradient(logits).astype(jnp.float32))
    return probabilities.argmax(-1), probabilities.max(-1)


def _metrics(
    logits: jax.Array,
    label: jax.Array,
    others: jax.Array,
    guess: jax.Array,
    accepted: jax.Array,
    unlabelled: Batch,
) -> Metrics:
    return {
        **labelled_metrics(logits, label),
        "loss/unlabelled": Mean.of(jnp.where(accepted, cross_entropy(others, guess), 0.0)),
        **pseudo_label_metrics(guess, accepted, others.shape[-1], unlabelled),
    }
