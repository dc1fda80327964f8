"""Architectures, each behind a `Net`: two pure functions, `init` and `apply`."""

from nets.airbench import airbench, whitening_kernel
from nets.autoencoder import conv_decoder, conv_encoder
from nets.cnn import cnn
from nets.dcgan import dcgan_critic, dcgan_generator
from nets.heads import (
    actor_critic,
    critic,
    deterministic_actor,
    minatar_cnn,
    nature_cnn,
    q_network,
    squashed_gaussian,
)
from nets.language import bert, gpt
from nets.masked import mae_attention, mae_decoder, mae_encoder
from nets.mlp import mlp
from nets.net import (
    Net,
    chain,
    count_parameters,
    ensemble,
    from_linen,
    from_nnx,
    postprocess,
    preprocess,
    with_precision,
)
from nets.projector import projector
from nets.recurrent import recurrent_actor_critic
from nets.remat import rematerialised, rematerialising
from nets.resnet import resnet, resnet_cifar
from nets.vit import vit
from nets.wide_resnet import wide_resnet

__all__ = [
    "Net",
    "actor_critic",
    "airbench",
    "bert",
    "chain",
    "cnn",
    "conv_decoder",
    "conv_encoder",
    "count_parameters",
    "critic",
    "dcgan_critic",
    "dcgan_generator",
    "deterministic_actor",
    "ensemble",
    "from_linen",
    "from_nnx",
    "gpt",
    "mae_attention",
    "mae_decoder",
    "mae_encoder",
    "minatar_cnn",
    "mlp",
    "nature_cnn",
    "postprocess",
    "preprocess",
    "projector",
    "q_network",
    "recurrent_actor_critic",
    "rematerialised",
    "rematerialising",
    "resnet",
    "resnet_cifar",
    "squashed_gaussian",
    "vit",
    "whitening_kernel",
    "wide_resnet",
    "with_precision",
]
