"""VICReg: embeddings that agree, keep their variance, and have uncorrelated coordinates."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nets.net import Net
from paradigms.core.errors import InputError
from paradigms.core.learner import Learner, Metrics
from paradigms.core.metrics import Mean
from paradigms.core.scalars import Scalar
from paradigms.data.augment import Augmentation
from paradigms.self_supervised.joint_embedding import COLLAPSED, check_pairs, siamese


class VICReg(NamedTuple):
    """The three terms without their weights, float32 scalars."""

    invariance: jax.Array
    variance: jax.Array
    covariance: jax.Array


def vicreg_terms(first: jax.Array, second: jax.Array, mask: jax.Array | None = None) -> VICReg:
    """The terms of the loss as the authors' code has them, which differs from the paper in scale.

    invariance: `(x - y)^2` averaged over examples and coordinates (equation 5 sums the latter).
    variance: `max(0, 1 - sqrt(var + 1e-4))` averaged over coordinates (equations 1 and 2) and over
    both views. covariance: the squares of the covariances of different coordinates, summed, over D
    (equations 3 and 4), summed over both views. Variances and covariances divide by N - 1, and no
    embedding is scaled to length one.

    Args:
      first: embeddings of one view, `[N, D]`.
      second: of the other.
      mask: `[N]` of 0 and 1; examples of 0 are left out of every term.

    Raises:
      InputError: shapes that differ, or fewer than two examples, which have no variance.
    """
    check_pairs("vicreg", first, second)
    dimensions = first.shape[1]
    weight = jnp.ones(len(first)) if mask is None else jnp.asarray(mask, jnp.float32)
    number = jnp.maximum(weight.sum(), 1.0)
    both = jnp.stack([first, second]).astype(jnp.float32)
    both = jnp.where(weight[:, None] > 0, both, 0.0)
    centred = weight[:, None] * (both - both.sum(1, keepdims=True) / number)
    covariance = jnp.matmul(centred.swapaxes(1, 2), centred, precision="highest")
    covariance = covariance / jnp.maximum(number - 1, 1.0)
    std = jnp.sqrt(jnp.diagonal(covariance, axis1=1, axis2=2) + 1e-4)
    others = jnp.square(covariance * (1 - jnp.eye(dimensions)))
    return VICReg(
        invariance=jnp.square(both[0] - both[1]).sum() / number / dimensions,
        variance=jax.nn.relu(1 - std).mean(),
        covariance=others.sum() / dimensions,
    )


def vicreg(
    backbone: Net,
    projector: Net,
    optimizer: optax.GradientTransformation,
    augment: Augmentation,
    *,
    invariance: Scalar = 25.0,
    variance: Scalar = 25.0,
    covariance: Scalar = 1.0,
) -> Learner:
    """Variance-invariance-covariance regularisation (Bardes et al. 2022, arXiv:2105.04906).

    Minimises the weighted sum of `vicreg_terms` (equation 6). Variances are those of the global
    batch. Batches, nets and state are as in `siamese`; the authors' code gives each view batch
    statistics of its own, here both share them.

    Args:
      backbone: as in `siamese`.
      projector: as in `siamese`; the paper's "expander" is wider than the representation.
      optimizer: of both.
      augment: `(key, image) -> image`.
      invariance: weight, at least 0; may be traced, as the others.
      variance: weight; at 0 nothing keeps the embeddings from collapse.
      covariance: weight.

    Returns:
      A learner that reports `loss`, the terms `invariance`, `variance` and `covariance` without
      their weights, and what `siamese` adds. Here `embedding/collapsed` is 1 where the standard
      deviation of the embeddings as they are, which this loss wants to be 1, is below `COLLAPSED`:
      they may shrink to nothing in different directions, which `embedding/std` does not see.

    Raises:
      InputError: a negative or infinite weight, and what `siamese` refuses.
    """
    weights = {"invariance": invariance, "variance": variance, "covariance": covariance}
    for name, weight in weights.items():
        holds = (weight >= 0) & (weight < np.inf)
        if not isinstance(holds, jax.core.Tracer) and not holds:
            raise InputError(f"vicreg({name}={weight}): expected a number of at least 0")

    def loss(first: jax.Array, second: jax.Array, mask: jax.Array | None) -> Metrics:
        terms = vicreg_terms(first, second, mask)._asdict()
        total = sum(weight * terms[name] for name, weight in weights.items())
        number = jnp.float32(len(first)) if mask is None else jnp.sum(mask)
        collapsed = terms["variance"] > 1 - COLLAPSED
        values = {"loss": total, **terms, "embedding/collapsed": collapsed}
        return {name: Mean.of(value, number) for name, value in values.items()}

    return siamese(backbone, projector, optimizer, augment, loss)
