"""Content hashes of a folder, by which damage to a file is found before it is used."""

import hashlib
import json
from pathlib import Path

from paradigms.core.record import write_whole

NAME = "digests.json"


def write(folder: Path) -> None:
    """Writes size and SHA-256 of every file in `folder` beside them, into one file of its own.

    Raises:
      InputError: it cannot be written.
    """
    found = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": _hash(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != NAME
    }
    text = json.dumps(found, indent=1) + "\n"
    write_whole(folder / NAME, lambda file: file.write_text(text))


def find_damage(folder: Path) -> str | None:
    """What is not as it was when `write` was called, in a few words; None where all is.

    Files that have joined the folder since do not count.
    """
    try:
        expected = json.loads((folder / NAME).read_text())
        files = [(name, each["bytes"], each["sha256"]) for name, each in expected.items()]
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        return f"{NAME} is missing or damaged"
    for name, size, digest in files:
        path = folder / name
        try:
            if path.stat().st_size != size:
                return f"{name} has {path.stat().st_size:,} bytes of {size:,}"
            if _hash(path) != digest:
                return f"{name} holds other bytes than were written"
        except OSError as error:
            return f"{name}: {error.strerror or error}"
    return None


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
