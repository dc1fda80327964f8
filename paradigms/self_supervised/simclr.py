"""SimCLR: each view is to be told from all other views of the batch by the company it keeps."""

import jax
import jax.numpy as jnp
import optax

from nets.net import Net
from paradigms.core.errors import InputError
from paradigms.core.learner import Learner, Metrics
from paradigms.core.metrics import Mean
from paradigms.core.scalars import Scalar
from paradigms.data.augment import Augmentation
from paradigms.self_supervised.joint_embedding import check_pairs, siamese, unit_length


def nt_xent(
    first: jax.Array, second: jax.Array, temperature: Scalar, mask: jax.Array | None = None
) -> jax.Array:
    """Normalised temperature-scaled cross entropy (Chen et al. 2020, equation 1).

    For each of the 2N views, `-log softmax` of the cosine with its partner, over the temperature,
    among those with all 2N - 1 others. Similarities are formed in full float32.

    Args:
      first: embeddings of one view, `[N, D]`.
      second: of the other.
      temperature: above 0.
      mask: `[N]` of 0 and 1; examples of 0 are nobody's negatives, and their own losses have no
        meaning.

    Returns:
      float32 `[N]`, nats, for each example the mean of its two views: their mean is the mean over
      all 2N. ln(2N - 1) where all embeddings are equal.

    Raises:
      InputError: shapes that differ, or fewer than two examples, which have no negatives.
    """
    check_pairs("nt_xent", first, second)
    n = len(first)
    z = unit_length(jnp.concatenate([first, second]))
    similarity = jnp.matmul(z, z.T, precision="highest") / temperature
    self_, partner = jnp.eye(2 * n, dtype=bool), jnp.roll(jnp.eye(2 * n, dtype=bool), n, axis=1)
    compared = ~self_
    if mask is not None:
        # A partner stays, for a softmax over nothing would be NaN.
        compared = partner | (compared & jnp.tile(mask > 0, 2))
    total = jax.nn.logsumexp(jnp.where(compared, similarity, -jnp.inf), axis=1)
    positive = jnp.where(partner, similarity, 0.0).sum(1)
    return (total - positive).reshape(2, n).mean(0)


def simclr(
    backbone: Net,
    projector: Net,
    optimizer: optax.GradientTransformation,
    augment: Augmentation,
    *,
    temperature: Scalar = 0.5,
) -> Learner:
    """SimCLR (Chen et al. 2020, arXiv:2002.05709, algorithm 1).

    Negatives are all other views of the global batch, on whatever device they lie, and gradients
    flow through them too. Batches, nets and state are as in `siamese`.

    Args:
      backbone: as in `siamese`.
      projector: as in `siamese`; the paper's has one hidden layer.
      optimizer: of both; the paper's is LARS.
      augment: `(key, image) -> image`; what it changes is what the net learns to overlook.
      temperature: above 0; may be traced. 0.5 suits CIFAR-10 (appendix B.9), 0.1 ImageNet.

    Returns:
      A learner that reports `loss`, `nt_xent` in nats, whose value depends on the size of the
      batch, and what `siamese` adds.

    Raises:
      InputError: a temperature that is not positive, and what `siamese` refuses.
    """
    if not isinstance(temperature, jax.core.Tracer) and not temperature > 0:
        raise InputError(f"simclr(temperature={temperature}): expected a number above 0")

    def loss(first: jax.Array, second: jax.Array, mask: jax.Array | None) -> Metrics:
        return {"loss": Mean.of(nt_xent(first, second, temperature, mask), mask)}

    return siamese(backbone, projector, optimizer, augment, loss)
