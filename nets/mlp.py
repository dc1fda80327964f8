"""Multilayer perceptron."""

from collections.abc import Sequence

import flax.linen as nn
import jax

from nets.dense import Dense
from nets.layers import (
    Activation,
    GaussianNoise,
    Norm,
    activation_function,
    check_options,
    normalise,
)
from nets.net import Net, from_linen


class MLP(nn.Module):
    """Dense layers, each followed by norm, noise, activation and dropout, and a dense output."""

    features: Sequence[int]
    num_outputs: int
    activation: Activation = "relu"
    norm: Norm = None
    dropout: float = 0.0
    final_norm: bool = False
    noise: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Maps `x[B, ...]` to `[B, num_outputs]`."""
        x = x.reshape(x.shape[0], -1)
        for width in self.features:
            # A bias before batch norm would be subtracted again.
            x = Dense(
                width,
                use_bias=self.norm != "batch",
                kernel_init=nn.initializers.he_normal(),
            )(x)
            x = GaussianNoise(self.noise)(normalise(x, self.norm, train=train), train)
            x = activation_function(self.activation)(x)
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        final_norm = self.norm if self.final_norm else None
        x = Dense(self.num_outputs, use_bias=final_norm != "batch")(x)
        return normalise(x, final_norm, train=train)


def mlp(
    features: Sequence[int],
    num_outputs: int,
    *,
    activation: Activation = "relu",
    norm: Norm = None,
    dropout: float = 0.0,
    final_norm: bool = False,
    noise: float = 0.0,
) -> Net:
    """A multilayer perceptron over `x[B, ...]`, which is flattened; output `[B, num_outputs]`.

    Args:
      features: widths of the hidden layers; empty gives a linear model.
      num_outputs: width of the output.
      activation: by name or as a function.
      norm: after each hidden layer: "batch", "layer", "group" or None.
      dropout: rate after each hidden layer.
      final_norm: whether the output has the norm too.
      noise: standard deviation of Gaussian noise before each activation in training (as in Rasmus
        et al. 2015, whose encoder has 0.3).

    Raises:
      ValueError: unknown name, rate outside [0, 1), noise below 0, or a width below 1.
    """
    check_options(activation, norm, dropout)
    if noise < 0:
        raise ValueError(f"mlp: noise {noise} is a standard deviation: choose 0 or more")
    if min((*features, num_outputs)) < 1:
        raise ValueError(f"mlp: widths {(*features, num_outputs)} must all be at least 1")
    return from_linen(
        MLP(tuple(features), num_outputs, activation, norm, dropout, final_norm, noise)
    )
