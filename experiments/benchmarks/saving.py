"""What saving costs a run: the same training with checkpoints and without.

The variational autoencoder of `vae` through the training loop, a hundred updates to a dispatch.

  saved      a checkpoint every thousand updates (some five seconds of two CPU cores), written in
             the background as in every experiment, digests included; the last is waited for
  not_saved  none, with a call at the same updates that does nothing

`over_not_saved` is the median over rounds of the time over that of `not_saved` in the same round,
less 1.

  python -m experiments.benchmarks.saving        some minutes on two CPU cores
"""

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import vae
from experiments.benchmarks.measuring import Mode, Ready, System
from paradigms.core.checkpoint import Checkpoints
from paradigms.core.learner import Metrics
from paradigms.core.loop import Every, fit, step_of
from paradigms.core.state import TrainState
from paradigms.core.transforms import repeated

UPDATES, EVERY, PER_CALL = 3000, 1000, 100


def mode(saved: bool) -> Mode:
    """Training of so many updates, with checkpoints or without."""

    def ready(updates: int) -> Ready:
        learner = repeated(vae.our_learner(), PER_CALL)
        data = {name: jnp.asarray(array) for name, array in vae.data().items()}
        init = jax.jit(learner.init)

        def train(folder: Path) -> tuple[float, float]:
            """Seconds of training, and of compilation."""
            state = init(jax.random.key(0), data)
            with Checkpoints(folder, background=True) as checkpoints:

                def save(step: int, metrics: Metrics, state: TrainState) -> None:
                    del metrics
                    if saved:
                        checkpoints.save(step, state)

                fitted = fit(
                    learner,
                    state,
                    lambda step, n: data,
                    steps=updates,
                    steps_per_call=PER_CALL,
                    callbacks=[Every(min(EVERY, updates), save)],
                )
                begin = time.perf_counter()
                checkpoints.wait()
                assert step_of(fitted.state) == updates
                waited = time.perf_counter() - begin
            return fitted.train_seconds + waited, fitted.compile_seconds

        def run() -> float:
            with tempfile.TemporaryDirectory() as folder:
                return train(Path(folder))[0]

        with tempfile.TemporaryDirectory() as folder:
            compile_seconds = train(Path(folder))[1]
        return Ready(run, compile_seconds)

    return ready


def over_not_saved(seconds: Mapping[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """By what share saving prolongs the training."""
    ratio = seconds["saved"] / seconds["not_saved"]
    return {"saved": {"over_not_saved": float(np.median(ratio)) - 1}}


def details() -> dict[str, Any]:
    """What is saved, and how often."""
    data = {
        name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in vae.data().items()
    }
    state = jax.eval_shape(vae.our_learner().init, jax.random.key(0), data)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    return {"updates_between_saves": EVERY, "bytes": size}


def system() -> System:
    """To be measured."""
    return System(
        ours={"saved": mode(True)},
        bare={"not_saved": mode(False)},
        updates=UPDATES,
        details=details,
        derive=over_not_saved,
    )


if __name__ == "__main__":
    from experiments.benchmarks import __main__ as command

    command.main(["saving"])
