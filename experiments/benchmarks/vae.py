"""The update of a variational autoencoder on MNIST beside the same in PyTorch.

784-400-20, relu, batches of 128 bits, Adam (PyTorch's fused one), the loss of Kingma & Welling with
the KL in closed form: the network of PyTorch's own example. For the modes see `beside_torch`.

  pip install torch
  python -m experiments.benchmarks.vae        five minutes on two CPU cores
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

import nets
from experiments.benchmarks import beside_torch, labelled
from experiments.benchmarks.measuring import System, Target
from paradigms.core import optimizers
from paradigms.core.learner import Learner
from paradigms.core.transforms import resident
from paradigms.unsupervised import vae

BATCH_SIZE, EXAMPLES = 128, 8192
PIXELS, HIDDEN, LATENT = 784, 400, 20
LEARNING_RATE = 1e-3
TARGET = Target(loss=152.0, every=100, limit=5000)


def our_learner() -> Learner:
    """Draws its minibatch from the whole data set."""
    learner = vae(
        nets.mlp((HIDDEN,), 2 * LATENT),
        nets.mlp((HIDDEN,), PIXELS),
        optimizers.adam(LEARNING_RATE),
        input_name="x",
    )
    return resident(learner, BATCH_SIZE)


def data() -> dict[str, np.ndarray]:
    """Bits, as many of them 1 as in MNIST, that follow ten patterns."""
    ink = labelled.patterns((PIXELS,), EXAMPLES, contrast=0.9)["x"] > 1.13
    return {"x": ink.astype(np.float32)}


def peer(data: Mapping[str, np.ndarray], channels_last: bool) -> beside_torch.Peer:
    """The same in PyTorch."""
    import torch
    from torch import nn
    from torch.nn import functional

    encoder = nn.Sequential(nn.Linear(PIXELS, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 2 * LATENT))
    decoder = nn.Sequential(nn.Linear(LATENT, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, PIXELS))
    model = nn.ModuleDict({"encoder": encoder, "decoder": decoder})

    def loss(x: Any) -> Any:
        mean, log_var = encoder(x).chunk(2, dim=1)
        z = mean + torch.exp(0.5 * log_var) * torch.randn_like(mean)
        logits = decoder(z)
        cross_entropy = functional.binary_cross_entropy_with_logits(logits, x, reduction="sum")
        kl = -0.5 * (1 + log_var - mean.pow(2) - log_var.exp()).sum()
        return (cross_entropy + kl) / len(x)

    return beside_torch.Peer(
        model,
        torch.optim.Adam(model.parameters(), LEARNING_RATE, fused=True),
        loss,
        lambda: beside_torch.minibatches((torch.from_numpy(data["x"]),), BATCH_SIZE),
    )


def weights(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Ours for PyTorch's module."""
    return beside_torch.named(
        {
            f"{net}.{2 * i}": beside_torch.dense(params[net][f"Dense_{i}"])
            for net in ("encoder", "decoder")
            for i in range(2)
        }
    )


def system() -> System:
    """To be measured."""
    return beside_torch.system(
        our_learner,
        data,
        peer,
        weights,
        updates=1000,
        target=TARGET,
        details=lambda: {"batch_size": BATCH_SIZE},
    )


if __name__ == "__main__":
    from experiments.benchmarks import __main__ as command

    command.main(["vae", "--peers"])
