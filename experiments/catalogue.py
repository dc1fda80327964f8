"""What the experiments claim and what we measured, read from their files without importing them."""

import ast
import difflib
import json
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from paradigms.core.errors import InputError
from paradigms.core.record import read_config, read_summary

ROOT = Path(__file__).parent
RESULTS = ROOT / "results"

_OTHER_FOLDERS = {"benchmarks", "results"}
_PICTURES = (
    "curves.png",
    "confusion.png",
    "reconstructions.png",
    "samples.png",
    "traversal.png",
)
# Options whose values are places that are nobody else's.
_PATHS = ("run_dir", "data_dir", "mirror")


class Claim(NamedTuple):
    """A published number, and ours.

    Attributes:
      experiment: its name, for instance "supervised/mnist_cnn".
      title: what it is, in one line.
      result: the folder under `experiments/results` that backs ours.
      metric: the name of both numbers in `summary.json`.
      value: the published one.
      source: who published it.
      summary: of our run, or None before one is published.
      statistic: of ours over the runs, "mean" or "iqm", the interquartile mean.
      better: which numbers are, "higher" or "lower".
    """

    experiment: str
    title: str
    result: str
    metric: str
    value: float
    source: str
    summary: dict[str, Any] | None
    statistic: str = "mean"
    better: str = "higher"

    @property
    def ours(self) -> tuple[float, list[float] | None] | None:
        """The statistic of our runs, and its interval if there are several."""
        if self.summary is None:
            return None
        metric = self.summary["metrics"][self.metric]
        interval = "interval" if self.statistic == "mean" else f"{self.statistic}_interval"
        return metric[self.statistic], metric[interval]

    @property
    def missed(self) -> bool:
        """Whether ours falls short of the published number."""
        if self.ours is None:
            return False
        return self.ours[0] > self.value if self.better == "lower" else self.ours[0] < self.value


def names() -> list[str]:
    """The names of all experiments, sorted."""
    return sorted(
        path.relative_to(ROOT).with_suffix("").as_posix()
        for path in ROOT.glob("*/*.py")
        if path.stem != "__init__" and path.parent.name not in _OTHER_FOLDERS
    )


def find(name: str) -> str:
    """The full name of the experiment that is called `name`, with or without its folder.

    Raises:
      InputError: there is none; the message lists those with a similar name.
    """
    known = names()
    wanted = name.removesuffix(".py").replace(".", "/").removeprefix("experiments/")
    found = [full for full in known if wanted in (full, full.partition("/")[2])]
    if len(found) == 1:
        return found[0]
    by_stem = {full.partition("/")[2]: full for full in known}
    near = difflib.get_close_matches(wanted.rpartition("/")[2], by_stem, cutoff=0.4)
    listed = found or [by_stem[stem] for stem in near] or known
    raise InputError(f"there is no experiment {name!r}: try {', '.join(listed)}")


def claims(name: str) -> list[Claim]:
    """What one experiment claims: its own number, then one for each of its variants.

    The file holds a literal `PUBLISHED = {"metric": ..., "value": ..., "source": ...}`, and under
    "variants" whatever differs for each, by name.

    Raises:
      InputError: the file has no such literal, or a result of ours is damaged.
    """
    path = ROOT / f"{name}.py"
    tree = ast.parse(path.read_text())
    title = (ast.get_docstring(tree) or "").partition("\n")[0]
    published = _published(tree, path)
    variants = published.pop("variants", {})
    stem = Path(name).name
    found = []
    for result, fields in {
        stem: published,
        **{f"{stem}_{variant}": {**published, **own} for variant, own in variants.items()},
    }.items():
        summary = read_summary(RESULTS / result) if (RESULTS / result).is_dir() else None
        found.append(Claim(name, title, result, summary=summary, **fields))
    return found


def all_claims() -> list[Claim]:
    """What all experiments claim, in the order of their names."""
    return [claim for name in names() for claim in claims(name)]


def publish(run_dir: Path, result: str | None = None, *, replace: bool = False) -> Path:
    """Copies what backs a result from a finished run into `experiments/results`.

    Paths of this machine are left out.

    Args:
      run_dir: of a finished run.
      result: the folder, the experiment's name without its own folder, and `_variant` for a
        variant; may be left out where there is no variant.
      replace: whether to write over an earlier result.

    Returns:
      The folder.

    Raises:
      InputError: the run has not finished, is a rehearsal or lacks the metric of the claim, or
        there is a result already.
    """
    config, summary = read_config(run_dir), read_summary(run_dir)
    if config["smoke"]:
        raise InputError(f"{run_dir} is a rehearsal (--smoke), not a result: run without --smoke")
    by_result = {claim.result: claim for claim in claims(find(config["experiment"]))}
    if result is None and len(by_result) > 1:
        raise InputError(
            f"{config['experiment']} has variants: say which with --as {' or '.join(by_result)}"
        )
    result = result or next(iter(by_result))
    if result not in by_result:
        raise InputError(
            f"--as {result}: {run_dir} is a run of {config['experiment']}, whose results are "
            f"called {' or '.join(by_result)}"
        )
    metric = by_result[result].metric
    if metric not in summary["metrics"]:
        raise InputError(f"{run_dir} has no {metric}, which is what {result} reports")
    folder = RESULTS / result
    if folder.exists():
        if not replace:
            raise InputError(f"{folder} holds a result: give --replace to write over it")
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    config |= dict.fromkeys(_PATHS)
    summary["command"] = shlex.join(_without_paths(shlex.split(summary["command"])))
    for name, values in (("config.json", config), ("summary.json", summary)):
        (folder / name).write_text(json.dumps(values, indent=2) + "\n")
    for name in _PICTURES:
        if (run_dir / name).exists():
            shutil.copyfile(run_dir / name, folder / name)
    return folder


def _published(tree: ast.Module, path: Path) -> dict[str, Any]:
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "PUBLISHED":
            return ast.literal_eval(node.value)
    raise InputError(f"{path}: expected PUBLISHED = {{'metric': ..., 'value': ..., 'source': ...}}")


def _without_paths(words: list[str]) -> Iterator[str]:
    """Drops `--run-dir PATH`, `--data-dir=PATH` and the like from a command."""
    rest = iter(words)
    for word in rest:
        option, equals, _ = word.partition("=")
        if option.startswith("--") and option[2:].replace("-", "_") in _PATHS:
            if not equals:
                next(rest, None)
        else:
            yield word
