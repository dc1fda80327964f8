"""Convolutions whose gradients suit XLA's CPU backend."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

_LAYOUT = ("NHWC", "HWIO", "NHWC")


def conv_general_dilated(
    lhs: jax.Array, rhs: jax.Array, window_strides: Any, padding: Any, **options: Any
) -> jax.Array:
    """`lax.conv_general_dilated`, with faster gradients where they are known to be faster.

    Meant for `nn.Conv(conv_general_dilated=...)`. On the CPU backend XLA computes the gradient of
    a kernel with many outputs slowly; there a 3x3 convolution of stride 1 that keeps its size
    takes `conv3x3` when `wins` says so. Everything else, and every other backend, is unchanged.

    `conv3x3` has a gradient of its own, so forward-mode differentiation (`jax.jvp`) does not pass
    through it; gradients of gradients do.
    """
    plain = (
        rhs.shape[:2] == (3, 3)
        and rhs.ndim == 4
        and tuple(window_strides) == (1, 1)
        and _keeps_size(padding)
        and options.get("feature_group_count", 1) == 1
        and set(options.get("lhs_dilation") or (1,)) == {1}
        and set(options.get("rhs_dilation") or (1,)) == {1}
    )
    if plain and jax.default_backend() == "cpu" and wins(lhs.shape, rhs.shape):
        return conv3x3(lhs, rhs)
    return lax.conv_general_dilated(lhs, rhs, window_strides, padding, **options)


def wins(images: tuple[int, ...], kernel: tuple[int, ...]) -> bool:
    """Whether `conv3x3` is faster for images `[B, H, W, in]` and a kernel `[3, 3, in, out]`.

    Measured on two x86 cores, gradient of the kernel against XLA's: a third off for 64 -> 256
    channels at 15x15, a sixth at 32x32; equal for as many inputs as outputs or for small maps; up
    to three times slower for narrow outputs.
    """
    return kernel[3] >= 256 and 4 * kernel[2] <= kernel[3] and min(images[1:3]) >= 14


def _keeps_size(padding: Any) -> bool:
    return padding == "SAME" or [tuple(side) for side in padding] == [(1, 1), (1, 1)]


def _convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=_LAYOUT)


@jax.custom_vjp
def conv3x3(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolves `x[B, H, W, in]` with `kernel[3, 3, in, out]`, stride 1, zero-padded by 1.

    The gradient of `x` is a convolution with the kernel turned by 180 degrees and its channels
    exchanged; that of the kernel is nine products `x_shifted^T dy`. Equal to XLA's own gradients
    up to rounding.
    """
    return _convolve(x, kernel)


def _forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _convolve(x, kernel), (x, kernel)


def _backward(saved: tuple[jax.Array, jax.Array], dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    dx = _convolve(dy, _turn(kernel))
    height, width = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    flat = dy.reshape(-1, dy.shape[-1])
    taps = [
        lax.dot_general(
            padded[:, i : i + height, j : j + width].reshape(-1, x.shape[-1]),
            flat,
            (((0,), (0,)), ((), ())),
            preferred_element_type=jnp.float32,
        )
        for i in range(3)
        for j in range(3)
    ]
    return dx, jnp.stack(taps).reshape(kernel.shape).astype(kernel.dtype)


conv3x3.defvjp(_forward, _backward)


class ConvTranspose(nn.Module):
    """`nn.ConvTranspose` with stride 2 and padding "SAME", trained faster on a CPU.

    Parameters, their names and the arithmetic are the same.

    Attributes:
      features: channels of the output.
      kernel_size: two numbers.
      use_bias: whether to add one for each channel.
      kernel_init: of the kernel `[h, w, in, features]`.
    """

    features: int
    kernel_size: tuple[int, int] = (4, 4)
    use_bias: bool = True
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `x[B, H, W, in]` to `[B, 2 H, 2 W, features]`."""
        shape = (*self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        x, kernel = nn.dtypes.promote_dtype(x, kernel)
        y = conv_transpose(x, kernel) if jax.default_backend() == "cpu" else _double(x, kernel)
        if not self.use_bias:
            return y
        return y + self.param("bias", nn.initializers.zeros, (self.features,)).astype(y.dtype)


def _double(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return lax.conv_transpose(x, kernel, (2, 2), "SAME")


@jax.custom_vjp
def conv_transpose(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Transposed convolution of `x[B, H, W, in]` with `kernel[h, w, in, out]` and stride 2.

    Its gradients are those of the strided convolution that it transposes, whose input is `dy`: of
    the kernel XLA's own is a convolution with a window as large as the map, which took seven to
    twenty times as long on an x86 core, for 7x7 to 16x16 maps of 16 to 256 channels. Forward-mode
    differentiation does not pass through it; gradients of gradients do.
    """
    return _double(x, kernel)


def _forward_transpose(
    x: jax.Array, kernel: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _double(x, kernel), (x, kernel)


def _backward_transpose(
    saved: tuple[jax.Array, jax.Array], dy: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved

    def halve(turned: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(dy, turned, (2, 2), "SAME", dimension_numbers=_LAYOUT)

    dx, pull = jax.vjp(halve, _turn(kernel))
    return dx, _turn(pull(x)[0])


def _turn(kernel: jax.Array) -> jax.Array:
    """Turns it by 180 degrees, and exchanges its channels."""
    return kernel[::-1, ::-1].swapaxes(2, 3)


conv_transpose.defvjp(_forward_transpose, _backward_transpose)
