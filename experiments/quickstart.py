"""Five ways of learning through one loop, in two minutes on two CPU cores. The job of `make run`.

A classifier, a variational autoencoder, SimCLR and FixMatch learn scikit-learn's 8x8 digits, and
PPO balances a pole: five experiments of this folder, cut short, two at a time on a CPU. Each is
judged on data, or in worlds, that it has not learnt from: before on validation data, after on test
data. runs/quickstart has `summary.json`, `quickstart.png` and a run directory for each; run again,
it resumes.

  python -m experiments.quickstart
"""

import contextlib
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments import cli, frozen, images
from experiments.prediction import load
from experiments.report import print_table
from paradigms import data
from paradigms.core.errors import InputError, NonFiniteError, Stopped
from paradigms.core.progress import bars
from paradigms.core.provenance import cpu_count, environment
from paradigms.core.record import read_metrics, read_summary, write_whole
from paradigms.core.signals import EXIT_STATUS, StopRequest

_PICTURED = 500  # test digits whose features are drawn
_STEP = re.compile(r"step (\d+)/(\d+)  (\S+ steps/s)  (.*)")  # as `Progress` reports in a log
_ERRORS = {2: InputError, 3: NonFiniteError, EXIT_STATUS: Stopped}


@dataclass(frozen=True)
class Config:
    """Options of the quickstart."""

    seed: int = 0
    """Of all five."""
    run_dir: Path = Path("runs/quickstart")
    """Where everything goes."""
    at_once: int | None = None
    """How many train side by side; by default two on a CPU, else one."""


class Part(NamedTuple):
    """One paradigm's learner.

    Attributes:
      paradigm: its name, and that of its run directory.
      learner: what learns.
      metric: what is told of it, as its summary calls it.
      unit: of the metric.
      aim: what every seed is to reach; for FixMatch by so much more than without unlabelled digits.
      experiment: the module that trains it.
      options: on its command line.
    """

    paradigm: str
    learner: str
    metric: str
    unit: str
    aim: float
    experiment: str
    options: str


PARTS = (
    Part(
        "supervised",
        "classifier",
        "accuracy",
        "of digits right",
        0.96,
        "digits_mlp",
        "--steps 1000",
    ),
    Part(
        "unsupervised",
        "VAE",
        "log_likelihood",
        "nats",
        -20.0,
        "vae_digits",
        "--steps 4000 --evaluate-every 1000",
    ),
    Part(
        "self_supervised",
        "SimCLR",
        "few_label_probe",
        "right by a probe with 40 labels",
        0.844,  # what pixels give
        "simclr_digits",
        "--steps 195 --evaluate-every 65",
    ),
    Part(
        "semi_supervised",
        "FixMatch",
        "accuracy",
        "right after 40 labels",
        0.05,
        "fixmatch_digits",
        "--steps 1500 --evaluate-every 250 --no-convolutional --learning-rate 0.1",
    ),
    Part(
        "reinforcement",
        "PPO",
        "return",
        "steps of at most 500",
        450.0,
        "ppo_cartpole",
        "--steps 480 --evaluate-every 40 --learning-rate 1e-3",
    ),
)


class Children:
    """Processes that end, each in a state that can be gone on from, when they are asked to."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[str]] = set()
        self._lock = threading.Lock()
        self._stopped = False

    def lines(self, command: Sequence[str]) -> Iterator[str]:
        """What a command says, as it says it.

        Raises:
          InputError, NonFiniteError, Stopped: what it ended with, as its last line has it.
          RuntimeError: it ended otherwise.
        """
        with self._lock:
            if self._stopped:
                return
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
            self._running.add(process)
        last = ""
        with process:
            assert process.stdout is not None
            for line in process.stdout:
                last = line.strip() or last
                yield line.rstrip()
        with self._lock:
            self._running.discard(process)
        if process.returncode:
            kind = _ERRORS.get(process.returncode, RuntimeError)
            raise kind(re.sub("^(error|stopped): ", "", last))

    def stop(self) -> None:
        """Asks all of them to leave, and lets no other begin."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                process.terminate()


