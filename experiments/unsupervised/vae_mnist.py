"""A variational autoencoder on MNIST, its log-likelihood in nats.

Burda et al. 2016 (arXiv:1509.00519), table 1, one stochastic layer: -86.76 nats, estimated with
5,000 importance samples, on images that are binarised anew at every update (the test set once).
784-200-200-50, tanh, Adam with epsilon 1e-4, 3,280 passes over the data 20 images at a time while
the rate falls from 1e-3 to 1e-4. Unlike theirs, our KL is in closed form, kernels begin He-normal
and not Glorot-uniform, and the output's bias at 0 and not at the pixels' log-odds. With
`--binarisation static` the images are Larochelle's, once for all; the figures of the two cannot be
compared.

  python -m experiments.unsupervised.vae_mnist --seeds 0        four hours on two CPU cores
  python -m experiments.unsupervised.vae_mnist --seeds 0 --batch-size 100 --steps 1954880
      --evaluate-every 48872                                    as many passes, 100 at a time: two
                                                                and a half hours on one core
  python -m experiments.unsupervised.vae_mnist --binarisation static --steps 8200000
      --evaluate-every 205000                                   as many passes over 50,000 images
  python -m experiments.unsupervised.vae_mnist --seeds 0 --steps 596000 --evaluate-every 29800
                                                                200 passes, to lay beside those of
                                                                `iwae_mnist`
  python -m experiments.unsupervised.vae_mnist --seeds 0 --binarisation static --steps 500000
      --evaluate-every 50000                                    200 passes over static bits
  python -m experiments.unsupervised.vae_mnist --steps 119200 --evaluate-every 11920
                                                                40 passes, minutes
"""

from dataclasses import dataclass

from experiments import cli, generative
from nets.net import Net
from paradigms.core.learner import Learner
from paradigms.data.augment import Augmentation
from paradigms.unsupervised import vae

PUBLISHED = {
    "metric": "test/log_likelihood",
    "value": -86.76,
    "source": "Burda et al. 2016, table 1, dynamic binarisation",
    "variants": {
        "200_passes": {
            "value": -91.0,
            "source": "aim of a short training, -88 to -91",
        },
        "static": {
            "value": -89.78,
            "source": "Pythae, 200 importance samples, static binarisation",
        },
        "static_200_passes": {
            "value": -89.78,
            "source": "Pythae at full length, 200 importance samples, static binarisation",
        },
    },
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

    def make(importance_samples: int, augment: Augmentation | None) -> Learner:
        return vae(
            encoder,
            decoder,
            generative.burda_adam(config),
            samples=config.samples,
            augment=augment,
            importance_samples=importance_samples,
        )

    generative.train_on_mnist(main, config, encoder, decoder, make)


if __name__ == "__main__":
    cli.run(main, Config)
