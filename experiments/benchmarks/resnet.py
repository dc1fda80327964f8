"""The update of ResNet-20 beside the same in PyTorch.

That of `supervised/cifar10_resnet20` (He et al. 2016, arXiv:1512.03385, section 4.2), without its
crops and flips: batches of 128 images of 32x32, shortcuts without parameters, momentum, decay of
the kernels (PyTorch's fused SGD). Pixels are normalised inside of the step by both. The images and
labels are drawn at random: there is no target to reach. For the modes see `beside_torch`.

  pip install torch
  python -m experiments.benchmarks.resnet        twenty minutes on two CPU cores
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

import nets
from experiments.benchmarks import beside_torch
from experiments.benchmarks.measuring import System
from paradigms.core import optimizers
from paradigms.core.learner import Learner
from paradigms.core.transforms import resident
from paradigms.data import augment
from paradigms.supervised import classifier

DEPTH, WIDTHS, CLASSES = 20, (16, 32, 64), 10
BATCH_SIZE, EXAMPLES = 128, 2048
RATE, MOMENTUM, DECAY = 0.1, 0.9, 1e-4
BLOCKS = [(stage, block) for stage in range(len(WIDTHS)) for block in range((DEPTH - 2) // 6)]


def our_learner() -> Learner:
    """Draws its minibatch from all images."""
    net = nets.preprocess(nets.resnet_cifar(DEPTH), augment.normalise(*augment.CIFAR10))
    optimizer = optimizers.sgd(RATE, MOMENTUM, weight_decay=DECAY)
    return resident(classifier(net, optimizer), BATCH_SIZE)


def data() -> dict[str, np.ndarray]:
    """Noise."""
    generator = np.random.default_rng(0)
    return {
        "image": generator.integers(0, 256, (EXAMPLES, 32, 32, 3), np.uint8),
        "label": generator.integers(0, CLASSES, EXAMPLES, np.int32),
    }


def peer(data: Mapping[str, np.ndarray], channels_last: bool) -> beside_torch.Peer:
    """The same in PyTorch."""
    import torch
    from torch import nn
    from torch.nn import functional

    def conv(before: int, after: int, stride: int = 1) -> nn.Module:
        return nn.Conv2d(before, after, 3, stride, padding=1, bias=False)

    class Block(nn.Module):
        def __init__(self, before: int, after: int) -> None:
            super().__init__()
            self.stride = after // before
            self.added = after - before
            self.conv1, self.norm1 = conv(before, after, self.stride), nn.BatchNorm2d(after)
            self.conv2, self.norm2 = conv(after, after), nn.BatchNorm2d(after)

        def forward(self, x: Any) -> Any:
            y = functional.relu(self.norm1(self.conv1(x)))
            y = self.norm2(self.conv2(y))
            if self.added:
                x = functional.pad(
                    x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.added)
                )
            return functional.relu(x + y)

    befores = [WIDTHS[stage - (block == 0 and stage > 0)] for stage, block in BLOCKS]
    model = nn.Sequential(
        conv(3, WIDTHS[0]),
        nn.BatchNorm2d(WIDTHS[0]),
        nn.ReLU(),
        *(Block(before, WIDTHS[stage]) for before, (stage, _) in zip(befores, BLOCKS, strict=True)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(WIDTHS[-1], CLASSES),
    )
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in augment.CIFAR10)
    images = beside_torch.images_tensor(data["image"], channels_last)
    return beside_torch.Peer(
        model,
        torch.optim.SGD(beside_torch.kernels_decay(model, DECAY), RATE, MOMENTUM, fused=True),
        lambda x, label: functional.cross_entropy(model((x / 255 - mean) / std), label),
        lambda: beside_torch.minibatches(
            (images, torch.from_numpy(data["label"]).long()), BATCH_SIZE
        ),
    )


def weights(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Ours for PyTorch's module."""
    modules = {
        "0": beside_torch.conv(params["Conv_0"]),
        "1": beside_torch.norm(params["BatchNorm_0"]),
    }
    for i in range(len(BLOCKS)):
        block = params[f"ResidualBlock_{i}"]
        for j in range(2):
            modules[f"{3 + i}.conv{j + 1}"] = beside_torch.conv(block[f"Conv_{j}"])
            modules[f"{3 + i}.norm{j + 1}"] = beside_torch.norm(block[f"BatchNorm_{j}"])
    modules[str(3 + len(BLOCKS) + 2)] = beside_torch.dense(params["Dense_0"])
    return beside_torch.named(modules)


def system() -> System:
    """To be measured."""
    return beside_torch.system(
        our_learner,
        data,
        peer,
        weights,
        updates=8,
        images=True,
        details=lambda: {"batch_size": BATCH_SIZE},
    )


if __name__ == "__main__":
    from experiments.benchmarks import __main__ as command

    command.main(["resnet", "--peers"])