def main(config: Config) -> None:
    """Trains the five; ends with a table and a picture."""
    if not 0 <= config.seed < 2**32:
        raise InputError(f"--seed {config.seed}: expected a number from 0 to 2**32 - 1")
    if config.at_once is not None and config.at_once < 1:
        raise InputError(f"--at-once {config.at_once}: expected at least 1")
    started = environment()
    rows = train(config)
    print_table(
        ("paradigm", "learner", "metric", "before", "after", "seconds"),
        [
            (row["paradigm"], row["learner"], f"{row['metric']} ({row['unit']})")
            + (f"{row['before']:.4g}", f"{row['after']:.4g}", _shown(row["seconds"]))
            for row in rows
        ],
    )
    picture = config.run_dir / "quickstart.png"
    draw(config, picture)
    summary = {"seed": config.seed, "parts": rows, "environment": started}
    write_whole(
        config.run_dir / "summary.json", lambda file: file.write_text(json.dumps(summary, indent=2))
    )
    print(picture)


def train(config: Config) -> list[dict[str, Any]]:
    """Trains every part in a process of its own, and what is told of each, in their order.

    Raises:
      Stopped: it was asked to leave; all parts are saved.
      InputError, NonFiniteError: what ended a part; the others are saved.
    """
    children, display = Children(), bars()
    with (
        StopRequest(grace=9.5) as stop,  # more than the parts have
        display or contextlib.nullcontext(),
        ThreadPoolExecutor(config.at_once or _usual_number()) as pool,
    ):
        # The longest are among the last.
        futures = {
            part: pool.submit(_row, part, config, children, _reporter(part, display))
            for part in reversed(PARTS)
        }
        try:
            running = set(futures.values())
            while running and not stop:
                done, running = wait(running, timeout=0.2, return_when=FIRST_EXCEPTION)
                for future in done:
                    future.result()
        finally:
            children.stop()
    if stop:
        raise Stopped(f"{stop.received}: the same command goes on from the last checkpoints")
    return [futures[part].result() for part in PARTS]


def _usual_number() -> int:
    """Two processes share a CPU well, but not an accelerator, which this process must not hold."""
    asked = [sys.executable, "-c", "import jax; print(jax.default_backend())"]
    backend = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
    return 2 if backend == "cpu" and cpu_count() > 1 else 1


def _reporter(part: Part, display: Any) -> Callable[[str], None]:
    """Takes what a part says: moves its bar, or prints the line where there is no terminal."""
    if display is None:
        return lambda line: print(f"{part.learner}: {line}", file=sys.stderr, flush=True)
    task = display.add_task(part.learner, total=None, rate="", shown="")

    def report(line: str) -> None:
        found = _STEP.match(line)
        assert found is not None
        step, total, rate, shown = found.groups()
        display.update(task, completed=int(step), total=int(total), rate=rate, shown=shown)

    return report


def _row(
    part: Part, config: Config, children: Children, report: Callable[[str], None]
) -> dict[str, Any]:
    """Trains one part, and what is told of it."""
    directory = config.run_dir / part.paradigm
    command = [sys.executable, "-m", f"experiments.{part.paradigm}.{part.experiment}"]
    command += [*part.options.split(), "--seeds", str(config.seed), "--run-dir", str(directory)]
    begin, trained = time.perf_counter(), True
    for line in children.lines(command):
        if _STEP.match(line):
            report(line)
        trained = trained and "is finished:" not in line
    seconds = time.perf_counter() - begin
    few_labels = directory / "few_labels"
    whole = read_summary(few_labels if few_labels.exists() else directory)
    row = {
        **{name: getattr(part, name) for name in ("paradigm", "learner", "metric", "unit", "aim")},
        "before": whole["before"][f"validation/{part.metric}"][0],
        "after": whole["metrics"][f"test/{part.metric}"]["mean"],
        "seconds": seconds if trained else None,
    }
    if few_labels.exists():
        row["labels_alone"] = read_summary(directory)["metrics"]["labels_alone/accuracy"]["mean"]
    return row


def draw(config: Config, path: Path) -> None:
    """One picture of all: what each has learnt."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 7.6), dpi=130, layout="constrained", facecolor="white")
    grid = figure.add_gridspec(2, 6)
    places = [grid[0, 0:2], grid[0, 2:4], grid[0, 4:5], grid[0, 5:6], grid[1, 0:3], grid[1, 3:6]]
    panels = [figure.add_subplot(place) for place in places]
    test = data.digits("test")
    _confusion(panels[0], config.run_dir / "supervised", test)
    _generated(panels[1], config.run_dir / "unsupervised")
    _embeddings(panels[2:4], config.run_dir / "self_supervised", test)
    _few_labels(panels[4], config.run_dir / "semi_supervised")
    _returns(panels[5], config.run_dir / "reinforcement")
    write_whole(path, lambda file: figure.savefig(file, format="png"))


def _confusion(axes: Any, directory: Path, test: dict[str, np.ndarray]) -> None:
    said = np.asarray(load(directory)(test["image"])).argmax(-1)
    matrix = np.zeros((10, 10))
    np.add.at(matrix, (test["label"], said), 1)
    axes.imshow(np.sqrt(matrix / matrix.sum(1, keepdims=True)), cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(matrix):
        if count:
            colour = "white" if row == column else "black"
            axes.text(column, row, int(count), ha="center", va="center", fontsize=7, color=colour)
    axes.set_xticks(range(10), images.DIGITS)
    axes.set_yticks(range(10), images.DIGITS)
    axes.set_xlabel("what the classifier says", fontsize=8)
    axes.set_ylabel("what it is", fontsize=8)
    _title(axes, f"Supervised: {np.trace(matrix) / matrix.sum():.1%} of test digits right")


def _generated(axes: Any, directory: Path) -> None:
    from matplotlib.image import imread

    pairs, samples = (imread(directory / f"{name}.png") for name in ("reconstructions", "samples"))
    gap = np.ones((pairs.shape[0] // 4, *pairs.shape[1:]), pairs.dtype)
    rows = samples[: samples.shape[0] // 2]
    axes.imshow(np.concatenate([pairs, gap, rows]), interpolation="nearest")
    axes.axis("off")
    _title(axes, "Unsupervised: test digits, rebuilt; dreamt")


def _embeddings(panels: list[Any], directory: Path, test: dict[str, np.ndarray]) -> None:
    shown = {name: array[:_PICTURED] for name, array in test.items()}
    trained = load(directory)
    # Not the weights that the run began with, but others like them.
    key = jax.random.key(trained.config.seeds[0])
    params, model_state = jax.jit(trained.net.init)(key, shown["image"])
    untrained = trained._replace(
        weights=jax.tree.map(
            lambda leaf: leaf[None], {"params": params, "model_state": model_state}
        )
    )
    for axes, net, title in zip(
        panels,
        (untrained, trained),
        ("Self-supervised: untrained", "and after SimCLR"),
        strict=True,
    ):
        points = frozen.in_the_plane(np.asarray(net(shown["image"])))
        axes.scatter(*points.T, s=4, c=shown["label"], cmap="tab10", linewidths=0)
        axes.axis("off")
        _title(axes, title)


def _few_labels(axes: Any, directory: Path) -> None:
    for part, colour, name in (
        ("few_labels", "#4477aa", "FixMatch, 40 labels and 1,060 digits without"),
        ("labels_alone", "#aaaaaa", "the same 40 labels alone"),
    ):
        curve = read_metrics(directory / part)["validation/accuracy"]
        axes.plot(curve.steps, curve.values[0], color=colour, label=name)
    axes.set_ylim(0.6, 1)
    _dress(axes, "update")
    _title(axes, "Semi-supervised: share of validation digits right")


def _returns(axes: Any, directory: Path) -> None:
    curves = read_metrics(directory)
    for name, colour, label in (
        ("train/episode/return", "#aaaaaa", "while learning"),
        ("validation/return", "#4477aa", "greedy, 100 episodes"),
    ):
        axes.plot(curves[name].steps, curves[name].values[0], color=colour, label=label)
    axes.set_ylim(0, 510)
    _dress(axes, "update")
    _title(axes, "Reinforcement: steps that the pole stays up")


def _dress(axes: Any, what: str) -> None:
    axes.set_xlabel(what, fontsize=8)
    axes.grid(True, color="#e6e6e6", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="lower right")


def _title(axes: Any, text: str) -> None:
    axes.set_title(text, loc="left", fontsize=10, fontweight="bold")


def _shown(seconds: float | None) -> str:
    return "earlier" if seconds is None else f"{seconds:.1f}"


if __name__ == "__main__":
    with cli.one_line_errors():
        main(cli.parse(Config, "quickstart", __doc__))
