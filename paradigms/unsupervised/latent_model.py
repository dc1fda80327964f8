"""What the VAE and the IWAE share: posterior, importance weights, likelihood, pictures."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nets.net import Net
from paradigms.core import metrics as metrics_lib
from paradigms.core.errors import InputError
from paradigms.core.learner import Batch, Metrics
from paradigms.core.metrics import Mean, Means
from paradigms.core.scalars import Scalar
from paradigms.core.scan import loops_are_slow
from paradigms.core.state import PyTree, TrainState
from paradigms.unsupervised.autoencoder import init_nets
from paradigms.unsupervised.likelihoods import (
    Likelihood,
    check_likelihood,
    data_log_prob,
    diagonal_normal_log_prob,
    gaussian_kl,
    pixel_means,
    standard_normal_log_prob,
    unit_interval,
)

ACTIVE_VARIANCE = 0.01
LOG_VARIANCE_RANGE = (-20.0, 20.0)


def posterior(code: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and log-variance of `q(z|x)` from an encoder's output.

    Args:
      code: `[B, 2 * latent]`, the means and then the logarithms of the variances.

    Returns:
      `(mean, log_var)`, float32 `[B, latent]`; the log-variance is clipped to [-20, 20], far beyond
      what training reaches, so that a wild start gives no infinity.

    Raises:
      InputError: there is no latent, or the width is odd.
    """
    if code.ndim != 2 or code.shape[1] < 2 or code.shape[1] % 2:
        raise InputError(
            f"the encoder's output has shape {code.shape}: expected [B, 2 * latent] with at least "
            "one latent, the means and then the log-variances"
        )
    mean, log_var = jnp.split(code.astype(jnp.float32), 2, axis=-1)
    return mean, jnp.clip(log_var, *LOG_VARIANCE_RANGE)


def reparameterise(mean: jax.Array, log_var: jax.Array, noise: jax.Array) -> jax.Array:
    """`z = mean + exp(log_var / 2) * noise`; `[B, L]` and noise `[B, S, L]` to `[B, S, L]`."""
    return mean[:, None] + jnp.exp(0.5 * log_var)[:, None] * noise


def log_weights(
    reconstruction: jax.Array, z: jax.Array, mean: jax.Array, log_var: jax.Array
) -> jax.Array:
    """`log p(x|z) + log p(z) - log q(z|x)`, in nats, `[B, S]`.

    The logarithms of the importance weights, each with the KL of its own sample (Burda et al. 2016,
    arXiv:1509.00519, equation 8).

    Args:
      reconstruction: `log p(x|z)`, `[B, S]`.
      z: `[B, S, L]`.
      mean: of the posterior, `[B, L]`.
      log_var: its log-variance, `[B, L]`.
    """
    log_q = diagonal_normal_log_prob(z, mean[:, None], log_var[:, None])
    return reconstruction + standard_normal_log_prob(z) - log_q


class Draws(NamedTuple):
    """Samples of the posterior of a batch.

    Attributes:
      mean: of the posterior, `[B, L]`.
      log_var: its log-variance, `[B, L]`.
      z: the samples, `[B, S, L]`.
      reconstruction: `log p(x|z)` in nats, `[B, S]`.
    """

    mean: jax.Array
    log_var: jax.Array
    z: jax.Array
    reconstruction: jax.Array


def draw_posterior(
    encoder: Net,
    decoder: Net,
    params: PyTree,
    state: TrainState,
    x: jax.Array,
    samples: int,
    likelihood: Likelihood,
    scale: Scalar,
) -> tuple[Draws, PyTree]:
    """The forward pass of training: `samples` draws per example of `x`, and the model state."""
    model_state = dict(state.model_state)
    code, model_state["encoder"] = encoder.apply(
        params["encoder"], model_state["encoder"], x, key=state.rng("encoder"), train=True
    )
    mean, log_var = posterior(code)
    # Examples come first: the axis that a mesh divides stays where it is.
    noise = jax.random.normal(state.rng("latent"), (len(x), samples, mean.shape[1]))
    z = reparameterise(mean, log_var, noise)
    output, model_state["decoder"] = decoder.apply(
        params["decoder"],
        model_state["decoder"],
        z.reshape(-1, z.shape[-1]),
        key=state.rng("decoder"),
        train=True,
    )
    reconstruction = data_log_prob(_per_example(output, z), x, likelihood, scale)
    return Draws(mean, log_var, z, reconstruction), model_state


