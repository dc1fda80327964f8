"""MixMatch: sharpened guesses for unlabelled examples, mixed with labels."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from nets.net import Net
from paradigms.core.classification import cross_entropy
from paradigms.core.errors import InputError
from paradigms.core.learner import Batch, Learner, minimise
from paradigms.core.metrics import Mean
from paradigms.core.scalars import Scalar, Scheduled, current
from paradigms.core.state import PyTree, TrainState
from paradigms.data.augment import Augmentation, mix
from paradigms.data.images import unit
from paradigms.semi_supervised.streams import (
    alone,
    both_parts,
    classifying,
    labelled_metrics,
    pseudo_label_metrics,
    total,
)


def sharpen(probabilities: jax.Array, temperature: Scalar) -> jax.Array:
    """`p^(1/T) / sum p^(1/T)` over the last axis (Berthelot et al. 2019, equation 7)."""
    # By logarithms, which low temperatures do not take to 0 / 0.
    return jax.nn.softmax(jnp.log(probabilities) / temperature)


def mixmatch(
    net: Net,
    optimizer: optax.GradientTransformation,
    augment: Augmentation,
    *,
    views: int = 2,
    temperature: Scalar = 0.5,
    alpha: Scalar = 0.75,
    weight: Scheduled = 75.0,
    input_name: str = "image",
) -> Learner:
    """MixMatch (Berthelot et al. 2019, arXiv:1905.02249, algorithm 1).

    The probabilities of `views` views of an unlabelled example are averaged and sharpened, without
    a gradient, to be the target of each. Then all views, with targets, are mixed with those in
    another order, by one `lambda = max(l, 1 - l)`, l ~ Beta(alpha, alpha), so that each stays
    nearer to itself. Labelled ones are learnt by cross entropy, unlabelled ones by the squared
    error of the probabilities, the mean over examples and classes. Guesses are made in training
    mode, and leave no batch statistics; the mixed views go through at once.

    Args:
      net: gives logits `[B, K]` for inputs in [0, 1].
      optimizer: applied to the gradient of the sum of both losses.
      augment: `(key, image) -> image`, of both parts.
      views: of an unlabelled example, K in the paper; at least 1.
      temperature: of the sharpening, above 0; 1 leaves the mean as it is.
      alpha: of the mixing, above 0.
      weight: of the unlabelled loss, a number or a schedule of updates; the paper's rises linearly.
      input_name: the entry of both parts of the batch, as in `streams`, that goes into the net.

    Returns:
      A learner. `update` reports `loss`, `loss/labelled` and `accuracy` (on mixed labelled
      examples, the latter by their own labels), `loss/unlabelled`, `weight`,
      `pseudo_label_metrics`, of which all are accepted, and norms; `evaluate` is the classifier's.

    Raises:
      InputError: an option out of its range; when traced, parts that are missing or do not match.
    """
    if views < 1:
        raise InputError(f"mixmatch(views={views}): expected at least 1 view of an example")
    for name, value in (("temperature", temperature), ("alpha", alpha)):
        if not isinstance(value, jax.core.Tracer) and not value > 0:
            raise InputError(f"mixmatch({name}={value}): expected a number above 0")

    def loss_of(params: PyTree, state: TrainState, batch: Batch) -> tuple[jax.Array, Any]:
        x, label, u = both_parts("mixmatch", batch, input_name)
        x, u = augment(state.rng("labelled"), x), jnp.tile(u, (views, *[1] * (u.ndim - 1)))
        x, u = unit(x), unit(augment(state.rng("unlabelled"), u))
        seen, _ = alone(net, params, state.model_state, u, state.rng("guess"))
        seen = jax.nn.softmax(jax.lax.stop_gradient(seen).astype(jnp.float32))
        guess = sharpen(seen.reshape(views, -1, seen.shape[-1]).mean(0), temperature)

        targets = jnp.concatenate(
            [jax.nn.one_hot(label, guess.shape[-1]), jnp.tile(guess, (views, 1))]
        )
        share_key, pair_key = jax.random.split(state.rng("mix"))
        share = jax.random.beta(share_key, alpha, alpha)
        partner = jax.random.permutation(pair_key, len(targets))
        inputs, targets = mix(
            jnp.concatenate([x, u]), targets, partner, jnp.maximum(share, 1 - share)
        )
        logits, model_state = alone(net, params, state.model_state, inputs, state.rng("net"))
        error = jnp.square(jax.nn.softmax(logits.astype(jnp.float32)) - targets).mean(-1)
        number = len(x)
        everyone = jnp.ones(len(guess), bool)
        metrics = {
            **labelled_metrics(logits[:number], label),
            "loss/labelled": Mean.of(cross_entropy(logits[:number], targets[:number])),
            "loss/unlabelled": Mean.of(error[number:]),
            **pseudo_label_metrics(
                guess.argmax(-1), everyone, guess.shape[-1], batch["unlabelled"]
            ),
        }
        loss, metrics = total(metrics, current(weight, state.step))
        return loss, (metrics, model_state)

    return minimise(loss_of, optimizer, **classifying(net, input_name, unit))
