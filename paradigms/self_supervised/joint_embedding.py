"""What joint-embedding learners share: two views, their embeddings, and the signs of collapse.

Two random views of an example should be embedded alike. That alone has a trivial answer, the same
embedding for everything, and the algorithms differ in what keeps them from it. `diagnostics` tells
whether it does: neither the loss nor the accuracy of a probe need show it.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from nets.net import Net, chain
from paradigms.core.errors import InputError
from paradigms.core.learner import Batch, Learner, Metrics, minimise
from paradigms.core.mesh import constrain_batch
from paradigms.core.metrics import Mean
from paradigms.core.state import PyTree, TrainState, fold_name
from paradigms.data.augment import Augmentation

COLLAPSED = 0.1
"""`embedding/collapsed` is 1 where `embedding/std` is below this.

With m the mean of the embeddings at length one, the standard deviation is at most `sqrt(1 - |m|^2)`
and equal to it where all coordinates vary alike, and `|m|^2` is the mean cosine of two embeddings.
So 0.1 is a mean cosine of 0.99, between what training leaves, some 0.5 and above, and the 0 of
equal embeddings. A deep net without normalisation can begin below it.
"""

_ROUNDING = 1e-6  # of the cosine of equal directions

PairLoss = Callable[[jax.Array, jax.Array, jax.Array | None], Metrics]
"""`(first[B, D], second[B, D], mask[B] or None) -> metrics`, of which `loss` is minimised. They go
before `diagnostics` of the same name."""


def siamese(
    backbone: Net,
    projector: Net,
    optimizer: optax.GradientTransformation,
    augment: Augmentation,
    loss: PairLoss,
) -> Learner:
    """Learns by a loss of the embeddings of two views, both made by one net.

    A batch has `image` `[B, ...]`, whatever `augment` and then the backbone take. Evaluation
    honours a `mask` `[B]` of 0 and 1; training has none. Both views of all examples go through the
    net together, so batch norm takes its statistics over 2B rows. Only the backbone is for use
    afterwards:
    `backbone.apply(state.params["backbone"], state.model_state["backbone"], image)`.

    Args:
      backbone: image `[B, ...]` -> representation.
      projector: representation -> embedding `[B, D]`.
      optimizer: of both.
      augment: `(key, image) -> image`; draws each view, in evaluation too.
      loss: of the embeddings. It has to mean the same whichever view is the first.

    Returns:
      A learner with params and model state `{"backbone": ..., "projector": ...}`. `update` reports
      what `loss` does, `diagnostics` without the last two, and norms; `evaluate` the loss, with the
      net out of training, and all `diagnostics`.

    Raises:
      InputError: when traced, a batch of one example, or embeddings that are not `[B, D]`.
    """
    net = chain(backbone=backbone, projector=projector)

    def measure(
        params: PyTree, state: TrainState, batch: Batch, key: jax.Array, train: bool
    ) -> tuple[Metrics, PyTree]:
        views = two_views(augment, fold_name(key, "augment"), batch["image"])
        z, model_state = embed(net, params, state.model_state, views, fold_name(key, "net"), train)
        first, second, mask = z[:, 0], z[:, 1], None if train else batch.get("mask")
        signs = diagnostics(first, second, mask, full=not train)
        return {**signs, **loss(first, second, mask)}, model_state

    def loss_of(
        params: PyTree, state: TrainState, batch: Batch
    ) -> tuple[jax.Array, tuple[Metrics, PyTree]]:
        metrics, model_state = measure(params, state, batch, state.rng("views"), True)
        return metrics["loss"].value(), (metrics, model_state)

    return minimise(
        loss_of,
        optimizer,
        init=lambda key, example: net.init(key, example["image"]),
        evaluate=lambda state, batch, key: measure(state.params, state, batch, key, False)[0],
        by_example=False,
    )


def two_views(augment: Augmentation, key: jax.Array, image: jax.Array) -> jax.Array:
    """Two views `[B, 2, ...]` of each image `[B, ...]`, drawn with different keys.

    On a mesh they are divided by examples, so the views of one lie on one device.
    """
    # A loop, since long augmentations take as long to compile as the net does.
    views = jax.lax.map(lambda key: constrain_batch(augment(key, image)), jax.random.split(key))
    return jnp.moveaxis(views, 0, 1)


def embed(
    net: Net,
    params: PyTree,
    model_state: PyTree,
    views: jax.Array,
    key: jax.Array,
    train: bool,
) -> tuple[jax.Array, PyTree]:
    """Embeddings of all views in one pass, and the model state.

    Args:
      net: `[N, ...] -> [N, D]`.
      params: the net's.
      model_state: the net's.
      views: `[B, V, ...]`.
      key: of what the net draws.
      train: whether batch norm takes its statistics from these B * V rows.

    Returns:
      `(z, model_state)`, z float32 `[B, V, D]`.

    Raises:
      InputError: the net gives no `[N, D]`.
    """
    rows = constrain_batch(views.reshape(-1, *views.shape[2:]))
    z, model_state = net.apply(params, model_state, rows, key=key, train=train)
    if z.ndim != 2 or len(z) != len(rows):
        raise InputError(
            f"a projector or predictor gives {z.shape} for {len(rows)} views: expected [N, D]"
        )
    z = constrain_batch(z)  # lest a mesh that divides D mix up the gradients of rows
    return z.astype(jnp.float32).reshape(*views.shape[:2], -1), model_state


def unit_length(z: jax.Array) -> jax.Array:
    """`z / |z|` along the last axis, float32; zero, with the gradient zero, where z is zero."""
    z = z.astype(jnp.float32)
    square = jnp.square(z).sum(-1, keepdims=True)
    # NaN stays NaN, so that `fit` finds it.
    return jnp.where(square == 0, 0.0, z * jax.lax.rsqrt(jnp.where(square == 0, 1.0, square)))


def check_pairs(name: str, first: jax.Array, second: jax.Array) -> None:
    """Raises `InputError` unless both are `[N, D]` with N at least 2."""
    if first.shape != second.shape or first.ndim != 2 or len(first) < 2:
        raise InputError(
            f"{name}: embeddings {first.shape} and {second.shape}: expected two of one shape "
            "[N, D] with N at least 2, for one example has no other to be told from"
        )


def new_queue(key: jax.Array, size: int, dimensions: int) -> dict[str, jax.Array]:
    """A queue of `size` random directions: `keys` float32 `[K, D]`, and `cursor` int32, 0."""
    keys = unit_length(jax.random.normal(key, (size, dimensions)))
    return {"keys": keys, "cursor": jnp.zeros((), jnp.int32)}


def enqueue(queue: dict[str, jax.Array], keys: jax.Array) -> dict[str, jax.Array]:
    """Puts `keys[N, D]` in the place of the oldest.

    Raises:
      InputError: K is no multiple of N.
    """
    size, number = len(queue["keys"]), len(keys)
    if size % number:
        raise InputError(
            f"a queue of {size} is no multiple of the {number} keys that an update brings: "
            f"take a queue_size that is"
        )
    placed = jax.lax.dynamic_update_slice_in_dim(queue["keys"], keys, queue["cursor"], axis=0)
    return {"keys": placed, "cursor": (queue["cursor"] + number) % size}


def diagnostics(
    first: jax.Array, second: jax.Array, mask: jax.Array | None = None, *, full: bool = False
) -> Metrics:
    """Whether embeddings spread, or have collapsed; they are not trained by it.

    All but the rank is of embeddings scaled to length one. What is not a mean over examples counts
    as many times as there are examples, and not at all where there are fewer than two.

    Args:
      first: embeddings of one view, `[N, D]`.
      second: of the other.
      mask: `[N]` of 0 and 1, which examples there are; all by default.
      full: whether to compute the last two, which take a singular value decomposition and as many
        products as there are pairs of examples.

    Returns:
      `embedding/std`: the standard deviation of a coordinate, averaged over coordinates, times
      sqrt(D): near 1 where embeddings go everywhere, 0 where they are one (Chen and He 2020,
      arXiv:2011.10566, section 4.1). `embedding/collapsed`: 1 where it is below `COLLAPSED`, or 0.
      `embedding/alignment`: the mean of `|u - v|^2` over pairs of views, in 0 to 4.
      `embedding/uniformity`: the log of the mean of `exp(-2 |u - u'|^2)` over pairs of examples,
      averaged over the views, in -8 to 0 and 0 on collapse (Wang and Isola 2020,
      arXiv:2005.10242, equations 1 and 2, with alpha = t = 2).
      `embedding/rank`: `effective_rank` of the first view.
      `embedding/retrieval`: the share of examples whose second view is, of all second views, the
      one nearest to their first, in 0 to 1. Where several are as near it counts for nothing, as
      on collapse.

    Raises:
      InputError: shapes that differ or have another rank, or one example only.
    """
    check_pairs("diagnostics", first, second)
    weight = jnp.ones(len(first)) if mask is None else jnp.asarray(mask, jnp.float32)
    number = weight.sum()
    known = jnp.where(number > 1, number, 0.0)
    both = jax.lax.stop_gradient(jnp.stack([first, second])).astype(jnp.float32)
    both = jnp.where(weight[:, None] > 0, both, 0.0)
    unit = unit_length(both)

    share = weight[:, None] / jnp.maximum(2 * number, 1.0)
    mean = (share * unit).sum((0, 1))
    deviation = jnp.sqrt((share * jnp.square(unit - mean)).sum((0, 1)))
    std = deviation.mean() * jnp.sqrt(jnp.float32(len(deviation)))

    lengths = jnp.square(unit).sum(-1)
    products = jnp.matmul(unit, unit.swapaxes(1, 2), precision="highest")
    distance = lengths[:, :, None] + lengths[:, None, :] - 2 * products
    pairs = weight[:, None] * weight * (1 - jnp.eye(len(weight)))
    potential = (pairs * jnp.exp(-2 * distance)).sum((1, 2)) / jnp.maximum(pairs.sum(), 1.0)
    metrics = {
        "embedding/std": Mean.of(std, known),
        "embedding/collapsed": Mean.of(std < COLLAPSED, known),
        "embedding/alignment": Mean.of(jnp.square(unit[0] - unit[1]).sum(-1), weight),
        "embedding/uniformity": Mean.of(jnp.log(potential).mean(), known),
    }
    if full:
        cosine = jnp.matmul(unit[0], unit[1].T, precision="highest")
        own, others = jnp.diagonal(cosine), (weight > 0) & ~jnp.eye(len(weight), dtype=bool)
        nearest_other = jnp.where(others, cosine, -jnp.inf).max(1)
        metrics["embedding/rank"] = Mean.of(effective_rank(both[0]), known)
        metrics["embedding/retrieval"] = Mean.of(
            own > nearest_other + _ROUNDING, jnp.where(number > 1, weight, 0.0)
        )
    return metrics


def effective_rank(z: jax.Array) -> jax.Array:
    """How many directions embeddings `[N, D]` use: a float32 scalar in 1 to min(N, D).

    exp of the entropy of the singular values divided by their sum (Roy and Vetterli 2007, "The
    effective rank: a measure of effective dimensionality", definition 1; RankMe, Garrido et al.
    2023, arXiv:2210.02885, equation 1). Nothing is centred or scaled. It can be compared at one N
    only, and rows of zeros do not change it.
    """
    values = jnp.linalg.svd(z.astype(jnp.float32), compute_uv=False)
    share = values / jnp.maximum(values.sum(), jnp.finfo(jnp.float32).tiny)
    return jnp.exp(-jax.scipy.special.xlogy(share, share).sum())
