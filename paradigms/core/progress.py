"""What a person sees while training runs: a bar on a terminal, a line per evaluation in a log."""

import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any


def bars() -> Any:
    """A rich display for tasks with the fields `rate` and `shown`; None where there is no terminal.

    Without rich there is none either.
    """
    if not sys.stderr.isatty():
        return None
    try:
        from rich import progress
        from rich.console import Console
    except ImportError:
        return None
    return progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(bar_width=30),
        progress.MofNCompleteColumn(),
        progress.TextColumn("{task.fields[rate]}"),
        progress.TimeRemainingColumn(),
        progress.TextColumn("{task.fields[shown]}"),
        console=Console(stderr=True),
    )


class Progress:
    """Shows steps, rate, time left and key metrics. Needs rich on a terminal, nothing in a log.

    Args:
      total: updates in all.
      start: updates done before this process.
    """

    def __init__(self, total: int, start: int = 0) -> None:
        self._total = total
        self._start = start
        self._began = time.perf_counter()
        self._task: Any = None
        self._bar = bars()
        if self._bar is not None:
            self._task = self._bar.add_task(
                "training", total=total, completed=start, rate="compiling", shown=""
            )

    def __enter__(self) -> "Progress":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, step: int) -> None:
        """Moves the bar to `step` updates done."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step, rate=self._rate(step))

    def report(self, step: int, values: Mapping[str, float]) -> None:
        """Shows metrics beside the bar, or prints them as one line of a log."""
        shown = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        if self._bar is not None:
            self._bar.update(self._task, completed=step, shown=shown)
        else:
            line = f"step {step}/{self._total}  {self._rate(step)}  {shown}"
            print(line, file=sys.stderr, flush=True)

    def _rate(self, step: int) -> str:
        seconds = time.perf_counter() - self._began
        return f"{(step - self._start) / max(seconds, 1e-9):.3g} steps/s"
