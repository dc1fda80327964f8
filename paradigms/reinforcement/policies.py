"""Policies as densities: what an actor's output says about actions.

A policy is a NamedTuple of arrays, hence a pytree. The leading axes `...` are a batch, such as
`[N]` or `[T, N]`, and log-probabilities and entropies, in nats, have its shape. Every method is a
pure function of the arrays; `mode` is the greedy action.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from paradigms.core.errors import InputError

Bound = float | np.ndarray | jax.Array


class Categorical(NamedTuple):
    """One of A actions, with probabilities `softmax(logits)`.

    Attributes:
      logits: float32 `[..., A]`, need not be normalised; -inf forbids an action.
    """

    logits: jax.Array

    def sample(self, key: jax.Array) -> jax.Array:
        """Draws actions, int32 `[...]`."""
        return jax.random.categorical(key, self.logits).astype(jnp.int32)

    def mode(self) -> jax.Array:
        """The most probable action, int32 `[...]`; the first of equals."""
        return self.logits.argmax(-1).astype(jnp.int32)

    def log_prob(self, action: jax.Array) -> jax.Array:
        """Log-probability `[...]` of integer `action[...]`; NaN for A and above."""
        log_probs = jax.nn.log_softmax(self.logits)
        return jnp.take_along_axis(log_probs, action[..., None], -1)[..., 0]

    def entropy(self) -> jax.Array:
        """Entropy `[...]`, between 0 and ln A."""
        log_probs = jax.nn.log_softmax(self.logits)
        probs = jnp.exp(log_probs)
        # A forbidden action would give 0 * inf, in the value or in the gradient.
        return -(probs * jnp.where(probs > 0, log_probs, 0.0)).sum(-1)


class Gaussian(NamedTuple):
    """Independent normal coordinates of an unbounded action.

    Attributes:
      mean: float32 `[..., D]`.
      log_std: float32 `[..., D]`, log of the standard deviation.
    """

    mean: jax.Array
    log_std: jax.Array

    def sample(self, key: jax.Array) -> jax.Array:
        """Draws actions `[..., D]`, differentiable in mean and log_std."""
        noise = jax.random.normal(key, self.mean.shape, self.mean.dtype)
        return self.mean + jnp.exp(self.log_std) * noise

    def mode(self) -> jax.Array:
        """The mean `[..., D]`."""
        return self.mean

    def log_prob(self, action: jax.Array) -> jax.Array:
        """Log-density `[...]` of `action[..., D]`, summed over D."""
        standardised = (action - self.mean) * jnp.exp(-self.log_std)
        return (_standard_log_density(standardised) - self.log_std).sum(-1)

    def entropy(self) -> jax.Array:
        """Differential entropy `[...]`, summed over D; negative for narrow densities."""
        return (self.log_std + 0.5 * (1 + math.log(2 * math.pi))).sum(-1)


class TanhGaussian(NamedTuple):
    """The tanh of a Gaussian: actions in (-1, 1) (Haarnoja et al. 2018, appendix C, equation 21).

    Densities are those of the action in (-1, 1), before any `rescale`, which would only add a
    constant. The entropy has no closed form; minus the log-density of a sample estimates it. In
    float32 the tanh of numbers beyond 9 is 1 itself, and everything here stays finite there.

    Attributes:
      mean: float32 `[..., D]`, of the Gaussian below the tanh.
      log_std: float32 `[..., D]`, its log standard deviation.
    """

    mean: jax.Array
    log_std: jax.Array

    def sample(self, key: jax.Array) -> jax.Array:
        """Draws actions `[..., D]`; see `sample_and_log_prob`."""
        return self.sample_and_log_prob(key)[0]

    def sample_and_log_prob(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Draws actions `[..., D]` with their log-density `[...]`, summed over D.

        Both are differentiable in mean and log_std with the noise held fixed. The density comes
        from the number below the tanh: inverting the tanh would lose it near the edges.
        """
        noise = jax.random.normal(key, self.mean.shape, self.mean.dtype)
        unsquashed = self.mean + jnp.exp(self.log_std) * noise
        log_density = _standard_log_density(noise) - self.log_std
        return jnp.tanh(unsquashed), (log_density - _log_tanh_slope(unsquashed)).sum(-1)

    def mode(self) -> jax.Array:
        """The tanh of the mean `[..., D]`: the median, and what evaluation plays.

        The density itself may peak elsewhere, or nowhere inside (-1, 1).
        """
        return jnp.tanh(self.mean)

    def log_prob(self, action: jax.Array) -> jax.Array:
        """Log-density `[...]` of `action[..., D]`, summed over D, for actions drawn elsewhere.

        An action at or beyond the edge counts as the number next to it. For actions of this policy
        `sample_and_log_prob` is exact, where this loses precision near the edges.
        """
        edge = 1 - jnp.finfo(action.dtype).epsneg
        unsquashed = jnp.arctanh(jnp.clip(action, -edge, edge))
        log_density = Gaussian(self.mean, self.log_std).log_prob(unsquashed)
        return log_density - _log_tanh_slope(unsquashed).sum(-1)


def rescale(action: jax.Array, low: Bound, high: Bound) -> jax.Array:
    """Maps actions from [-1, 1] to the box [low, high] linearly, the edges to the edges exactly.

    Args:
      action: `[..., D]`.
      low: lower bounds, a number or `[D]`; they may be traced.
      high: upper bounds, likewise.

    Raises:
      InputError: a bound is infinite or NaN, or some `low` is not below its `high`.
    """
    if not (isinstance(low, jax.core.Tracer) or isinstance(high, jax.core.Tracer)):
        check_bounds(low, high)
    return ((1 - action) * low + (1 + action) * high) / 2


def unscale(action: jax.Array, low: Bound, high: Bound) -> jax.Array:
    """The inverse of `rescale`: from the box [low, high] to [-1, 1]."""
    return (2 * action - (low + high)) / (high - low)


def check_bounds(low: Bound, high: Bound) -> None:
    """Raises `InputError` where a bound is infinite or NaN, or some `low` not below its `high`."""
    bounds = np.stack(np.broadcast_arrays(low, high))
    if not (np.isfinite(bounds).all() and (bounds[0] < bounds[1]).all()):
        raise InputError(
            f"action bounds are {bounds[0].tolist()} to {bounds[1].tolist()}; expected finite "
            "numbers with low < high: bound the action space of the environment"
        )


def _standard_log_density(x: jax.Array) -> jax.Array:
    return -0.5 * (jnp.square(x) + math.log(2 * math.pi))


def _log_tanh_slope(x: jax.Array) -> jax.Array:
    """`log(1 - tanh(x)**2)`, which written so would be log 0 beyond 9 in float32."""
    return 2 * (math.log(2) - x - jax.nn.softplus(-2 * x))
