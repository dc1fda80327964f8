"""The run directory: what a run was asked to do, what it measured, and what came of it."""

import contextlib
import csv
import fcntl
import io
import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np

from paradigms.core.errors import InputError

Json = Any

_CONFIG = "config.json"
_METRICS = "metrics.csv"
_SUMMARY = "summary.json"
_COLUMNS = "run,step,name,value\n"
LOCK = "lock"
MIRROR = "mirror"
"""A folder in a run directory, for what keeps a copy of it elsewhere; no part of the run."""
WRITING = ".writing"

# Where files lie does not change what a run computes.
_PATHS = ("data_dir", "run_dir")


class Curve(NamedTuple):
    """One metric over a run.

    Attributes:
      steps: int64 `[S]`, ascending.
      values: float64 `[R, S]`, one row per independent run (seed); NaN where a run has no value.
    """

    steps: np.ndarray
    values: np.ndarray


class Run:
    """A run directory, held by this process alone until it is closed or the process ends.

    It holds `config.json`, `metrics.csv` (run, step, name, value), `summary.json` once the run has
    finished, and whatever the caller puts beside them. Made by `Run.open`; a context manager.

    Attributes:
      directory: where the run lives, absolute.
      resumed: whether the directory already held this run when it was opened.
    """

    def __init__(self, directory: Path, lock: int, resumed: bool) -> None:
        self.directory = directory
        self.resumed = resumed
        self._lock = lock
        self._metrics: int | None = None

    @classmethod
    def open(
        cls,
        directory: Path | str,
        config: Mapping[str, Json],
        *,
        resume: bool = True,
        ignored: Collection[str] = (),
    ) -> Self:
        """Begins a run, or takes up an earlier one with the same configuration.

        Args:
          directory: made if missing.
          config: what the run was asked to do, as values that JSON knows.
          resume: whether to take up a run that is already there.
          ignored: fields at the top of `config` that do not change results and so may differ from
            the earlier run's; `data_dir` and `run_dir` always are.

        Raises:
          InputError: another process holds the directory, it holds a run of another configuration,
            it holds something else, it is not a directory, or it cannot be written to. Nothing in
            it has been changed.
        """
        directory = Path(directory).absolute()
        text = _dump(config, "the configuration")
        with explained(f"cannot use the run directory {directory}"):
            directory.mkdir(parents=True, exist_ok=True)
            config_file = directory / _CONFIG
            strangers = {entry.name for entry in directory.iterdir()}
            strangers -= {LOCK, MIRROR, _CONFIG + WRITING}
            if strangers and not config_file.exists():
                raise InputError(
                    f"{directory} is not a run directory: it holds {min(strangers)!r} but no "
                    f"{_CONFIG}; give an empty or a new directory"
                )
            lock = acquire(directory / LOCK)
        try:
            with explained(f"cannot use the run directory {directory}"):
                resumed = config_file.exists()
                if resumed and not resume:
                    raise InputError(f"{directory} already holds a run: give a new directory")
                if resumed:
                    _check_same(directory, json.loads(text), {*_PATHS, *ignored})
                else:
                    write_whole(config_file, lambda file: file.write_text(text))
        except BaseException:
            os.close(lock)
            raise
        return cls(directory, lock, resumed)

    def close(self) -> None:
        """Lets another process have the directory."""
        if self._metrics is not None:
            os.close(self._metrics)
            self._metrics = None
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is not None and issubclass(kind, InputError) and not self.resumed:
            # A mistake that was found before anything was measured must not keep the directory from
            # the command that mends it.
            held = {entry.name for entry in self.directory.iterdir()} - {MIRROR}
            if held == {LOCK, _CONFIG}:
                (self.directory / _CONFIG).unlink()
        self.close()

    def log(self, step: int, values: Mapping[str, float | Sequence[float]]) -> None:
        """Appends to `metrics.csv`: one row for a number, one per run for a sequence of them.

        All rows of a call are written at once or not at all, before it returns. Values are written
        so that they read back exactly.

        Raises:
          InputError: the disk is full or cannot be written to.
        """
        table = io.StringIO()
        writer = csv.writer(table, lineterminator="\n")
        for name, value in values.items():
            for run, number in enumerate(np.atleast_1d(np.asarray(value, np.float64)).tolist()):
                writer.writerow((run, step, name, repr(number)))
        path = self.directory / _METRICS
        with explained(f"cannot write {path}"):
            if self._metrics is None:
                self._metrics = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
            before = os.fstat(self._metrics).st_size
            rows = (table.getvalue() if before else _COLUMNS + table.getvalue()).encode()
            try:
                while rows:
                    rows = rows[os.write(self._metrics, rows) :]
            except OSError:
                os.ftruncate(self._metrics, before)
                raise

    def rewind(self, step: int) -> None:
        """Drops the rows of later steps, and a last row that was cut off.

        A run that resumes calls this first, with the step of the checkpoint, or with -1 where there
        is none. Its metrics then end up equal, byte for byte, to those of a run that was never
        interrupted, if the rows of a step are logged before the checkpoint of that step is saved.

        Raises:
          InputError: the file cannot be read or written.
        """
        path = self.directory / _METRICS
        with explained(f"cannot rewind {path}"):
            if not path.exists():
                return
            kept = io.StringIO()
            writer = csv.writer(kept, lineterminator="\n")
            writer.writerows(row for row in _rows(path) if row[1] <= step)
            if self._metrics is not None:
                os.close(self._metrics)
                self._metrics = None
            if kept.getvalue():
                write_whole(path, lambda file: file.write_text(_COLUMNS + kept.getvalue()))
            else:
                path.unlink()

    def read_metrics(self) -> dict[str, Curve]:
        """All metrics logged so far, by name."""
        return read_metrics(self.directory)

    @property
    def finished(self) -> bool:
        """Whether `finish` has been called, in this process or an earlier one."""
        return (self.directory / _SUMMARY).exists()

    def finish(self, summary: Mapping[str, Json]) -> None:
        """Writes `summary.json`, which marks the run as finished.

        Raises:
          InputError: it holds what JSON does not know (NaN too), or cannot be written.
        """
        text = _dump(summary, "the summary")
        write_whole(self.directory / _SUMMARY, lambda file: file.write_text(text))

    def summary(self) -> dict[str, Json]:
        """The summary of a finished run.

        Raises:
          InputError: the run has not finished.
        """
        return read_summary(self.directory)


