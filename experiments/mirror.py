"""A copy of a run directory in a bucket, for machines that are taken away with their disks."""

import contextlib
import json
import os
import shutil
import sys
import threading
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from experiments import processes
from paradigms.core import digests
from paradigms.core.checkpoint import UNFINISHED
from paradigms.core.errors import InputError
from paradigms.core.record import LOCK, MIRROR, WRITING, acquire

_CONFIG, _METRICS, _SUMMARY = "config.json", "metrics.csv", "summary.json"
_PROBE = ".mirror"  # an empty file in the folder: it can be written to
_SECONDS_BETWEEN_COPIES = 30.0


class Mirror:
    """A folder under any address that fsspec knows, and the run directory that it follows.

    What is copied is frozen before, by hard links, so that a run that drops a checkpoint meanwhile
    does not disturb its copy. Metrics arrive before the checkpoint that they belong to, and the
    file by which it is known to be whole after its others; what the directory has no longer is
    removed from the folder when all else is there. So a copy that was broken off goes on as a run
    that was killed. One machine at a time may follow: the folder has no lock.

    Args:
      directory: of the run.
      address: of the folder, "gs://bucket/runs/resnet" for instance.

    Raises:
      InputError: nothing is known of such addresses, or a package for them is missing.
    """

    def __init__(self, directory: Path, address: str) -> None:
        import fsspec

        self._directory, self._address = directory, address
        self._local = fsspec.utils.get_protocol(address) == "file"
        options = {"auto_mkdir": True} if self._local else {}
        try:
            self._files, self._root = fsspec.core.url_to_fs(address.rstrip("/"), **options)
        except (ImportError, ValueError) as error:
            raise InputError(f"--mirror {address}: {error}") from error
        # By name, size and time of change of what was copied; and all that the folder has of ours.
        self._copied: dict[str, tuple[int, int]] = {}
        self._known: set[str] = set()

    def begin(self) -> bool:
        """Brings the run of the folder into the directory, unless that has one.

        Returns:
          Whether it did.

        Raises:
          InputError: the folder cannot be written to, or holds something else, another run than the
            directory, or what the directory has still to reach; or the directory holds something
            that is no run. Nothing has been changed then.
        """
        with self._one_line("use"):
            there = self._listing()
            if there and _CONFIG not in there:
                raise InputError(
                    f"--mirror {self._address} is no copy of a run: it holds {min(there)!r} but no "
                    f"{_CONFIG}; give an empty or a new folder"
                )
            ours = (self._directory / _CONFIG).exists()
            if there and ours:
                self._check_behind(there)
                self._take_as_copied(there)
            elif there:
                self._fetch(there)
            self._known = set(there)
            self._files.pipe_file(f"{self._root}/{_PROBE}", b"")
            return bool(there) and not ours

    def push(self, broken_off: Callable[[], bool] = lambda: False) -> None:
        """Copies what has changed, and then removes from the folder what the directory has not.

        Args:
          broken_off: whether to leave before the next file.

        Raises:
          InputError: the folder cannot be written to.
        """
        frozen = self._directory / MIRROR / "frozen"
        with self._one_line("write"):
            try:
                names = sorted(_freeze(self._directory, frozen), key=_order)
                if set(names) <= {_CONFIG}:  # a mistake that is found yet takes that back
                    return
                there = self._listing()
                for name in names:
                    if broken_off():
                        return
                    version = _version(frozen / name)
                    if name not in there or self._copied.get(name) != version:
                        self._put(frozen / name, name)
                        self._copied[name] = version
                        self._known.add(name)
                shelves = {_shelf(name) for name in names}
                for name in sorted(self._known - set(names)):
                    if _shelf(name) not in shelves:  # where no newer checkpoint is there yet
                        continue
                    if name in there:
                        self._files.rm_file(f"{self._root}/{name}")
                    self._known.discard(name)
                    self._copied.pop(name, None)
            finally:
                shutil.rmtree(frozen, ignore_errors=True)

    def _put(self, here: Path, name: str) -> None:
        there = f"{self._root}/{name}"
        if not self._local:  # where a file appears whole or not at all
            self._files.put_file(str(here), there)
            return
        self._files.put_file(str(here), there + WRITING)
        self._files.mv(there + WRITING, there)

    def _listing(self) -> set[str]:
        """Names of all files in the folder, relative to it."""
        self._files.invalidate_cache()
        with contextlib.suppress(FileNotFoundError):
            found = {path[len(self._root) + 1 :] for path in self._files.find(self._root)}
            # Some file systems list folders too, by names that are empty or end in a stroke.
            return {
                name for name in found if name != _PROBE and not name.endswith((WRITING, "/"))
            } - {""}
        return set()

    def _fetch(self, there: Collection[str]) -> None:
        fetched, top = self._directory / MIRROR / "fetched", {name.split("/")[0] for name in there}
        if self._directory.exists():
            strangers = {entry.name for entry in self._directory.iterdir()}
            strangers -= {LOCK, MIRROR, _CONFIG + WRITING, *top}
            if strangers:
                raise InputError(
                    f"{self._directory} is not a run directory: it holds {min(strangers)!r} but no "
                    f"{_CONFIG}; give an empty or a new directory"
                )
        for name in there:
            if not (fetched / name).resolve().is_relative_to(fetched.resolve()):
                raise InputError(f"--mirror {self._address}: {name!r} is not within it")
        shutil.rmtree(fetched, ignore_errors=True)
        for name in there:
            (fetched / name).parent.mkdir(parents=True, exist_ok=True)
            self._files.get_file(f"{self._root}/{name}", str(fetched / name))
        # Last what makes it a run directory.
        for entry in sorted(top, key=_CONFIG.__eq__):
            shutil.rmtree(self._directory / entry, ignore_errors=True)
            (fetched / entry).replace(self._directory / entry)
        self._copied = {name: _version(self._directory / name) for name in there}

    def _check_behind(self, there: Collection[str]) -> None:
        """Raises InputError unless the folder's run is the directory's, and no further on."""
        ours = (self._directory / _CONFIG).read_bytes()
        if ours != self._files.cat_file(f"{self._root}/{_CONFIG}"):
            raise InputError(
                f"--mirror {self._address} is the copy of another run than that in "
                f"{self._directory}: give another folder, or another run directory"
            )
        here = _reached(_names(self._directory))
        ahead = [what for what, step in _reached(there).items() if step > here.get(what, -1)]
        if ahead:
            raise InputError(
                f"--mirror {self._address} is further on than {self._directory} ({min(ahead)}): "
                "remove that directory and the copy is taken up, or give another folder"
            )

    def _take_as_copied(self, there: Collection[str]) -> None:
        """Checkpoints that are in the folder need not go there again."""
        for name in there:
            here = self._directory / name
            if here.name == digests.NAME and here.exists():
                if here.read_bytes() != self._files.cat_file(f"{self._root}/{name}"):
                    continue
                for file in here.parent.rglob("*"):
                    if file.is_file():
                        copied = file.relative_to(self._directory).as_posix()
                        self._copied[copied] = _version(file)

    @contextlib.contextmanager
    def _one_line(self, what: str) -> Iterator[None]:
        """Tells in one line what the file system of a bucket, of whatever kind, complains of."""
        try:
            yield
        except InputError:
            raise
        except Exception as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise InputError(f"cannot {what} --mirror {self._address}: {reason}") from error


