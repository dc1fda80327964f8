"""Consistency under noise: the Pi-model, and Mean Teacher."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax

from nets.net import Net
from paradigms.core.ema import follow, slow_copy
from paradigms.core.learner import Batch, Learner, Metrics, advance, minimise
from paradigms.core.scalars import Scalar, Scheduled, current
from paradigms.core.state import PyTree, TrainState
from paradigms.data.augment import Augmentation
from paradigms.semi_supervised.streams import (
    both_parts,
    classifying,
    evaluate_classes,
    labelled_metrics,
    live,
    together,
    total,
    unlabelled_metrics,
)


def consistency(first: jax.Array, second: jax.Array) -> jax.Array:
    """Mean over classes of the squared difference of two softmaxes (Laine & Aila 2017, alg. 1).

    Args:
      first: logits `[B, K]`.
      second: logits `[B, K]`.

    Returns:
      float32 `[B]`, with a gradient to both.
    """
    chex.assert_equal_shape((first, second))
    p, q = (jax.nn.softmax(logits.astype(jnp.float32)) for logits in (first, second))
    return jnp.square(p - q).mean(-1)


def pi_model(
    net: Net,
    optimizer: optax.GradientTransformation,
    *,
    weight: Scheduled,
    entropy_weight: Scalar = 0.0,
    augment: Augmentation | None = None,
    input_name: str = "image",
) -> Learner:
    """The Pi-model (Laine & Aila 2017, arXiv:1610.02242, algorithm 1).

    Every example, with a label or without, goes through the net twice, with other noise: dropout,
    and views where there is an `augment`. Both outputs are to agree, and both learn from it. The
    two go through at once, so that batch norm sees them as one batch. The labelled loss is of the
    first.

    Args:
      net: gives logits `[B, K]`, and is noisy in training.
      optimizer: applied to the gradient of the sum of both losses.
      weight: of the `consistency`, a schedule of updates; the paper's rises to 100 by
        `schedules.ramp_up`, where the labelled loss is the mean over labelled examples, as here.
      entropy_weight: of the entropy of the first outputs for all examples, beside the `consistency`
        and within `weight`; not the paper's. A net that is unsure of everything is consistent too.
      augment: `(key, image) -> image`, drawn for each pass.
      input_name: the entry of both parts of the batch, as in `streams`, that goes into the net.

    Returns:
      A learner. `update` reports `loss`, `loss/labelled`, `loss/unlabelled` (the consistency, and
      the entropy by its weight), `entropy`, `weight`, `accuracy` on the labelled part, and norms;
      `evaluate` is the classifier's.

    Raises:
      InputError: when traced, parts of the batch that are missing or do not match.
    """
    view = augment or _as_it_is

    def loss_of(params: PyTree, state: TrainState, batch: Batch) -> tuple[jax.Array, Any]:
        x, label, u = both_parts("pi_model", batch, input_name)
        inputs = jnp.concatenate([x, u])
        views = (view(state.rng("first"), inputs), view(state.rng("second"), inputs))
        (first, second), model_state = together(
            net, params, state.model_state, views, state.rng("net")
        )
        metrics = {
            **labelled_metrics(first[: len(x)], label),
            **unlabelled_metrics(consistency(first, second), first, entropy_weight),
        }
        loss, metrics = total(metrics, current(weight, state.step))
        return loss, (metrics, model_state)

    return minimise(loss_of, optimizer, **classifying(net, input_name))


def mean_teacher(
    net: Net,
    optimizer: optax.GradientTransformation,
    *,
    weight: Scheduled,
    decay: Scheduled = 0.999,
    entropy_weight: Scalar = 0.0,
    augment: Augmentation | None = None,
    input_name: str = "image",
) -> Learner:
    """Mean Teacher (Tarvainen & Valpola 2017, arXiv:1703.01780, section 2).

    The outputs for all examples, with a label or without, are to agree with those of the moving
    average of the weights, `state.target["teacher"]`, which has noise of its own and no gradient;
    the average moves after the optimiser's step. Student and teacher normalise by their own
    batches, of labelled and unlabelled examples together.

    Args:
      net: gives logits `[B, K]`, and is noisy in training.
      optimizer: applied to the gradient of the sum of both losses.
      weight: of the `consistency`, a schedule of updates; the paper's rises to 100 by
        `schedules.ramp_up`, where the labelled loss is the mean over labelled examples, as here.
      decay: of the teacher, in [0, 1], or a schedule; the paper's is 0.99 while the weight rises
        and 0.999 thereafter.
      entropy_weight: of the entropy of the student's outputs for all examples, beside the
        `consistency` and within `weight`; not the paper's, see `pi_model`.
      augment: `(key, image) -> image`, drawn for student and teacher each.
      input_name: the entry of both parts of the batch, as in `streams`, that goes into the net.

    Returns:
      A learner. `update` reports `loss`, `loss/labelled`, `loss/unlabelled` (the consistency, and
      the entropy by its weight), `entropy`, `weight`, `accuracy` of the student on the labelled
      part, and norms; `evaluate` is the classifier's by the teacher, with the student's
      `student/accuracy`.

    Raises:
      InputError: when traced, parts of the batch that are missing or do not match.
    """
    view = augment or _as_it_is

    def init(key: jax.Array, example: Batch) -> TrainState:
        params, model_state = net.init(key, example["labelled"][input_name])
        return TrainState.create(
            key,
            params,
            opt_state=optimizer.init(params),
            model_state=model_state,
            target={"teacher": slow_copy(params, model_state)},
        )

    def update(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        x, label, u = both_parts("mean_teacher", batch, input_name)
        inputs, teacher = jnp.concatenate([x, u]), state.target["teacher"]
        (wanted,), of_teacher = together(
            net,
            teacher["params"],
            teacher["model_state"],
            (view(state.rng("teacher_view"), inputs),),
            state.rng("teacher_net"),
        )

        def loss_of(params: PyTree) -> tuple[jax.Array, Any]:
            (logits,), model_state = together(
                net,
                params,
                state.model_state,
                (view(state.rng("view"), inputs),),
                state.rng("net"),
            )
            metrics = {
                **labelled_metrics(logits[: len(x)], label),
                **unlabelled_metrics(consistency(logits, wanted), logits, entropy_weight),
            }
            loss, metrics = total(metrics, current(weight, state.step))
            return loss, (metrics, model_state)

        now = current(decay, state.step)
        state, metrics, norms = advance(state, loss_of, optimizer)
        followed = follow(teacher, state.params, of_teacher, now)
        state = state.replace(target={**state.target, "teacher": followed})
        return state, {**metrics, **norms}

    def evaluate(state: TrainState, batch: Batch, key: jax.Array) -> Metrics:
        student = evaluate_classes(net, live(state), batch, key, input_name)
        metrics = evaluate_classes(net, state.target["teacher"], batch, key, input_name)
        return {**metrics, "student/accuracy": student["accuracy"]}

    return Learner(init, update, evaluate)


def _as_it_is(key: jax.Array, inputs: jax.Array) -> jax.Array:
    """No view; any input will do, where `augment.identity` asks for images."""
    del key
    return inputs
