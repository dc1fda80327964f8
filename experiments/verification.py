"""Whether the checkpoints of a run are as they were written."""

from pathlib import Path

from paradigms.core.checkpoint import Checkpoints
from paradigms.core.errors import InputError


def verify(run_dir: Path) -> int:
    """Reads every checkpoint below a directory and says of each what became of it.

    Returns:
      The exit status: 0, or 1 where one is damaged.

    Raises:
      InputError: there is none.
    """
    folders = sorted(path for name in ("checkpoints", "net") for path in run_dir.rglob(name))
    verdicts = [(path, verdict) for path in folders for verdict in Checkpoints(path).verify()]
    if not verdicts:
        raise InputError(f"there is no checkpoint in {run_dir}: give the directory of a run")
    for path, (step, damage, verified) in verdicts:
        found = f"damaged: {damage}" if damage else "whole" if verified else "of an older format"
        print(f"{(path / str(step)).relative_to(run_dir)}: {found}")
    return int(any(verdict.damage for _, verdict in verdicts))
