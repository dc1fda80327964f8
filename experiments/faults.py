"""Does a run survive? An experiment is hurt in many ways, gone on with, and compared.

Once it runs to its end in peace. Then, again and again in a fresh directory, a fault strikes at a
random instant; the same command is given once more, and has to end in the same bits of every state
and the same metrics as the run in peace.

  kill       the process is killed (SIGKILL)
  sigterm    it is asked to stop, and has to leave within ten seconds with status 75
  flip       a bit flips in a file of the newest checkpoint, of a run that was killed
  truncate   such a file is cut short
  delete     such a file is gone
  slow       storage takes a second for everything, and the process is killed
  nan        all parameters turn to NaN at a random update
  full       the disk is full until somebody makes room (needs root, for a small file system)
  read_only  nothing can be written until somebody allows it (needs root)

  python -m experiments.faults digits_mlp                    its rehearsal, some minutes
  python -m experiments.faults ppo_cartpole --times 40 --faults kill --output faults.json
  python -m experiments.faults digits_mlp --steps 3000       other options go to the experiment
"""

import contextlib
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import tyro

from experiments import catalogue, cli
from paradigms.core.checkpoint import Checkpoints
from paradigms.core.errors import InputError
from paradigms.core.provenance import environment
from paradigms.core.record import read_summary, write_whole
from paradigms.core.signals import EXIT_STATUS

Fault = Literal["kill", "sigterm", "flip", "truncate", "delete", "slow", "nan", "full", "read_only"]
_SECONDS_TO_LEAVE = 10
# Exit statuses: of what a user can mend, and of training that diverged.
_ONE_LINE, _DIVERGED = 2, 3

# Programs that run in the process of an experiment before it begins.
_SLOWLY = """
import time
from orbax.checkpoint import Checkpointer
save = Checkpointer.save
def slowly(*arguments, **options):
    time.sleep(0.5)
    save(*arguments, **options)
    time.sleep(0.5)
Checkpointer.save = slowly
"""
_POISONED = """
import jax, jax.numpy as jnp
from experiments import training
fit = training.fit
def poisoned(learner, *arguments, **options):
    def update(state, batch):
        state, metrics = learner.update(state, batch)
        spoilt = jax.tree.map(lambda x: jnp.where(state.step.max() < STEP, x, x * jnp.nan),
                              state.params)
        return state.replace(params=spoilt), metrics
    return fit(learner._replace(update=update), *arguments, **options)
training.fit = poisoned
"""
_RUN = """
import runpy, sys
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
"""


@dataclass(frozen=True)
class Config:
    """Options of the fault injector."""

    experiment: Annotated[str, tyro.conf.Positional]
    """Its name; options that are not the injector's are the experiment's, by default `--smoke`."""
    faults: tuple[Fault, ...] = get_args(Fault)
    times: int = 3
    """How often each of them strikes."""
    seed: int = 0
    """Of the instants and the places."""
    output: Path | None = None
    """A JSON file for the table."""


@dataclass(frozen=True)
class Outcome:
    """What came of one fault.

    Attributes:
      fault: its kind.
      survived: whether the run ended as the one in peace did.
      note: where it struck, and what went wrong if anything did.
      lost: updates that had been logged and had to be done again, to which those since the last
        evaluation come; None where that cannot be told.
    """

    fault: str
    survived: bool
    note: str
    lost: int | None = None


