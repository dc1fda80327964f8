"""Convolutions whose gradients suit XLA's CPU backend."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

_LAYOUT = ("NHWC", "HWIO", "NHWC")


def conv_general_dilated(
    lhs: jax.Array, rhs: jax.Array, window_strides: Any, padding: Any, **options: Any
) -> jax.Array:
    """`lax.conv_general_dilated`, with a faster gradient where it is known to be faster.

    Meant for `nn.Conv(conv_general_dilated=...)`, as `Conv` has it. On the CPU backend a square
    convolution of stride 1 that keeps the size takes `convolve` when `wins` says so. Everything
    else, and every other backend, is unchanged.
    """
    size = rhs.shape[0]
    plain = (
        rhs.ndim == 4
        and size == rhs.shape[1]
        and size % 2 == 1
        and tuple(window_strides) == (1, 1)
        and _keeps_size(padding, size)
        and options.get("feature_group_count", 1) == 1
        and options.get("precision") is None
        and set(options.get("lhs_dilation") or (1,)) == {1}
        and set(options.get("rhs_dilation") or (1,)) == {1}
    )
    if plain and jax.default_backend() == "cpu" and wins(lhs.shape, size):
        return convolve(lhs, rhs)
    return lax.conv_general_dilated(lhs, rhs, window_strides, padding, **options)


Conv = partial(nn.Conv, conv_general_dilated=conv_general_dilated)
"""`nn.Conv`, trained faster on a CPU; parameters and their names are the same."""


def wins(images: tuple[int, ...], size: int) -> bool:
    """Whether the gradient of a kernel of this size is faster by `convolve`.

    Measured on an x86 core for 3x3 kernels and images `[B, H, W, C]` of 7x7 to 32x32 with 1 to 256
    channels: never slower, and XLA's takes 1.6 to 5 times as long from 16 channels on, and twelve
    times from 64 to 64 at 32x32. At 4x4 XLA's is a fifth faster.
    """
    return size >= 3 and min(images[1:3]) >= 7


def _keeps_size(padding: Any, size: int) -> bool:
    return padding == "SAME" or [tuple(side) for side in padding] == [(size // 2, size // 2)] * 2


def _same(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=_LAYOUT)


@jax.custom_jvp
def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolves `x[B, H, W, in]` with `kernel[k, k, in, out]`, k odd, stride 1, padded with zeros.

    XLA's gradient of the kernel is a convolution whose window is as large as the image. This one is
    of the kernel's rows one by one, as kernels of one dimension over the rows of the images.
    """
    return _same(x, kernel)


def _derivative(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    (x, kernel), (dx, dkernel) = primals, tangents
    # The gradient of what has none, as images have, would be computed all the same.
    parts = []
    if not isinstance(dx, SymbolicZero):
        parts.append(convolve(dx, kernel))
    if not isinstance(dkernel, SymbolicZero):
        parts.append(_by_rows(x, dkernel))
    return convolve(x, kernel), sum(parts[1:], start=parts[0])


convolve.defjvp(_derivative, symbolic_zeros=True)


def _by_rows(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The same convolution in another order, for its transposition in `kernel`."""
    batch, height, width, channels = x.shape
    size, *_, features = kernel.shape

    def along(rows: jax.Array, row: jax.Array) -> jax.Array:
        rows = rows.reshape(batch * height, width, channels)
        y = lax.conv_general_dilated(
            rows, row, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
        )
        return y.reshape(batch, height, width, features)

    def moved(rows: jax.Array, by: int) -> jax.Array:
        """Those from below take the place of those above, `by` rows, and zeros theirs."""
        none = (0, 0, 0)
        return lax.pad(rows, jnp.zeros((), rows.dtype), [none, (-by, by, 0), none, none])

    # In the transposed order what is moved here is read again for every row of the kernel.
    parts = [
        along(moved(x, by), row) if channels < features else moved(along(x, row), by)
        for by, row in zip(range(-(size // 2), size // 2 + 1), kernel, strict=True)
    ]
    return sum(parts[1:], start=parts[0])


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
    the kernel XLA's own is a convolution with a window as large as the map, with which both took
    two to four times as long where the outputs are few, and seven to twenty otherwise (an x86 core,
    maps of 4x4 to 16x16). Forward-mode differentiation does not pass through it; gradients of
    gradients do.
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
