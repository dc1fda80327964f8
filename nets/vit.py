"""Vision transformer (Dosovitskiy et al. 2021, arXiv:2010.11929)."""

from typing import Literal

import flax.linen as nn
import jax

from nets.dense import Dense
from nets.layers import check_choice, check_rate
from nets.net import Net, from_linen
from nets.remat import call_block
from nets.transformer import Block, check_heads, patch_tokens, prepend

Pool = Literal["cls", "mean"]

# hidden, depth, heads, mlp_dim: Dosovitskiy et al. 2021, table 1, and Touvron et al. 2021.
SIZES = {"Ti": (192, 12, 3, 768), "S": (384, 12, 6, 1536), "B": (768, 12, 12, 3072)}


class ViT(nn.Module):
    """Patches as tokens, learned positions, encoder blocks, norm, pooling, linear head."""

    num_classes: int
    patch_size: int
    hidden: int
    depth: int
    heads: int
    mlp_dim: int
    dropout: float = 0.0
    stochastic_depth: float = 0.0
    pool: Pool = "cls"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Maps images `x[B, H, W, C]` to logits `[B, num_classes]`."""
        x = patch_tokens(x, self.patch_size, self.hidden, nn.initializers.lecun_normal())
        if self.pool == "cls":
            x = prepend(self.param("cls", nn.initializers.zeros, (1, 1, self.hidden)), x)
        positions = nn.initializers.normal(0.02)
        x = x + self.param("positions", positions, (1, *x.shape[1:]))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        for index in range(self.depth):
            # Rising linearly to the full rate at the last block.
            rate = self.stochastic_depth * index / max(1, self.depth - 1)
            block = Block(
                self.heads,
                self.mlp_dim,
                dropout=self.dropout,
                mlp_dropout=self.dropout,
                stochastic_depth=rate,
                name=f"EncoderBlock_{index}",
            )
            x = call_block(block, x, train=train)
        x = nn.LayerNorm(epsilon=1e-6)(x)
        x = x[:, 0] if self.pool == "cls" else x.mean(1)
        # Zero: the first loss is ln K exactly.
        return Dense(self.num_classes, kernel_init=nn.initializers.zeros, name="head")(x)


def vit(
    patch_size: int,
    hidden: int,
    depth: int,
    heads: int,
    mlp_dim: int,
    num_classes: int,
    *,
    dropout: float = 0.0,
    stochastic_depth: float = 0.0,
    pool: Pool = "cls",
) -> Net:
    """A vision transformer: images `[B, H, W, C]` to logits `[B, num_classes]`.

    The size of the images is fixed by the first call, which sets the learned positions.
    `vit(16, *SIZES["S"], 1000)` is ViT-S/16. Dense layers are Xavier-uniform, the head is zero.

    Args:
      patch_size: side of the square patches, in pixels; divides both sides of the images.
      hidden: width of a token.
      depth: number of encoder blocks.
      heads: of attention; divides `hidden`.
      mlp_dim: hidden width of a block's MLP.
      num_classes: width of the output.
      dropout: rate after the positions and within each block, but not on attention weights.
      stochastic_depth: rate of the last block, rising linearly from 0 at the first.
      pool: what the head reads: "cls", a learned token, or "mean", the mean over patches.

    Raises:
      ValueError: sizes that do not divide, an unknown pool, a rate outside [0, 1).
    """
    check_heads("hidden", hidden, heads)
    check_choice("pool", pool, ("cls", "mean"))
    check_rate("dropout", dropout)
    check_rate("stochastic_depth", stochastic_depth)
    return from_linen(
        ViT(
            num_classes,
            patch_size,
            hidden,
            depth,
            heads,
            mlp_dim,
            dropout=dropout,
            stochastic_depth=stochastic_depth,
            pool=pool,
        )
    )