class Subject:
    """An experiment with its options, as processes in directories of their own."""

    def __init__(self, experiment: str, options: Sequence[str], scratch: Path) -> None:
        name = catalogue.find(experiment).replace("/", ".")
        self._name, self._options = f"experiments.{name}", options
        self.scratch = scratch
        begin = time.perf_counter()
        peace = scratch / "peace"
        done = self.finish(peace)
        if done.returncode:
            raise InputError(f"{experiment} does not even run in peace: {_last_line(done.stderr)}")
        self.seconds = time.perf_counter() - begin
        self._expected = result_of(peace)
        self.steps = read_summary(peace)["steps"]

    def start(self, directory: Path, sabotage: str = "") -> "subprocess.Popen[str]":
        """The run in a directory, begun or gone on with, after a program that spoils something."""
        module = ["-c", sabotage + _RUN, self._name] if sabotage else ["-m", self._name]
        return subprocess.Popen(
            [sys.executable, *module, *self._options, "--run-dir", str(directory)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(self, directory: Path, sabotage: str = "") -> "subprocess.CompletedProcess[str]":
        """Waits until the run has ended."""
        process = self.start(directory, sabotage)
        _, stderr = process.communicate()
        return subprocess.CompletedProcess(process.args, process.returncode, "", stderr)

    def outcome(self, fault: str, directory: Path, note: str, reached: int | None) -> Outcome:
        """Gives the command once more, and compares the end with the one in peace.

        Args:
          fault: its kind.
          directory: of the run.
          note: where it struck.
          reached: updates that had been logged before it struck, if that is known.
        """
        done = self.finish(directory)
        if done.returncode:
            wrong = f"{note}; it did not go on: {_last_line(done.stderr)}"
            return Outcome(fault, survived=False, note=wrong)
        begun = [line for line in done.stderr.splitlines() if line.startswith("resuming")]
        lost = None
        if reached is not None:
            lost = max(0, reached - (int(begun[-1].rpartition(" ")[2]) if begun else 0))
        same = result_of(directory) == self._expected
        return Outcome(fault, same, note if same else f"{note}; it ended otherwise", lost)


def _each(directory: Path, name: str) -> list[Path]:
    """What has this name in a run directory, and in those of its parts where it has some."""
    return [path for path in (directory / name, *directory.glob(f"*/{name}")) if path.exists()]


def result_of(directory: Path) -> dict[str, tuple[list[str], bytes]]:
    """Fingerprints of the final states, and the metrics, of a run or of each of its parts."""
    results = {}
    for metrics in _each(directory, "metrics.csv"):
        summary = json.loads((metrics.parent / "summary.json").read_text())
        digests = [run["state_sha256"] for run in summary["runs"]]
        results[str(metrics.parent.relative_to(directory))] = (digests, metrics.read_bytes())
    return results


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["it said nothing"])[-1]


def reached_in(directory: Path) -> int:
    """The newest step that was logged of a run, or of the part that it is at."""
    for metrics in _each(directory, "metrics.csv"):
        if not (metrics.parent / "summary.json").exists():
            with contextlib.suppress(ValueError, IndexError):
                *_, last = metrics.read_text().rstrip("\n").splitlines()
                return int(last.split(",")[1])
    return 0


def _struck(
    subject: Subject, directory: Path, which: signal.Signals, seconds: float, sabotage: str = ""
) -> tuple[int | None, float, str]:
    """Sends a signal after some seconds: exit status, how long it took to leave, what it said."""
    process = subject.start(directory, sabotage)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(which)
    begin = time.perf_counter()
    _, stderr = process.communicate()
    return process.returncode, time.perf_counter() - begin, stderr


def killed(fault: str, sabotage: str = "") -> Callable[..., Outcome]:
    """Killed at any instant, imports and the writing of the summary included.

    Args:
      fault: its kind.
      sabotage: what has happened to the process before.
    """

    def strike(subject: Subject, directory: Path, random_: random.Random) -> Outcome:
        seconds = random_.uniform(0, subject.seconds)
        _struck(subject, directory, signal.SIGKILL, seconds, sabotage)
        reached = reached_in(directory)
        if (directory / "summary.json").exists():
            return subject.outcome(fault, directory, f"after {seconds:.1f} s, at the end", 0)
        note = f"after {seconds:.1f} s, at step {reached}"
        return subject.outcome(fault, directory, note, reached)

    return strike


def nan(subject: Subject, directory: Path, random_: random.Random) -> Outcome:
    """All parameters turn to NaN: the run has to end in one line, and go on once that is over."""
    step = random_.randint(1, max(1, subject.steps // 2))
    hurt = subject.finish(directory, _POISONED.replace("STEP", str(step)))
    note = f"at step {step}; status {hurt.returncode}: {_last_line(hurt.stderr)}"
    if hurt.returncode != _DIVERGED or "Traceback" in hurt.stderr:
        return Outcome("nan", survived=False, note=note)
    return subject.outcome("nan", directory, note, None)


def sigterm(subject: Subject, directory: Path, random_: random.Random) -> Outcome:
    """Asked to stop at any instant."""
    seconds = random_.uniform(0, subject.seconds)
    status, took, stderr = _struck(subject, directory, signal.SIGTERM, seconds)
    note = f"after {seconds:.1f} s; left in {took:.1f} s with status {status}"
    # Before it listens, while Python imports, it ends as any process does.
    if took > _SECONDS_TO_LEAVE or status not in (0, EXIT_STATUS, -signal.SIGTERM):
        return Outcome("sigterm", survived=False, note=f"{note}: {_last_line(stderr)}")
    return subject.outcome("sigterm", directory, note, None)


def _flip(path: Path, random_: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[random_.randrange(len(content))] ^= 1 << random_.randrange(8)
    path.write_bytes(content)


def _truncate(path: Path, random_: random.Random) -> None:
    with path.open("rb+") as file:
        file.truncate(random_.randrange(path.stat().st_size))


def _delete(path: Path, random_: random.Random) -> None:
    del random_
    path.unlink()


def _kill_with_checkpoints(subject: Subject, directory: Path, count: int) -> Path:
    """Kills a run as soon as it has so many checkpoints, and gives the folder of the newest."""

    def newest() -> Checkpoints:
        folders = _each(directory, "checkpoints")
        folders.sort(key=lambda folder: folder.stat().st_mtime)
        return Checkpoints([directory / "checkpoints", *folders][-1])

    process = subject.start(directory)
    while process.poll() is None and len(newest().steps()) < count:
        time.sleep(0.01)
    process.kill()
    process.communicate()
    if (directory / "summary.json").exists():  # it was too quick to be killed
        for summary in _each(directory, "summary.json"):
            summary.unlink()
    checkpoints = newest()
    return checkpoints.directory / str(checkpoints.latest())


def damage(harm: Callable[[Path, random.Random], None]) -> Callable[..., Outcome]:
    """A file of the newest checkpoint is harmed after the run was killed with two of them."""

    def strike(subject: Subject, directory: Path, random_: random.Random) -> Outcome:
        newest = _kill_with_checkpoints(subject, directory, 2)
        files = sorted(path for path in newest.rglob("*") if path.is_file())
        path = random_.choice(files)
        harm(path, random_)
        name = harm.__name__.removeprefix("_")
        note = f"{path.relative_to(newest)} of step {newest.name}"
        return subject.outcome(name, directory, note, reached_in(directory))

    return strike


def _mount(directory: Path, options: str) -> None:
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(directory)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        raise InputError("a small file system cannot be mounted: it takes root")


def _remount(directory: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(directory)], check=True)


def _fill(directory: Path) -> None:
    """Takes all the space that there is."""
    with contextlib.suppress(OSError), (directory / "filling").open("wb") as file:
        while True:
            file.write(bytes(2**16))


def spoilt(
    fault: str, spoil: Callable[[Path], Any], mend: Callable[[Path], Any]
) -> Callable[..., Outcome]:
    """The file system is spoilt after a checkpoint: the run has to fail in one line until mended.

    Args:
      fault: its kind.
      spoil: does it to the directory where the file system is mounted.
      mend: undoes it.
    """

    def strike(subject: Subject, directory: Path, random_: random.Random) -> Outcome:
        del random_
        directory.mkdir()
        _mount(directory, "size=64m")
        run = directory / "run"
        try:
            _kill_with_checkpoints(subject, run, 1)
            spoil(directory)
            hurt = subject.finish(run)
            mend(directory)
            note = f"status {hurt.returncode}: {_last_line(hurt.stderr)}"
            if hurt.returncode != _ONE_LINE or "Traceback" in hurt.stderr:
                return Outcome(fault, survived=False, note=note)
            return subject.outcome(fault, run, note, None)
        finally:
            subprocess.run(["umount", str(directory)], capture_output=True)

    return strike


STRIKES: dict[str, Callable[[Subject, Path, random.Random], Outcome]] = {
    "kill": killed("kill"),
    "sigterm": sigterm,
    "flip": damage(_flip),
    "truncate": damage(_truncate),
    "delete": damage(_delete),
    "slow": killed("slow", _SLOWLY),
    "nan": nan,
    "full": spoilt("full", _fill, lambda directory: (directory / "filling").unlink()),
    "read_only": spoilt(
        "read_only",
        lambda directory: _remount(directory, "ro"),
        lambda directory: _remount(directory, "rw"),
    ),
}


def inject(config: Config, options: Sequence[str]) -> list[Outcome]:
    """Strikes as often as asked, and says what came of each as it goes.

    Args:
      config: of the injector.
      options: of the experiment.

    Raises:
      InputError: the experiment is unknown or does not run, or a number is below 1.
    """
    if config.times < 1:
        raise InputError(f"--times {config.times}: expected at least 1")
    random_ = random.Random(config.seed)
    outcomes = []
    with tempfile.TemporaryDirectory() as scratch:
        subject = Subject(config.experiment, options or ("--smoke",), Path(scratch))
        for fault in config.faults:
            for number in range(config.times):
                directory = Path(scratch) / f"{fault}{number}"
                try:
                    outcome = STRIKES[fault](subject, directory, random_)
                except InputError as error:
                    print(f"{fault}: left out, {error}", flush=True)
                    break
                # Where the scratch directory lay is nobody's business in a table that is kept.
                outcome = replace(outcome, note=outcome.note.replace(f"{scratch}/", ""))
                outcomes.append(outcome)
                end = "as in peace" if outcome.survived else "LOST"
                print(f"{fault:10} {end:12} {outcome.note}", flush=True)
                shutil.rmtree(directory, ignore_errors=True)
    return outcomes


def main(config: Config, options: Sequence[str]) -> int:
    """Injects, and writes the table.

    Returns:
      The exit status: 0, or 1 where a run did not survive.
    """
    outcomes = inject(config, options)
    table: dict[str, Any] = {}
    for outcome in outcomes:
        row = table.setdefault(outcome.fault, {"strikes": 0, "survived": 0, "most_lost": None})
        row["strikes"] += 1
        row["survived"] += outcome.survived
        if outcome.lost is not None:
            row["most_lost"] = max(row["most_lost"] or 0, outcome.lost)
    for fault, row in table.items():
        most = row["most_lost"]
        lost = "" if most is None else f", at most {most} logged updates done twice"
        print(f"{fault:10} {row['survived']} of {row['strikes']} survived{lost}")
    if config.output is not None:
        text = json.dumps(
            {
                "experiment": config.experiment,
                "options": list(options),
                "faults": table,
                "outcomes": [asdict(outcome) for outcome in outcomes],
                "environment": environment(),
            },
            indent=2,
        )
        config.output.parent.mkdir(parents=True, exist_ok=True)
        write_whole(config.output, lambda file: file.write_text(text + "\n"))
    return int(not all(outcome.survived for outcome in outcomes))


if __name__ == "__main__":
    with cli.one_line_errors():
        sys.exit(
            main(
                *tyro.cli(
                    Config,
                    prog="python -m experiments.faults",
                    description=__doc__,
                    return_unknown_args=True,
                )
            )
        )
