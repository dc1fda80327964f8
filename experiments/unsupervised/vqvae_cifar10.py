"""A VQ-VAE squeezes CIFAR-10 images into 64 of 512 codes each.

Van den Oord et al. 2017 (arXiv:1711.00937, section 4.1), with moving averages for the codebook and
dead codes revived. What goes wrong first in a VQ-VAE is the codebook, so the aim is that over the
test set the perplexity of the codes is at least a quarter of their number. The paper's 4.67 bits
per dimension belong to its bound, which this experiment does not compute.

  python -m experiments.unsupervised.vqvae_cifar10                3 seeds
  python -m experiments.unsupervised.vqvae_cifar10 --seeds 0      40 minutes on a CPU core
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import nets
from experiments import cli, images, tasks, training
from nets.net import Net
from paradigms.core import optimizers
from paradigms.core.metrics import Means
from paradigms.core.pictures import draw_images
from paradigms.core.state import PyTree, TrainState, fold_name
from paradigms.unsupervised import derive_vq_vae, nearest_code, unit_interval, vq_vae

PUBLISHED = {
    "metric": "test/perplexity",
    "value": 128.0,
    "source": "aim: a quarter of the 512 codes",
}

_SHAPE = (32, 32, 3)
_PICTURED = 10


@dataclass(frozen=True)
class Config(cli.Options):
    """Options of this experiment."""

    steps: int = 7500
    """Updates; 10 epochs."""
    evaluate_every: int = 750
    batch_size: int = 64
    learning_rate: float = 3e-4
    codes: int = 512
    dimensions: int = 64
    """Of a code."""
    width: int = 64
    """Channels of the hidden layers; the paper has 256."""
    commitment: float = 0.25
    decay: float = 0.99
    """Of the moving averages that the codes are."""
    validation: int = 2000
    """Training images that are held out to draw the curves."""

    def rehearsal(self) -> "Config":
        """Enlarged digits, a narrow net and few codes."""
        return replace(
            self,
            seeds=self.seeds[:1],
            steps=120,
            evaluate_every=60,
            batch_size=16,
            codes=32,
            dimensions=8,
            width=8,
            learning_rate=3e-3,
        )


def networks(config: Config) -> tuple[Net, Net]:
    """Encoder `[B, 32, 32, 3]` to `[B, 8, 8, dimensions]`, and decoder back."""
    return (
        nets.with_precision(
            nets.conv_encoder(config.dimensions, width=config.width), config.precision
        ),
        nets.with_precision(nets.conv_decoder(_SHAPE, width=config.width), config.precision),
    )


def network(config: Config) -> Net:
    """uint8 images `[B, 32, 32, 3]` to their reconstructions, through the nearest codes."""
    encoder, decoder = networks(config)

    def init(key: jax.Array, image: jax.Array) -> tuple[PyTree, PyTree]:
        code = jnp.zeros((len(image), 8, 8, config.dimensions))
        params, model_state = {"codebook": jnp.zeros((config.codes, config.dimensions))}, {}
        for name, net, x in (
            ("encoder", encoder, unit_interval(image)),
            ("decoder", decoder, code),
        ):
            params[name], model_state[name] = net.init(fold_name(key, name), x)
        return params, model_state

    def apply(
        params: PyTree,
        model_state: PyTree,
        image: jax.Array,
        *,
        key: Any = None,
        train: bool = False,
    ) -> tuple[jax.Array, PyTree]:
        del key, train
        x = unit_interval(image)
        z, _ = encoder.apply(params["encoder"], model_state["encoder"], x)
        code = params["codebook"][nearest_code(z, params["codebook"])]
        return decoder.apply(params["decoder"], model_state["decoder"], code)[0], model_state

    return Net(init, apply)


def weights(state: TrainState) -> dict[str, PyTree]:
    """What `network` takes: both nets, and the codes."""
    params = {**state.params, "codebook": state.memory["codebook"]}
    return {"params": params, "model_state": state.model_state}


def main(config: Config) -> None:
    """Trains on the official training set and tests on the official test set."""
    splits = images.load_splits(config, "cifar10", _SHAPE, config.validation)
    net = network(config)

    def picture(directory: Path, means: Means, state: TrainState) -> None:
        del means
        shown = jnp.asarray(splits.test["image"][:_PICTURED])
        of_run = weights(state)
        again, _ = net.apply(of_run["params"], of_run["model_state"], shown)
        draw_images(np.stack([unit_interval(shown), again]), directory / "reconstructions.png")

    learner = vq_vae(
        *networks(config),
        optimizers.adam(config.learning_rate),
        codes=config.codes,
        commitment=config.commitment,
        decay=config.decay,
        revive_every=max(1, len(splits.train["image"]) // config.batch_size),
        variance=float(np.var(splits.train["image"] / np.float32(255))),
    )
    task = tasks.labelled(
        net,
        learner,
        train={"image": splits.train["image"]},
        batch_size=config.batch_size,
        validation=splits.validation,
        test=splits.test,
        derive=derive_vq_vae,
        headline="reconstruction",
        weights=weights,
        pictures=picture,
    )
    training.train(main, config, task)


if __name__ == "__main__":
    cli.run(main, Config)
