"""Where metrics go besides `metrics.csv` while a run goes on: TensorBoard and Weights & Biases."""

import contextlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments import cli
from paradigms.core.errors import MissingExtraError

Log = Callable[[int, Mapping[str, Sequence[float]]], None]
"""`(step, values)`, by name the value of each run."""

_WANDB_ID = "wandb_id"


def check(config: cli.Options) -> None:
    """Raises MissingExtraError where the package of a service in `--track` is not installed."""
    for service in config.track:
        package = _PACKAGES[service]
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, service, f"--track {service}")


@contextlib.contextmanager
def tracking(config: cli.Options, directory: Path, step: int) -> Iterator[Log]:
    """Sends what is logged to each service that `--track` names.

    Args:
      config: the experiment's options.
      directory: of the run, which keeps what the services need to take a run up again.
      step: updates done before; what was sent of later ones is made anew.
    """
    with contextlib.ExitStack() as stack:
        logs = []
        for service in config.track:
            log, close = _SERVICES[service](config, directory, step)
            stack.callback(close)
            logs.append(log)

        def log_everywhere(step: int, values: Mapping[str, Sequence[float]]) -> None:
            for log in logs:
                log(step, values)

        yield log_everywhere


def _tensorboard(
    config: cli.Options, directory: Path, step: int
) -> tuple[Log, Callable[[], object]]:
    """One folder of events for each seed, so that TensorBoard draws their curves together."""
    from tensorboardX import SummaryWriter

    folder, purge = directory / "tensorboard", step + 1 if step else None
    writers = [
        SummaryWriter(str(folder / f"seed-{seed}"), purge_step=purge) for seed in config.seeds
    ]

    def log(step: int, values: Mapping[str, Sequence[float]]) -> None:
        for name, numbers in values.items():
            for writer, number in zip(writers, numbers, strict=True):
                writer.add_scalar(name, number, step)
        for writer in writers:
            writer.flush()

    def close() -> None:
        for writer in writers:
            writer.close()

    return log, close


def _wandb(config: cli.Options, directory: Path, step: int) -> tuple[Log, Callable[[], object]]:
    """One run of the service, which goes on where ours resumes; seeds are told apart by name."""
    import wandb

    del step  # `step` is a metric of its own: what comes twice replaces what came before
    kept = directory / _WANDB_ID
    if not kept.exists():
        kept.write_text(wandb.util.generate_id())
    run: Any = wandb.init(
        project="paradigms",
        name=directory.name,
        id=kept.read_text(),
        resume="allow",
        dir=str(directory),
        config=cli.to_json(config),
    )
    run.define_metric("*", step_metric="step")

    def log(step: int, values: Mapping[str, Sequence[float]]) -> None:
        numbers = {
            f"{name}/seed-{seed}": number
            for name, each in values.items()
            for seed, number in zip(config.seeds, each, strict=True)
        }
        run.log({"step": step, **numbers})

    return log, run.finish


_SERVICES = {"tensorboard": _tensorboard, "wandb": _wandb}
_PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb"}
