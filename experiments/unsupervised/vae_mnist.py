"""A variational autoencoder on MNIST, its log-likelihood in nats.

Burda et al. 2016 (arXiv:1509.00519), table 1, one stochastic layer: -86.76 nats, estimated with
5,000 importance samples, on images that are binarised anew at every update (the test set once).
784-200-200-50, tanh, Adam with epsilon 1e-4, 3,280 passes over the data 20 images at a time while
the rate falls from 1e-3 to 1e-4. With `--binarisation static` the images are Larochelle's, once for
all; the figures of the two cannot be compared.

  python -m experiments.unsupervised.vae_mnist        one seed, five hours on two CPU cores
  python -m experiments.unsupervised.vae_mnist --steps 118000 --evaluate-every 11800
                                                      40 passes, minutes
"""

from dataclasses import dataclass

from experiments import cli, generative
from nets.net import Net
from paradigms.core import optimizers
from paradigms.core.learner import Learner
from paradigms.data.augment import Augmentation
from paradigms.unsupervised import vae

PUBLISHED = {
    "metric": "test/log_likelihood",
    "value": -86.76,
    "source": "Burda et al. 2016, table 1, dynamic binarisation",
}


@dataclass(frozen=True)
class Config(generative.MnistOptions):
    """Options of this experiment."""

    samples: int = 1
    """Latent samples per image in training."""


def network(config: Config) -> Net:
    """uint8 images `[B, 28, 28, 1]` to their reconstructions in [0, 1]."""
    return generative.reconstructing(*generative.networks(config))


def main(config: Config) -> None:
    """Trains on MNIST as bits."""
    encoder, decoder = generative.networks(config)
    schedule = generative.burda_schedule(config.learning_rate, config.steps)

    def make(importance_samples: int, augment: Augmentation | None) -> Learner:
        return vae(
            encoder,
            decoder,
            optimizers.adam(schedule, eps=1e-4),
            samples=config.samples,
            augment=augment,
            importance_samples=importance_samples,
        )

    generative.train_on_mnist(main, config, encoder, decoder, make)


if __name__ == "__main__":
    cli.run(main, Config)
