"""The update of a multilayer perceptron beside the same in PyTorch.

784-512-256-10, relu, batches of 128 examples shaped like MNIST's, cross entropy, Adam (PyTorch's
fused one). For the modes see `beside_torch`.

  pip install torch
  python -m experiments.benchmarks.mlp        some minutes on two CPU cores
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
from paradigms.supervised import classifier

PIXELS, HIDDEN, CLASSES = 784, (512, 256), 10
BATCH_SIZE, EXAMPLES, LEARNING_RATE = 128, 8192, 1e-3
TARGET = Target(loss=0.02, every=20, limit=2000)


def our_learner() -> Learner:
    """Draws its minibatch from all examples."""
    net = nets.mlp(HIDDEN, CLASSES)
    learner = classifier(net, optimizers.adam(LEARNING_RATE), input_name="x")
    return resident(learner, BATCH_SIZE)


def data() -> dict[str, np.ndarray]:
    """Noisy patterns, which take some hundred updates to tell apart."""
    return labelled.patterns((PIXELS,), EXAMPLES, contrast=0.1)


def peer(data: Mapping[str, np.ndarray], channels_last: bool) -> beside_torch.Peer:
    """The same in PyTorch."""
    import torch
    from torch import nn
    from torch.nn import functional

    model = nn.Sequential(
        nn.Linear(PIXELS, HIDDEN[0]),
        nn.ReLU(),
        nn.Linear(HIDDEN[0], HIDDEN[1]),
        nn.ReLU(),
        nn.Linear(HIDDEN[1], CLASSES),
    )
    arrays = torch.from_numpy(data["x"]), torch.from_numpy(data["label"]).long()
    return beside_torch.Peer(
        model,
        torch.optim.Adam(model.parameters(), LEARNING_RATE, fused=True),
        lambda x, label: functional.cross_entropy(model(x), label),
        lambda: beside_torch.minibatches(arrays, BATCH_SIZE),
    )


def weights(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Ours for PyTorch's module."""
    return beside_torch.named(
        {str(2 * i): beside_torch.dense(params[f"Dense_{i}"]) for i in range(len(HIDDEN) + 1)}
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

    command.main(["mlp", "--peers"])
