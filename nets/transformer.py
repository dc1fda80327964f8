"""What every transformer here is made of: attention, one pre-norm block, positions, patches."""

import math
import re
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util
from jax import lax

from nets.dense import Dense
from nets.layers import StochasticDepth, activation_function
from nets.net import Net, PyTree, from_linen

Array = jax.Array
Initializer = Callable[..., Array]
Positions = Literal["learned", "sinusoidal", "rotary"]

XAVIER = nn.initializers.xavier_uniform()


class SelfAttention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017, section 3.2); the softmax is float32.

    Attributes:
      heads: the width is split evenly over them.
      causal: a token sees itself and those before it.
      rotary: positions enter here, by `rotate`.
      bias: of the four projections.
      kernel_init: of the query, key and value projections.
      out_init: of the output projection; None is `kernel_init`.
    """

    heads: int
    causal: bool = False
    rotary: bool = False
    bias: bool = True
    kernel_init: Initializer = XAVIER
    out_init: Initializer | None = None

    @nn.compact
    def __call__(
        self, x: Array, valid: Array | None = None, cache: tuple[Array, Array, Array] | None = None
    ) -> Any:
        """Maps tokens `x[B, T, D]` to `[B, T, D]`.

        Args:
          x: tokens.
          valid: bool `[B, T]`; a token where it is False is seen by none. Not with a cache.
          cache: `(keys, values, length)` of the tokens before `x`, in arrays `[B, S, H, D / H]` of
            which the first `length` are filled. Attention is then causal, and the output
            `(y, (keys, values))` with those of `x` written behind.
        """
        batch, length, width = x.shape
        shape = (batch, length, self.heads, width // self.heads)
        dense = partial(Dense, width, use_bias=self.bias)
        query, key, value = (
            dense(kernel_init=self.kernel_init, name=name)(x).reshape(shape)
            for name in ("query", "key", "value")
        )
        mask = None if valid is None else valid[:, None, None, :]
        position = jnp.arange(length)
        if cache is not None:
            position += cache[2]
        if self.rotary:
            query, key = rotate(query, position), rotate(key, position)
        if cache is not None:
            key = lax.dynamic_update_slice_in_dim(cache[0], key, cache[2], 1)
            value = lax.dynamic_update_slice_in_dim(cache[1], value, cache[2], 1)
            # What is not filled yet lies ahead, and is masked with it.
            mask = jnp.arange(key.shape[1]) <= position[:, None]
        causal = self.causal and cache is None
        # For `attention_of`; nobody else makes this collection.
        if self.is_mutable_collection("intermediates"):
            self.sow("intermediates", "attention", _weights(query, key, mask, causal))
        y = attend(query, key, value, mask, causal)
        out_init = self.out_init or self.kernel_init
        y = dense(kernel_init=out_init, name="out")(y.reshape(x.shape))
        return y if cache is None else (y, (key, value))


class Block(nn.Module):
    """Pre-norm transformer block: `x + attention(norm(x))`, then `x + mlp(norm(x))`.

    The MLP is dense, GELU (exact, not the approximation by tanh), dense. Attention weights have no
    dropout, for `jax.nn.dot_product_attention` has none.

    Attributes:
      heads: of the attention.
      mlp_dim: hidden width of the MLP.
      dropout: rate at the end of each of the two branches.
      mlp_dropout: rate after the GELU.
      stochastic_depth: rate at which a branch is dropped for a whole example.
      causal: as in `SelfAttention`.
      rotary: as in `SelfAttention`.
      bias: of the dense layers and the norms.
      epsilon: of the norms.
      kernel_init: of all dense layers but those that end a branch.
      out_init: of those; None is `kernel_init`.
    """

    heads: int
    mlp_dim: int
    dropout: float = 0.0
    mlp_dropout: float = 0.0
    stochastic_depth: float = 0.0
    causal: bool = False
    rotary: bool = False
    bias: bool = True
    epsilon: float = 1e-6
    kernel_init: Initializer = XAVIER
    out_init: Initializer | None = None

    @nn.compact
    def __call__(
        self,
        x: Array,
        valid: Array | None = None,
        cache: tuple[Array, Array, Array] | None = None,
        train: bool = False,
    ) -> Any:
        """Maps tokens `x[B, T, D]` to `[B, T, D]`; `valid`, `cache` as in `SelfAttention`."""
        out_init = self.out_init or self.kernel_init

        def norm(y: Array) -> Array:
            return nn.LayerNorm(epsilon=self.epsilon, use_bias=self.bias)(y)

        def branch(y: Array) -> Array:
            y = nn.Dropout(self.dropout, deterministic=not train)(y)
            return StochasticDepth(self.stochastic_depth)(y, train)

        y = SelfAttention(
            self.heads, self.causal, self.rotary, self.bias, self.kernel_init, out_init
        )(norm(x), valid, cache)
        written = None
        if cache is not None:
            y, written = y
        x = x + branch(y)
        y = Dense(self.mlp_dim, use_bias=self.bias, kernel_init=self.kernel_init)(norm(x))
        y = nn.Dropout(self.mlp_dropout, deterministic=not train)(activation_function("gelu")(y))
        x = x + branch(Dense(x.shape[-1], use_bias=self.bias, kernel_init=out_init)(y))
        return x if cache is None else (x, written)


def attention_of(module: nn.Module) -> Net:
    """Where a transformer looks: a net with the same parameters and another output.

    Args:
      module: has `SelfAttention` in it, each in a block with a number in its name.

    Returns:
      A net of the inputs of the module to float32 `[L, B, H, T, S]`, in evaluation: the share of
      each token s in what head h of block l gives token t. Shares sum to 1 over s.
    """

    def apply(
        params: PyTree, model_state: PyTree, *inputs: Any, key: Any = None, train: bool = False
    ) -> tuple[Array, PyTree]:
        _, kept = module.apply(
            {"params": params, **model_state}, *inputs, mutable=["intermediates"]
        )
        by_path = traverse_util.flatten_dict(kept["intermediates"], sep="/")
        # By number: as words, block 10 would come before block 2.
        ordered = sorted(by_path, key=lambda path: [int(n) for n in re.findall(r"\d+", path)])
        return jnp.stack([by_path[path][0] for path in ordered]), model_state

    return Net(from_linen(module).init, apply)


def attend(query: Array, key: Array, value: Array, mask: Array | None, causal: bool) -> Array:
    """Scaled dot-product attention (Vaswani et al. 2017, equation 1) as `[B, T, H, d]`.

    It is `jax.nn.dot_product_attention`, but on a CPU, where a small GPT learns a twentieth faster
    by the products written out (benchmarks/gpt.py).

    Args:
      query: `[B, T, H, d]`.
      key: `[B, S, H, d]`.
      value: `[B, S, H, d]`.
      mask: bool, broadcastable to `[B, H, T, S]`; where False there is nothing to see.
      causal: whether token t sees those up to t alone.
    """
    if jax.default_backend() != "cpu":
        return jax.nn.dot_product_attention(query, key, value, mask=mask, is_causal=causal)
    shares = _weights(query, key, mask, causal).astype(value.dtype)
    return jnp.einsum("bhts,bshd->bthd", shares, value)


def _weights(query: Array, key: Array, mask: Array | None, causal: bool) -> Array:
    """The softmax of `query[B, T, H, d]` and `key[B, S, H, d]`, float32 `[B, H, T, S]`."""
    scores = jnp.einsum("bthd,bshd->bhts", query, key).astype(jnp.float32)
    scores /= math.sqrt(query.shape[-1])
    if causal:
        past = jnp.tril(jnp.ones(scores.shape[-2:], bool))
        mask = past if mask is None else past & mask
    return jax.nn.softmax(scores, where=mask)


def sinusoid(position: Array, width: int) -> Array:
    """Positions as waves (Vaswani et al. 2017, section 3.5): `position[T]` to float32 `[T, width]`.

    Feature 2i is the sine and feature 2i + 1 the cosine of `position / 10000^(2i / width)`. The
    width is even.
    """
    angle = _angles(position, width)
    return jnp.stack([jnp.sin(angle), jnp.cos(angle)], -1).reshape(*position.shape, width)


def rotate(x: Array, position: Array) -> Array:
    """Rotary positions (Su et al. 2021, arXiv:2104.09864, equation 34).

    The pair `(x[2i], x[2i + 1])` is turned by `position / 10000^(2i / d)`, so that the product of a
    query and a key depends on the distance between them alone.

    Args:
      x: queries or keys `[B, T, H, d]`, d even.
      position: `[T]`.

    Returns:
      The shape and dtype of `x`; the arithmetic is float32.
    """
    angle = _angles(position, x.shape[-1])[:, None]
    sine, cosine = jnp.sin(angle), jnp.cos(angle)
    first, second = x[..., ::2], x[..., 1::2]
    turned = [first * cosine - second * sine, first * sine + second * cosine]
    return jnp.stack(turned, -1).reshape(x.shape).astype(x.dtype)


def _angles(position: Array, width: int) -> Array:
    return position[..., None] / 10_000 ** (jnp.arange(0, width, 2) / width)


def patch_tokens(x: Array, patch_size: int, width: int, kernel_init: Initializer) -> Array:
    """Inside a compact module: images `x[B, H, W, C]` to one token per patch, `[B, N, width]`.

    Patches do not overlap and go row by row; the layer is named "patches".

    Raises:
      ValueError: images that the patches do not tile.
    """
    if x.ndim != 4:
        raise ValueError(f"images of shape {x.shape}: expected [B, H, W, C]")
    if x.shape[1] % patch_size or x.shape[2] % patch_size:
        raise ValueError(
            f"images of {x.shape[1]}x{x.shape[2]} cannot be cut into patches of "
            f"{patch_size}x{patch_size}: choose a patch_size that divides both sides"
        )
    # As the dense layer that it is: a convolution within a loop is slow on a CPU.
    rows, columns = x.shape[1] // patch_size, x.shape[2] // patch_size
    x = x.reshape(x.shape[0], rows, patch_size, columns, patch_size, x.shape[3])
    x = x.transpose(0, 1, 3, 2, 4, 5).reshape(x.shape[0], rows * columns, -1)
    return Dense(width, kernel_init=kernel_init, name="patches")(x)


def prepend(token: Array, x: Array) -> Array:
    """Puts `token[1, 1, D]` before the tokens `x[B, T, D]` of every example."""
    token = jnp.broadcast_to(token.astype(x.dtype), (x.shape[0], 1, x.shape[2]))
    return jnp.concatenate([token, x], axis=1)


def check_heads(name: str, width: int, heads: int) -> None:
    """Raises ValueError, in one line, where the width called `name` does not split over heads."""
    if width % heads:
        raise ValueError(f"{name} {width} cannot be split over {heads} heads: choose a multiple")


def check_sizes(function: str, **sizes: int) -> None:
    """Raises ValueError, in one line, for a size below 1."""
    if min(sizes.values()) < 1:
        listed = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise ValueError(f"{function}: {listed} must all be at least 1")
