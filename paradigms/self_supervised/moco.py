"""MoCo: each view is to be told from a queue of others that a slow copy of the net embedded."""

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
    enqueue,
    new_queue,
    two_views,
    unit_length,
)


def info_nce(query: jax.Array, key: jax.Array, queue: jax.Array, temperature: Scalar) -> jax.Array:
    """InfoNCE against a queue (He et al. 2020, equation 1): moves the query only.

    `-log softmax` of the cosine of query and key, over the temperature, among it and the cosines
    with the queue. Formed in full float32.

    Args:
      query: `[..., D]`.
      key: the positive of each query, `[..., D]`.
      queue: the negatives of all, `[K, D]`.
      temperature: above 0.

    Returns:
      float32 `[...]`, nats; ln(K + 1) where all cosines are equal.
    """
    chex.assert_equal_shape((query, key))
    chex.assert_rank(queue, 2)
    query = unit_length(query)
    key, queue = jax.lax.stop_gradient((unit_length(key), unit_length(queue)))
    positive = (query * key).sum(-1, keepdims=True)
    negative = jnp.matmul(query, queue.T, precision="highest")
    logits = jnp.concatenate([positive, negative], axis=-1) / temperature
    return jax.nn.logsumexp(logits, axis=-1) - logits[..., 0]


def moco(
    backbone: Net,
    projector: Net,
    optimizer: optax.GradientTransformation,
    augment: Augmentation,
    *,
    queue_size: int = 4096,
    temperature: Scalar = 0.2,
    decay: Scalar = 0.99,
    symmetric: bool = True,
) -> Learner:
    """MoCo v2 (He et al. 2020, arXiv:1911.05722; Chen et al. 2020, arXiv:2003.04297).

    The net embeds queries, and its moving average, `state.target["teacher"]`, embeds keys. A query
    is to find the key of the other view of its example among the keys of earlier batches, which
    `state.memory` queues: `keys` float32 `[K, D]` of length one, random at the start, and `cursor`
    int32, the place of the oldest. New keys enter after the loss has been computed, so the queue
    never holds the positive of a query.

    The papers shuffle keys over devices, because batch norm there sees one device's share, and the
    statistics that a query shares with its positive but not with the queue give the answer away.
    Here batch norm sees the global batch and there is nothing to shuffle: the queries' statistics
    are those of the same examples as the positives', and only the size of the batch makes this hint
    faint. A net with group norm gives none. The teacher normalises by its own batches as it trains,
    and by running statistics in evaluation.

    Batches and nets are as in `siamese`.

    Args:
      backbone: image `[B, ...]` -> representation.
      projector: representation -> embedding `[B, D]`; version 2 has one hidden layer.
      optimizer: of both.
      augment: `(key, image) -> image`; draws each view, in evaluation too.
      queue_size: K, a multiple of the keys of an update.
      temperature: above 0; may be traced. 0.2 is version 2's, 0.07 was the first's.
      decay: of the teacher, in [0, 1]; may be traced. The papers' 0.999 is for long runs on
        ImageNet, 0.99 for a few hundred epochs of CIFAR.
      symmetric: whether each view is a query once and a key once, and the loss the mean of both
        directions, with 2B keys to an update; or the first view the query and the second the key,
        as in the papers, with B.

    Returns:
      A learner with params and model state `{"backbone": ..., "projector": ...}`. It reports `loss`
      in nats, `diagnostics` of the first view's query and its key (in `evaluate` all of them),
      and norms in `update`. `evaluate` compares with the queue as it is.

    Raises:
      InputError: an option out of its range; and, when traced, a queue that is no multiple of the
        keys of an update, a batch of one example, or embeddings that are not `[B, D]`.
    """
    for name, value, holds, expected in (
        ("queue_size", queue_size, queue_size >= 1, "at least 1"),
        ("temperature", temperature, temperature > 0, "a number above 0"),
        ("decay", decay, (decay >= 0) & (decay <= 1), "a number in [0, 1]"),
    ):
        if not isinstance(holds, jax.core.Tracer) and not holds:
            raise InputError(f"moco({name}={value}): expected {expected}")
    net = chain(backbone=backbone, projector=projector)

    def measure(
        params: PyTree, state: TrainState, batch: Batch, key: jax.Array, train: bool
    ) -> tuple[Metrics, tuple[PyTree, PyTree, jax.Array]]:
        """Metrics; model state, the teacher's, and the keys `[N, D]` that are to be queued."""
        views = two_views(augment, fold_name(key, "augment"), batch["image"])
        partners = views[:, ::-1]
        if not symmetric:
            views, partners = views[:, :1], partners[:, :1]
        teacher, mask = state.target["teacher"], None if train else batch.get("mask")
        query, model_state = embed(
            net, params, state.model_state, views, fold_name(key, "net"), train
        )
        keys, of_teacher = embed(
            net,
            teacher["params"],
            teacher["model_state"],
            partners,
            fold_name(key, "teacher"),
            train,
        )
        keys = unit_length(keys)
        losses = info_nce(query, keys, state.memory["keys"], temperature).mean(1)
        metrics = {
            "loss": Mean.of(losses, mask),
            **diagnostics(query[:, 0], keys[:, 0], mask, full=not train),
        }
        return metrics, (model_state, of_teacher, keys.reshape(-1, keys.shape[-1]))

    def init(key: jax.Array, example: Batch) -> TrainState:
        params, model_state = net.init(key, example["image"])
        z, _ = jax.eval_shape(net.apply, params, model_state, example["image"])
        state = TrainState.create(
            key,
            params,
            opt_state=optimizer.init(params),
            model_state=model_state,
            target={"teacher": slow_copy(params, model_state)},
            memory=new_queue(fold_name(key, "queue"), queue_size, z.shape[-1]),
        )

        def first_keys() -> dict[str, jax.Array]:
            return enqueue(state.memory, measure(params, state, example, key, False)[1][2])

        jax.eval_shape(first_keys)  # finds a queue that does not fit
        return state

    def update(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        def loss_of(params: PyTree) -> tuple[jax.Array, Any]:
            metrics, (model_state, *others) = measure(
                params, state, batch, state.rng("views"), True
            )
            return metrics["loss"].value(), ((metrics, *others), model_state)

        state, (metrics, of_teacher, keys), norms = advance(state, loss_of, optimizer)
        teacher = follow(state.target["teacher"], state.params, of_teacher, decay)
        state = state.replace(
            target={**state.target, "teacher": teacher}, memory=enqueue(state.memory, keys)
        )
        return state, {**metrics, **norms}

    def evaluate(state: TrainState, batch: Batch, key: jax.Array) -> Metrics:
        return measure(state.params, state, batch, key, False)[0]

    return Learner(init, update, evaluate)