@contextlib.contextmanager
def mirrored(directory: Path, address: str | None) -> Iterator[None]:
    """Keeps a run directory and its copy in step while the run lasts.

    At first a directory without a run takes that of the copy. Then what has changed is copied twice
    a minute, beside the training, and once more when the run ends, fails or is asked to stop. A
    copy that fails on the way is told on stderr and tried again. A process that is killed, or ended
    by its watchdog, leaves the last copy that was made. Of several processes, which share the
    directory, the first does all of this, and the others begin when it has the run.

    Args:
      directory: of the run.
      address: as in `Mirror`; None for no copy.

    Raises:
      InputError: another process mirrors this directory; as `Mirror.begin`; or the last copy
        failed, where the run did not.
    """
    with contextlib.ExitStack() as stack:
        if address:
            following = _following(directory, address)
            processes.by_the_first(
                lambda: stack.enter_context(following), f"use --mirror {address}"
            )
        yield


@contextlib.contextmanager
def _following(directory: Path, address: str) -> Iterator[None]:
    mirror = Mirror(directory, address)
    with _alone(directory):
        if mirror.begin():
            print(f"{directory} was fetched from {address}", file=sys.stderr)
        over = threading.Event()

        def follow() -> None:
            while not over.wait(_SECONDS_BETWEEN_COPIES):
                try:
                    mirror.push(over.is_set)
                except InputError as error:
                    print(f"warning: {error}; it is tried again", file=sys.stderr)

        thread = threading.Thread(target=follow, name="mirror", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            _push_last(mirror, directory)


@contextlib.contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Holds the folder in which the run directory keeps what is on its way."""
    new = not directory.exists()
    try:
        (directory / MIRROR).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot use the run directory {directory}: {error.strerror}") from error
    lock = acquire(directory / MIRROR / LOCK)
    try:
        yield
    finally:
        shutil.rmtree(directory / MIRROR, ignore_errors=True)
        os.close(lock)
        if new:
            with contextlib.suppress(OSError):  # there is a run in it
                directory.rmdir()


def _push_last(mirror: Mirror, directory: Path) -> None:
    failing = sys.exception() is not None
    try:
        mirror.push()
    except InputError as error:
        if not failing:
            raise InputError(f"{error}; the run itself is whole in {directory}") from error
        print(f"warning: {error}", file=sys.stderr)  # the user is to hear of the other


def _freeze(directory: Path, frozen: Path) -> list[str]:
    """Gathers what is worth a copy under `frozen`, as it is now, and gives its names.

    Checkpoints come before the metrics, so that the metrics of all that are there are with them.
    One that is dropped meanwhile is left out.
    """
    shutil.rmtree(frozen, ignore_errors=True)
    names = _names(directory)
    for name in sorted(names, key=lambda name: _checkpoint_of(name) is None):
        with contextlib.suppress(FileNotFoundError):
            _link(directory / name, frozen / name)
    checkpoints = {checkpoint for name in names if (checkpoint := _checkpoint_of(name))}
    whole = {checkpoint for checkpoint in checkpoints if _is_all_there(frozen / checkpoint)}
    return [name for name in _names(frozen) if _checkpoint_of(name) in {None, *whole}]


def _link(here: Path, there: Path) -> None:
    there.parent.mkdir(parents=True, exist_ok=True)
    if here.name != _METRICS:  # which grows where it is
        with contextlib.suppress(OSError):  # not every file system has links
            os.link(here, there)
            return
    shutil.copy2(here, there)


def _is_all_there(checkpoint: Path) -> bool:
    try:
        expected = json.loads((checkpoint / digests.NAME).read_text())
    except (OSError, ValueError):
        return False
    return all((checkpoint / name).exists() for name in expected)


def _names(directory: Path) -> list[str]:
    """All files of a run directory but what passes."""
    found = []
    for folder, _, files in os.walk(directory):  # which minds nothing that vanishes meanwhile
        for file in files:
            parts = (Path(folder) / file).relative_to(directory).parts
            if not {LOCK, MIRROR, UNFINISHED} & set(parts) and not file.endswith(WRITING):
                found.append("/".join(parts))
    return found


def _checkpoint_of(name: str) -> str | None:
    """The checkpoint that a file belongs to, "checkpoints/20" for instance; None for others."""
    parts = name.split("/")
    for i, part in enumerate(parts[:-1]):
        if part.isdigit() and i:
            return "/".join(parts[: i + 1])
    return None


def _shelf(name: str) -> str | None:
    """The folder of checkpoints that a file is in, None for others."""
    checkpoint = _checkpoint_of(name)
    return checkpoint and checkpoint.rpartition("/")[0]


def _reached(names: Collection[str]) -> dict[str, int]:
    """How far a run has come: the newest step in each folder of checkpoints, and what has ended."""
    reached: dict[str, int] = {}
    for name in names:
        folder, _, file = name.rpartition("/")
        checkpoints, _, step = folder.rpartition("/")
        if file == digests.NAME and step.isdigit():
            reached[checkpoints] = max(reached.get(checkpoints, 0), int(step))
        if file == _SUMMARY:
            reached[name] = 0
    return reached


def _order(name: str) -> tuple[int, int, str, bool, str]:
    """Files in the order in which they may be copied: the newest checkpoint first."""
    checkpoint = _checkpoint_of(name)
    if name.endswith(_SUMMARY):  # which says that all is there
        return 2, 0, "", False, name
    if checkpoint is None:
        return 0, 0, "", False, name
    step = int(checkpoint.rpartition("/")[2])
    # Last what says that the checkpoint is whole.
    return 1, -step, checkpoint, name.endswith(f"/{digests.NAME}"), name


def _version(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns
