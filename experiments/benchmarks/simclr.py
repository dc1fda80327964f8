"""The update of SimCLR beside the same in PyTorch, and what its views cost by themselves.

The small net for CIFAR-10 of `simclr_cifar10` (32, 64 and 2x128 filters of 3x3, batch norm), a
projector 128-512-128, batches of 128, two views an image, temperature 0.5, SGD with momentum
(PyTorch's fused one). PyTorch has no augmentation of whole batches, so that both get images as they
are for views; the images are drawn at random, and there is no target to reach. For the modes see
`beside_torch`.

`augmentation` in the result file is the cost of each operation of the views, in microseconds per
image, measured alone on a batch of 256.

  pip install torch
  python -m experiments.benchmarks.simclr        ten minutes on two CPU cores
"""

import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import nets
from experiments import joint_embedding
from experiments.benchmarks import beside_torch
from experiments.benchmarks.measuring import System
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
    "views_of_simclr": joint_embedding.cifar_views(joint_embedding.Cifar()),
}


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


def data() -> dict[str, np.ndarray]:
    """Noise."""
    return {"image": np.random.default_rng(0).integers(0, 256, (IMAGES, 32, 32, 3), np.uint8)}


def peer(data: Mapping[str, np.ndarray], channels_last: bool) -> beside_torch.Peer:
    """The same in PyTorch."""
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
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in augment.CIFAR10)
    partner = torch.arange(2 * BATCH_SIZE).roll(BATCH_SIZE)
    itself = torch.eye(2 * BATCH_SIZE, dtype=torch.bool)

    def loss(image: Any) -> Any:
        x = (image / 255 - mean) / std
        z = functional.normalize(model(torch.cat([x, x])))
        similarity = (z @ z.T / TEMPERATURE).masked_fill(itself, -torch.inf)
        return functional.cross_entropy(similarity, partner)

    images = beside_torch.images_tensor(data["image"], channels_last)
    return beside_torch.Peer(
        model,
        torch.optim.SGD(model.parameters(), RATE, MOMENTUM, fused=True),
        loss,
        lambda: beside_torch.minibatches((images,), BATCH_SIZE),
    )


def weights(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Ours for PyTorch's module."""
    backbone, projector = params["backbone"], params["projector"]
    convs, norms = ("0", "4", "8", "11"), ("2", "6", "9", "12")
    modules = {
        **{name: beside_torch.conv(backbone[f"Conv_{i}"]) for i, name in enumerate(convs)},
        **{name: beside_torch.norm(backbone[f"BatchNorm_{i}"]) for i, name in enumerate(norms)},
        "16": beside_torch.dense(projector["Dense_0"]),
        "17": beside_torch.norm(projector["BatchNorm_0"]),
        "19": beside_torch.dense(projector["Dense_1"]),
    }
    return beside_torch.named(modules)


def augmentation_cost(repeats: int = 20) -> dict[str, float]:
    """Median microseconds per image of each operation on a batch, compiled by itself."""
    batch = jnp.asarray(data()["image"][:256])
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
    return cost


def system() -> System:
    """To be measured."""
    return beside_torch.system(
        our_learner,
        data,
        peer,
        weights,
        updates=20,
        images=True,
        details=lambda: {"batch_size": BATCH_SIZE, "augmentation": augmentation_cost()},
    )


if __name__ == "__main__":
    from experiments.benchmarks import __main__ as command

    command.main(["simclr", "--peers"])
