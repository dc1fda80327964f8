"""A masked autoencoder learns scikit-learn's 8x8 digits without a label.

Half of sixteen patches of 2x2 pixels are hidden, and what is left has to tell them. For how the
frozen features are judged see `simclr_digits`: 84.4 % is what logistic regression makes of the
pixels of 40 labelled digits.

  python -m experiments.self_supervised.mae_digits        5 seeds, on a CPU
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import nets
from experiments import cli, joint_embedding
from nets.net import Net
from paradigms.data import augment
from paradigms.self_supervised import mae

PUBLISHED = {
    "metric": "test/few_label_probe",
    "value": 0.844,
    "source": "logistic regression on 40 labelled digits, our measurement",
    "variants": {
        "neighbours": {
            "metric": "test/knn",
            "value": 0.971,
            "source": "aim: within a point of 5-NN on pixels, our measurement",
        }
    },
}

PATCH = 2


@dataclass(frozen=True)
class Config(joint_embedding.Digits):
    """Options of this experiment."""

    width: int = 64
    """Of a token."""
    depth: int = 4
    """Blocks of the encoder; the decoder has one."""
    mask_ratio: float = 0.5
    normalised: bool = False
    """Whether each patch is to be predicted up to its own mean and contrast only."""


def networks(config: Config) -> tuple[Net, Net]:
    """Encoder of digits and kept patches, decoder to all patches."""
    decoder = nets.mae_decoder(PATCH, 1, (4, 4), config.width, 1, 4, 4 * config.width)
    return _encoder(config, nets.mae_encoder), nets.with_precision(decoder, config.precision)


def network(config: Config) -> Net:
    """uint8 images `[B, 8, 8, 1]` to the encoder's patches side by side `[B, 16 * width]`."""
    # What a digit is depends on where its strokes are, which a mean over patches forgets.
    return nets.postprocess(
        networks(config)[0], lambda latent: latent[:, 1:].reshape(len(latent), -1)
    )


def _encoder(config: Config, make: Callable[..., Net]) -> Net:
    net = make(PATCH, config.width, config.depth, 4, 4 * config.width)
    net = nets.preprocess(net, augment.normalise(*joint_embedding.DIGITS))
    return nets.with_precision(net, config.precision)


def main(config: Config) -> None:
    """Trains on the images of split 0."""
    encoder, decoder = networks(config)
    masking: dict[str, Any] = {
        "patch_size": PATCH,
        "mask_ratio": config.mask_ratio,
        "normalised": config.normalised,
    }
    learner = mae(
        encoder,
        decoder,
        joint_embedding.adamw(config),
        augment=joint_embedding.digits_views(),
        **masking,
    )
    pictures = joint_embedding.draw_masked(
        encoder, decoder, _encoder(config, nets.mae_attention), **masking
    )
    joint_embedding.train_digits(
        main, config, learner, network(config), "encoder", pictures=pictures
    )


if __name__ == "__main__":
    cli.run(main, Config)
