"""The update of a small character GPT beside the same in PyTorch.

The CPU size of nanoGPT: 4 layers of 128 with 4 heads, 64 characters of context, batches of 12, a
vocabulary of 65, without biases or dropout, AdamW with its gradient clipped at norm 1. Windows are
drawn inside of the timed loop by both. PyTorch's attention is its fused one, and so is its AdamW.

  paradigms        `fit` on resident tokens with as many updates to a dispatch as experiments take
  torch_eager      PyTorch as it is written
  torch_compiled   the same with the loss, and so its gradient, through `torch.compile`

For how it is measured see `beside_torch`.

  pip install torch
  python -m experiments.benchmarks.gpt        five minutes on two CPU cores
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import nets
from experiments.benchmarks import beside_torch
from paradigms.core import optimizers
from paradigms.core.learner import Learner
from paradigms.core.transforms import windowed
from paradigms.self_supervised import gpt

LAYERS, HEADS, WIDTH, CONTEXT, BATCH_SIZE, VOCABULARY = 4, 4, 128, 64, 12, 65
TOKENS, LEARNING_RATE, DECAY, MAX_NORM = 100_000, 1e-3, 0.1, 1.0


@dataclass(frozen=True)
class Config(beside_torch.Options):
    """Options of the benchmark."""

    updates: int = 200
    output: Path = Path("experiments/results/benchmarks/gpt.json")
    """Where the figures go."""


def our_learner() -> Learner:
    """Draws its windows from the whole text."""
    net, _ = nets.gpt(VOCABULARY, layers=LAYERS, heads=HEADS, width=WIDTH, context=CONTEXT)
    optimizer = optimizers.adamw(LEARNING_RATE, b2=0.99, weight_decay=DECAY, max_norm=MAX_NORM)
    return windowed(gpt(net, optimizer), BATCH_SIZE, CONTEXT)


def torch_round(tokens: np.ndarray, updates: int, compiled: bool) -> beside_torch.Round:
    """Seconds of a round of PyTorch."""
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
    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}],
        LEARNING_RATE,
        (0.9, 0.99),
        fused=True,
    )
    text = torch.from_numpy(tokens.astype(np.int64))
    offsets = torch.arange(CONTEXT + 1)
    loss_of: Any = torch.compile(model) if compiled else model

    def run() -> float:
        begin = time.perf_counter()
        for _ in range(updates):
            start = torch.randint(TOKENS - CONTEXT, (BATCH_SIZE, 1))
            optimizer.zero_grad()
            loss_of(text[start + offsets]).backward()
            nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
            optimizer.step()
        return time.perf_counter() - begin

    run()  # compiles
    return run


def main(config: Config) -> None:
    """Measures all modes on the same tokens."""
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, TOKENS, np.int32)
    data = {"tokens": tokens}
    beside_torch.compare(
        our_learner(), data, torch_round, config, config.output, batch_size=BATCH_SIZE
    )


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config, description=__doc__))
