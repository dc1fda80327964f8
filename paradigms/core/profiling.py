"""Where the time of a training loop goes: a trace of some updates, and how long a device waited."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import jax


class Profile:
    """A trace by `jax.profiler` of a few updates, for XProf, TensorBoard or Perfetto.

    A context manager, to be given to `fit`. It begins and ends between dispatches, each time once
    the device has nothing left to do: so it covers the whole dispatches that contain these updates,
    and no others. In the trace each of them is an event `update` with its first step as `step_num`.

    Args:
      first: updates that are done when the first of the traced ones begins, from 0.
      last: updates that are done when the last of them ends, more than `first`.
      directory: gets `plugins/profile/TIME/*.xplane.pb` and `*.trace.json.gz`; made if missing.
    """

    def __init__(self, first: int, last: int, directory: Path) -> None:
        self.first = first
        self.last = last
        self.directory = directory
        self._running = False

    def before(self, step: int, n: int, state: Any) -> None:
        """Begins if one of the updates `step ... step + n - 1`, of `state`, is to be traced."""
        if not self._running and step < self.last and self.first < step + n:
            jax.block_until_ready(state)
            jax.profiler.start_trace(self.directory)
            self._running = True

    def after(self, done: int, state: Any) -> None:
        """Ends if the last one is among the `done` updates that led to `state`."""
        if self._running and done >= self.last:
            jax.block_until_ready(state)
            self._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def _end(self) -> None:
        if self._running:
            self._running = False
            jax.profiler.stop_trace()


class HostWait:
    """Adds up the time in which no update was queued or running, for the host was elsewhere.

    That is exact from a fetch of everything that was dispatched, as before each callback, to the
    next dispatch. Where instead the host finds that the last dispatch has ended while it drew the
    next batch, that one is taken to have lasted as long as the shortest that has been timed: one
    that met an idle device and was fetched at once.

    Args:
      clock: gives seconds.

    Attributes:
      seconds: so far.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.seconds = 0.0
        self._clock = clock
        self._dispatched = self._drained = clock()
        self._is_drained = True
        self._met_idle = True
        self._shortest = math.inf

    def dispatches(self, last_is_ready: bool) -> None:
        """An update is about to be dispatched; says whether the one before has ended."""
        now = self._clock()
        if self._is_drained:
            self.seconds += now - self._drained
        elif last_is_ready:
            self.seconds += max(0.0, now - self._dispatched - self._shortest)
        self._met_idle = self._is_drained or last_is_ready
        self._is_drained = False
        self._dispatched = now

    def fetched(self) -> None:
        """Everything that was dispatched has ended, and its results are here."""
        if self._is_drained:
            return
        self._drained = self._clock()
        self._is_drained = True
        if self._met_idle:
            self._shortest = min(self._shortest, self._drained - self._dispatched)

    def ends(self) -> None:
        """The loop is over; what followed its last fetch was waiting too."""
        self.seconds += self._clock() - self._drained
