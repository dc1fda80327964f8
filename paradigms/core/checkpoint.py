"""Checkpoints: a state on disk, whole or not there at all."""

import contextlib
import errno
import json
import logging
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from paradigms.core import digests
from paradigms.core.errors import InputError
from paradigms.core.leaves import (
    abstract,
    as_data,
    by_path,
    check,
    describe,
    differences,
    is_key,
    place,
    sharding_of,
)
from paradigms.core.state import PyTree

# 1 had no digests.
_FORMAT = 2

# What is being written, replaced or deleted lives in this folder beside the steps and enters or
# leaves the directory by one rename. Whatever a killed process left here is rubbish.
UNFINISHED = "unfinished"

# Behind it the step of a checkpoint that was found to be damaged: kept, but no longer one of them.
_SET_ASIDE = "damaged-"

# Metadata and rounding up to whole blocks, on top of the arrays themselves.
_OVERHEAD_BYTES = 2**20


class Verdict(NamedTuple):
    """What became of a checkpoint on disk.

    Attributes:
      step: its step.
      damage: what is wrong with it, in a few words; None where nothing is known to be.
      verified: whether its files were compared with what was written. Those of the first format,
        which has no digests, cannot be.
    """

    step: int
    damage: str | None
    verified: bool


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr)


class Checkpoints:
    """The checkpoints of one run, written with Orbax: one folder per step, newest last.

    A folder `<directory>/<step>` holds the arrays of the state (typed keys as their key data), a
    manifest with the path, shape and dtype of every leaf, and last the digests of all of its files,
    for a flipped bit would otherwise be restored as it is. It appears by a rename, so a process
    that is killed while it saves leaves the older checkpoints as they were. One process (or one
    group of `jax.distributed` processes) may write to a directory at a time. As a context manager
    it waits at the end for what is being written.

    Args:
      directory: made at the first save.
      keep: how many of the newest checkpoints to keep, at least 1. While one is being saved,
        `keep + 1` are on disk.
      every: keeps for good those whose step is a multiple of it too; 0 for none.
      best: which score keeps its checkpoint too, the "highest" or the "lowest" yet (the newest of
        equals); None for none.
      background: whether `save` returns once the state is copied, and leaves the writing to a
        thread. With several processes it does not, for they write together.
      tell: gets the line that says that a damaged checkpoint was passed over.

    Raises:
      InputError: a count out of its range.
    """

    def __init__(
        self,
        directory: Path,
        keep: int = 2,
        *,
        every: int = 0,
        best: Literal["highest", "lowest"] | None = None,
        background: bool = False,
        tell: Callable[[str], None] = _to_stderr,
    ) -> None:
        if keep < 1:
            raise InputError(f"keep is {keep}: at least 1 checkpoint must be kept")
        if every < 0:
            raise InputError(f"every is {every}: expected a number of updates, or 0 for none")
        self.directory = Path(directory).absolute()
        self.keep = keep
        self.every = every
        self._sign = {None: 0, "highest": 1, "lowest": -1}[best]
        self._scores: dict[int, float | None] = {}
        self._tell = tell
        self._checkpointer = ocp.Checkpointer(ocp.CompositeCheckpointHandler())
        self._background = background and jax.process_count() == 1
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()

    def steps(self) -> list[int]:
        """The steps of all whole checkpoints, in ascending order, when none is being written."""
        self.wait()
        return self._steps()

    def _steps(self) -> list[int]:
        try:
            entries = [entry for entry in self.directory.iterdir() if entry.is_dir()]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise InputError(
                f"cannot read checkpoints in {self.directory}: {_reason(error)}"
            ) from error
        return sorted(int(entry.name) for entry in entries if entry.name.isdecimal())

    def latest(self) -> int | None:
        """The newest checkpoint, or None where there is none."""
        return max(self.steps(), default=None)

    def verify(self) -> list[Verdict]:
        """Reads every checkpoint and compares it with what was written, the oldest first."""
        return [self._verdict(step) for step in self.steps()]

    def best(self) -> int | None:
        """The checkpoint of the best score, or None where none has a score or none is asked for."""
        self.wait()
        return self._best()

    def save(self, step: int, state: PyTree, score: float | None = None) -> None:
        """Writes `state` to disk; an older checkpoint of the same step is replaced.

        In the background it returns once `state`, which may then be donated, is copied to the
        host's memory, and the state before is on disk.

        Args:
          step: number of updates done, which names the checkpoint.
          state: any pytree of arrays, sharded or not, with typed or raw keys.
          score: how good it is, for `best`; NaN and None never are.

        Raises:
          InputError: the disk is full or cannot be written to, now or by the save before, which
            wrote in the background. The older checkpoints are whole and `latest` is what it was.
        """
        self.wait()
        state = jax.block_until_ready(jax.tree.map(jnp.asarray, state))
        leaves = by_path(state)
        manifest = {"step": int(step), "format": _FORMAT, "leaves": describe(state)}
        if score is not None and math.isfinite(score):
            manifest["score"] = float(score)
        items = {path: as_data(leaf) for path, leaf in leaves.items() if leaf.size}
        with self._one_line(step, items):
            if _writes():
                self.directory.mkdir(parents=True, exist_ok=True)
                _remove(self.directory / UNFINISHED)
                self._check_space(step, _size(items))
        if self._background:
            # Donated arrays are gone with the next update, which a view would keep from donating.
            copies = {path: np.array(item) for path, item in items.items()}
            self._writing = self._writer.submit(self._write, step, copies, manifest)
        else:
            self._write(step, items, manifest)

    def wait(self) -> None:
        """Returns when nothing is being written.

        Raises:
          InputError: a save in the background failed; see `save`.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _write(self, step: int, items: Mapping[str, Any], manifest: dict[str, Any]) -> None:
        unfinished = self.directory / UNFINISHED
        with self._one_line(step, items):
            with _quiet_orbax():
                self._checkpointer.save(
                    unfinished / "new",
                    ocp.args.Composite(
                        arrays=ocp.args.PyTreeSave(items), manifest=ocp.args.JsonSave(manifest)
                    ),
                )
            if _writes():
                digests.write(unfinished / "new")
                self._publish(unfinished / "new", step)
                self._scores[step] = manifest.get("score")
                self._prune()
                _remove(unfinished)

    @contextlib.contextmanager
    def _one_line(self, step: int, items: Mapping[str, Any]) -> Iterator[None]:
        """Tells in one line why a checkpoint could not be saved."""
        try:
            yield
        except InputError:
            raise
        # Orbax and TensorStore report a full disk as ValueError, ours as OSError.
        except Exception as error:
            if _writes():
                _remove(self.directory / UNFINISHED)
            raise InputError(
                f"could not save the checkpoint of step {step} in {self.directory} "
                f"({_bytes(_size(items))} needed, {self._free()} free): {_reason(error)}; "
                f"{self._last_good()}"
            ) from error

    def restore(self, template: PyTree, step: int | None = None) -> PyTree:
        """Reads a checkpoint into the form of `template`, bit for bit.

        Args:
          template: a state, or its `jax.ShapeDtypeStruct`s (`jax.eval_shape` of its making); only
            structure, shapes, dtypes and placement matter. A leaf that is committed to devices, or
            a struct with a sharding, comes back with the same sharding; any other as a fresh
            uncommitted array on the default device. So a step compiled for the template needs no
            second compilation.
          step: which checkpoint; None for the newest that is whole. Damaged ones that are newer are
            told of and set aside, as folders `damaged-<step>`.

        Returns:
          A pytree of new arrays, each with a buffer of its own, that may be donated.

        Raises:
          InputError: there is no such checkpoint, it is damaged, or it has another structure.
        """
        step = self._newest_whole() if step is None else self._whole(step)
        folder = self.directory / str(step)
        stored = _read_manifest(folder)["leaves"]
        expected = describe(template)
        if found := differences(stored, expected):
            raise InputError(
                f"{folder} is a checkpoint of another configuration: {found}; resume with "
                "the configuration that wrote it, or use another directory"
            )
        leaves = by_path(template)
        structs = by_path(abstract(template))
        shardings = {path: sharding_of(leaf) for path, leaf in leaves.items()}
        restore_args = {
            path: (
                ocp.RestoreArgs(restore_type=np.ndarray)
                if shardings[path] is None or is_key(struct)
                else ocp.ArrayRestoreArgs(sharding=shardings[path], global_shape=struct.shape)
            )
            for path, struct in structs.items()
            if struct.size
        }
        try:
            with _quiet_orbax():
                items = self._checkpointer.restore(
                    folder,
                    ocp.args.Composite(arrays=ocp.args.PyTreeRestore(restore_args=restore_args)),
                ).arrays
            for path in restore_args:
                check(path, items[path], structs[path])
        except Exception as error:
            raise self._damaged(step, _reason(error)) from error
        restored = [
            place(items.get(path), struct, stored[path]["weak_type"], shardings[path])
            for path, struct in structs.items()
        ]
        return jax.tree.unflatten(jax.tree.structure(template), restored)

    def _verdict(self, step: int) -> Verdict:
        folder = self.directory / str(step)
        try:
            manifest = _read_manifest(folder)
        except (OSError, ValueError, KeyError, TypeError) as error:
            return Verdict(step, f"its manifest: {_reason(error)}", verified=True)
        if manifest.get("format", 1) == 1 and not (folder / digests.NAME).exists():
            return Verdict(step, None, verified=False)
        return Verdict(step, digests.find_damage(folder), verified=True)

    def _whole(self, step: int) -> int:
        """`step`, if there is a checkpoint of it and nothing is wrong with it."""
        steps = self.steps()
        if step not in steps:
            raise InputError(
                f"there is no checkpoint of step {step} in {self.directory}: "
                f"give one of {', '.join(map(str, steps)) or '(none)'}"
            )
        if damage := self._verdict(step).damage:
            raise self._damaged(step, damage)
        return step

    def _newest_whole(self) -> int:
        steps = self.steps()
        if not steps:
            raise InputError(f"there is no checkpoint in {self.directory}")
        damaged = []
        for step in reversed(steps):
            damage = self._verdict(step).damage
            if damage is None:
                break
            damaged.append((step, damage))
        else:
            raise self._damaged(*damaged[0])
        for newer, damage in damaged:
            aside = self.directory / f"{_SET_ASIDE}{newer}"
            self._tell(
                f"the checkpoint of step {newer} in {self.directory} is damaged ({damage}): it is "
                f"set aside as {aside.name}, and that of step {step} is taken"
            )
            # Where nothing may be written it stays what it is, and is passed over again.
            with contextlib.suppress(OSError):
                if _writes():
                    _remove(aside)
                    (self.directory / str(newer)).rename(aside)
        return step

    def _check_space(self, step: int, needed: int) -> None:
        if shutil.disk_usage(self.directory).free < needed:
            raise InputError(
                f"the disk is too full for the checkpoint of step {step} in {self.directory}: "
                f"{_bytes(needed)} needed, {self._free()} free; free some space and run again; "
                f"{self._last_good()}"
            )

    def _publish(self, new: Path, step: int) -> None:
        final, replaced = self.directory / str(step), new.with_name("replaced")
        if final.exists():
            final.rename(replaced)
        try:
            new.rename(final)
        except OSError:
            if replaced.exists():
                replaced.rename(final)
            raise

    def _prune(self) -> None:
        steps = self._steps()
        kept = {*steps[-self.keep :], self._best()}
        for old in steps:
            if old not in kept and not (self.every and old % self.every == 0):
                # Renamed first: a folder that is half deleted must not look like a checkpoint.
                (self.directory / str(old)).rename(self.directory / UNFINISHED / str(old))

    def _best(self) -> int | None:
        scored = [
            (self._sign * score, step)
            for step in self._steps()
            if self._sign and (score := self._score(step)) is not None
        ]
        return max(scored)[1] if scored else None

    def _score(self, step: int) -> float | None:
        if step not in self._scores:
            try:
                self._scores[step] = _read_manifest(self.directory / str(step)).get("score")
            except (OSError, ValueError, KeyError, TypeError):  # damaged, which is told elsewhere
                self._scores[step] = None
        return self._scores[step]

    def _free(self) -> str:
        with contextlib.suppress(OSError):
            return _bytes(shutil.disk_usage(self.directory).free)
        return "unknown"

    def _last_good(self) -> str:
        latest = max(self._steps(), default=None)
        return "no checkpoint is kept" if latest is None else f"the last good one is step {latest}"

    def _damaged(self, step: int, damage: str) -> InputError:
        older = [other.step for other in self.verify() if other.step < step and not other.damage]
        mend = (
            f"that of step {older[-1]} is whole: remove the folder to go on from there"
            if older
            else "no older one is whole: start again in another directory"
        )
        folder = self.directory / str(step)
        return InputError(
            f"the checkpoint of step {step} in {folder} is damaged ({damage}); {mend}"
        )


def _read_manifest(folder: Path) -> dict[str, Any]:
    manifest = json.loads((folder / "manifest" / "metadata").read_text())
    if not isinstance(manifest["leaves"], dict):
        raise ValueError("there are no leaves in it")
    return manifest


def _size(items: Mapping[str, Any]) -> int:
    return sum(item.nbytes for item in items.values()) + _OVERHEAD_BYTES


def _writes() -> bool:
    """Whether this process is the one that renames and deletes folders."""
    return jax.process_index() == 0


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def _bytes(count: int) -> str:
    return f"{count:,} bytes"


def _reason(error: Exception) -> str:
    """The first line of an error, without the file names that libraries wrap around it."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error)
    if "No space left on device" in text:
        return os.strerror(errno.ENOSPC)
    return f"{type(error).__name__}: {text.splitlines()[0][:200] if text else ''}"


@contextlib.contextmanager
def _quiet_orbax() -> Iterator[None]:
    """Keeps tracebacks that Orbax logs from its threads off the screen: the error is raised too."""
    logger = logging.getLogger("absl")
    before = logger.disabled
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = before
