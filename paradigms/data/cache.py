"""The decoded cache: one uncompressed .npz file per split, for a fast second start.

One file is one rename, so two processes that decode at the same time cannot mix their halves, and
the zip container brings a CRC-32 of every array, which numpy checks while reading.
"""

import json
import logging
import os
import uuid
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

FORMAT = 1
Data = dict[str, np.ndarray]

log = logging.getLogger("paradigms.data")


def twin(data_dir: Path) -> Path:
    """The writable twin of a data folder that may not be writable.

    Args:
      data_dir: any folder; it mirrors to the same path under `PARADIGMS_CACHE_DIR`, by default
        `~/.cache/paradigms`, so that two data folders never share a cache.
    """
    base = os.environ.get("PARADIGMS_CACHE_DIR") or Path.home() / ".cache" / "paradigms"
    return Path(base, *data_dir.resolve().parts[1:])


def writable(path: Path) -> bool:
    """Whether `path` can be made or written.

    A folder without any write bit counts as read-only even for root, who could write all the same:
    the mode is its owner's wish.
    """
    while not path.exists() and path != path.parent:
        path = path.parent
    return bool(path.stat().st_mode & 0o222) and os.access(path, os.W_OK)


def home(data_dir: Path, name: str) -> Path:
    """Where new files of set `name` go: `data_dir`, or its twin where that is read-only."""
    return data_dir if writable(data_dir / name) else twin(data_dir)


def manifest(source: Any) -> str:
    """The text that a cache file must hold to be used.

    Args:
      source: JSON-serialisable identity of what was decoded: checksums of the contents where they
        are known beforehand, else names, sizes and times of the files.
    """
    return json.dumps({"format": FORMAT, "source": source}, sort_keys=True)


def read(path: Path, source: Any) -> Data | None:
    """The cached arrays; None where there are none or, with a warning, stale or damaged ones."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            if str(archive["manifest"]) != manifest(source):
                log.warning("%s: the decoded cache is of other files; decoding again", path)
                return None
            return {name: archive[name] for name in archive.files if name != "manifest"}
    except FileNotFoundError:
        return None
    # A flipped bit shows in any of these ways, an absurd array size among them.
    except (
        OSError,
        ValueError,
        KeyError,
        EOFError,
        RuntimeError,
        MemoryError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        log.warning("%s: unusable decoded cache (%s); decoding again", path, error)
        return None


def write(path: Path, source: Any, data: Data) -> None:
    """Writes the arrays by temporary file and rename; a failure costs a warning, never the run."""
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("xb") as file:
                arrays: dict[str, Any] = {"manifest": np.array(manifest(source)), **data}
                np.savez(file, **arrays)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        log.warning(
            "%s: cannot write the decoded cache (%s); the next start decodes again", path, error
        )
