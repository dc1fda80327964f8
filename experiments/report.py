"""Published numbers beside ours: a table for the screen, and the one in README.md."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.catalogue import ROOT, Claim
from paradigms.core.errors import InputError

README = ROOT.parent / "README.md"

_HEADER = (
    "experiment",
    "metric",
    "published",
    "ours",
    "seeds",
    "device",
    "minutes",
    "commit",
    "command",
)


def show(claims: Sequence[Claim]) -> None:
    """Prints a table of what there is."""
    header = ("experiment", "what", "metric", "published", "ours")
    rows = [
        (
            claim.experiment + claim.result.removeprefix(Path(claim.experiment).name),
            claim.title,
            _metric(claim),
            f"{claim.value:.4g}",
            _ours(claim),
        )
        for claim in claims
    ]
    print_table(header, rows)


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table: for people on a terminal, aligned text elsewhere."""
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table

        table = Table(*header)
        for row in rows:
            table.add_row(*row)
        Console().print(table)
        return
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())


def markdown(claims: Sequence[Claim]) -> str:
    """The table of README.md: misses first, then what was reached, then what was not run."""
    ordered = sorted(claims, key=lambda claim: (claim.ours is None, not claim.missed))
    rows = [_HEADER, ["-"] * len(_HEADER), *map(_row, ordered)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def inserted(text: str, table: str, name: str) -> str:
    """`text` with `table` in place of what is between the markers of that name.

    Raises:
      InputError: there is not one pair of markers.
    """
    opening, closing = markers(name)
    before, begin, rest = text.partition(opening)
    _, end, after = rest.partition(closing)
    if not (begin and end) or opening in after or closing in after:
        raise InputError(f"README.md: expected one line {opening} and after it one line {closing}")
    return f"{before}{opening}\n{table}{closing}{after}"


def markers(name: str) -> tuple[str, str]:
    """The lines between which a table stands."""
    return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"


def _row(claim: Claim) -> list[str]:
    row = [claim.result, _metric(claim), f"{claim.value:.4g} ({claim.source})", _ours(claim)]
    if claim.summary is None:
        return [*row, *[""] * (len(_HEADER) - len(row))]
    environment = claim.summary["environment"]
    return [
        *row,
        str(len(claim.summary["runs"])),
        _device(environment),
        _minutes(claim.summary),
        f"{(environment['commit'] or 'unknown')[:9]}{'+' if environment['dirty'] else ''}",
        f"`{claim.summary['command']}`",
    ]


def _metric(claim: Claim) -> str:
    return claim.metric if claim.statistic == "mean" else f"{claim.metric}, {claim.statistic}"


def _ours(claim: Claim) -> str:
    if claim.ours is None:
        return "not run"
    value, interval = claim.ours
    if interval is None:
        return f"{value:.4g}"
    return f"{value:.4g} ({interval[0]:.4g} to {interval[1]:.4g})"


def _device(environment: dict[str, Any]) -> str:
    if environment["platform"] == "cpu":
        return cores(environment)
    count = environment["device_count"]
    return f"{count} x {environment['device']}" if count > 1 else environment["device"]


def cores(environment: dict[str, Any]) -> str:
    """What a CPU is called in the tables."""
    count = environment["cpu_count"]
    return f"{count} CPU core{'s' * (count > 1)}"


def _minutes(summary: dict[str, Any]) -> str:
    """Compiling and training all seeds; a run that was resumed is taken at its latest speed."""
    speed = summary.get("speed")
    if not speed or not speed["steps_this_session"]:
        return ""
    whole = summary["steps"] / speed["steps_this_session"]
    return f"{(speed['train_seconds'] * whole + speed['compile_seconds']) / 60:.3g}"
