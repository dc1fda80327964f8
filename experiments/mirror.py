"""A copy of a run directory in a bucket, for machines that are taken away with their disks."""

import contextlib
import os
import sys
import threading
from collections.abc import Collection, Iterator
from pathlib import Path

from paradigms.core import digests
from paradigms.core.checkpoint import UNFINISHED
from paradigms.core.errors import InputError
from paradigms.core.record import LOCK, WRITING

_CONFIG, _SUMMARY = "config.json", "summary.json"
_SECONDS_BETWEEN_COPIES = 30.0


class Mirror:
    """A folder under any address that fsspec knows, and the run directory that it follows.

    A checkpoint arrives after the metrics that belong to it, and the file by which it is known to
    be whole after its others, so that a copy that was broken off resumes as a run that was killed.
    One machine at a time may follow: the folder has no lock.

    Args:
      directory: of the run.
      address: of the folder, "gs://bucket/runs/resnet" for instance.

    Raises:
      InputError: nothing is known of such addresses, or a package for them is missing.
    """

    def __init__(self, directory: Path, address: str) -> None:
        import fsspec

        self._directory, self._address = directory, address
        try:
            self._files, self._root = fsspec.core.url_to_fs(address.rstrip("/"))
        except (ImportError, ValueError) as error:
            raise InputError(f"--mirror {address}: {error}") from error
        self._copied: dict[str, tuple[int, int]] = {}
        """By name, size and time of change of what the folder holds."""

    def fetch(self) -> bool:
        """Brings the run of the folder into the directory, unless that has one.

        Returns:
          Whether it did.

        Raises:
          InputError: the folder holds something else, another run than the directory, or what the
            directory has still to reach.
        """
        with self._one_line("read"):
            there = self._list()
            if not there:
                return False
            if _CONFIG not in there:
                raise InputError(
                    f"--mirror {self._address} is no copy of a run: it holds {min(there)!r} but no "
                    f"{_CONFIG}; give an empty or a new folder"
                )
            if (self._directory / _CONFIG).exists():
                self._check_behind(there)
                return False
            if strange := [name for name in there if ".." in name.split("/")]:
                raise InputError(f"--mirror {self._address}: {strange[0]!r} is not within it")
            # Last what makes it a run directory: broken off, it is fetched again.
            for name in sorted(there, key=_CONFIG.__eq__):
                here = self._directory / name
                here.parent.mkdir(parents=True, exist_ok=True)
                self._files.get_file(f"{self._root}/{name}", str(here))
                self._copied[name] = _version(here)
        return True

    def push(self) -> None:
        """Copies what has changed, and then removes from the folder what the directory has not.

        Raises:
          InputError: the folder cannot be written to.
        """
        with self._one_line("write"):
            names = sorted(_names(self._directory), key=_order)
            for name in names:
                try:
                    self._put(name)
                except FileNotFoundError:
                    if (self._directory / name).exists():  # it is the bucket that is not there
                        raise
                    # A checkpoint may be dropped while others are copied.
            for name in sorted(set(self._list()) - set(names)):
                self._files.rm_file(f"{self._root}/{name}")
                self._copied.pop(name, None)

    def _put(self, name: str) -> None:
        here = self._directory / name
        version = _version(here)
        if self._copied.get(name) == version:
            return
        there = f"{self._root}/{name}"
        self._files.makedirs(there.rpartition("/")[0], exist_ok=True)
        self._files.put_file(str(here), there)
        self._copied[name] = version

    def _list(self) -> list[str]:
        """Names of all files in the folder, relative to it."""
        self._files.invalidate_cache()
        with contextlib.suppress(FileNotFoundError):
            return [found[len(self._root) + 1 :] for found in self._files.find(self._root)]
        return []

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
def mirrored(directory: Path, address: str) -> Iterator[None]:
    """Keeps a run directory and its copy in step while the run lasts.

    At first a directory without a run takes that of the copy. Then what has changed is copied twice
    a minute, beside the training, and once more at the end, however that comes. A copy that fails
    on the way is told on stderr and tried again.

    Args:
      directory: of the run.
      address: as in `Mirror`; "" for no copy.

    Raises:
      InputError: as `Mirror.fetch`; or the last copy failed, where the run did not.
    """
    if not address:
        yield
        return
    mirror = Mirror(directory, address)
    if mirror.fetch():
        print(f"{directory} was fetched from {address}", file=sys.stderr)
    over = threading.Event()

    def follow() -> None:
        while not over.wait(_SECONDS_BETWEEN_COPIES):
            try:
                mirror.push()
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


def _push_last(mirror: Mirror, directory: Path) -> None:
    if not (directory / _CONFIG).exists():  # a mistake was found before the run began
        return
    failing = sys.exception() is not None
    try:
        mirror.push()
    except InputError as error:
        if not failing:
            raise InputError(f"{error}; the run itself is whole in {directory}") from error
        print(f"warning: {error}", file=sys.stderr)  # the user is to hear of the other


def _names(directory: Path) -> list[str]:
    """What of a run directory is worth a copy."""
    found = []
    for folder, _, files in os.walk(directory):  # which minds nothing that vanishes meanwhile
        for file in files:
            parts = (Path(folder) / file).relative_to(directory).parts
            if LOCK not in parts and UNFINISHED not in parts and not file.endswith(WRITING):
                found.append("/".join(parts))
    return found


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


def _order(name: str) -> tuple[int, str]:
    """Files in the order in which they may be copied."""
    if name.endswith(_SUMMARY):  # which says that all is there
        return 3, name
    if name.endswith(digests.NAME):  # which says that a checkpoint is whole
        return 2, name
    return int("checkpoints/" in name), name


def _version(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns
