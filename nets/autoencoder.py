"""Convolutional encoder and decoder for small images."""

from typing import Literal

import flax.linen as nn
import jax

from nets.conv import Conv, ConvTranspose
from nets.dense import Dense
from nets.layers import check_choice
from nets.net import Net, from_linen

Output = Literal["map", "vector"]

HE = nn.initializers.he_normal()
# An output of a transposed convolution of stride 2 sees a quarter of the kernel, of which
# "fan_in" counts the whole: four times He's variance keeps the scale.
HE_TRANSPOSED = nn.initializers.variance_scaling(4 * 2.0, "fan_in", "truncated_normal")


class ResidualBlocks(nn.Module):
    """Blocks `x + conv1x1(relu(conv3x3(relu(x))))`, and a last ReLU."""

    blocks: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `x[B, h, w, C]` to the same shape."""
        width = x.shape[-1]
        for _ in range(self.blocks):
            branch = Conv(width, (3, 3), kernel_init=HE)(nn.relu(x))
            x = x + nn.Conv(width, (1, 1), kernel_init=HE)(nn.relu(branch))
        return nn.relu(x)


class ConvEncoder(nn.Module):
    """Two strided convolutions, residual blocks, and a 1x1 convolution or a dense layer."""

    features: int
    width: int = 256
    blocks: int = 2
    output: Output = "map"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Maps images `x[B, H, W, C]` to `[B, H/4, W/4, features]` or `[B, features]`."""
        if x.ndim != 4 or x.shape[1] % 4 or x.shape[2] % 4:
            raise ValueError(
                f"conv_encoder: input {x.shape}: expected images [B, H, W, C] with height and "
                "width multiples of 4"
            )
        for _ in range(2):
            x = nn.relu(nn.Conv(self.width, (4, 4), strides=(2, 2), kernel_init=HE)(x))
        x = ResidualBlocks(self.blocks)(x)
        if self.output == "map":
            return nn.Conv(self.features, (1, 1))(x)
        return Dense(self.features)(x.reshape(x.shape[0], -1))


class ConvDecoder(nn.Module):
    """A 3x3 convolution or a dense layer, residual blocks, and two transposed convolutions."""

    shape: tuple[int, int, int]
    width: int = 256
    blocks: int = 2

    @nn.compact
    def __call__(self, z: jax.Array, train: bool = False) -> jax.Array:
        """Maps `z[B, H/4, W/4, D]` or `z[B, D]` to images `[B, H, W, C]`."""
        height, width, channels = self.shape
        small = (height // 4, width // 4)
        if z.ndim == 2:
            x = Dense(small[0] * small[1] * self.width)(z)
            x = x.reshape(-1, *small, self.width)
        elif z.ndim == 4 and z.shape[1:3] == small:
            x = Conv(self.width, (3, 3))(z)
        else:
            raise ValueError(
                f"conv_decoder: input {z.shape}: expected [B, {small[0]}, {small[1]}, D] or [B, D] "
                f"for images {self.shape}"
            )
        x = ResidualBlocks(self.blocks)(x)
        x = ConvTranspose(self.width, kernel_init=HE_TRANSPOSED)(x)
        return ConvTranspose(channels)(nn.relu(x))


def conv_encoder(
    features: int, *, width: int = 256, blocks: int = 2, output: Output = "map"
) -> Net:
    """The encoder of van den Oord et al. 2017 (arXiv:1711.00937, section 4.1).

    Two 4x4 convolutions of stride 2 with ReLU, residual blocks (ReLU, 3x3, ReLU, 1x1), a ReLU, and
    a linear output. Images are float `[B, H, W, C]`, H and W multiples of 4: 32x32 gives maps of
    8x8, 28x28 of 7x7. Kernels before a ReLU, and those of the residual branches, start
    He-normal, the output LeCun-normal; biases start at 0.

    Args:
      features: width of the output: D of the codebook, or twice the latents of a VAE.
      width: channels of every hidden layer.
      blocks: residual blocks.
      output: "map" gives `[B, H/4, W/4, features]` by a 1x1 convolution, "vector" gives
        `[B, features]` by a dense layer on the flattened map.

    Raises:
      ValueError: features or width below 1, negative blocks, or an unknown output; and, when
        traced, images of another rank or size.
    """
    check_choice("output", output, ("map", "vector"))
    _check_sizes("conv_encoder", features=features, width=width, blocks=blocks)
    return from_linen(ConvEncoder(features, width, blocks, output))


def conv_decoder(shape: tuple[int, int, int], *, width: int = 256, blocks: int = 2) -> Net:
    """The mirror of `conv_encoder`, from maps or vectors to images `[B, H, W, C]`.

    A map `[B, H/4, W/4, D]` goes through a 3x3 convolution, a vector `[B, D]` through a dense layer
    to `[B, H/4, W/4, width]`. Then residual blocks, a ReLU, and two transposed 4x4 convolutions of
    stride 2 with a ReLU between them. The output is linear: means, or logits. Kernels of hidden
    layers start as the encoder's, the first and last LeCun-normal; biases start at 0.

    Args:
      shape: of one image, `(H, W, C)`, with H and W multiples of 4.
      width: channels of every hidden layer.
      blocks: residual blocks.

    Raises:
      ValueError: a shape that is not `(H, W, C)` with multiples of 4, a width below 1, or negative
        blocks; and, when traced, an input that does not fit the shape.
    """
    if len(shape) != 3 or min(shape) < 1 or shape[0] % 4 or shape[1] % 4:
        raise ValueError(
            f"conv_decoder: shape {tuple(shape)}: expected (H, W, C) with H and W multiples of 4"
        )
    _check_sizes("conv_decoder", width=width, blocks=blocks)
    return from_linen(ConvDecoder((shape[0], shape[1], shape[2]), width, blocks))


def _check_sizes(name: str, **sizes: int) -> None:
    for size, value in sizes.items():
        least = 0 if size == "blocks" else 1
        if value < least:
            raise ValueError(f"{name}({size}={value}): expected at least {least}")
