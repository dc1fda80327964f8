"""The update of a small character GPT beside the same in PyTorch.

The CPU size of nanoGPT: 4 layers of 128 with 4 heads, 64 characters of context, batches of 12, a
vocabulary of 65, without biases or dropout, AdamW with its gradient clipped at norm 1. PyTorch's
attention is its fused one, and so is its AdamW. The characters are drawn at random: there is no
target to reach. For the modes see `beside_torch`.

  pip install torch
  python -m experiments.benchmarks.gpt        five minutes on two CPU cores
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

import nets
from experiments.benchmarks import beside_torch
from experiments.benchmarks.measuring import System
from paradigms.core import optimizers
from paradigms.core.learner import Learner
from paradigms.core.transforms import windowed
from paradigms.self_supervised import gpt

LAYERS, HEADS, WIDTH, CONTEXT, BATCH_SIZE, VOCABULARY = 4, 4, 128, 64, 12, 65
TOKENS, LEARNING_RATE, DECAY, MAX_NORM = 100_000, 1e-3, 0.1, 1.0


def our_learner() -> Learner:
    """Draws its windows from the whole text."""
    net, _ = nets.gpt(VOCABULARY, layers=LAYERS, heads=HEADS, width=WIDTH, context=CONTEXT)
    optimizer = optimizers.adamw(LEARNING_RATE, b2=0.99, weight_decay=DECAY, max_norm=MAX_NORM)
    return windowed(gpt(net, optimizer), BATCH_SIZE, CONTEXT)


def data() -> dict[str, np.ndarray]:
    """Noise."""
    return {"tokens": np.random.default_rng(0).integers(0, VOCABULARY, TOKENS, np.int32)}


def peer(data: Mapping[str, np.ndarray], channels_last: bool) -> beside_torch.Peer:
    """The same in PyTorch."""
    import torch
    from torch import nn
    from torch.nn import functional

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention_norm = nn.LayerNorm(WIDTH, bias=False)
            self.to_heads = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
            self.from_heads = nn.Linear(WIDTH, WIDTH, bias=False)
            self.mlp = nn.Sequential(
                nn.LayerNorm(WIDTH, bias=False),
                nn.Linear(WIDTH, 4 * WIDTH, bias=False),
                nn.GELU(),
                nn.Linear(4 * WIDTH, WIDTH, bias=False),
            )

        def forward(self, x: Any) -> Any:
            batch, length, _ = x.shape
            heads = self.to_heads(self.attention_norm(x)).view(batch, length, 3, HEADS, -1)
            query, key, value = heads.permute(2, 0, 3, 1, 4)
            y = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
            x = x + self.from_heads(y.transpose(1, 2).reshape(batch, length, WIDTH))
            return x + self.mlp(x)

    class Gpt(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(VOCABULARY, WIDTH)
            self.positions = nn.Embedding(CONTEXT, WIDTH)
            self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
            self.norm = nn.LayerNorm(WIDTH, bias=False)

        def forward(self, window: Any) -> Any:
            x = self.embedding(window[:, :-1]) + self.positions.weight
            logits = self.norm(self.blocks(x)) @ self.embedding.weight.T
            return functional.cross_entropy(
                logits.reshape(-1, VOCABULARY), window[:, 1:].reshape(-1)
            )

    model = Gpt()
    optimizer = torch.optim.AdamW(
        beside_torch.kernels_decay(model, DECAY, spared="positions.weight"),
        LEARNING_RATE,
        (0.9, 0.99),
        fused=True,
    )
    text = torch.from_numpy(data["tokens"]).long()
    offsets = torch.arange(CONTEXT + 1)

    def windows() -> Iterator[tuple[Any]]:
        while True:
            yield (text[torch.randint(len(text) - CONTEXT, (BATCH_SIZE, 1)) + offsets],)

    return beside_torch.Peer(model, optimizer, model, windows, MAX_NORM)


def weights(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Ours for PyTorch's module, whose queries, keys and values come from one matrix."""
    modules = {
        "embedding": {"weight": params["tokens"]["embedding"]},
        "positions": {"weight": params["positions"]},
        "norm": beside_torch.norm(params["norm"]),
    }
    for i in range(LAYERS):
        block = params[f"block_{i}"]
        attention = block["SelfAttention_0"]
        heads = [beside_torch.dense(attention[n])["weight"] for n in ("query", "key", "value")]
        modules |= {
            f"blocks.{i}.attention_norm": beside_torch.norm(block["LayerNorm_0"]),
            f"blocks.{i}.to_heads": {"weight": np.concatenate(heads)},
            f"blocks.{i}.from_heads": beside_torch.dense(attention["out"]),
            f"blocks.{i}.mlp.0": beside_torch.norm(block["LayerNorm_1"]),
            f"blocks.{i}.mlp.1": beside_torch.dense(block["Dense_0"]),
            f"blocks.{i}.mlp.3": beside_torch.dense(block["Dense_1"]),
        }
    return beside_torch.named(modules)


def system() -> System:
    """To be measured."""
    return beside_torch.system(
        our_learner,
        data,
        peer,
        weights,
        updates=200,
        details=lambda: {"batch_size": BATCH_SIZE},
    )


if __name__ == "__main__":
    from experiments.benchmarks import __main__ as command

    command.main(["gpt", "--peers"])
