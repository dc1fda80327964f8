"""Wide residual networks (Zagoruyko & Komodakis 2016, arXiv:1605.07146)."""

from functools import partial

import flax.linen as nn
import jax

from nets.dense import Dense
from nets.layers import Activation, Norm, activation_function, check_options, normalise
from nets.net import Net, from_linen
from nets.remat import call_block
from nets.resnet import conv


class WideBlock(nn.Module):
    """Pre-activation block: norm, activation, 3x3 convolution, twice, with dropout between."""

    features: int
    stride: int = 1
    norm: Norm = "batch"
    activation: Activation = "relu"
    dropout: float = 0.0
    momentum: float = 0.9

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Maps `x[B, H, W, C]` to `[B, H / stride, W / stride, features]`."""
        act = activation_function(self.activation)
        norm = partial(normalise, norm=self.norm, train=train, momentum=self.momentum)
        y = act(norm(x))
        if x.shape[-1] != self.features or self.stride != 1:
            # Where the shape changes, the shortcut leaves after the activation.
            x = conv(self.features, 1, self.stride)(y)
        y = conv(self.features, 3, self.stride)(y)
        y = act(norm(y))
        y = nn.Dropout(self.dropout, deterministic=not train)(y)
        return x + conv(self.features, 3)(y)


class WideResNet(nn.Module):
    """Convolution with 16 channels, three stages of wide blocks, norm, mean, linear head."""

    depth: int
    width: int
    num_classes: int = 10
    norm: Norm = "batch"
    activation: Activation = "relu"
    dropout: float = 0.0
    momentum: float = 0.9

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Maps images `x[B, H, W, C]` to logits `[B, num_classes]`."""
        x = conv(16, 3)(x)
        for stage in range(3):
            for block in range((self.depth - 4) // 6):
                wide = WideBlock(
                    16 * self.width * 2**stage,
                    stride=2 if stage > 0 and block == 0 else 1,
                    norm=self.norm,
                    activation=self.activation,
                    dropout=self.dropout,
                    momentum=self.momentum,
                )
                x = call_block(wide, x, train=train)
        x = normalise(x, self.norm, train=train, momentum=self.momentum)
        x = activation_function(self.activation)(x)
        return Dense(self.num_classes)(x.mean((1, 2)))


def wide_resnet(
    depth: int,
    width: int,
    num_classes: int = 10,
    *,
    dropout: float = 0.0,
    norm: Norm = "batch",
    activation: Activation = "relu",
    momentum: float = 0.9,
) -> Net:
    """WRN-depth-width: images `[B, 32, 32, 3]` to logits `[B, num_classes]`.

    WRN-28-10 has 36.5M parameters; WRN-28-2, with 1.47M, is the network of MixMatch and FixMatch
    (there with a leaky ReLU of slope .1 and batch norm momentum .999). Convolutions are He-normal
    by fan-out, without bias.

    Args:
      depth: 6n + 4: 16, 22, 28, 40.
      width: factor on the 16, 32 and 64 channels of the three stages.
      num_classes: width of the output.
      dropout: rate between the two convolutions of a block.
      norm: "batch", "layer", "group" or None.
      activation: by name or as a function.
      momentum: of batch norm's running statistics.

    Raises:
      ValueError: a depth that is not 6n + 4, an unknown name, a rate outside [0, 1).
    """
    if depth < 10 or (depth - 4) % 6:
        raise ValueError(f"depth {depth} is not 6n + 4: choose 16, 22, 28 or 40")
    check_options(activation, norm, dropout)
    return from_linen(WideResNet(depth, width, num_classes, norm, activation, dropout, momentum))