def read_config(directory: Path | str) -> dict[str, Json]:
    """The configuration of the run in `directory`, which another process may hold.

    Raises:
      InputError: it is not a run directory.
    """
    return _load(Path(directory) / _CONFIG, f"{directory} is not a run directory")


def read_summary(directory: Path | str) -> dict[str, Json]:
    """The summary of the finished run in `directory`.

    Raises:
      InputError: it is not a run directory, or the run has not finished.
    """
    return _load(Path(directory) / _SUMMARY, f"{directory} holds no finished run")


def read_metrics(directory: Path | str) -> dict[str, Curve]:
    """The metrics of the run in `directory`, by name, in the order of their first appearance.

    Raises:
      InputError: the file cannot be read.
    """
    path = Path(directory) / _METRICS
    found: dict[str, dict[tuple[int, int], float]] = {}
    with explained(f"cannot read {path}"):
        for run, step, name, written in _rows(path) if path.exists() else ():
            found.setdefault(name, {})[run, step] = float(written)
    curves = {}
    for name, values in found.items():
        steps = np.array(sorted({step for _, step in values}), np.int64)
        column = {step: index for index, step in enumerate(steps.tolist())}
        table = np.full((1 + max(run for run, _ in values), len(steps)), np.nan)
        for (run, step), value in values.items():
            table[run, column[step]] = value
        curves[name] = Curve(steps, table)
    return curves


def write_whole(path: Path, save: Callable[[Path], Any]) -> None:
    """Writes a file so that it is never seen half written, even after a power cut.

    Args:
      path: of the file.
      save: writes it, at the path that it is given.

    Raises:
      InputError: it cannot be written.
    """
    writing = path.with_name(path.name + WRITING)
    with explained(f"cannot write {path}"):
        try:
            save(writing)
            with writing.open("rb+") as file:
                os.fsync(file.fileno())
            writing.replace(path)
        except OSError:
            writing.unlink(missing_ok=True)
            raise


def acquire(path: Path) -> int:
    """Locks a file and writes our process id into it; the kernel unlocks it when we end.

    Returns:
      A file descriptor; whoever closes it unlocks the file.

    Raises:
      InputError: another process holds it.
    """
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(lock, 32).decode().strip() or "unknown"
        os.close(lock)
        raise InputError(
            f"{path.parent} is in use by process {holder}: wait for it, stop it, or give another "
            "run directory"
        ) from None
    except OSError:
        os.close(lock)
        raise
    os.ftruncate(lock, 0)
    os.write(lock, f"{os.getpid()}\n".encode())
    return lock


@contextlib.contextmanager
def explained(what: str) -> Iterator[None]:
    """Turns an error of the operating system into one line that begins with `what`."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{what}: {error.strerror or error}") from error


def _check_same(directory: Path, config: Mapping[str, Json], ignored: Collection[str]) -> None:
    def compared(fields: Mapping[str, Json]) -> dict[str, Json]:
        return dict(_flat({name: fields[name] for name in fields if name not in ignored}))

    before, now = compared(read_config(directory)), compared(config)
    differing = [
        f"{name} was {_shown(before, name)}, now {_shown(now, name)}"
        for name in [*before, *(name for name in now if name not in before)]
        if name not in before or name not in now or before[name] != now[name]
    ]
    if differing:
        raise InputError(
            f"{directory} holds a run of another configuration: {'; '.join(differing)}; "
            "give the same configuration to resume it, or another run directory"
        )


def _flat(value: Json, prefix: str = "") -> Iterable[tuple[str, Json]]:
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _flat(inner, f"{prefix}.{name}" if prefix else name)
    else:
        yield prefix, value


def _shown(fields: Mapping[str, Json], name: str) -> str:
    return json.dumps(fields[name]) if name in fields else "absent"


def _dump(value: Json, what: str) -> str:
    try:
        return json.dumps(value, indent=2, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise InputError(f"{what} cannot be written as JSON: {error}") from error


def _load(path: Path, missing: str) -> dict[str, Json]:
    with explained(f"cannot read {path}"):
        try:
            return json.loads(path.read_text())
        except (FileNotFoundError, NotADirectoryError):
            raise InputError(f"{missing}: there is no {path}") from None
        except ValueError as error:
            raise InputError(f"{path} is damaged: {error}") from error


def _rows(path: Path) -> Iterator[tuple[int, int, str, str]]:
    """The rows of a metrics file without its header and without a last line that was cut off."""
    text = path.read_text()
    whole = csv.reader(io.StringIO(text[: text.rfind("\n") + 1]))
    next(whole, None)
    try:
        for run, step, name, value in whole:
            yield int(run), int(step), name, value
    except ValueError as error:
        raise InputError(f"{path} is damaged in line {whole.line_num}: {error}") from error
