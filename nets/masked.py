"""The encoder and decoder of a masked autoencoder (He et al. 2022, arXiv:2111.06377)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from nets.dense import Dense
from nets.net import Net, from_linen
from nets.remat import call_block
from nets.transformer import (
    XAVIER,
    Block,
    attention_of,
    check_heads,
    check_sizes,
    patch_tokens,
    prepend,
    sinusoid,
)

_TOKEN = nn.initializers.normal(0.02)


class MAEEncoder(nn.Module):
    """Patches with their positions, of which those kept go through the blocks."""

    patch_size: int
    width: int
    depth: int
    heads: int
    mlp_dim: int

    @nn.compact
    def __call__(
        self, image: jax.Array, kept: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        """Maps images `[B, H, W, C]` and indices `kept[B, K]` to `[B, 1 + K, D]`."""
        x = patch_tokens(image, self.patch_size, self.width, XAVIER)
        grid = (image.shape[1] // self.patch_size, image.shape[2] // self.patch_size)
        x = x + grid_positions(grid, self.width).astype(x.dtype)
        if kept is not None:
            if kept.ndim != 2 or kept.shape[0] != x.shape[0] or kept.shape[1] > x.shape[1]:
                raise ValueError(
                    f"kept of shape {kept.shape} for images of {x.shape[1]} patches: expected "
                    f"[{x.shape[0]}, K] with K at most {x.shape[1]}"
                )
            x = jnp.take_along_axis(x, kept[..., None], axis=1)
        x = prepend(self.param("cls", _TOKEN, (1, 1, self.width)), x)
        for _ in range(self.depth):
            x = call_block(Block(self.heads, self.mlp_dim), x)
        return nn.LayerNorm(epsilon=1e-6, name="norm")(x)


class MAEDecoder(nn.Module):
    """Mask tokens where patches are missing, positions, blocks, and the pixels of every patch."""

    outputs: int
    grid: tuple[int, int]
    width: int
    depth: int
    heads: int
    mlp_dim: int

    @nn.compact
    def __call__(self, latent: jax.Array, place: jax.Array, train: bool = False) -> jax.Array:
        """Maps `latent[B, 1 + K, E]` and `place[B, N]` to patches `[B, N, outputs]`."""
        batch, patches = latent.shape[0], self.grid[0] * self.grid[1]
        missing = patches + 1 - latent.shape[1]
        if place.shape != (batch, patches) or missing < 0:
            raise ValueError(
                f"latent of shape {latent.shape} and place of shape {place.shape} for a grid of "
                f"{self.grid[0]}x{self.grid[1]}: expected [B, 1 + K, D] with K at most {patches}, "
                f"and [B, {patches}]"
            )
        x = Dense(self.width, kernel_init=XAVIER, name="embed")(latent)
        mask = self.param("mask", _TOKEN, (1, 1, self.width)).astype(x.dtype)
        x, first = x[:, 1:], x[:, :1]
        x = jnp.concatenate([x, jnp.broadcast_to(mask, (batch, missing, self.width))], axis=1)
        x = jnp.take_along_axis(x, place[..., None], axis=1)
        x = x + grid_positions(self.grid, self.width).astype(x.dtype)
        x = jnp.concatenate([first, x], axis=1)
        for _ in range(self.depth):
            x = call_block(Block(self.heads, self.mlp_dim), x)
        x = nn.LayerNorm(epsilon=1e-6, name="norm")(x)
        return Dense(self.outputs, kernel_init=XAVIER, name="pixels")(x)[:, 1:]


def grid_positions(grid: tuple[int, int], width: int) -> jax.Array:
    """Fixed positions of the patches of a grid, row by row: float32 `[N, width]`.

    The first half of the features is `sinusoid` of the row, the second of the column.
    """
    row, column = jnp.divmod(jnp.arange(grid[0] * grid[1]), grid[1])
    return jnp.concatenate([sinusoid(row, width // 2), sinusoid(column, width // 2)], axis=-1)


def mae_encoder(patch_size: int, width: int, depth: int, heads: int, mlp_dim: int) -> Net:
    """The encoder of a masked autoencoder: a ViT that sees only the patches it is given.

    Sine-cosine positions of row and column are added to all patches, then those that are not kept
    are taken away, before any block: none can leak. There is no mask token here. The class token
    has no position. Dense layers and patches are Xavier-uniform.

    Args:
      patch_size: side of the square patches, in pixels; divides both sides of the images.
      width: of a token D; a multiple of 4 and of `heads`.
      depth: number of blocks.
      heads: of attention.
      mlp_dim: hidden width of a block's MLP.

    Returns:
      A net of `image[B, H, W, C]` and `kept int32[B, K]`, the indices of the kept patches row by
      row, to `latent[B, 1 + K, D]`: the class token, then the patches in the order of `kept`.
      Called with images alone it keeps all. For a probe,
      `postprocess(net, lambda latent: latent[:, 0])` is the class token and
      `postprocess(net, lambda latent: latent[:, 1:].mean(1))` the mean over patches.

    Raises:
      ValueError: a size below 1, a width that does not split; when it is traced, images that the
        patches do not tile or `kept` of another shape.
    """
    _check("mae_encoder", width, heads, patch_size=patch_size, depth=depth, mlp_dim=mlp_dim)
    return from_linen(MAEEncoder(patch_size, width, depth, heads, mlp_dim))


def mae_attention(patch_size: int, width: int, depth: int, heads: int, mlp_dim: int) -> Net:
    """Where the `mae_encoder` of the same arguments looks, for pictures.

    Returns:
      A net of the encoder's parameters and inputs to float32 `[L, B, H, 1 + K, 1 + K]`, as
      `attention_of` has it: the class token first, then the patches.
    """
    return attention_of(MAEEncoder(patch_size, width, depth, heads, mlp_dim))


def mae_decoder(
    patch_size: int,
    channels: int,
    grid: tuple[int, int],
    width: int,
    depth: int,
    heads: int,
    mlp_dim: int,
) -> Net:
    """The decoder of a masked autoencoder, from a latent to the pixels of every patch.

    The latent is mapped to the decoder's width, a learned mask token stands in for each missing
    patch, all are put back in their places, and get their positions again.

    Args:
      patch_size: side of the square patches, P.
      channels: of the images, C.
      grid: rows and columns of patches; their product is N.
      width: of a token; a multiple of 4 and of `heads`.
      depth: number of blocks.
      heads: of attention.
      mlp_dim: hidden width of a block's MLP.

    Returns:
      A net of `latent[B, 1 + K, D]`, as `mae_encoder` gives it, and `place int32[B, N]` to
      `patches[B, N, P * P * C]`. `place[b, n]` is where patch n stands in the kept patches followed
      by the masked ones: the inverse of that permutation. The pixels of a patch go row by row,
      each with its channels.

    Raises:
      ValueError: a size below 1, a width that does not split; when it is traced, a latent or
        `place` of another shape.
    """
    sizes = {"patch_size": patch_size, "channels": channels, "rows": grid[0], "columns": grid[1]}
    _check("mae_decoder", width, heads, **sizes, depth=depth, mlp_dim=mlp_dim)
    return from_linen(MAEDecoder(patch_size**2 * channels, grid, width, depth, heads, mlp_dim))


def _check(function: str, width: int, heads: int, **sizes: int) -> None:
    check_sizes(function, width=width, heads=heads, **sizes)
    check_heads("width", width, heads)
    if width % 4:
        raise ValueError(
            f"{function}: width {width} has to hold a sine and a cosine of row and column: "
            "choose a multiple of 4"
        )
