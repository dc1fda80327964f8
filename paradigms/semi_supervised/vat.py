"""Virtual adversarial training: the output must not change in the direction it changes most in."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from nets.net import Net
from paradigms.core.errors import InputError
from paradigms.core.learner import Batch, Learner, minimise
from paradigms.core.scalars import Scalar, Scheduled, current
from paradigms.core.state import PyTree, TrainState
from paradigms.data.augment import Augmentation
from paradigms.data.images import unit
from paradigms.semi_supervised.streams import (
    alone,
    both_parts,
    classifying,
    labelled_metrics,
    total,
    unlabelled_metrics,
)


def virtual_adversarial_loss(
    key: jax.Array,
    logits_of: Callable[[jax.Array], jax.Array],
    x: jax.Array,
    *,
    epsilon: Scalar,
    xi: Scalar = 1e-2,
    iterations: int = 1,
    clean: jax.Array | None = None,
) -> jax.Array:
    """`KL(p(x) || p(x + r))` (Miyato et al. 2018, equations 5, 6 and 12), per example.

    r has length `epsilon` in the direction, found for each example by itself, in which this
    divergence grows fastest: from a random one, `iterations` steps of the power method, each by the
    gradient at distance `xi`. p(x) and r have no gradient.

    Args:
      key: draws the direction to start from.
      logits_of: `[B, ...] -> [B, K]`, the same function in every call.
      x: float inputs `[B, ...]`.
      epsilon: Euclidean length of r.
      xi: where the gradient is taken; float32 can tell the divergence from 0 there.
      iterations: at least 1.
      clean: `logits_of(x)`, where it is known already.

    Returns:
      float32 `[B]`, in nats.
    """
    clean = jax.lax.stop_gradient(logits_of(x) if clean is None else clean)

    def divergence(r: jax.Array) -> jax.Array:
        return _divergence(clean, logits_of(x + r))

    direction = _of_length_one(jax.random.normal(key, x.shape))
    for _ in range(iterations):
        gradient = jax.grad(lambda d: divergence(xi * d).sum())(direction)
        direction = _of_length_one(jax.lax.stop_gradient(gradient))
    return divergence(epsilon * direction)


def vat(
    net: Net,
    optimizer: optax.GradientTransformation,
    *,
    epsilon: Scalar,
    weight: Scheduled = 1.0,
    entropy_weight: Scalar = 0.0,
    xi: Scalar = 1e-2,
    iterations: int = 1,
    augment: Augmentation | None = None,
    input_name: str = "image",
) -> Learner:
    """Virtual adversarial training (Miyato et al. 2018, arXiv:1704.03976, equation 8).

    The unlabelled loss is `virtual_adversarial_loss` on the unlabelled part, and with
    `entropy_weight` the `entropy` of its outputs too (section 4.2.3, "VAT+EntMin"; Grandvalet &
    Bengio 2004). Each part goes through the net by itself, as in the authors' code, and running
    batch statistics are of the unlabelled one; the passes for the divergence are in training mode,
    with the net's noise as in the clean pass, and leave no statistics. One batch of both would let
    the net be sure of the labelled examples alone and flat elsewhere, which is smooth. Batch norm
    on the logits works against that too; the authors' net for MNIST has it.

    Args:
      net: gives logits `[B, K]` for inputs in [0, 1].
      optimizer: applied to the gradient of the sum of both losses.
      epsilon: length of the perturbation of an input scaled to [0, 1].
      weight: of the unlabelled loss, a number or a schedule of updates; the paper's is 1.
      entropy_weight: of the entropy within it; the paper's is 1 where it is used.
      xi: see `virtual_adversarial_loss`.
      iterations: likewise.
      augment: `(key, image) -> image`, of both parts.
      input_name: the entry of both parts of the batch, as in `streams`, that goes into the net.

    Returns:
      A learner. `update` reports `loss`, `loss/labelled`, `loss/unlabelled`, `entropy` of the
      unlabelled outputs, `weight`, `accuracy` on the labelled part, and norms; `evaluate` is the
      classifier's.

    Raises:
      InputError: an option out of its range; when traced, parts that are missing or do not match.
    """
    if iterations < 1:
        raise InputError(f"vat(iterations={iterations}): expected at least 1")
    for name, value in (("epsilon", epsilon), ("xi", xi)):
        if not isinstance(value, jax.core.Tracer) and not (value > 0 or value == epsilon == 0):
            raise InputError(f"vat({name}={value}): expected a length above 0")

    def loss_of(params: PyTree, state: TrainState, batch: Batch) -> tuple[jax.Array, Any]:
        x, label, u = both_parts("vat", batch, input_name)
        if augment is not None:
            x, u = augment(state.rng("labelled"), x), augment(state.rng("unlabelled"), u)
        x, u = unit(x), unit(u)

        def passed(inputs: jax.Array, key: jax.Array) -> tuple[jax.Array, PyTree]:
            return alone(net, params, state.model_state, inputs, key)

        logits, _ = passed(x, state.rng("labelled_net"))
        others, model_state = passed(u, state.rng("net"))
        losses = virtual_adversarial_loss(
            state.rng("direction"),
            lambda inputs: passed(inputs, state.rng("net"))[0],
            u,
            epsilon=epsilon,
            xi=xi,
            iterations=iterations,
            clean=others,
        )
        metrics = {
            **labelled_metrics(logits, label),
            **unlabelled_metrics(losses, others, entropy_weight),
        }
        loss, metrics = total(metrics, current(weight, state.step))
        return loss, (metrics, model_state)

    return minimise(loss_of, optimizer, **classifying(net, input_name, unit))


def _divergence(logits: jax.Array, others: jax.Array) -> jax.Array:
    """`KL(p || q)` of two softmaxes, float32 `[B]`."""
    p, q = (jax.nn.log_softmax(some.astype(jnp.float32)) for some in (logits, others))
    return (jnp.exp(p) * (p - q)).sum(-1)


def _of_length_one(direction: jax.Array) -> jax.Array:
    """Each example's own, over all of its axes."""
    axes = tuple(range(1, direction.ndim))
    # To its largest entry first: a divergence is small, and so are squares of its gradient.
    largest = jnp.abs(direction).max(axes, keepdims=True)
    direction = direction / jnp.where(largest > 0, largest, 1.0)
    length = jnp.sqrt(jnp.square(direction).sum(axes, keepdims=True))
    return direction / jnp.where(length > 0, length, 1.0)
