"""What `make run` reached with several seeds, read from its result files: a table of README.md."""

import json
from typing import Any

from experiments.catalogue import RESULTS
from paradigms.core.errors import InputError

FOLDER = RESULTS / "quickstart"  # a summary of each seed, and the picture of the first

_HEADER = ("paradigm", "learner", "metric", "aim of each seed", "least", "mean", "seeds")


def markdown() -> str:
    """The table, a row for each paradigm.

    Raises:
      InputError: a result file is not one of `experiments.quickstart`.
    """
    of_part: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(FOLDER.glob("*.json")):
        try:
            for part in json.loads(path.read_text())["parts"]:
                part["reached"] = part["after"] - part.get("labels_alone", 0)
                part["aim"] = float(part["aim"])
                of_part.setdefault(part["paradigm"], []).append(part)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path} is damaged: run the quickstart again") from error
    table = [_HEADER, ("-",) * len(_HEADER), *map(_row, of_part.values())]
    return "".join(f"| {' | '.join(row)} |\n" for row in table)


def _row(parts: list[dict[str, Any]]) -> tuple[str, ...]:
    first, reached = parts[0], [part["reached"] for part in parts]
    metric = f"{first['metric']} ({first['unit']})"
    if "labels_alone" in first:
        metric += ", above that without unlabelled digits"
    mean = sum(reached) / len(reached)
    figures = (f"{value:.4g}" for value in (first["aim"], min(reached), mean))
    return (first["paradigm"], first["learner"], metric, *figures, str(len(parts)))
