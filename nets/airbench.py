"""The network of the CIFAR-10 speedrun airbench94 (Jordan 2024, arXiv:2404.00498)."""

from collections.abc import Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from nets.conv import Conv
from nets.dense import Dense
from nets.layers import gelu, max_pool
from nets.net import Net, from_linen

# Uniform within 1 / sqrt(fan_in): kaiming_uniform with a = sqrt(5), torch's default.
_torch_uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def whitening_kernel(images: np.ndarray, eps: float = 5e-4) -> np.ndarray:
    """The frozen first layer: principal directions of 2x2 patches, scaled to unit variance.

    Args:
      images: `[N, H, W, 3]` floats, normalised as the network will see them. 5,000 are enough.
      eps: added to the eigenvalues, so that directions without signal are not blown up.

    Returns:
      `[2, 2, 3, 24]` float32: the 12 eigenvectors of the patches' second moment, largest
      eigenvalue first, each over `sqrt(eigenvalue + eps)`, then their negatives (both signs
      survive the activation).
    """
    images = np.asarray(images, np.float32)
    if images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(f"images have shape {images.shape}: expected [N, H, W, 3] floats")
    height, width = images.shape[1:3]
    corners = [
        images[:, dy : height - 1 + dy, dx : width - 1 + dx] for dy in (0, 1) for dx in (0, 1)
    ]
    patches = np.concatenate(corners, axis=-1).reshape(-1, 12)
    eigenvalues, vectors = np.linalg.eigh((patches.T @ patches / len(patches)).astype(np.float64))
    scaled = (vectors / np.sqrt(eigenvalues + eps))[:, ::-1]
    return np.concatenate([scaled, -scaled], axis=1).reshape(2, 2, 3, 24).astype(np.float32)


def dirac_init(key: jax.Array, shape: Sequence[int], dtype: jnp.dtype = jnp.float32) -> jax.Array:
    """Kernels `[3, 3, in, out]` whose first `min(in, out)` outputs copy an input channel.

    The other outputs are uniform within `1 / sqrt(9 in)`.
    """
    height, width, features_in, features_out = shape
    copied = min(features_in, features_out)
    kernel = _torch_uniform(key, shape, dtype).at[..., :copied].set(0)
    centre = jnp.eye(features_in, copied, dtype=dtype)
    return kernel.at[height // 2, width // 2, :, :copied].set(centre)


class Airbench(nn.Module):
    """Whitening convolution, three groups of two convolutions, linear head."""

    num_classes: int = 10
    widths: Sequence[int] = (64, 256, 256)
    whitening: np.ndarray | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Maps `x[B, 32, 32, 3]` to logits `[B, num_classes]`."""
        norm = partial(
            nn.BatchNorm,
            use_running_average=not train,
            momentum=0.6,
            epsilon=1e-12,
            use_scale=False,
        )
        conv = partial(
            Conv,
            kernel_size=(3, 3),
            use_bias=False,
            kernel_init=dirac_init,
        )
        x = self._whiten(x)
        x = gelu(x)
        for width in self.widths:
            x = conv(width)(x)
            x = max_pool(x)
            x = gelu(norm()(x))
            x = conv(width)(x)
            x = gelu(norm()(x))
        x = x.max((1, 2))
        x = Dense(self.num_classes, use_bias=False, kernel_init=_torch_uniform)(x)
        return x / 9

    def _whiten(self, x: jax.Array) -> jax.Array:
        shape = (2, 2, x.shape[-1], 24)

        def initial() -> jax.Array:
            if self.whitening is None:
                return _torch_uniform(self.make_rng("params"), shape, jnp.float32)
            return jnp.asarray(self.whitening, jnp.float32)

        # Not a parameter: no optimiser, decay or average may move it.
        kernel = self.variable("constants", "whitening", initial).value
        bias = self.param("whitening_bias", nn.initializers.zeros, (24,), jnp.float32)
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel.astype(bias.dtype), bias)
        x = lax.conv_general_dilated(
            x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return x + bias


def airbench(
    num_classes: int = 10,
    *,
    widths: Sequence[int] = (64, 256, 256),
    whitening: np.ndarray | None = None,
) -> Net:
    """The airbench94 network: normalised images `[B, 32, 32, 3]` to logits `[B, num_classes]`.

    A 2x2 whitening convolution (frozen weight, trained bias) and GELU; three groups of
    convolution, 2x2 max-pool, batch norm, GELU, convolution, batch norm, GELU; maximum over the
    remaining 3x3 places; linear layer without bias; logits over 9. Convolutions are 3x3 without
    bias and start as the identity (`dirac_init`); batch norm has a bias only, eps 1e-12 and
    momentum .6.

    Args:
      num_classes: width of the output.
      widths: of the three groups.
      whitening: `whitening_kernel(images)`. It lives in the model state (collection "constants"),
        so a saved net carries its own; None draws a random one.

    Raises:
      ValueError: a whitening kernel of another shape.
    """
    if whitening is not None and np.shape(whitening) != (2, 2, 3, 24):
        raise ValueError(
            f"whitening has shape {np.shape(whitening)}: expected (2, 2, 3, 24), as "
            "whitening_kernel(images) returns"
        )
    return from_linen(Airbench(num_classes, tuple(widths), whitening))
