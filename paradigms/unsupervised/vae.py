"""The variational autoencoder, and with a weight on its KL the beta-VAE."""

from typing import Any

import jax
import optax

from nets.net import Net
from paradigms.core.errors import InputError
from paradigms.core.learner import Batch, Learner, minimise
from paradigms.core.metrics import Mean
from paradigms.core.scalars import Scalar, Scheduled, current
from paradigms.core.state import PyTree, TrainState
from paradigms.data.augment import Augmentation
from paradigms.unsupervised.latent_model import (
    check_options,
    draw_posterior,
    evaluation,
    init_latent_model,
)
from paradigms.unsupervised.likelihoods import Likelihood, gaussian_kl, unit_interval


def vae(
    encoder: Net,
    decoder: Net,
    optimizer: optax.GradientTransformation,
    *,
    likelihood: Likelihood = "bernoulli",
    beta: Scheduled = 1.0,
    scale: Scalar = 1.0,
    samples: int = 1,
    augment: Augmentation | None = None,
    importance_samples: int = 1,
    chunk: int = 50,
    input_name: str = "image",
) -> Learner:
    """The variational autoencoder (Kingma and Welling 2014, arXiv:1312.6114, equations 7 and 10).

    It maximises `E_q(z|x) log p(x|z) - beta * KL(q(z|x) || p(z))`, summed over values and latents,
    with the KL in closed form and z drawn by reparameterisation. The prior is N(0, I), the
    posterior a diagonal Gaussian. Any other `beta` than 1 gives the beta-VAE (Higgins et al. 2017,
    "beta-VAE: Learning Basic Visual Concepts with a Constrained Variational Framework", equation
    4), whose objective is no bound on the likelihood where beta is below 1.

    A batch has `image` `[B, ...]` (or another input, see `input_name`), uint8 that is divided by
    255 or float32 that is taken as it is, and optionally `mask` `[B]`, the weight of each example.
    Log-likelihoods of a Bernoulli decoder can be compared where the data is 0 and 1: give
    `augment=binarise()` for training, and binarise held-out data once, beforehand.

    Args:
      encoder: `[B, ...]` float32 to `[B, 2 * latent]`; see `posterior`.
      decoder: `[B, latent]` to the shape of the input: logits, or the mean of a Gaussian.
      optimizer: applied to the gradient of the mean loss over the examples that count.
      likelihood: "bernoulli" or "gaussian". Call `check_support` on the
        data first: here nothing of its values is known.
      beta: weight of the KL, at least 0; may be traced, or a schedule of the updates done.
      scale: standard deviation of the Gaussian decoder, above 0; may be traced.
      samples: draws of z per example in training.
      augment: `(key, image) -> image`, at training only, before the division by 255.
      importance_samples: draws of z per example in evaluation; see `evaluation`.
      chunk: how many of them are held in memory at once.
      input_name: the entry of the batch that is learnt.

    Returns:
      A learner with params and model state `{"encoder": ..., "decoder": ...}`. `update` reports
      `loss` (which alone knows of beta), `elbo`, `reconstruction` (`log p(x|z)`), `kl`, all in nats
      per example, and norms. For `evaluate` see `evaluation`.

    Raises:
      InputError: an option out of its range, an encoder without latents, or a decoder that gives
        another shape than the input's.
    """
    counts = {"samples": samples, "importance_samples": importance_samples, "chunk": chunk}
    check_options("vae", likelihood, scale, counts)
    if not callable(beta) and not isinstance(beta, jax.core.Tracer) and not float(beta) >= 0:
        raise InputError(f"vae(beta={beta}): expected a number of at least 0, or a schedule")

    def loss_of(params: PyTree, state: TrainState, batch: Batch) -> tuple[jax.Array, Any]:
        inputs = batch[input_name]
        if augment is not None:
            inputs = augment(state.rng("augment"), inputs)
        draws, model_state = draw_posterior(
            encoder, decoder, params, state, unit_interval(inputs), samples, likelihood, scale
        )
        reconstruction = draws.reconstruction.mean(1)
        kl = gaussian_kl(draws.mean, draws.log_var)
        values = {
            "loss": current(beta, state.step) * kl - reconstruction,
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
