"""A masked autoencoder learns CIFAR-10 without a label, then is fine-tuned with all of them.

MAE-CIFAR has 89.77 % after fine-tuning a ViT-Tiny with patches of 2x2, pretrained for 2,000 epochs,
where training from scratch reached 74.13 %. At a tenth of the epochs the aim is the gain: 5 points
over the same training from scratch. Frozen features are judged as in `simclr_cifar10`; they are the
mean over patches. `--size small` is for two CPU cores.

  python -m experiments.self_supervised.mae_cifar10        an accelerator, hours
  python -m experiments.self_supervised.mae_cifar10 --size small --steps 1053
      --fine-tuning-steps 351    a CPU, 3 epochs
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Self

import nets
from experiments import cli, frozen, joint_embedding
from nets.net import Net
from paradigms.core import optimizers, schedules
from paradigms.data import augment, geometry
from paradigms.self_supervised import mae

PUBLISHED = {
    "metric": "test/fine_tuning_gain",
    "value": 0.05,
    "source": "aim: 5 points over scratch after 200 epochs",
    "variants": {
        "small": {
            "metric": "test/knn_gain",
            "value": 0.1,
            "source": "aim: 10 points above the same net before training",
        }
    },
}

# patch, width, depth, heads and depth of the decoder
_SIZES = {"full": (2, 192, 12, 3, 4), "small": (4, 96, 4, 4, 1)}


@dataclass(frozen=True)
class Config(joint_embedding.Cifar):
    """Options of this experiment; the full size is ViT-Tiny."""

    learning_rate: float = 6e-4
    """Of AdamW after a warm-up over a twentieth of the updates; it falls to 0 by a cosine."""
    weight_decay: float = 0.05
    mask_ratio: float = 0.75
    fine_tuning_steps: int = 100 * 351
    """Updates with labels, with the batch size and weight decay of pretraining; 100 epochs."""
    fine_tuning_rate: float = 1e-3
    """Of AdamW likewise."""

    def rehearsal(self) -> Self:
        """As the others, with fine-tuning as short."""
        return replace(super().rehearsal(), fine_tuning_steps=20)


def networks(config: Config) -> tuple[Net, Net]:
    """Encoder of images and kept patches, decoder to all patches."""
    patch, width, _, heads, depth = _SIZES[config.size]
    grid = (32 // patch, 32 // patch)
    decoder = nets.mae_decoder(patch, 3, grid, width, depth, heads, 4 * width)
    return _encoder(config, nets.mae_encoder), nets.with_precision(decoder, config.precision)


def network(config: Config) -> Net:
    """uint8 images `[B, 32, 32, 3]` to the mean over patches `[B, width]`."""
    return nets.postprocess(networks(config)[0], lambda latent: latent[:, 1:].mean(1))


def _encoder(config: Config, make: Callable[..., Net]) -> Net:
    patch, width, depth, heads, _ = _SIZES[config.size]
    net = make(patch, width, depth, heads, 4 * width)
    net = nets.preprocess(net, augment.normalise(*augment.CIFAR10))
    return nets.with_precision(net, config.precision)


def main(config: Config) -> None:
    """Trains on 45,000 of the official training images, tests on the official test set."""
    encoder, decoder = networks(config)
    masking: dict[str, Any] = {
        "patch_size": _SIZES[config.size][0],
        "mask_ratio": config.mask_ratio,
    }
    schedule = schedules.warmup_cosine(
        config.learning_rate, config.steps, warmup_steps=config.steps // 20
    )
    learner = mae(
        encoder,
        decoder,
        optimizers.adamw(schedule, b2=0.95, weight_decay=config.weight_decay),
        augment=augment.compose(geometry.random_resized_crop(), augment.flip()),
        **masking,
    )
    fine_tuning = frozen.FineTuning(
        config.fine_tuning_steps,
        config.batch_size,
        config.fine_tuning_rate,
        config.weight_decay,
        augment.compose(augment.pad_crop(4), augment.flip()),
        config.accumulate,
    )
    pictures = joint_embedding.draw_masked(
        encoder, decoder, _encoder(config, nets.mae_attention), **masking
    )
    joint_embedding.train_cifar(
        main, config, learner, network(config), "encoder", fine_tuning, pictures=pictures
    )


if __name__ == "__main__":
    cli.run(main, Config)
