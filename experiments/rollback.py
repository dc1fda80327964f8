"""Back to the last evaluation where a run diverges, and on from there with other data."""

import json
import sys
from collections.abc import Callable, Collection, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from experiments import cli
from paradigms.core.checkpoint import Checkpoints
from paradigms.core.errors import InputError, NonFiniteError
from paradigms.core.record import Json, Run, write_whole
from paradigms.core.state import TrainState, fold_name

MOST = 3
"""How often one run may be rolled back."""

_LOG = "rollbacks.json"
_LOSS = "train/loss"

# Intervals between evaluations whose losses say what is usual, and how many it takes at least.
_USUAL = 5
_ENOUGH = 3

Failures = dict[int, tuple[int, str]]
"""By the number of a run, the update with which it failed, counted from 1, and what was seen."""


class LossSpikeError(NonFiniteError):
    """The loss of some runs rose far above what it was; `failures` are theirs."""

    def __init__(self, message: str, failures: Failures) -> None:
        super().__init__(message)
        self.failures = failures


class Rollbacks:
    """Takes runs that failed back to the last evaluation, each with the next of its keys.

    The keys of a run are the one of its seed and what becomes of it by folding it again and again.
    Each rollback goes to the next of them, so that minibatches and noise differ from then on. Which
    one a run is at stands in its state, and where it goes back to depends on the step alone. So a
    run that is killed needs nothing but its checkpoint to end in the same bits: where the rollback
    itself is lost with the process, the same failure brings it about again. Runs that did not fail
    go back too, with the keys that they have, and repeat what they did: each remains what it would
    be alone.

    `rollbacks.json` tells of them; nothing is read from it to go on.

    Args:
      run: the run directory.
      config: the experiment's options.
      checkpoints: hold the states of the evaluations.
      start: makes the state, of all runs, in which training starts.
      keys: of that state.
    """

    def __init__(
        self,
        run: Run,
        config: cli.Options,
        checkpoints: Checkpoints,
        start: Callable[[], TrainState],
        keys: jax.Array,
    ) -> None:
        self._file = run.directory / _LOG
        self._seeds = config.seeds
        self._evaluate_every = config.evaluate_every
        self._checkpoints = checkpoints
        self._start = start
        self._keys = jnp.copy(keys)  # for the state will be donated
        self._done = [0] * len(config.seeds)

    def resumes(self, state: TrainState) -> None:
        """Training goes on from this state: its keys tell how often each run was taken back.

        Raises:
          InputError: a key is none of its seed's.
        """
        now, keys = _data(state.key), self._keys
        done = np.full(len(now), -1)
        for number in range(MOST + 1):
            done[(now == _data(keys)).all(-1)] = number
            if done.min() >= 0:
                break
            keys = _folded(keys)
        if done.min() < 0:
            raise InputError(
                f"the key in the checkpoint is none of seed {self._seeds[done.argmin()]}'s: resume "
                "with the seeds that wrote it, or use another directory"
            )
        self._done = done.tolist()

    def back(self, error: NonFiniteError) -> TrainState:
        """The state of all runs at the evaluation before the failure.

        Args:
          error: by `fit`, of updates with the runs on the second axis of their metrics; or by
            `check_loss`.

        Raises:
          NonFiniteError: a run that failed has been rolled back `MOST` times.
          InputError: the checkpoint of that evaluation is damaged or gone.
        """
        failures = error.failures if isinstance(error, LossSpikeError) else _failures(error)
        for run, (step, what) in failures.items():
            if self._done[run] == MOST:
                raise NonFiniteError(
                    f"{what} at step {step} of seed {self._seeds[run]}, which was rolled back "
                    f"{MOST} times already: lower the learning rate, clip the gradient (max_norm), "
                    "or look with --debug"
                ) from error
        first = min(step for step, _ in failures.values())
        to = (first - 1) // self._evaluate_every * self._evaluate_every
        state = self._checkpoints.restore(self._start(), to)
        for run, (step, what) in failures.items():
            self._done[run] += 1
            self._record(run, step, to, what)
        return state.replace(key=jax.device_put(self._keys_now(), state.key.sharding))

    def log(self) -> list[Json]:
        """The rollbacks that the runs have behind them, by seed and number."""
        if not self._file.exists():
            return []
        done = dict(zip(self._seeds, self._done, strict=True))
        records = json.loads(self._file.read_text())
        return [record for record in records if record["number"] <= done[record["seed"]]]

    def _record(self, run: int, step: int, to: int, what: str) -> None:
        seed, number = self._seeds[run], self._done[run]
        record = {"seed": seed, "number": number, "step": step, "back_to": to, "what": what}
        others = [r for r in self.log() if (r["seed"], r["number"]) != (seed, number)]
        records = sorted([*others, record], key=lambda r: (r["seed"], r["number"]))
        text = json.dumps(records, indent=2) + "\n"
        write_whole(self._file, lambda file: file.write_text(text))
        print(
            f"{what} at step {step} of seed {seed}: back to step {to}, for the {number}. time of "
            f"at most {MOST}",
            file=sys.stderr,
        )

    def _keys_now(self) -> jax.Array:
        """The key of each run, as often folded as it has been rolled back."""
        done, keys, now = jnp.asarray(self._done), self._keys, self._keys
        for number in range(1, MOST + 1):
            keys = _folded(keys)
            now = jnp.where(done >= number, keys, now)
        return now


