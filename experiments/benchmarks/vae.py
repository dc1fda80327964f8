"""The update of a variational autoencoder on MNIST beside the same in PyTorch.

784-400-20, relu, batches of 128 bits, Adam, the loss of Kingma & Welling with the KL in closed
form: the network of PyTorch's own example. Same arrays, dtype and arithmetic of the optimiser; the
minibatch is drawn inside of the timed loop by both. The modes are

  paradigms        `fit` on resident data with as many updates to a dispatch as experiments take
  torch_eager      PyTorch as it is written
  torch_compiled   the same with the loss, and so its gradient, through `torch.compile`

Adam is PyTorch's fused one in both. For how it is measured see `beside_torch`.

  pip install torch
  python -m experiments.benchmarks.vae        three minutes on two CPU cores
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
from paradigms.core.transforms import resident
from paradigms.unsupervised import vae

BATCH_SIZE, EXAMPLES = 128, 8192
PIXELS, HIDDEN, LATENT = 784, 400, 20
LEARNING_RATE = 1e-3


@dataclass(frozen=True)
class Config(beside_torch.Options):
    """Options of the benchmark."""

    output: Path = Path("experiments/results/benchmarks/vae.json")
    """Where the figures go."""


def our_learner() -> Learner:
    """Draws its minibatch from the whole data set."""
    learner = vae(
        nets.mlp((HIDDEN,), 2 * LATENT),
        nets.mlp((HIDDEN,), PIXELS),
        optimizers.adam(LEARNING_RATE),
        input_name="x",
    )
    return resident(learner, BATCH_SIZE)


def torch_round(bits: np.ndarray, updates: int, compiled: bool) -> beside_torch.Round:
    """Seconds of a round of PyTorch."""
    import torch
    from torch.nn import functional

    encoder = torch.nn.Sequential(
        torch.nn.Linear(PIXELS, HIDDEN), torch.nn.ReLU(), torch.nn.Linear(HIDDEN, 2 * LATENT)
    )
    decoder = torch.nn.Sequential(
        torch.nn.Linear(LATENT, HIDDEN), torch.nn.ReLU(), torch.nn.Linear(HIDDEN, PIXELS)
    )
    parameters = [*encoder.parameters(), *decoder.parameters()]
    optimizer = torch.optim.Adam(parameters, LEARNING_RATE, fused=True)
    data = torch.from_numpy(bits)

    def loss_of(x: Any) -> Any:
        mean, log_var = encoder(x).chunk(2, dim=1)
        z = mean + torch.exp(0.5 * log_var) * torch.randn_like(mean)
        logits = decoder(z)
        cross_entropy = functional.binary_cross_entropy_with_logits(logits, x, reduction="sum")
        kl = -0.5 * (1 + log_var - mean.pow(2) - log_var.exp()).sum()
        return (cross_entropy + kl) / len(x)

    if compiled:
        loss_of = torch.compile(loss_of)

    def run() -> float:
        begin = time.perf_counter()
        for i in range(updates):
            if i % (EXAMPLES // BATCH_SIZE) == 0:
                order = torch.randperm(EXAMPLES).split(BATCH_SIZE)
            optimizer.zero_grad()
            loss_of(data[order[i % len(order)]]).backward()
            optimizer.step()
        return time.perf_counter() - begin

    run()  # compiles
    return run


def main(config: Config) -> None:
    """Measures all modes on the same bits."""
    ink = np.random.default_rng(0).random((EXAMPLES, PIXELS)) < 0.13
    data = {"x": ink.astype(np.float32)}
    beside_torch.compare(
        our_learner(), data, torch_round, config, config.output, batch_size=BATCH_SIZE
    )


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config, description=__doc__))
