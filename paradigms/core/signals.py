"""Leaving in time where a scheduler or a person asks for it."""

import os
import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Self

EXIT_STATUS = 75
"""Of a run that was stopped and can go on: EX_TEMPFAIL, which schedulers can requeue on."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Turns SIGTERM and the first Ctrl-C into a request that the loop looks at.

    A context manager. Whoever is asked has `grace` seconds to save and leave. After that the
    process ends as it is, with the same status, for what asked will soon kill it: checkpoints
    appear whole or not at all. A second Ctrl-C interrupts at once.

    In another thread than the main one, which alone may handle signals, it does nothing.

    Attributes:
      received: the name of the signal; None until there is one.
    """

    def __init__(self, grace: float = 8.0) -> None:
        self.received: str | None = None
        self._timer = threading.Timer(grace, self._give_up)
        self._timer.daemon = True
        self._before: dict[signal.Signals, object] = {}

    def __bool__(self) -> bool:
        return self.received is not None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {each: signal.signal(each, self._receive) for each in _SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._timer.cancel()
        for each, handler in self._before.items():
            signal.signal(each, handler)  # type: ignore[arg-type]

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        self.received = signal.Signals(number).name
        self._timer.start()

    def _give_up(self) -> None:
        # The main thread may be in the compiler or in a long dispatch, and hears of nothing.
        print(
            f"stopped by {self.received} before it could save: the same command goes on from the "
            "last checkpoint",
            file=sys.stderr,
            flush=True,
        )
        os._exit(EXIT_STATUS)