def evaluation(
    encoder: Net,
    decoder: Net,
    likelihood: Likelihood,
    scale: Scalar,
    importance_samples: int,
    chunk: int,
    input_name: str,
) -> Callable[[TrainState, Batch, jax.Array], Metrics]:
    """The `evaluate` of a learner with latents, from n = `importance_samples` draws per example.

    It reports, in nats per example,

    - `log_likelihood`: `log 1/n sum_i p(x, z_i) / q(z_i|x)` (Burda et al. 2016, equation 8), in
      expectation a lower bound that rises to `log p(x)` with n; the paper takes 5,000;
    - `reconstruction` (`log p(x|z)`, the mean of the draws), `kl` (in closed form), `elbo`, which
      is their difference, and `loss`, which is minus the `elbo` whatever was trained;
    - the ingredients of `derive_vae`, over each latent: `latent_mean` and `latent_square` of the
      posterior's mean, and `latent_kl`, `[latent]`.

    `chunk` draws per example are in memory at once; the last chunk may be smaller. Draw i of an
    example is the same whatever the chunk.
    """
    chunk = min(chunk, importance_samples)
    chunks = -(-importance_samples // chunk)

    def evaluate(state: TrainState, batch: Batch, key: jax.Array) -> Metrics:
        params, model_state = state.params, state.model_state
        x, mask = unit_interval(batch[input_name]), batch.get("mask")
        code, _ = encoder.apply(params["encoder"], model_state["encoder"], x)
        mean, log_var = posterior(code)

        def noise(index: jax.Array) -> jax.Array:
            return jax.random.normal(jax.random.fold_in(key, index), mean.shape)

        def add_chunk(i: Any, totals: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            index = i * chunk + jnp.arange(chunk)
            z = reparameterise(mean, log_var, jax.vmap(noise, out_axes=1)(index))
            output, _ = decoder.apply(
                params["decoder"], model_state["decoder"], z.reshape(-1, z.shape[-1])
            )
            log_p = data_log_prob(_per_example(output, z), x, likelihood, scale)
            log_w = log_weights(log_p, z, mean, log_var)
            wanted = index < importance_samples
            log_w = jax.nn.logsumexp(jnp.where(wanted, log_w, -jnp.inf), axis=1)
            return totals[0] + jnp.where(wanted, log_p, 0).sum(1), jnp.logaddexp(totals[1], log_w)

        totals = jnp.zeros(len(x)), jnp.full(len(x), -jnp.inf)
        if chunks == 1 or loops_are_slow(add_chunk, 0, totals):
            for i in range(chunks):
                totals = add_chunk(i, totals)
        else:
            totals = jax.lax.fori_loop(0, chunks, add_chunk, totals)
        reconstruction, kl = totals[0] / importance_samples, gaussian_kl(mean, log_var)
        values = {
            "loss": kl - reconstruction,
            "elbo": reconstruction - kl,
            "reconstruction": reconstruction,
            "kl": kl,
            "log_likelihood": totals[1] - jnp.log(importance_samples),
        }
        latents = {
            "latent_mean": mean,
            "latent_square": jnp.square(mean),
            # Each latent by itself.
            "latent_kl": gaussian_kl(mean[..., None], log_var[..., None]),
        }
        over_latents = jax.vmap(Mean.of, in_axes=(1, None))
        return {
            **{name: Mean.of(value, mask) for name, value in values.items()},
            **{name: over_latents(value, mask) for name, value in latents.items()},
        }

    return evaluate


def derive_vae(means: Means) -> dict[str, float]:
    """`metrics.derive`, and how many latents are used, where the ingredients are there.

    `active_units` counts the latents whose posterior mean has a variance over the data above 0.01
    (Burda et al. 2016, section 5.2); `collapsed_units` are the others, whose posterior says nothing
    of x.
    """
    values = metrics_lib.derive(means)
    if "latent_square" in means and np.all(np.asarray(means["latent_square"].count) > 0):
        mean, square = (
            np.asarray(means[name].total, np.float64) / np.asarray(means[name].count, np.float64)
            for name in ("latent_mean", "latent_square")
        )
        active = square - np.square(mean) > ACTIVE_VARIANCE
        values["active_units"] = float(active.sum())
        values["collapsed_units"] = float((~active).sum())
    return values


def decode(
    decoder: Net,
    params: PyTree,
    model_state: PyTree,
    z: jax.Array,
    likelihood: Likelihood = "bernoulli",
) -> jax.Array:
    """The mean of x given z: in [0, 1] for a Bernoulli decoder.

    Args:
      decoder: as given to the learner.
      params: of the learner, `{"encoder": ..., "decoder": ...}`.
      model_state: likewise.
      z: `[..., latent]`.
      likelihood: of the learner.

    Returns:
      float32 `[..., *event]`.
    """
    output, _ = decoder.apply(params["decoder"], model_state["decoder"], z.reshape(-1, z.shape[-1]))
    return pixel_means(_per_example(output, z), likelihood)


def reconstruct(
    encoder: Net,
    decoder: Net,
    params: PyTree,
    model_state: PyTree,
    x: jax.Array,
    likelihood: Likelihood = "bernoulli",
) -> jax.Array:
    """`decode` at the posterior mean of `x[B, ...]`, uint8 or float32: float32 of its shape."""
    code, _ = encoder.apply(params["encoder"], model_state["encoder"], unit_interval(x))
    return decode(decoder, params, model_state, posterior(code)[0], likelihood)


def sample_prior(
    decoder: Net,
    params: PyTree,
    model_state: PyTree,
    key: jax.Array,
    shape: tuple[int, ...],
    likelihood: Likelihood = "bernoulli",
) -> jax.Array:
    """`decode` at draws of N(0, I) of `shape` `[..., latent]`."""
    return decode(decoder, params, model_state, jax.random.normal(key, shape), likelihood)


def traverse(
    decoder: Net,
    params: PyTree,
    model_state: PyTree,
    z: jax.Array,
    values: jax.Array,
    likelihood: Likelihood = "bernoulli",
) -> jax.Array:
    """`decode` where one latent at a time takes each of `values[T]`, and the others are as in z.

    Args:
      decoder: see `decode`.
      params: see `decode`.
      model_state: see `decode`.
      z: `[latent]`, a posterior mean or zeros.
      values: `[T]`, for instance `linspace(-3, 3, 7)`.
      likelihood: see `decode`.

    Returns:
      float32 `[latent, T, *event]`.
    """
    varied = jnp.eye(len(z), dtype=bool)[:, None]
    grid = jnp.where(varied, jnp.asarray(values)[:, None], z)
    return decode(decoder, params, model_state, grid, likelihood)


def init_latent_model(
    key: jax.Array, encoder: Net, decoder: Net, example: jax.Array
) -> tuple[PyTree, PyTree]:
    """Parameters and model state of both nets; finds shapes that disagree. See `init_nets`."""
    return init_nets(
        key, encoder, decoder, unit_interval(example), latent_of=lambda code: posterior(code)[0]
    )


def check_options(name: str, likelihood: str, scale: Scalar, counts: Mapping[str, int]) -> None:
    """Raises InputError, in one line, for an option of the learner `name` out of its range."""
    check_likelihood(name, likelihood)
    if not isinstance(scale, jax.core.Tracer) and not 0 < float(scale) < float("inf"):
        raise InputError(f"{name}(scale={scale}): expected a standard deviation above 0")
    for option, count in counts.items():
        if not isinstance(count, int | np.integer) or count < 1:
            raise InputError(f"{name}({option}={count}): expected a whole number of at least 1")


def _per_example(output: jax.Array, z: jax.Array) -> jax.Array:
    """Undoes on the decoder's output the flattening of z, `[..., latent]`."""
    return output.reshape(*z.shape[:-1], *output.shape[1:])
