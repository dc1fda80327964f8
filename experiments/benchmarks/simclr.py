"""The update of SimCLR beside the same in PyTorch, and what its views cost by themselves.

The small net for CIFAR-10 of `simclr_cifar10` (32, 64 and 2x128 filters of 3x3, batch norm), a
projector 128-512-128, batches of 128, two views an image, temperature 0.5, SGD with momentum.
PyTorch has no augmentation of whole batches, so that both get images as they are for views; their
memory is laid out channels last, which PyTorch is faster with. Minibatches are drawn inside of the
timed loop by both.

  paradigms        `fit` on resident images with as many updates to a dispatch as experiments take
  torch_eager      PyTorch as it is written
  torch_compiled   the same with the loss, and so its gradient, through `torch.compile`

`augmentation` in the result file is the cost of each operation of the views, in microseconds per
image, measured alone on a batch of 256. For how the rest is measured see `beside_torch`.

  pip install torch
  python -m experiments.benchmarks.simclr        ten minutes on two CPU cores
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import nets
from experiments import joint_embedding
from experiments.benchmarks import beside_torch
from paradigms.core import optimizers
from paradigms.core.learner import Learner
from paradigms.core.transforms import resident
from paradigms.data import augment, colour, geometry
from paradigms.data.images import Augmentation
from paradigms.self_supervised import simclr

IMAGES, BATCH_SIZE, RATE, MOMENTUM, TEMPERATURE = 5000, 128, 0.06, 0.9, 0.5
WIDTHS = (32, 64, 128, 128)
HIDDEN, EMBEDDING = 512, 128
OPERATIONS: dict[str, Augmentation] = {
    "random_resized_crop": geometry.random_resized_crop(),
    "flip": augment.flip(),
    "colour_jitter": colour.colour_jitter(0.4, 0.4, 0.4, 0.1, probability=0.8),
    "grayscale": colour.grayscale(0.2),
    "views_of_simclr": joint_embedding.cifar_views(),
}


@dataclass(frozen=True)
class Config(beside_torch.Options):
    """Options of the benchmark."""

    updates: int = 20
    output: Path = Path("experiments/results/benchmarks/simclr.json")
    """Where the figures go."""


def our_learner() -> Learner:
    """Draws its minibatch from all images."""
    learner = simclr(
        joint_embedding.cifar_backbone(joint_embedding.Cifar(size="small")),
        nets.projector((HIDDEN,), EMBEDDING),
        optimizers.sgd(RATE, MOMENTUM),
        augment.identity,
        temperature=TEMPERATURE,
    )
    return resident(learner, BATCH_SIZE)


def torch_round(images: np.ndarray, updates: int, compiled: bool) -> beside_torch.Round:
    """Seconds of a round of PyTorch."""
    import torch
    from torch import nn
    from torch.nn import functional

    layers: list[nn.Module] = []
    channels = 3
    for place, width in enumerate(WIDTHS):
        layers.append(nn.Conv2d(channels, width, 3, padding=1, bias=False))
        if place < 2:
            layers.append(nn.MaxPool2d(2))
        layers += [nn.BatchNorm2d(width), nn.ReLU()]
        channels = width
    model = nn.Sequential(
        *layers,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(channels, HIDDEN, bias=False),
        nn.BatchNorm1d(HIDDEN),
        nn.ReLU(),
        nn.Linear(HIDDEN, EMBEDDING, bias=False),
    )
    model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), RATE, MOMENTUM)
    data = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in augment.CIFAR10)
    partner = torch.arange(2 * BATCH_SIZE).roll(BATCH_SIZE)
    itself = torch.eye(2 * BATCH_SIZE, dtype=torch.bool)

    def loss_of(batch: Any) -> Any:
        x = ((batch / 255 - mean) / std).contiguous(memory_format=torch.channels_last)
        z = functional.normalize(model(torch.cat([x, x])))
        similarity = (z @ z.T / TEMPERATURE).masked_fill(itself, -torch.inf)
        return functional.cross_entropy(similarity, partner)

    step: Any = torch.compile(loss_of) if compiled else loss_of

    def run() -> float:
        begin = time.perf_counter()
        for i in range(updates):
            if i % (IMAGES // BATCH_SIZE) == 0:
                order = torch.randperm(IMAGES).split(BATCH_SIZE)
            optimizer.zero_grad()
            step(data[order[i % (IMAGES // BATCH_SIZE)]]).backward()
            optimizer.step()
        return time.perf_counter() - begin

    run()  # compiles
    return run


def augmentation_cost(images: np.ndarray, repeats: int = 20) -> dict[str, float]:
    """Median microseconds per image of each operation on a batch, compiled by itself."""
    batch = jnp.asarray(images[:256])
    cost = {}
    for name, operation in OPERATIONS.items():
        apply = jax.jit(operation)
        jax.block_until_ready(apply(jax.random.key(0), batch))
        seconds = []
        for i in range(repeats):
            key = jax.random.key(i)
            begin = time.perf_counter()
            jax.block_until_ready(apply(key, batch))
            seconds.append(time.perf_counter() - begin)
        cost[name] = float(np.median(seconds)) / len(batch) * 1e6
        print(f"{name:20} {cost[name]:7.1f} microseconds per image")
    return cost


def main(config: Config) -> None:
    """Measures all modes on the same images."""
    images = np.random.default_rng(0).integers(0, 256, (IMAGES, 32, 32, 3), np.uint8)
    cost = augmentation_cost(images)
    beside_torch.compare(
        our_learner(),
        {"image": images},
        torch_round,
        config,
        config.output,
        batch_size=BATCH_SIZE,
        augmentation=cost,
    )


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config, description=__doc__))
