"""Log-densities of data and of latents in nats, and the check of the data that they are for.

Densities are summed over an example, never averaged: a log-likelihood is then one of the whole
picture, as the papers report it.
"""

import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from paradigms.core.errors import InputError
from paradigms.core.scalars import Scalar
from paradigms.data.images import unit

Likelihood = Literal["bernoulli", "gaussian"]

_LOG_2_PI = math.log(2 * math.pi)


def unit_interval(x: jax.Array) -> jax.Array:
    """Bytes as float32 in [0, 1], that is divided by 255; floats as they are, in float32."""
    if x.dtype != jnp.uint8 and not jnp.issubdtype(x.dtype, jnp.floating):
        raise InputError(f"the data has dtype {x.dtype}: expected uint8 in 0..255 or float32")
    return unit(x)


def check_support(x: np.ndarray, likelihood: Likelihood, name: str) -> None:
    """Finds data that a decoder cannot have produced, on the host and before compute.

    Args:
      x: the data, `[N, ...]`, uint8 or floating.
      likelihood: what will be trained on it.
      name: of the data, for the message.

    Raises:
      InputError: no data, another dtype, values that are not finite, or values outside [0, 1] for
        the Bernoulli likelihood. Bytes always fit: they are divided by 255.
    """
    check_likelihood("check_support", likelihood)
    if x.size == 0:
        raise InputError(f"{name} is empty, of shape {x.shape}: expected at least one example")
    if x.dtype == np.uint8:
        return
    if not np.issubdtype(x.dtype, np.floating):
        raise InputError(f"{name} has dtype {x.dtype}: expected uint8 in 0..255 or float32")
    finite = np.isfinite(x)
    if not finite.all():
        raise InputError(
            f"{name} has {int((~finite).sum())} values that are NaN or infinite: mend them, or "
            "leave these examples out"
        )
    if likelihood == "bernoulli" and not (x.min() >= 0 and x.max() <= 1):
        raise InputError(
            f"{name} has values from {x.min():.6g} to {x.max():.6g}: a Bernoulli decoder expects "
            "[0, 1]; rescale them, or choose likelihood='gaussian'"
        )


def bernoulli_log_prob(logits: jax.Array, x: jax.Array) -> jax.Array:
    """`sum_i x_i log p_i + (1 - x_i) log(1 - p_i)` with `p = sigmoid(logits)`, in nats.

    For x of 0 and 1 the log-probability of x; in between minus the cross entropy, which is no
    log-probability and cannot be compared with one. Logits 0 give -543.43 on 784 pixels.

    Args:
      logits: `[B, *event]`, or `[B, S, *event]` with S samples for each example.
      x: `[B, *event]`, in [0, 1].

    Returns:
      float32 `[B]`, or `[B, S]`: summed over the event.

    Raises:
      InputError: the shapes do not fit.
    """
    logits, x, event = _aligned(logits, x)
    return (x * logits - jax.nn.softplus(logits)).sum(event)


def gaussian_log_prob(mean: jax.Array, x: jax.Array, log_scale: Scalar) -> jax.Array:
    """`sum_i log N(x_i; mean_i, exp(log_scale)^2)`, a log-density in nats.

    Shapes and errors are those of `bernoulli_log_prob`; `log_scale` is a scalar, the logarithm of
    the standard deviation.
    """
    mean, x, event = _aligned(mean, x)
    distance = (x - mean) * jnp.exp(-jnp.asarray(log_scale, jnp.float32))
    return (-0.5 * (jnp.square(distance) + _LOG_2_PI) - log_scale).sum(event)


def data_log_prob(
    output: jax.Array, x: jax.Array, likelihood: Likelihood, scale: Scalar = 1.0
) -> jax.Array:
    """`log p(x | output of the decoder)` in nats, `[B]` or `[B, S]`; see `bernoulli_log_prob`.

    Args:
      output: of the decoder, `[B, *event]` or `[B, S, *event]`.
      x: `[B, *event]`.
      likelihood: "bernoulli", of which the output is the logits, or "gaussian", of which it is the
        mean.
      scale: the Gaussian's standard deviation.
    """
    if likelihood == "bernoulli":
        return bernoulli_log_prob(output, x)
    return gaussian_log_prob(output, x, jnp.log(scale))


def pixel_means(output: jax.Array, likelihood: Likelihood) -> jax.Array:
    """The mean of x where a decoder gave `output`, in float32.

    That is the probability of a 1, or with the Gaussian, whose mean may lie outside [0, 1], the
    output itself.
    """
    output = output.astype(jnp.float32)
    return jax.nn.sigmoid(output) if likelihood == "bernoulli" else output


def standard_normal_log_prob(z: jax.Array) -> jax.Array:
    """`log N(z; 0, I)` in nats, summed over the last axis: `[..., D]` to `[...]`."""
    return -0.5 * (jnp.square(z) + _LOG_2_PI).sum(-1)


def diagonal_normal_log_prob(z: jax.Array, mean: jax.Array, log_var: jax.Array) -> jax.Array:
    """`log N(z; mean, diag(exp(log_var)))` in nats, summed over the last axis.

    Args:
      z: `[..., D]`.
      mean: broadcastable to `z`.
      log_var: likewise, the logarithm of the variance.
    """
    distance = jnp.square(z - mean) * jnp.exp(-log_var)
    return -0.5 * (distance + log_var + _LOG_2_PI).sum(-1)


def gaussian_kl(mean: jax.Array, log_var: jax.Array) -> jax.Array:
    """`KL(N(mean, diag(exp(log_var))) || N(0, I))` in nats, `[..., D]` to `[...]`.

    Kingma and Welling 2014 (arXiv:1312.6114), appendix B. N(1, 4), of standard deviation 2, is
    1.30685 nats from N(0, 1).
    """
    return 0.5 * (jnp.exp(log_var) + jnp.square(mean) - 1 - log_var).sum(-1)


def check_likelihood(name: str, likelihood: str) -> None:
    """Raises InputError for a likelihood that there is not."""
    if likelihood not in ("bernoulli", "gaussian"):
        raise InputError(f"{name}(likelihood={likelihood!r}): expected 'bernoulli' or 'gaussian'")


def _aligned(output: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array, tuple[int, ...]]:
    """Both in float32, x with axes of size 1 for the samples, and the axes of the event."""
    samples = output.shape[1 : 1 + max(output.ndim - x.ndim, 0)]
    if output.shape != (len(x), *samples, *x.shape[1:]):
        raise InputError(
            f"the decoder's output {output.shape} and the data {x.shape} differ: expected one "
            "shape, or [B, S, ...] for S samples of [B, ...]"
        )
    x = x.reshape(len(x), *(1 for _ in samples), *x.shape[1:])
    event = tuple(range(1 + len(samples), output.ndim))
    return output.astype(jnp.float32), x.astype(jnp.float32), event
