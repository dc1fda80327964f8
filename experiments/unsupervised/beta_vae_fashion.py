"""A beta-VAE on Fashion-MNIST: the larger beta, the fewer nats its code carries.

Higgins et al. 2017 weigh the KL of a VAE by beta. Of three, trained side by side as one sweep that
compiles once, the KL on the test set has to fall from beta 1 to 4 to 16 on every seed; `falls` is
the share of the steps between neighbours that do. The decoder is a Bernoulli on grey levels, so
that its nats are no likelihoods and compare with each other only.

  python -m experiments.unsupervised.beta_vae_fashion        3 seeds, ten minutes on one CPU core
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import numpy as np

import nets
from experiments import cli, generative, images, tasks, training
from nets.net import Net
from paradigms.core import optimizers
from paradigms.core.errors import InputError
from paradigms.core.learner import Learner
from paradigms.core.loop import evaluator
from paradigms.core.metrics import Mean, Means
from paradigms.core.state import TrainState
from paradigms.core.transforms import resident, seeded, swept
from paradigms.unsupervised import derive_vae, vae

PUBLISHED = {
    "metric": "test/falls",
    "value": 1.0,
    "source": "aim: the KL falls with beta on every seed",
}


@dataclass(frozen=True)
class Config(cli.Options):
    """Options of this experiment."""

    steps: int = 5500
    """Updates; 10 epochs."""
    evaluate_every: int = 550
    batch_size: int = 100
    learning_rate: float = 1e-3
    betas: tuple[float, ...] = (1.0, 4.0, 16.0)
    """Weights of the KL, from small to large."""
    hidden: tuple[int, ...] = (200, 200)
    latent: int = 10
    validation: int = 5000
    """Training images that are held out to draw the curves."""

    def rehearsal(self) -> "Config":
        """Enlarged digits."""
        return replace(self, seeds=self.seeds[:1], steps=300, evaluate_every=150)


def networks(config: Config) -> tuple[Net, Net]:
    """Encoder and decoder."""
    encoder, decoder = generative.dense(config.hidden, config.latent, generative.SHAPE)
    return (
        nets.with_precision(encoder, config.precision),
        nets.with_precision(decoder, config.precision),
    )


def network(config: Config) -> Net:
    """uint8 images `[B, 28, 28, 1]` to their reconstructions in [0, 1], for the first beta."""
    return generative.reconstructing(*networks(config))


def main(config: Config) -> None:
    """Trains all betas of all seeds at once."""
    betas = list(config.betas)
    if len(betas) < 2 or betas[0] < 0 or sorted(set(betas)) != betas:
        raise InputError(
            f"--betas {' '.join(map(str, betas))}: expected two or more, rising from at least 0"
        )
    splits = images.load_splits(config, "fashion_mnist", generative.SHAPE, config.validation)
    generative.check_splits(splits)
    encoder, decoder = networks(config)

    def make(hparams: Mapping[str, jax.Array]) -> Learner:
        optimizer = optimizers.adam(config.learning_rate)
        return vae(encoder, decoder, optimizer, beta=hparams["beta"])

    grid = {"beta": np.asarray(config.betas, np.float32)}
    judged = seeded(swept(make, grid))

    def derive(means: Means) -> dict[str, float]:
        """Numbers of each beta, with it in their names, and how often the KL falls."""
        values: dict[str, float] = {}
        kl = []
        for i, beta in enumerate(config.betas):
            of_beta = {
                name: Mean(total=mean.total[i], count=mean.count[i]) for name, mean in means.items()
            }
            derived = derive_vae(of_beta)
            kl.append(derived["kl"])
            values |= {f"{name}_{beta:g}": value for name, value in derived.items()}
        return {"falls": float(np.mean(np.diff(kl) < 0)), **values}

    def pictures(directory: Path, means: Means, state: TrainState) -> None:
        for i, beta in enumerate(config.betas):
            used = np.asarray(means["latent_kl"].total[i]).argsort()[::-1]
            folder = directory / f"beta_{beta:g}"
            folder.mkdir(exist_ok=True)
            one = jax.tree.map(lambda leaf, i=i: leaf[i], state)
            generative.draw(folder, encoder, decoder, one, splits.test["image"], used)

    def judge(part: Mapping[str, np.ndarray]) -> tasks.Judge:
        return evaluator(judged, {"image": part["image"]}, batch_size=500)

    image = splits.test["image"]
    held_out = splits.validation
    task = tasks.Task(
        net=network(config),
        learner=swept(lambda hparams: resident(make(hparams), config.batch_size), grid),
        data={"image": splits.train["image"]},
        examples_per_update=config.batch_size,
        example=jax.ShapeDtypeStruct(image.shape[1:], image.dtype),
        validation=None if held_out is None else lambda: judge(held_out),
        test=lambda: judge(splits.test),
        derive=derive,
        headline="falls",
        weights=first_beta,
        pictures=pictures,
    )
    training.train(main, config, task)


def first_beta(state: TrainState) -> dict[str, object]:
    """The weights of every run's first beta; the runs are the first axis."""
    weights = {"params": state.params, "model_state": state.model_state}
    return jax.tree.map(lambda leaf: leaf[:, 0], weights)


if __name__ == "__main__":
    cli.run(main, Config)
