"""The update of a small convolutional network beside the same in PyTorch.

That of `supervised/mnist_cnn`, without its dropout and its shifts: 3x3 convolutions with 32 and 64
filters, each with batch norm, relu and max-pool, a dense layer of 128 with batch norm, on batches
of 128 images of 28x28; Nesterov's momentum, decay of the kernels (PyTorch's fused SGD). Pixels are
normalised inside of the step by both. For the modes see `beside_torch`.

  pip install torch
  python -m experiments.benchmarks.cnn        ten minutes on two CPU cores
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
from paradigms.data import augment
from paradigms.supervised import classifier

SHAPE, FEATURES, DENSE, CLASSES = (28, 28, 1), (32, 64), 128, 10
BATCH_SIZE, EXAMPLES = 128, 2048
RATE, MOMENTUM, DECAY = 0.05, 0.9, 5e-4
TARGET = Target(loss=0.05, every=4, limit=400)


def our_learner() -> Learner:
    """Draws its minibatch from all images."""
    net = nets.cnn(CLASSES, features=FEATURES, dense=(DENSE,), norm="batch")
    net = nets.preprocess(net, augment.normalise(*augment.MNIST))
    optimizer = optimizers.sgd(RATE, MOMENTUM, nesterov=True, weight_decay=DECAY)
    return resident(classifier(net, optimizer), BATCH_SIZE)


def data() -> dict[str, np.ndarray]:
    """Noisy patterns, which take some dozen updates to tell apart."""
    return labelled.pictures(SHAPE, EXAMPLES, contrast=0.2)


def peer(data: Mapping[str, np.ndarray], channels_last: bool) -> beside_torch.Peer:
    """The same in PyTorch."""
    import torch
    from torch import nn
    from torch.nn import functional

    layers: list[nn.Module] = []
    channels = SHAPE[-1]
    for width in FEATURES:
        layers.append(nn.Conv2d(channels, width, 3, padding=1, bias=False))
        layers += [nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)]
        channels = width
    model = nn.Sequential(
        *layers,
        nn.Flatten(),
        nn.Linear(SHAPE[0] // 4 * SHAPE[1] // 4 * channels, DENSE, bias=False),
        nn.BatchNorm1d(DENSE),
        nn.ReLU(),
        nn.Linear(DENSE, CLASSES),
    )
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in augment.MNIST)
    images = beside_torch.images_tensor(data["image"], channels_last)
    return beside_torch.Peer(
        model,
        torch.optim.SGD(
            beside_torch.kernels_decay(model, DECAY), RATE, MOMENTUM, nesterov=True, fused=True
        ),
        lambda x, label: functional.cross_entropy(model((x / 255 - mean) / std), label),
        lambda: beside_torch.minibatches(
            (images, torch.from_numpy(data["label"]).long()), BATCH_SIZE
        ),
    )


def weights(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Ours for PyTorch's module, which flattens maps with the channels before the places."""
    flat = params["Dense_0"]["kernel"].reshape(SHAPE[0] // 4, SHAPE[1] // 4, FEATURES[-1], DENSE)
    flat = flat.transpose(2, 0, 1, 3).reshape(-1, DENSE)
    return beside_torch.named(
        {
            "0": beside_torch.conv(params["Conv_0"]),
            "1": beside_torch.norm(params["BatchNorm_0"]),
            "4": beside_torch.conv(params["Conv_1"]),
            "5": beside_torch.norm(params["BatchNorm_1"]),
            "9": beside_torch.dense({"kernel": flat}),
            "10": beside_torch.norm(params["BatchNorm_2"]),
            "12": beside_torch.dense(params["Dense_1"]),
        }
    )


def system() -> System:
    """To be measured."""
    return beside_torch.system(
        our_learner,
        data,
        peer,
        weights,
        updates=20,
        images=True,
        target=TARGET,
        details=lambda: {"batch_size": BATCH_SIZE},
    )


if __name__ == "__main__":
    from experiments.benchmarks import __main__ as command

    command.main(["cnn", "--peers"])
