"""BYOL: each view predicts what a slow copy of the net makes of the other, without negatives."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax

from nets.net import Net, chain
from paradigms.core.ema import follow, slow_copy
from paradigms.core.errors import InputError
from paradigms.core.learner import Batch, Learner, Metrics, advance
from paradigms.core.metrics import Mean
from paradigms.core.scalars import Scalar
from paradigms.core.state import PyTree, TrainState, fold_name
from paradigms.data.augment import Augmentation
from paradigms.self_supervised.joint_embedding import (
    diagnostics,
    embed,
    two_views,
    unit_length,
)


def regression_loss(prediction: jax.Array, target: jax.Array) -> jax.Array:
    """`|p / |p| - t / |t||^2 = 2 - 2 cos` (Grill et al. 2020, equation 2): moves `prediction` only.

    Args:
      prediction: `[..., D]`.
      target: of the same shape.

    Returns:
      float32 `[...]`, in 0 to 4.
    """
    chex.assert_equal_shape((prediction, target))
    target = jax.lax.stop_gradient(unit_length(target))
    return 2 - 2 * (unit_length(prediction) * target).sum(-1)


def rising_decay(step: jax.typing.ArrayLike, decay: Scalar, steps: int) -> jax.Array:
    """`1 - (1 - decay) * (cos(pi k / K) + 1) / 2` (Grill et al. 2020, section 3.3).

    From `decay` at k = 0 to 1 at k = K = `steps`, where it stays.
    """
    progress = jnp.minimum(jnp.asarray(step, jnp.float32) / steps, 1.0)
    return 1 - (1 - decay) * (jnp.cos(jnp.pi * progress) + 1) / 2


def byol(
    backbone: Net,
    projector: Net,
    predictor: Net,
    optimizer: optax.GradientTransformation,
    augment: Augmentation,
    *,
    steps: int,
    decay: Scalar = 0.996,
) -> Learner:
    """Bootstrap your own latent (Grill et al. 2020, arXiv:2006.07733, equations 2 to 4).

    The predictor's output for one view is to be the embedding of the other by the net's moving
    average, `state.target["teacher"]`, which has no predictor. The loss of an example is the sum
    over both views. The teacher's decay rises to 1 as `rising_decay` says. It normalises by its own
    batches as it trains, and by running statistics in evaluation.

    Nothing in the loss forbids collapse: watch `embedding/std`. Batch norm in projector and
    predictor, as in the paper, and a predictor that learns fast enough keep it away.

    Batches and nets are as in `siamese`; the authors' code gives each view batch statistics of its
    own, here both share them.

    Args:
      backbone: image `[B, ...]` -> representation.
      projector: representation -> embedding `[B, D]`.
      predictor: `[B, D] -> [B, D]`.
      optimizer: of all three.
      augment: `(key, image) -> image`; draws each view, in evaluation too.
      steps: updates over which the decay rises to 1: those of the run.
      decay: of the teacher at the start, in [0, 1]; may be traced. 0.996 is for 1,000 epochs of
        ImageNet, 0.99 for 300; shorter runs want less.

    Returns:
      A learner with params and model state `{"backbone": ..., "projector": ..., "predictor": ...}`.
      It reports `loss`, in 0 to 8, `diagnostics` of the embeddings (before the predictor; in
      `evaluate` all of them), and norms in `update`.

    Raises:
      InputError: an option out of its range; and, when traced, a batch of one example, or
        embeddings or predictions that are not `[B, D]`.
    """
    if not isinstance(decay, jax.core.Tracer) and not 0 <= decay <= 1:
        raise InputError(f"byol(decay={decay}): expected a number in [0, 1]")
    if steps < 1:
        raise InputError(f"byol(steps={steps}): expected at least 1 update")
    net = chain(backbone=backbone, projector=projector)

    def measure(
        params: PyTree, state: TrainState, batch: Batch, key: jax.Array, train: bool
    ) -> tuple[Metrics, tuple[PyTree, PyTree]]:
        """Metrics; and model state, the teacher's."""
        views = two_views(augment, fold_name(key, "augment"), batch["image"])
        teacher, mask = state.target["teacher"], None if train else batch.get("mask")
        z, model_state = embed(net, params, state.model_state, views, fold_name(key, "net"), train)
        prediction, of_predictor = embed(
            predictor,
            params["predictor"],
            state.model_state["predictor"],
            z,
            fold_name(key, "predictor"),
            train,
        )
        target, of_teacher = embed(
            net,
            teacher["params"],
            teacher["model_state"],
            views,
            fold_name(key, "teacher"),
            train,
        )
        if prediction.shape != target.shape:
            raise InputError(
                f"byol: the predictor gives {prediction.shape[-1]} numbers for embeddings of "
                f"{target.shape[-1]}: expected as many"
            )
        losses = regression_loss(prediction, target[:, ::-1]).sum(1)
        metrics = {
            "loss": Mean.of(losses, mask),
            **diagnostics(z[:, 0], z[:, 1], mask, full=not train),
        }
        return metrics, ({**model_state, "predictor": of_predictor}, of_teacher)

    def init(key: jax.Array, example: Batch) -> TrainState:
        whole = chain(backbone=backbone, projector=projector, predictor=predictor)
        params, model_state = whole.init(key, example["image"])
        followed = [
            {name: tree[name] for name in ("backbone", "projector")}
            for tree in (params, model_state)
        ]
        return TrainState.create(
            key,
            params,
            opt_state=optimizer.init(params),
            model_state=model_state,
            target={"teacher": slow_copy(*followed)},
        )

    def update(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        def loss_of(params: PyTree) -> tuple[jax.Array, Any]:
            metrics, (model_state, of_teacher) = measure(
                params, state, batch, state.rng("views"), True
            )
            return metrics["loss"].value(), ((metrics, of_teacher), model_state)

        teacher, now = state.target["teacher"], rising_decay(state.step, decay, steps)
        state, (metrics, of_teacher), norms = advance(state, loss_of, optimizer)
        followed = {name: state.params[name] for name in teacher["params"]}
        state = state.replace(
            target={**state.target, "teacher": follow(teacher, followed, of_teacher, now)}
        )
        return state, {**metrics, **norms}

    def evaluate(state: TrainState, batch: Batch, key: jax.Array) -> Metrics:
        return measure(state.params, state, batch, key, False)[0]

    return Learner(init, update, evaluate)
