"""The importance-weighted autoencoder."""

import math
from typing import Any

import jax
import optax

from nets.net import Net
from paradigms.core.learner import Batch, Learner, minimise
from paradigms.core.metrics import Mean
from paradigms.core.scalars import Scalar
from paradigms.core.state import PyTree, TrainState
from paradigms.data.augment import Augmentation
from paradigms.unsupervised.latent_model import (
    check_options,
    draw_posterior,
    evaluation,
    init_latent_model,
    log_weights,
)
from paradigms.unsupervised.likelihoods import Likelihood, gaussian_kl, unit_interval


def importance_bound(log_weights: jax.Array) -> jax.Array:
    """`log 1/k sum_i w_i`, the bound L_k in nats (Burda et al. 2016, arXiv:1509.00519, eq. 8).

    Its gradient weighs the gradient of each `log w_i` by `w_i / sum_j w_j` (equation 14). Weights
    1 and 3 give `log 2`, and their gradients count a quarter and three quarters.

    Args:
      log_weights: `[..., k]`.

    Returns:
      `[...]`.
    """
    return jax.nn.logsumexp(log_weights, axis=-1) - math.log(log_weights.shape[-1])


def iwae(
    encoder: Net,
    decoder: Net,
    optimizer: optax.GradientTransformation,
    *,
    k: int,
    likelihood: Likelihood = "bernoulli",
    scale: Scalar = 1.0,
    augment: Augmentation | None = None,
    importance_samples: int = 1,
    chunk: int = 50,
    input_name: str = "image",
) -> Learner:
    """The importance-weighted autoencoder (Burda et al. 2016, arXiv:1509.00519, section 3).

    It maximises `importance_bound` of k reparameterised draws per example, a bound on `log p(x)`
    that is the tighter the larger k. With k = 1 it is the VAE with the KL of the draw in place of
    the one in closed form: the same in expectation, and noisier.

    Batches, nets and options are those of `vae`.

    Args:
      encoder: see `vae`.
      decoder: see `vae`; it sees k latents for each example.
      optimizer: see `vae`.
      k: draws of z per example in training.
      likelihood: see `vae`.
      scale: see `vae`.
      augment: see `vae`.
      importance_samples: see `vae`; independent of k.
      chunk: see `vae`.
      input_name: see `vae`.

    Returns:
      A learner as `vae` gives. `update` reports `loss`, which is minus the bound; `elbo` (with the
      KL in closed form), `reconstruction` (the mean over the draws) and `kl` are those of the same
      posterior.

    Raises:
      InputError: as `vae`, and for a k below 1.
    """
    counts = {"k": k, "importance_samples": importance_samples, "chunk": chunk}
    check_options("iwae", likelihood, scale, counts)

    def loss_of(params: PyTree, state: TrainState, batch: Batch) -> tuple[jax.Array, Any]:
        inputs = batch[input_name]
        if augment is not None:
            inputs = augment(state.rng("augment"), inputs)
        draws, model_state = draw_posterior(
            encoder, decoder, params, state, unit_interval(inputs), k, likelihood, scale
        )
        bound = importance_bound(
            log_weights(draws.reconstruction, draws.z, draws.mean, draws.log_var)
        )
        reconstruction = draws.reconstruction.mean(1)
        kl = gaussian_kl(draws.mean, draws.log_var)
        values = {
            "loss": -bound,
            "elbo": reconstruction - kl,
            "reconstruction": reconstruction,
            "kl": kl,
        }
        metrics = {name: Mean.of(value, batch.get("mask")) for name, value in values.items()}
        return metrics["loss"].value(), (metrics, model_state)

    return minimise(
        loss_of,
        optimizer,
        init=lambda key, batch: init_latent_model(key, encoder, decoder, batch[input_name]),
        evaluate=evaluation(
            encoder, decoder, likelihood, scale, importance_samples, chunk, input_name
        ),
    )