def check_loss(
    config: cli.Options, run: Run, step: int, values: Mapping[str, list[float]], last_good: str
) -> None:
    """Raises LossSpikeError where the training loss of an interval is far above the usual.

    That is the median of the five intervals before, once there are three. Far above is `factor`
    times it; of a negative one, as of a log density, above it by as much as that would be of its
    absolute value.

    Args:
      config: the experiment's options, with the factor.
      run: the run directory, in which the intervals before are logged and this one is not.
      step: updates done.
      values: the metrics of the interval that ends there, by name those of each run.
      last_good: describes where to go back to.
    """
    check_reported([name.removeprefix("train/") for name in values])
    before = run.read_metrics().get(_LOSS)
    if before is None or len(before.steps) < _ENOUGH:
        return
    usual = np.median(before.values[:, -_USUAL:], axis=1)
    limits = usual + (config.spike - 1) * np.abs(usual)
    failures = {
        i: (step, f"{_LOSS} is {value:.4g}, where {usual[i]:.4g} is usual,")
        for i, value in enumerate(values[_LOSS])
        if not value <= limits[i]  # NaN too
    }
    for i, (_, what) in failures.items():
        raise LossSpikeError(
            f"{what} at step {step} of seed {config.seeds[i]}: {last_good}; lower the learning "
            "rate, or go back and on with other data (--on-nonfinite rollback)",
            failures,
        )


def check_reported(names: Collection[str]) -> None:
    """Raises InputError where `--spike` has nothing to look at."""
    if "loss" not in names:
        raise InputError(
            f"--spike: this experiment reports {', '.join(sorted(names))}, but no loss to look at"
        )


def _failures(error: NonFiniteError) -> Failures:
    failures: Failures = {}
    for name, mean in error.metrics.items():
        broken = ~np.isfinite(mean.total)
        broken = broken.reshape(*broken.shape[:2], -1).any(-1)
        for update, run in np.argwhere(broken).tolist():
            failed = (error.step + update + 1, f"{name} is not finite")
            failures[run] = min(failed, failures.get(run, failed))
    return dict(sorted(failures.items()))


def _folded(keys: jax.Array) -> jax.Array:
    """The keys that runs have after one more rollback."""
    return jax.vmap(lambda key: fold_name(key, "rollback"))(keys)


def _data(keys: jax.Array) -> np.ndarray:
    return np.asarray(jax.random.key_data(keys))
