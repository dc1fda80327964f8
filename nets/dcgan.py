"""Generator and critic of DCGAN, for images of 28x28, 32x32 and the like."""

import math
from functools import partial
from typing import Literal

import flax.linen as nn
import jax

from nets.conv import ConvTranspose
from nets.dense import Dense
from nets.layers import check_choice, normalise
from nets.net import Net, from_linen

_INIT = nn.initializers.normal(0.02)
_halve = partial(nn.Conv, kernel_size=(4, 4), strides=(2, 2), kernel_init=_INIT)
_double = partial(ConvTranspose, kernel_init=_INIT)


class DCGANGenerator(nn.Module):
    """Dense layers to a small map, then transposed convolutions that double it."""

    start: int
    doublings: int
    channels: int
    width: int
    hidden: int

    @nn.compact
    def __call__(self, z: jax.Array, train: bool = False) -> jax.Array:
        """Maps `z[B, latent]` to images `[B, H, W, C]` in [-1, 1]."""
        width = self.width * 2 ** (self.doublings - 1)
        # Biases before batch norm would be subtracted again.
        dense = partial(Dense, use_bias=False, kernel_init=_INIT)
        x = z
        if self.hidden:
            x = nn.relu(normalise(dense(self.hidden)(x), "batch", train=train))
        x = dense(self.start**2 * width)(x).reshape(-1, self.start, self.start, width)
        x = nn.relu(normalise(x, "batch", train=train))
        for _ in range(self.doublings - 1):
            width //= 2
            x = _double(width, use_bias=False)(x)
            x = nn.relu(normalise(x, "batch", train=train))
        return nn.tanh(_double(self.channels)(x))


class DCGANCritic(nn.Module):
    """Strided convolutions that halve the map, then a dense output."""

    halvings: int
    width: int
    norm: str | None
    spectral: bool
    hidden: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Maps images `x[B, H, W, C]` to a score `[B]`."""

        def apply(layer: nn.Conv | nn.Dense, x: jax.Array) -> jax.Array:
            return nn.SpectralNorm(layer)(x, update_stats=train) if self.spectral else layer(x)

        def activate(x: jax.Array, norm: str | None) -> jax.Array:
            if norm == "batch":
                x = normalise(x, "batch", train=train)
            elif norm == "layer":
                x = nn.LayerNorm(epsilon=1e-5, reduction_axes=range(1, x.ndim))(x)
            return nn.leaky_relu(x, 0.2)

        # Biases before batch norm would be subtracted again.
        biased = self.norm != "batch"
        # The first layer has no norm, else the images' own mean and contrast were lost.
        x = activate(apply(_halve(self.width), x), None)
        for i in range(1, self.halvings):
            x = activate(apply(_halve(self.width * 2**i, use_bias=biased), x), self.norm)
        x = x.reshape(len(x), -1)
        if self.hidden:
            x = apply(Dense(self.hidden, use_bias=biased, kernel_init=_INIT), x)
            x = activate(x, self.norm)
        return apply(Dense(1, kernel_init=_INIT), x)[:, 0]


def dcgan_generator(
    shape: tuple[int, int, int] = (28, 28, 1), *, width: int = 64, hidden: int = 0
) -> Net:
    """The generator of DCGAN (Radford et al. 2016, arXiv:1511.06434), latents to images.

    Maps `z[B, latent]` to `[B, *shape]`: a dense layer, then transposed 4x4 convolutions of stride
    2, each but the last followed by batch norm and ReLU; a tanh gives images in [-1, 1]. Kernels
    start as N(0, .02). 28x28 goes by 7 and 14, 32x32 by 4, 8 and 16.

    Args:
      shape: of an image, `(side, side, channels)`; the side is 4 or 7 doubled once or more.
      width: channels before the last layer; twice as many for each halving of the map.
      hidden: units of a dense layer before that, with batch norm and ReLU; 0 for none, as in DCGAN.
        With width 64 and 1024 it is the net of Chen et al. 2016 (arXiv:1606.03657, appendix C.1)
        for 28x28, where two convolutions alone are not many to give a digit its form.

    Raises:
      ValueError: another side, or a number out of its range.
    """
    start, doublings = _plan("dcgan_generator", shape, width, hidden)
    return from_linen(DCGANGenerator(start, doublings, shape[-1], width, hidden))


def dcgan_critic(
    shape: tuple[int, int, int] = (28, 28, 1),
    *,
    width: int = 64,
    norm: Literal["batch", "layer"] | None = "batch",
    spectral: bool = False,
    hidden: int = 0,
) -> Net:
    """The discriminator of DCGAN, images `[B, *shape]` to logits `[B]`.

    4x4 convolutions of stride 2 with LeakyReLU(0.2), down to a map of 7x7 or 4x4 and a dense
    output. Kernels start as N(0, .02).

    Args:
      shape: of an image, as in `dcgan_generator`.
      width: channels of the first layer, doubled in each of the next.
      norm: after each convolution but the first. "batch" is DCGAN's; a gradient penalty needs
        "layer" (over places and channels of one image, as in Gulrajani et al. 2017) or None.
      spectral: divides every kernel by an estimate of its largest singular value, as a matrix of
        `[rest, out]` (Miyato et al. 2018, arXiv:1802.05957, algorithm 1), best with `norm=None`.
        The vectors of the power iteration are in the model state; they move by one step in a call
        with `train=True` and rest otherwise. Flax divides the first kernels themselves as well.
      hidden: units of a dense layer before the output, with norm and LeakyReLU; 0 for none. See
        `dcgan_generator`.

    Raises:
      ValueError: another side, an unknown norm, or a number out of its range.
    """
    _, halvings = _plan("dcgan_critic", shape, width, hidden)
    check_choice("norm", norm, ("batch", "layer", None))
    return from_linen(DCGANCritic(halvings, width, norm, spectral, hidden))


def _plan(function: str, shape: tuple[int, int, int], width: int, hidden: int) -> tuple[int, int]:
    """The side of the smallest map, and how often it is doubled."""
    height, side, channels = shape
    start = 7 if side % 7 == 0 else 4
    doublings = math.log2(side / start) if side > 0 else 0
    if height != side or doublings < 1 or doublings % 1:
        raise ValueError(
            f"{function}: images of {height}x{side}: expected a square of side 4 * 2^k or 7 * 2^k "
            "such as 28 or 32; pad or resize the images"
        )
    if min(channels, width) < 1:
        raise ValueError(f"{function}: {channels} channels and width {width} must be at least 1")
    if hidden < 0:
        raise ValueError(f"{function}: hidden={hidden}: expected 0 (none) or more units")
    return start, int(doublings)
