"""Plain convolutional networks: from LeNet to small VGG-like stacks."""

from collections.abc import Sequence
from typing import Literal

import flax.linen as nn
import jax

from nets.conv import Conv
from nets.dense import Dense
from nets.layers import (
    Activation,
    Norm,
    activation_function,
    check_choice,
    check_options,
    max_pool,
    normalise,
)
from nets.net import Net, from_linen

Pool = Literal["flatten", "mean"]


class CNN(nn.Module):
    """Blocks of convolutions with a max-pool between them, then dense layers."""

    num_classes: int | None
    features: Sequence[int] = (32, 64)
    convolutions: Sequence[int] = (1, 1)
    kernel_size: int = 3
    dense: Sequence[int] = (256,)
    pool: Pool = "flatten"
    pool_first: bool = False
    norm: Norm = None
    activation: Activation = "relu"
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Maps images `x[B, H, W, C]` to logits `[B, num_classes]`."""
        act = activation_function(self.activation)
        init = nn.initializers.he_normal()
        for block, (width, count) in enumerate(zip(self.features, self.convolutions, strict=True)):
            # Pooling just before the mean over all places would only throw places away.
            pools = self.pool == "flatten" or block < len(self.features) - 1
            for convolution in range(count):
                x = Conv(
                    width,
                    (self.kernel_size, self.kernel_size),
                    # A bias before batch norm would be subtracted again.
                    use_bias=self.norm != "batch",
                    kernel_init=init,
                )(x)
                here = pools and convolution == count - 1
                if here and self.pool_first:
                    x = max_pool(x)
                x = act(normalise(x, self.norm, train=train))
                if here and not self.pool_first:
                    x = max_pool(x)
        x = x.mean((1, 2)) if self.pool == "mean" else x.reshape(x.shape[0], -1)
        for width in self.dense:
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
            x = Dense(width, use_bias=self.norm != "batch", kernel_init=init)(x)
            x = act(normalise(x, self.norm, train=train))
        if self.num_classes is None:
            return x
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return Dense(self.num_classes)(x)


def cnn(
    num_classes: int | None,
    *,
    features: Sequence[int] = (32, 64),
    convolutions: int | Sequence[int] = 1,
    kernel_size: int = 3,
    dense: Sequence[int] = (256,),
    pool: Pool = "flatten",
    pool_first: bool = False,
    norm: Norm = None,
    activation: Activation = "relu",
    dropout: float = 0.0,
) -> Net:
    """A convolutional network over images `[B, H, W, C]`; output logits `[B, num_classes]`.

    The defaults are in the manner of LeNet (LeCun et al. 1998) with today's parts. A stack in the
    manner of VGG (Simonyan & Zisserman 2015) is
    `cnn(10, features=(24, 40, 64), convolutions=2, dense=(), pool="mean", norm="batch")`.

    Args:
      num_classes: width of the output; None for the last hidden layer, or the pooled map, itself.
      features: width of each block; a 2x2 max-pool follows each (but the last before a mean).
      convolutions: how many in each block, or one number for each; stride 1, zero-padded to keep
        the size.
      kernel_size: side of their kernels.
      dense: widths of the hidden dense layers.
      pool: how the last map becomes a vector, "flatten" or "mean" (over all places).
      pool_first: max-pool between the convolution and its norm, where norm and activation cost a
        quarter, in place of after the activation.
      norm: after each convolution and hidden dense layer: "batch", "layer", "group" or None.
      activation: by name or as a function.
      dropout: rate before each dense layer.

    Raises:
      ValueError: unknown name, rate outside [0, 1), or convolutions that do not fit the features.
    """
    check_options(activation, norm, dropout)
    check_choice("pool", pool, ("flatten", "mean"))
    per_block = (
        (convolutions,) * len(features) if isinstance(convolutions, int) else tuple(convolutions)
    )
    if len(per_block) != len(features) or min(per_block, default=1) < 1:
        raise ValueError(
            f"convolutions {convolutions}: expected a positive number, or one for each of the "
            f"{len(features)} blocks"
        )
    return from_linen(
        CNN(
            num_classes=num_classes,
            features=tuple(features),
            convolutions=per_block,
            kernel_size=kernel_size,
            dense=tuple(dense),
            pool=pool,
            pool_first=pool_first,
            norm=norm,
            activation=activation,
            dropout=dropout,
        )
    )
