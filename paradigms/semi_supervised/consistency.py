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
    alone,
    both_parts,
    classifying,
    evaluate_classes,
    labelled_metrics,
    live,
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

    Unlabelled examples go through the net twice, with other noise: dropout, and views where there
    is an `augment`. Both outputs are to agree, and both learn from it. Labelled examples belong
    among the unlabelled ones too, as `data.hide_labels` leaves them. Every pass has batch
    statistics of its own, and the running ones are of an unlabelled one, as in `vat` and for its
    reason.

    Args:
      net: gives logits `[B, K]`, and is noisy in training.
      optimizer: applied to the gradient of the sum of both losses.
      weight: of the `consistency`, a schedule of updates; the paper's rises to 100 by
        `schedules.ramp_up`, where the labelled loss is the mean over labelled examples, as here.
      entropy_weight: of the entropy of the first outputs, beside the `consistency` and within
        `weight`; not the paper's. A net that is unsure of everything is consistent too.
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

        def passed(name: str, inputs: jax.Array) -> tuple[jax.Array, PyTree]:
            inputs = view(state.rng(f"{name}_view"), inputs)
            return alone(net, params, state.model_state, inputs, state.rng(f"{name}_net"))

        logits, _ = passed("labelled", x)
        (first, _), (second, model_state) = passed("first", u), passed("second", u)
        metrics = {
            **labelled_metrics(logits, label),
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

    The outputs for unlabelled examples are to agree with those of the moving average of the
    weights, `state.target["teacher"]`, which has noise of its own and no gradient; the average
    moves after the optimiser's step. Labelled examples and batch statistics are as in `pi_model`;
    the teacher's running ones are of its own passes.

    Args:
      net: gives logits `[B, K]`, and is noisy in training.
      optimizer: applied to the gradient of the sum of both losses.
      weight: of the `consistency`, a schedule of updates; the paper's rises to 100 by
        `schedules.ramp_up`, where the labelled loss is the mean over labelled examples, as here.
      decay: of the teacher, in [0, 1], or a schedule; the paper's is 0.99 while the weight rises
        and 0.999 thereafter.
      entropy_weight: of the entropy of the student's unlabelled outputs, beside the `consistency`
        and within `weight`; not the paper's, see `pi_model`.
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
        teacher = state.target["teacher"]
        wanted, of_teacher = alone(
            net,
            teacher["params"],
            teacher["model_state"],
            view(state.rng("teacher_view"), u),
            state.rng("teacher_net"),
        )

        def loss_of(params: PyTree) -> tuple[jax.Array, Any]:
            def passed(name: str, inputs: jax.Array) -> tuple[jax.Array, PyTree]:
                inputs = view(state.rng(f"{name}_view"), inputs)
                return alone(net, params, state.model_state, inputs, state.rng(f"{name}_net"))

            logits, _ = passed("labelled", x)
            others, model_state = passed("unlabelled", u)
            metrics = {
                **labelled_metrics(logits, label),
                **unlabelled_metrics(consistency(others, wanted), others, entropy_weight),
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
