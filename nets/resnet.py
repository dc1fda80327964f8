"""Residual networks (He et al. 2016, arXiv:1512.03385) for CIFAR and for ImageNet."""

from collections.abc import Sequence
from functools import partial
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from nets.conv import Conv
from nets.dense import Dense
from nets.layers import (
    Activation,
    Norm,
    StochasticDepth,
    activation_function,
    check_choice,
    check_options,
    check_rate,
    normalise,
)
from nets.net import Net, from_linen
from nets.remat import call_block

Shortcut = Literal["A", "B"]
Stem = Literal["imagenet", "cifar"]

# He et al. 2015 in its fan-out form, as the usual implementations have it.
he_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def conv(features: int, size: int, stride: int = 1) -> nn.Conv:
    """A convolution without bias, padded by half its size whatever the stride.

    ("SAME" would pad a strided one on the right only, against every published network.)
    """
    return Conv(
        features,
        (size, size),
        strides=stride,
        padding=size // 2,
        use_bias=False,
        kernel_init=he_fan_out,
    )


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, or 1x1, 3x3, 1x1 with a bottleneck, around a shortcut.

    In a bottleneck the 3x3 convolution has the stride, as in every current implementation.
    """

    features: int
    stride: int = 1
    bottleneck: bool = False
    shortcut: Shortcut = "B"
    norm: Norm = "batch"
    activation: Activation = "relu"
    zero_init: bool = False
    stochastic_depth: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Maps `x[B, H, W, C]` to `[B, H / stride, W / stride, features (x4 in a bottleneck)]`."""
        act = activation_function(self.activation)
        norm = partial(normalise, norm=self.norm, train=train)
        if self.bottleneck:
            y = act(norm(conv(self.features, 1)(x)))
            y = act(norm(conv(self.features, 3, self.stride)(y)))
            y = conv(4 * self.features, 1)(y)
        else:
            y = act(norm(conv(self.features, 3, self.stride)(x)))
            y = conv(self.features, 3)(y)
        y = norm(y, scale_init=nn.initializers.zeros if self.zero_init else nn.initializers.ones)
        if x.shape != y.shape:
            if self.shortcut == "A":
                x = x[:, :: self.stride, :: self.stride]
                x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, y.shape[-1] - x.shape[-1])))
            else:
                x = norm(conv(y.shape[-1], 1, self.stride)(x))
        return act(x + StochasticDepth(self.stochastic_depth)(y, train))


class ResNet(nn.Module):
    """Stem, stages of residual blocks, mean over places, and a linear head if there are classes."""

    num_classes: int | None
    blocks: Sequence[int]
    width: int = 64
    stem: Stem = "imagenet"
    bottleneck: bool = False
    shortcut: Shortcut = "B"
    norm: Norm = "batch"
    activation: Activation = "relu"
    zero_init: bool = False
    stochastic_depth: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Maps images `x[B, H, W, C]` to logits `[B, num_classes]`."""
        act = activation_function(self.activation)
        large = self.stem == "imagenet"
        x = conv(self.width, 7, 2)(x) if large else conv(self.width, 3)(x)
        x = act(normalise(x, self.norm, train=train))
        if large:
            x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        depth, index = sum(self.blocks), 0
        for stage, count in enumerate(self.blocks):
            for block in range(count):
                index += 1
                residual = ResidualBlock(
                    self.width * 2**stage,
                    stride=2 if stage > 0 and block == 0 else 1,
                    bottleneck=self.bottleneck,
                    shortcut=self.shortcut,
                    norm=self.norm,
                    activation=self.activation,
                    zero_init=self.zero_init,
                    # Rising to the full rate at the last block (Huang et al. 2016, eq. 4).
                    stochastic_depth=self.stochastic_depth * index / depth,
                )
                x = call_block(residual, x, train=train)
        x = x.mean((1, 2))
        return x if self.num_classes is None else Dense(self.num_classes)(x)


def resnet_cifar(
    depth: int,
    num_classes: int = 10,
    *,
    shortcut: Shortcut = "A",
    norm: Norm = "batch",
    activation: Activation = "relu",
    zero_init: bool = False,
    stochastic_depth: float = 0.0,
) -> Net:
    """The CIFAR ResNet of He et al. 2016, section 4.2: images `[B, 32, 32, 3]` to logits.

    Three stages of `(depth - 2) / 6` blocks with 16, 32 and 64 channels; 0.27M parameters at depth
    20. Convolutions are He-normal by fan-out.

    Args:
      depth: 6n + 2: 20, 32, 44, 56 or 110 in the paper.
      num_classes: width of the output.
      shortcut: where the shape changes: "A", subsampling with zero-padded channels and no
        parameters (the paper's choice here), or "B", a 1x1 convolution with norm.
      norm: "batch", "layer", "group" or None.
      activation: by name or as a function.
      zero_init: start the last norm scale of each block at zero (Goyal et al. 2017).
      stochastic_depth: rate of the last block, rising linearly from the first.

    Raises:
      ValueError: a depth that is not 6n + 2, an unknown name, a rate outside [0, 1).
    """
    if depth < 8 or (depth - 2) % 6:
        raise ValueError(f"depth {depth} is not 6n + 2: choose 20, 32, 44, 56 or 110")
    check_choice("shortcut", shortcut, ("A", "B"))
    check_options(activation, norm, 0.0)
    check_rate("stochastic_depth", stochastic_depth)
    return from_linen(
        ResNet(
            num_classes,
            blocks=((depth - 2) // 6,) * 3,
            width=16,
            stem="cifar",
            shortcut=shortcut,
            norm=norm,
            activation=activation,
            zero_init=zero_init,
            stochastic_depth=stochastic_depth,
        )
    )


def resnet(
    depth: Literal[18, 34, 50],
    num_classes: int | None = 1000,
    *,
    stem: Stem = "imagenet",
    norm: Norm = "batch",
    activation: Activation = "relu",
    zero_init: bool = False,
    stochastic_depth: float = 0.0,
) -> Net:
    """The ImageNet ResNet of He et al. 2016: images `[B, H, W, 3]` to logits `[B, num_classes]`.

    Convolutions are He-normal by fan-out; where the shape changes the shortcut is a 1x1
    convolution with norm.

    Args:
      depth: 18 or 34 (basic blocks), 50 (bottlenecks, stride in the 3x3 convolution).
      num_classes: width of the output; None for the features themselves, `[B, 512]` or, at depth
        50, `[B, 2048]`.
      stem: "imagenet", a 7x7 convolution and max-pool that quarter the size, or "cifar", a 3x3
        convolution that keeps it.
      norm: "batch", "layer", "group" or None.
      activation: by name or as a function.
      zero_init: start the last norm scale of each block at zero (Goyal et al. 2017).
      stochastic_depth: rate of the last block, rising linearly from the first.

    Raises:
      ValueError: another depth, an unknown name, a rate outside [0, 1).
    """
    check_choice("depth", depth, (18, 34, 50))
    check_choice("stem", stem, ("imagenet", "cifar"))
    check_options(activation, norm, 0.0)
    check_rate("stochastic_depth", stochastic_depth)
    return from_linen(
        ResNet(
            num_classes,
            blocks=(2, 2, 2, 2) if depth == 18 else (3, 4, 6, 3),
            stem=stem,
            bottleneck=depth == 50,
            norm=norm,
            activation=activation,
            zero_init=zero_init,
            stochastic_depth=stochastic_depth,
        )
    )
