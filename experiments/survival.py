"""What the fault injector found, read from its result files: a table of README.md."""

import json
from collections import Counter, defaultdict
from typing import get_args

from experiments.catalogue import RESULTS
from experiments.faults import Fault
from paradigms.core.errors import InputError

FOLDER = RESULTS / "faults"


def markdown() -> str:
    """The table: one row for each experiment, those that lost something first.

    Raises:
      InputError: a result file is not one of `experiments.faults`.
    """
    struck: dict[str, Counter[str]] = defaultdict(Counter)
    survived: dict[str, Counter[str]] = defaultdict(Counter)
    twice: Counter[str] = Counter()
    commits: dict[str, list[str]] = defaultdict(list)
    for path in sorted(FOLDER.glob("*.json")):
        try:
            results = json.loads(path.read_text())
            name = results["experiment"]
            commits[name].append((results["environment"]["commit"] or "unknown")[:9])
            for fault, row in results["faults"].items():
                struck[name][fault] += row["strikes"]
                survived[name][fault] += row["survived"]
            twice[name] = max(twice[name], results["faults"].get("kill", {}).get("most_lost") or 0)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path} is damaged: run the fault injector again") from error

    faults = get_args(Fault)
    # Those since the last evaluation, which logs them, come to these.
    header = ("experiment", *faults, "most logged updates done twice after a kill", "commits")
    rows = []
    for name in sorted(struck, key=lambda name: (struck[name] == survived[name], name)):
        cells = [
            f"{survived[name][fault]} of {struck[name][fault]}" if struck[name][fault] else ""
            for fault in faults
        ]
        rows.append((name, *cells, str(twice[name]), ", ".join(commits[name])))
    table = [header, ("-",) * len(header), *rows]
    return "".join(f"| {' | '.join(row)} |\n" for row in table)
