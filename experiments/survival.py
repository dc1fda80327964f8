"""What the fault injector found, read from its result files: a table of README.md."""

import json

from experiments.catalogue import RESULTS
from paradigms.core.errors import InputError

FOLDER = RESULTS / "faults"

_HEADER = (
    "experiment",
    "fault",
    "struck",
    "ended as in peace",
    "most logged updates done twice",  # and those since the last evaluation, which logs them
    "commit",
)


def markdown() -> str:
    """The table: what did not survive first.

    Raises:
      InputError: a result file is not one of `experiments.faults`.
    """
    lost: list[tuple[str, ...]] = []
    survived: list[tuple[str, ...]] = []
    for path in sorted(FOLDER.glob("*.json")):
        try:
            results = json.loads(path.read_text())
            commit = (results["environment"]["commit"] or "unknown")[:9]
            for fault, row in results["faults"].items():
                twice = "" if row["most_lost"] is None else str(row["most_lost"])
                counts = (str(row["strikes"]), str(row["survived"]), twice)
                rows = survived if row["survived"] == row["strikes"] else lost
                rows.append((results["experiment"], fault, *counts, commit))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path} is damaged: run the fault injector again") from error
    table = [_HEADER, ("-",) * len(_HEADER), *lost, *survived]
    return "".join(f"| {' | '.join(row)} |\n" for row in table)
