"""A linear autoencoder finds the subspace of principal component analysis.

Baldi & Hornik 1989: the squared error of a linear autoencoder has no minimum but the projection on
the leading principal components. On scikit-learn's digits, centred, with 8 of them, the sine of the
largest angle between the decoder's columns and the components of an exact decomposition is to be
under 1e-3. It is measured on the training set, which is what both look at; nothing is held out.

  python -m experiments.unsupervised.linear_ae_pca        3 seeds, a minute on two CPU cores
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

import nets
from experiments import cli, tasks, training
from nets.net import Net
from paradigms import data
from paradigms.core import optimizers, schedules
from paradigms.core.learner import Metrics
from paradigms.core.metrics import Mean
from paradigms.core.state import TrainState
from paradigms.core.transforms import resident
from paradigms.unsupervised import autoencoder, subspace_distance

PUBLISHED = {
    "metric": "test/subspace_distance",
    "value": 1e-3,
    "better": "lower",
    "source": "aim; Baldi & Hornik 1989: 0 at the minimum",
}


@dataclass(frozen=True)
class Config(cli.Options):
    """Options of this experiment."""

    steps: int = 10_000
    """Updates, each on all digits."""
    evaluate_every: int = 500
    learning_rate: float = 1e-2
    components: int = 8

    def rehearsal(self) -> "Config":
        """A fifth of the updates, and larger ones."""
        return replace(
            self, seeds=self.seeds[:1], steps=2000, evaluate_every=1000, learning_rate=3e-2
        )


def networks(config: Config) -> tuple[Net, Net]:
    """Encoder `[B, 64]` to `[B, components]`, and decoder back."""
    return (
        nets.with_precision(nets.mlp((), config.components), config.precision),
        nets.with_precision(nets.mlp((), 64), config.precision),
    )


def network(config: Config) -> Net:
    """Centred digits `x[B, 64]` to their projections."""
    encoder, decoder = networks(config)
    return nets.chain(encoder=encoder, decoder=decoder)


def main(config: Config) -> None:
    """Trains on all digits at once, and compares with an exact decomposition."""
    pixels = data.digits("train")["image"].reshape(-1, 64) / np.float32(255)
    x = pixels - pixels.mean(0)
    _, _, directions = np.linalg.svd(x.astype(np.float64), full_matrices=False)
    leading = directions[: config.components]
    schedule = schedules.warmup_cosine(config.learning_rate, config.steps)
    learner = autoencoder(*networks(config), optimizers.adam(schedule), input_name="x")

    def judge(state: TrainState, key: jax.Array) -> Metrics:
        del key
        kernels = np.asarray(state.params["decoder"]["Dense_0"]["kernel"])
        distance = jnp.asarray([subspace_distance(kernel.T, leading) for kernel in kernels])
        return {"subspace_distance": Mean(distance, jnp.ones(len(distance)))}

    task = tasks.Task(
        net=network(config),
        learner=resident(learner, len(x)),
        data={"x": x},
        examples_per_update=len(x),
        example=jax.ShapeDtypeStruct((64,), jnp.float32),
        validation=lambda: judge,
        test=lambda: judge,
        headline="subspace_distance",
    )
    training.train(main, config, task)


if __name__ == "__main__":
    cli.run(main, Config)
