"""The head of self-supervised learning, between the features and the loss."""

from collections.abc import Sequence

import flax.linen as nn
import jax

from nets.dense import Dense
from nets.layers import normalise
from nets.net import Net, from_linen


class Projector(nn.Module):
    """Dense layers without bias, each but the last followed by batch norm and ReLU."""

    features: Sequence[int]
    num_outputs: int
    final_norm: bool

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Maps `x[B, ...]` to `[B, num_outputs]`."""
        x = x.reshape(x.shape[0], -1)
        for width in self.features:
            x = Dense(width, use_bias=False, kernel_init=nn.initializers.he_normal())(x)
            x = nn.relu(normalise(x, "batch", train=train))
        x = Dense(self.num_outputs, use_bias=False)(x)
        if self.final_norm:
            x = nn.BatchNorm(
                use_running_average=not train,
                momentum=0.9,
                epsilon=1e-5,
                use_scale=False,
                use_bias=False,
                name="final_norm",
            )(x)
        return x


def projector(features: Sequence[int], num_outputs: int, *, final_norm: bool = False) -> Net:
    """A projection or prediction head, `x[B, ...]` to `[B, num_outputs]`.

    It is `mlp(features, num_outputs, norm="batch")` without a bias in the last layer. SimCLR (Chen
    et al. 2020) and BYOL (Grill et al. 2020) have one hidden layer, VICReg (Bardes et al. 2022)
    two.

    Args:
      features: widths of the hidden layers; empty gives a linear map.
      num_outputs: width of the output.
      final_norm: batch norm without scale and bias after the last layer, so that every output has
        mean 0 and variance 1 over the batch.

    Raises:
      ValueError: a width below 1.
    """
    if min((*features, num_outputs)) < 1:
        raise ValueError(f"projector: widths {(*features, num_outputs)} must all be at least 1")
    return from_linen(Projector(tuple(features), num_outputs, final_norm))
