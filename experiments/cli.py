"""From a dataclass to a command line: what every experiment's command shares."""

import contextlib
import dataclasses
import difflib
import json
import math
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, TypeVar, get_type_hints

from paradigms.core.errors import InputError, NonFiniteError, Stopped
from paradigms.core.signals import EXIT_STATUS

_ROOT = Path(__file__).parent

# Options that say where and how to look, not what is computed: a run may change them and resume.
FREE = (
    "run_dir",
    "data_dir",
    "mesh",
    "remat",
    "debug",
    "track",
    "on_nonfinite",
    "spike",
    "profile",
    "watchdog",
    "keep",
    "keep_every",
    "keep_best",
    "mirror",
)


@dataclass(frozen=True)
class Options:
    """Options of every experiment; a subclass adds its own and sets the defaults."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """One independent run for each seed, trained side by side."""
    steps: int = 1000
    """Updates in all."""
    evaluate_every: int = 100
    """Updates between two evaluations on held-out data; checkpoints are saved then too."""
    smoke: bool = False
    """A rehearsal on embedded data, under a minute on a CPU."""
    run_dir: Path | None = None
    """Where everything goes, by default runs/NAME; with the same directory, a run resumes."""
    data_dir: Path | None = None
    """Where data sets are; by default $PARADIGMS_DATA_DIR, then ~/tensorflow_datasets."""
    mesh: str = ""
    """Devices to use, for instance "data=8", "fsdp=8" or "data=4,model=2"; by default one."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """What the network computes in; parameters, losses and metrics stay float32."""
    accumulate: int = 1
    """Parts of a batch whose gradients are taken one after the other and averaged, for less memory
    (not of convolutions on a CPU); what is drawn, and batch norm's statistics, are each part's
    own."""
    remat: bool = False
    """Computes what the blocks of a net computed again for the gradient, in place of keeping it: a
    third more work for less memory, on accelerators (XLA for CPUs keeps it all the same)."""
    debug: bool = False
    """Runs without jit and stops at the operation that first produces a NaN."""
    on_nonfinite: Literal["stop", "skip", "rollback"] = "stop"
    """What an update that gives NaN or infinity does: it stops the run, is left out, or takes the
    run back to the last evaluation and on from there with other data, three times at most."""
    spike: float = 0.0
    """Above 1: a training loss between two evaluations above so many times its median of the last
    five stops the run or takes it back, as NaN would; 0 to take it as it comes."""
    track: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Services that get the metrics too, besides metrics.csv; each is an extra to install."""

    keep: int = 2
    """How many of the newest checkpoints to keep."""
    keep_every: int = 0
    """Keeps for good those after so many updates, twice and three times so many too; 0 for none."""
    keep_best: Literal["highest", "lowest"] | None = None
    """Keeps the one of the best validation metric too, that which is shown while training."""
    mirror: str | None = None
    """A folder in a bucket, as gs://bucket/runs/resnet, that gets a copy of the run directory twice
    a minute and at the end; where the directory has no run, that of the folder is taken up."""
    profile: str = ""
    """FIRST:LAST, as 100:200: traces the updates between these numbers into run_dir/profile."""
    watchdog: float = 0.0
    """Seconds without progress while training after which a run ends, with status 76 and the stacks
    of all threads in run_dir/stuck.txt; half an hour where programs are first compiled. Off by
    default: the time must exceed that of an evaluation, seconds in one experiment and an hour in
    another, and whoever sits before a terminal would rather look. For schedulers that requeue."""

    def rehearsal(self) -> "Options":
        """The values that `--smoke` takes in place of these."""
        return dataclasses.replace(self, seeds=self.seeds[:1], steps=60, evaluate_every=30)


Config = TypeVar("Config", bound=Options)
Parsed = TypeVar("Parsed")


def run(main: Callable[[Config], None], config_type: type[Config]) -> None:
    """Parses the command line into a config and calls `main`; a user's mistake is one line.

    The exit status is that of `one_line_errors`.
    """
    module = sys.modules[main.__module__]
    name = name_of(main).replace("/", ".")
    with one_line_errors():
        config = parse(config_type, name, module.__doc__)
        if config.smoke:
            # What was asked for by name holds in a rehearsal too.
            config = parse(config_type, name, module.__doc__, default=config.rehearsal())
        from experiments import mirror, processes, training  # bring jax, which help does not need

        with processes.joined():
            if not processes.records():
                config = dataclasses.replace(config, track=())
            prepare(config)
            _check_network(module, config)
            with mirror.mirrored(training.directory_of(main, config), config.mirror):
                main(config)


