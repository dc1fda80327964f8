"""Runs of several processes: how they join, agree, keep one run directory, and end together.

All processes do the same work on one mesh. The first alone prints and keeps what is written; the
others write into a directory that is thrown away, so that no experiment need know which one it is.
Checkpoints are the exception: every process writes its own shards of them.
"""

import contextlib
import itertools
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from paradigms.core.checkpoint import Checkpoints
from paradigms.core.errors import InputError
from paradigms.core.mesh import initialize_distributed
from paradigms.core.record import Run
from paradigms.core.signals import EXIT_STATUS, StopRequest
from paradigms.core.state import PyTree

# What jax, its collectives on CPUs and its coordination service say where a process is gone.
_LOST = ("Gloo", "UNAVAILABLE", "CoordinationService", "heartbeat")

Result = TypeVar("Result")

_scratch: list[Path] = []
_asked = itertools.count()


def several() -> bool:
    """Whether this is one of several processes of a run."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def records() -> bool:
    """Whether this process is the one that prints and keeps what is written."""
    return not several() or jax.process_index() == 0


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Joins the run's other processes, if the environment names them (`initialize_distributed`).

    Where one of them is lost, this one ends with one line and the status of a run that can go on,
    for a scheduler to start all of them again.
    """
    initialize_distributed()
    if not several():
        yield
        return
    lost = None
    with tempfile.TemporaryDirectory() as scratch:
        _scratch.append(Path(scratch))
        try:
            with contextlib.nullcontext() if records() else _silence():
                yield
        except Exception as error:
            if (lost := _loss(error)) is None:
                raise
    if lost is not None:
        print(
            f"stopped: process {jax.process_index()} has lost another one of the run "
            f"({lost}): started again, all of them go on from the last checkpoint",
            file=sys.stderr,
            flush=True,
        )
        os._exit(EXIT_STATUS)  # jax would wait for the lost one


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    with (
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield


def _loss(error: BaseException | None) -> str | None:
    """What an error says of a lost process; None where it is of something else."""
    while error is not None:
        if any(word in str(error) for word in _LOST):
            return str(error).partition("\n")[0][:120]
        error = error.__cause__ or error.__context__
    return None


class AgreedStop(StopRequest):
    """A request to stop that all processes hear at the same update, whichever got the SIGTERM.

    jax itself listens to the signal.
    """

    def __bool__(self) -> bool:
        # A number of its own for every question of the process, the same in all of them.
        if self.received is None and multihost_utils.reached_preemption_sync_point(next(_asked)):
            self.received = "SIGTERM"
        return self.received is not None

    def __enter__(self) -> "AgreedStop":
        return self


def stop_request() -> StopRequest:
    """What asks the run to stop, whether of one process or of several."""
    return AgreedStop() if several() else StopRequest()


def by_the_first(action: Callable[[], Result], what: str) -> Result | None:
    """What an action gives in the process that records; None in the others, which wait for it.

    Args:
      action: for that process alone.
      what: it does, for a line that begins with "process 0 cannot".

    Raises:
      InputError: the action raised it; in all processes.
    """
    result, problem = None, None
    if records():
        try:
            result = action()
        except InputError as error:
            problem = error
    fine = problem is None
    if not (_all(fine) if several() else fine):
        raise problem or InputError(f"process 0 cannot {what}")
    return result


def open_run(directory: Path, settings: Mapping[str, Any], ignored: Collection[str]) -> Run:
    """Opens the run directory; in other processes than the first, a copy that is thrown away.

    Raises:
      InputError: as `Run.open`, in all processes; or one of them does not see the directory.
    """
    run = by_the_first(
        lambda: Run.open(directory, settings, ignored=ignored),
        f"use the run directory {directory}",
    )
    if run is not None and not several():
        return run
    if not _all((directory / "config.json").exists()):
        raise InputError(
            f"not all processes see {directory}: the run directory must be on a file system that "
            "all of them share"
        )
    if run is None:
        copy = Path(tempfile.mkdtemp(dir=_scratch[-1]))
        for name in ("config.json", "metrics.csv", "pending.json", "summary.json"):
            with contextlib.suppress(FileNotFoundError):
                shutil.copyfile(directory / name, copy / name)
        run = Run.open(copy, settings, ignored=ignored)
    _all(True)  # nothing changes before all have their copy
    return run


def check_same(checkpoints: Checkpoints) -> None:
    """Raises InputError unless all processes see the same newest checkpoint."""
    if several():
        latest = checkpoints.latest()
        found = multihost_utils.process_allgather(np.int32(-1 if latest is None else latest))
        if len(set(found.tolist())) > 1:
            raise InputError(
                f"the processes see different newest checkpoints in {checkpoints.directory}, of "
                f"steps {', '.join(map(str, found.tolist()))}: it must be on a file system that "
                "all of them share"
            )


def gathered(state: PyTree) -> PyTree:
    """The state with every array whole in this process, for what looks at its values."""

    def whole(leaf: jax.Array) -> Any:
        if leaf.is_fully_replicated or leaf.is_fully_addressable:
            return leaf
        return multihost_utils.process_allgather(leaf, tiled=True)

    return jax.tree.map(whole, state)


def _all(fine: bool) -> bool:
    """Whether it is so in every process; waits for all of them."""
    return bool(multihost_utils.process_allgather(np.bool_(fine)).all())
