"""Architectures, each behind a `Net`: two pure functions, `init` and `apply`."""

from nets.airbench import airbench, whitening_kernel
from nets.cnn import cnn
from nets.mlp import mlp
from nets.net import (
    Net,
    chain,
    count_parameters,
    from_linen,
    from_nnx,
    preprocess,
    with_precision,
)
from nets.resnet import resnet, resnet_cifar
from nets.vit import vit
from nets.wide_resnet import wide_resnet

__all__ = [
    "Net",
    "airbench",
    "chain",
    "cnn",
    "count_parameters",
    "from_linen",
    "from_nnx",
    "mlp",
    "preprocess",
    "resnet",
    "resnet_cifar",
    "vit",
    "whitening_kernel",
    "wide_resnet",
    "with_precision",
]
