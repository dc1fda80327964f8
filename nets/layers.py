"""What the architectures share: activations and norms by name, stochastic depth."""

import math
from collections.abc import Callable
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array
Activation = str | Callable[[Array], Array]
Norm = Literal["batch", "layer", "group"] | None


def gelu(x: Array) -> Array:
    """`x Phi(x)` with the normal distribution function Phi (Hendrycks & Gimpel 2016); as float32.

    By the error function, where jax has an approximation by tanh, or on demand the complementary
    error function: that is right far below zero, where the product vanishes, and three times slower
    on a CPU.
    """
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1 + lax.erf(wide * math.sqrt(0.5)))).astype(x.dtype)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": nn.relu,
    "gelu": gelu,
    "silu": nn.silu,
    "tanh": nn.tanh,
    "elu": nn.elu,
    "leaky_relu": nn.leaky_relu,
    "sigmoid": nn.sigmoid,
}
NORMS = ("batch", "layer", "group", None)


def activation_function(activation: Activation) -> Callable[[Array], Array]:
    """The activation of that name; a function is taken as it is.

    Raises:
      ValueError: for an unknown name.
    """
    if callable(activation):
        return activation
    check_choice("activation", activation, tuple(ACTIVATIONS))
    return ACTIVATIONS[activation]


def normalise(
    x: Array,
    norm: Norm,
    *,
    train: bool,
    momentum: float = 0.9,
    scale_init: nn.initializers.Initializer = nn.initializers.ones,
) -> Array:
    """Normalises `x[..., C]` inside a compact module; None gives `x` back.

    Args:
      x: features in the last axis.
      norm: "batch" (Ioffe & Szegedy 2015), "layer" (Ba et al. 2016, over the last axis) or "group"
        (Wu & He 2018; at most 32 groups, each of at least 4 channels).
      train: use the statistics of this batch, and move the running ones.
      momentum: of batch norm's running statistics, which become
        `momentum * running + (1 - momentum) * batch`.
      scale_init: initial scale; zero makes a residual branch start as nothing.
    """
    if norm == "batch":
        return nn.BatchNorm(
            use_running_average=not train, momentum=momentum, epsilon=1e-5, scale_init=scale_init
        )(x)
    if norm == "layer":
        return nn.LayerNorm(epsilon=1e-6, scale_init=scale_init)(x)
    if norm == "group":
        groups = math.gcd(32, x.shape[-1], max(1, x.shape[-1] // 4))
        return nn.GroupNorm(num_groups=groups, epsilon=1e-5, scale_init=scale_init)(x)
    return x


class StochasticDepth(nn.Module):
    """Drops a residual branch for whole examples (Huang et al. 2016).

    In training each example of `x[B, ...]` becomes 0 with probability `rate` and
    `x / (1 - rate)` otherwise, so that the expectation is `x`; in evaluation nothing happens.
    """

    rate: float

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Applies it to the branch `x[B, ...]`, before it is added."""
        axes = tuple(range(1, x.ndim))
        return nn.Dropout(self.rate, broadcast_dims=axes, deterministic=not train)(x)


class GaussianNoise(nn.Module):
    """Adds noise of standard deviation `deviation` to `x` in training; in evaluation nothing."""

    deviation: float

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Draws from the same stream of keys as dropout."""
        if not train or self.deviation == 0:
            return x
        return x + self.deviation * jax.random.normal(self.make_rng("dropout"), x.shape, x.dtype)


def check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    """Raises ValueError, in one line, for a value that is none of `choices`."""
    if value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"unknown {name} {value!r}: choose one of {listed}")


def check_rate(name: str, rate: float) -> None:
    """Raises ValueError, in one line, for a dropout rate outside [0, 1)."""
    if not 0.0 <= rate < 1.0:
        raise ValueError(f"{name} is a probability of dropping, got {rate}: choose 0 <= {name} < 1")


def check_options(activation: Activation, norm: Norm, dropout: float) -> None:
    """Finds a bad common option before anything is traced (ValueError, one line)."""
    activation_function(activation)
    check_choice("norm", norm, NORMS)
    check_rate("dropout", dropout)


def max_pool(x: Array) -> Array:
    """The maximum of each 2x2 window of `x[B, H, W, C]`, stride 2; an odd last row is left out.

    Pairwise maxima have an elementwise gradient, many times faster on CPU than the
    select-and-scatter of `nn.max_pool` (and equal to it but for ties, where it is shared).

    Raises:
      ValueError: nothing is left to pool.
    """
    height, width = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    if not (height and width):
        raise ValueError(
            f"a map of {x.shape[1]}x{x.shape[2]} cannot be pooled again: "
            "use larger images or fewer blocks"
        )
    x = jnp.maximum(x[:, 0:height:2], x[:, 1:height:2])
    return jnp.maximum(x[:, :, 0:width:2], x[:, :, 1:width:2])