def parse(config_type: type[Parsed], name: str, description: str | None, **options: Any) -> Parsed:
    """The command line as a dataclass.

    Args:
      config_type: the dataclass, whose fields are the options.
      name: of the module that runs, below `experiments`.
      description: for `--help`.
      **options: for `tyro.cli`.

    Raises:
      InputError: an argument that is no option.
    """
    import tyro

    config, unknown = tyro.cli(
        config_type,
        prog=f"python -m experiments.{name}",
        description=description,
        return_unknown_args=True,
        **options,
    )
    _refuse(unknown, config_type)
    return config


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Ends the process with one line where the user is to mend something.

    The exit status is 2 for bad input, 3 for training that diverged, 75 for a run that was stopped
    and can go on (a scheduler may requeue it), and 130 after an interrupt. A run that was stuck can
    go on too: `--watchdog` ends it with 76.
    """
    try:
        yield
    except InputError as error:
        _leave(str(error), 2)
    except NonFiniteError as error:
        _leave(str(error), 3)
    except Stopped as stopped:
        _leave(str(stopped), EXIT_STATUS, kind="stopped")
    except OSError as error:  # a file that may not be read, a disk that is full
        _leave(f"{error.filename or 'input or output'}: {error.strerror or error}", 2)
    except KeyboardInterrupt:
        _leave("interrupted: the same command resumes from the last checkpoint", 130)


def prepare(config: Options) -> None:
    """Checks the shared options, and sets the process up for `--debug`."""
    seeds = config.seeds
    if not seeds or len(set(seeds)) != len(seeds) or min(seeds) < 0 or max(seeds) >= 2**32:
        raise InputError(
            f"--seeds {' '.join(map(str, seeds)) or '(none)'}: expected distinct numbers from 0 to "
            "2**32 - 1"
        )
    if config.steps < 1 or config.evaluate_every < 1:
        raise InputError(
            f"--steps {config.steps} --evaluate-every {config.evaluate_every}: expected at least 1"
        )
    batch_size = getattr(config, "batch_size", 1)
    if batch_size < 1:
        raise InputError(f"batch size {batch_size}: --batch-size must be at least 1")
    if config.accumulate < 1:
        raise InputError(f"--accumulate {config.accumulate}: expected at least 1 part")
    if config.keep < 1 or config.keep_every < 0 or config.keep_every % config.evaluate_every:
        raise InputError(
            f"--keep {config.keep} --keep-every {config.keep_every}: expected at least 1 "
            f"checkpoint, and a multiple of --evaluate-every {config.evaluate_every}, after which "
            "they are saved, or 0"
        )
    if config.spike and not 1 < config.spike < math.inf:
        raise InputError(f"--spike {config.spike:g}: expected a factor above 1, or 0 for none")
    if config.spike and config.on_nonfinite == "skip":
        raise InputError(
            "--spike --on-nonfinite skip: updates that are done cannot be left out, choose stop or "
            "rollback"
        )
    if not 0 <= config.watchdog < math.inf:
        raise InputError(f"--watchdog {config.watchdog:g}: expected seconds, or 0 for none")
    updates = profiled_updates(config)
    if updates is not None and updates[1] > config.steps:
        raise InputError(
            f"--profile {config.profile}: there are only {config.steps} updates (--steps)"
        )
    if config.debug:
        import jax

        jax.config.update("jax_disable_jit", True)
        jax.config.update("jax_debug_nans", True)


def check_parts(config: Options, *batch_sizes: int) -> None:
    """Raises InputError for `--accumulate` where one of several stages has a batch too odd for it.

    `accumulated` finds it too, but of each stage when its turn has come.
    """
    for size in batch_sizes:
        if size % config.accumulate:
            raise InputError(
                f"--accumulate {config.accumulate}: a batch of {size} does not divide into as many "
                "parts; choose a divisor, or another batch size"
            )


def profiled_updates(config: Options) -> tuple[int, int] | None:
    """What `--profile` asks for: updates done when the trace begins, and when it ends.

    It covers the whole dispatches that contain these updates. None without the option.

    Raises:
      InputError: it is not two numbers, the first below the second.
    """
    if not config.profile:
        return None
    found = re.fullmatch(r"(\d+):(\d+)", config.profile)
    if found is None or int(found[1]) >= int(found[2]):
        raise InputError(
            f"--profile {config.profile}: expected FIRST:LAST, as 10:15, two numbers of updates "
            "with the smaller one first"
        )
    return int(found[1]), int(found[2])


def name_of(main: Callable[..., Any]) -> str:
    """The experiment's name, "supervised/mnist_cnn", from the file of its `main`."""
    path = Path(sys.modules[main.__module__].__file__ or "").resolve()
    return path.relative_to(_ROOT).with_suffix("").as_posix()


def variation(config: Options) -> str:
    """What tells a run from the usual one, for the name of its directory.

    For instance "-split=1", or "-smoke"; nothing for the defaults.
    """
    usual = type(config)(smoke=config.smoke)
    if config.smoke:
        usual = usual.rehearsal()
    parts = ["-smoke"] if config.smoke else []
    for name, value in to_json(config).items():
        if name not in FREE and value != to_json(usual)[name]:
            text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
            parts.append(f"-{name}={re.sub(r'[^A-Za-z0-9._,+-]', '_', text)}")
    return "".join(parts)


def to_json(config: Options) -> dict[str, Any]:
    """The config as JSON values, field by field."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def from_json(config_type: type[Config], values: dict[str, Any]) -> Config:
    """The config that `to_json` described.

    Raises:
      InputError: the fields are not those of `config_type`.
    """
    fields = get_type_hints(config_type)
    differing = sorted(set(values) ^ set(fields))
    if set(differing) - set(FREE):
        raise InputError(
            f"config.json is of another version of this experiment: it differs in {differing}"
        )
    restored: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
    }
    for name in ("run_dir", "data_dir"):
        restored[name] = None if values.get(name) is None else Path(values[name])
    return config_type(**restored)


def _refuse(unknown: list[str], config_type: type) -> None:
    """Names the first argument that is no option, in one line with the options most like it."""
    if unknown:
        options = [f"--{name.replace('_', '-')}" for name in get_type_hints(config_type)]
        near = difflib.get_close_matches(unknown[0], options, cutoff=0.7)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise InputError(f"unknown option {unknown[0]}: {hint}--help lists all")


def _check_network(module: ModuleType, config: Options) -> None:
    """Builds the net, which costs nothing, for `nets` knows no `InputError`."""
    try:
        module.network(config)
    except ValueError as error:
        raise InputError(str(error)) from error


def _leave(message: str, status: int, kind: str = "error") -> None:
    print(f"{kind}: {message}", file=sys.stderr, flush=True)
    sys.exit(status)
