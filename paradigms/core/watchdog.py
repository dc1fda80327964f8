"""An end for a process that is stuck, and what it was doing then."""

import faulthandler
import math
import os
import sys
import threading
from pathlib import Path
from typing import Self

EXIT_STATUS = 76
"""Of a run that was stuck: next to that of one that was stopped, for it too can go on."""

# The time is counted in so many pieces, of which a process that was suspended misses one at most.
_PIECES = 10
_SECONDS_TO_WRITE = 5


class Watchdog:
    """Ends the process where for some seconds nobody has said that it goes on.

    A context manager around the work, which calls `alive` again and again. Where that stays out,
    the stacks of all threads go to stderr and to a file, one line says so, and the process ends as
    it is with `EXIT_STATUS`: a loop that waits for another machine, for a lock or for a disk cannot
    be told to leave. Checkpoints appear whole or not at all, so the newest stays what it is.

    It is a thread of Python's, and sees nothing while foreign code holds the interpreter's lock.

    Args:
      seconds: to wait, and up to a tenth longer; 0 to wait for ever.
      report: the file; one that is there is written over.
      first: seconds to wait for the first `alive`, if that is more, for programs are compiled then.
    """

    def __init__(self, seconds: float, report: Path, *, first: float = 0.0) -> None:
        self._seconds = seconds
        self._report = report
        self._left = _PIECES * math.ceil(max(1.0, first / seconds)) if seconds else 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def alive(self) -> None:
        """Says that the work goes on."""
        self._left = _PIECES

    def __enter__(self) -> Self:
        if self._seconds:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._seconds:
            self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(self._seconds / _PIECES):
            if self._left <= 0:
                self._end_process()
            self._left -= 1

    def _end_process(self) -> None:
        # The file may be on the very disk that everybody waits for.
        writing = threading.Thread(target=self._write, daemon=True)
        writing.start()
        faulthandler.dump_traceback(sys.__stderr__ or 2)
        writing.join(_SECONDS_TO_WRITE)
        print(
            f"stuck: nothing was done for {self._seconds:g} s; what every thread was at is above "
            f"and in {self._report}; the same command goes on from the last checkpoint",
            file=sys.__stderr__,
            flush=True,
        )
        os._exit(EXIT_STATUS)

    def _write(self) -> None:
        try:
            with self._report.open("w") as file:
                faulthandler.dump_traceback(file)
        except OSError as error:
            print(f"cannot write {self._report}: {error.strerror}", file=sys.__stderr__)
