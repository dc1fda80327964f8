"""What the benchmarks share: modes, rounds that take turns, and what is made of their seconds.

Rounds of all modes are interleaved, so that a drift of the machine's speed meets all alike, and one
round of each, before the others, is not counted. Figures are medians over rounds, with quartiles.
"""

import contextlib
import json
import os
import shlex
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from paradigms.core.provenance import environment
from paradigms.core.record import write_whole

Round = Callable[[], float]
"""One round: the seconds that its updates took, without compilation."""


class Target(NamedTuple):
    """How far training has to come.

    Attributes:
      loss: to reach: the mean over the updates from one look to the next.
      every: updates between two looks.
      limit: updates after which it is given up, a multiple of `every`.
    """

    loss: float
    every: int
    limit: int


class Reached(NamedTuple):
    """What it took to reach a target: seconds without compilation, and updates."""

    seconds: float
    updates: int


class Ready(NamedTuple):
    """A mode that is compiled.

    Attributes:
      run: one round.
      compile_seconds: 0 where nothing is compiled.
      reach: `(target, seed) -> Reached`, from initial weights of this seed, or None where it was
        given up; None for a mode that has no target.
    """

    run: Round
    compile_seconds: float
    reach: Callable[[Target, int], Reached | None] | None = None


Mode = Callable[[int], Ready | None]
"""Makes a mode ready for rounds of so many updates; None where it would be another one again."""


class System(NamedTuple):
    """Something that is measured.

    Attributes:
      ours: by name, ways of executing the same learner; the first is what a user gets by default.
      updates: of one round, where the command line does not say.
      bare: the same work, or a part of it, written by hand in JAX.
      peers: the same work in PyTorch.
      target: None for data of which there is nothing to learn.
      details: what else belongs into the file, as JSON values; may take its time.
      derive: from the seconds per update of all modes, `[rounds]` each, to more figures by mode.
    """

    ours: Mapping[str, Mode]
    updates: int
    bare: Mapping[str, Mode] = {}
    peers: Mapping[str, Mode] = {}
    target: Target | None = None
    details: Callable[[], dict[str, Any]] = dict
    derive: Callable[[Mapping[str, np.ndarray]], Mapping[str, dict[str, Any]]] = lambda seconds: {}


def threads() -> int:
    """How many threads both sides compute with: the processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextlib.contextmanager
def kept_programs() -> Iterator[None]:
    """Keeps what is compiled inside: `fit` compiles at every call, and so does it once for all.

    Nothing compiled before is found, so that the first time is what compiling takes.
    """
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    with tempfile.TemporaryDirectory() as folder:
        _keep(dict(zip(names, (folder, 0), strict=True)))
        try:
            yield
        finally:
            _keep(before)


def _keep(settings: Mapping[str, Any]) -> None:
    from jax.experimental.compilation_cache import compilation_cache

    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()  # it looks at the settings once only


def interleaved(runs: Mapping[str, Round], rounds: int) -> dict[str, np.ndarray]:
    """Seconds of every mode, float64 `[rounds]`, in rounds that take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            elapsed = run()
            if number:
                seconds[name].append(elapsed)
    return {name: np.asarray(values) for name, values in seconds.items()}


def spread(seconds: np.ndarray, updates: int) -> dict[str, Any]:
    """Median and quartiles of milliseconds per update, of rounds `[rounds]` of so many updates."""
    low, middle, high = np.quantile(seconds / updates * 1e3, (0.25, 0.5, 0.75))
    return {"milliseconds_per_update": float(middle), "quartiles": [float(low), float(high)]}


def measure(system: System, updates: int, rounds: int, peers: bool) -> dict[str, Any]:
    """Milliseconds per update of all modes in this process.

    Args:
      system: what to measure.
      updates: of one round.
      rounds: that are counted.
      peers: whether to measure PyTorch's modes too.

    Returns:
      JSON values: what there is to tell of each mode under `modes`, `speedup` being the median over
      rounds of its time over that of our default; `default_over_best` is by how much our default is
      slower than the best of our ways, 0 where it is the best.
    """
    modes = {**system.ours, **system.bare, **(system.peers if peers else {})}
    with kept_programs():
        ready = {name: mode(updates) for name, mode in modes.items()}
        runs = {name: mode.run for name, mode in ready.items() if mode is not None}
        seconds = interleaved(runs, rounds)
    default = seconds[next(iter(system.ours))]
    derived = system.derive({name: values / updates for name, values in seconds.items()})
    figures = {
        name: {
            **spread(values, updates),
            "speedup": float(np.median(values / default)),
            **derived.get(name, {}),
            "seconds": values.tolist(),
        }
        for name, values in seconds.items()
    }
    fastest = min(figures[name]["speedup"] for name in system.ours if name in figures)
    return {
        "updates": updates,
        "rounds": rounds,
        "threads": threads(),
        "modes": figures,
        "default_over_best": 1 / fastest - 1,
    }


def write(path: Path, results: Mapping[str, Any], module: str, arguments: Sequence[str]) -> None:
    """Writes a result file.

    Args:
      path: of the file, whose folder is made.
      results: JSON values.
      module: that measured them, below `experiments`.
      arguments: of its command line.
    """
    command = shlex.join(["python", "-m", f"experiments.{module}", *arguments])
    whole = {**results, "command": command, "environment": environment()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda unfinished: unfinished.write_text(json.dumps(whole, indent=2) + "\n"))
