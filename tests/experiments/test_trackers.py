"""What `--track` sends to TensorBoard and to Weights & Biases."""

import json
import sys
import types

import pytest

from experiments import cli, trackers
from paradigms.core.errors import InputError

VALUES = {"validation/accuracy": [0.25, 0.5], "train/loss": [2.0, 1.5]}


def read_events(folder):
    """`(name, step, value)` of every number in the events of TensorBoard."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted(folder.glob("events*")):
        data = path.read_bytes()
        while data:  # length, its checksum, the event, its checksum
            length = int.from_bytes(data[:8], "little")
            event = Event.FromString(data[12 : 12 + length])
            found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
            data = data[16 + length :]
    return found


def test_tensorboard_gets_one_folder_a_seed(tmp_path):
    config = cli.Options(seeds=(3, 7), track=("tensorboard",))
    with trackers.tracking(config, tmp_path, 0) as log:
        log(0, VALUES)
        log(100, {"train/loss": [1.0, 0.5]})
    found = {seed: read_events(tmp_path / "tensorboard" / f"seed-{seed}") for seed in (3, 7)}
    assert found[3] == [
        *[("validation/accuracy", 0, 0.25), ("train/loss", 0, 2.0)],
        ("train/loss", 100, 1.0),
    ]
    assert found[7] == [
        *[("validation/accuracy", 0, 0.5), ("train/loss", 0, 1.5)],
        ("train/loss", 100, 0.5),
    ]


class Wandb(types.ModuleType):
    """As much of the service's package as is used, which remembers what it was told."""

    def __init__(self):
        super().__init__("wandb")
        self.__spec__ = types.SimpleNamespace(name="wandb")
        self.util = types.SimpleNamespace(generate_id=lambda: "abc123")
        self.runs, self.logged, self.finished = [], [], 0

    def init(self, **settings):
        self.runs.append(settings)
        return self

    def define_metric(self, name, step_metric):
        assert (name, step_metric) == ("*", "step")

    def log(self, values):
        self.logged.append(values)

    def finish(self):
        self.finished += 1


def test_wandb_gets_one_run_which_goes_on(tmp_path, monkeypatch):
    wandb = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    config = cli.Options(seeds=(3, 7), track=("wandb",))
    trackers.check(config)
    for step in (0, 100):
        with trackers.tracking(config, tmp_path, step) as log:
            log(step, VALUES)
    first, second = wandb.runs
    assert first == second
    assert first["id"] == "abc123" and first["resume"] == "allow"
    assert first["config"] == json.loads(json.dumps(cli.to_json(config)))
    numbers = {
        **{"validation/accuracy/seed-3": 0.25, "validation/accuracy/seed-7": 0.5},
        **{"train/loss/seed-3": 2.0, "train/loss/seed-7": 1.5},
    }
    assert wandb.logged == [{"step": 0, **numbers}, {"step": 100, **numbers}]
    assert wandb.finished == 2


def test_a_run_that_fails_closes_what_it_sent(tmp_path, monkeypatch):
    wandb = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    with (
        pytest.raises(ZeroDivisionError),
        trackers.tracking(cli.Options(track=("wandb",)), tmp_path, 0),
    ):
        raise ZeroDivisionError
    assert wandb.finished == 1


def test_a_package_that_is_missing_is_named_before_anything_runs(monkeypatch):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    for service, package in (("tensorboard", "tensorboardX"), ("wandb", "wandb")):
        with pytest.raises(InputError, match=f"{package}.*paradigms\\[{service}\\]"):
            trackers.check(cli.Options(track=(service,)))


def test_a_run_is_tracked_where_it_is_asked_for(python, short, finished, tmp_path):
    """The same numbers as in metrics.csv; and tracking does not change what a run is."""
    options = (*short, "--run-dir", tmp_path, "--track", "tensorboard")
    done = python("-m", "experiments.supervised.digits_mlp", *options)
    assert done.returncode == 0, done.stderr
    rows = (tmp_path / "metrics.csv").read_text().splitlines()[1:]
    expected = sorted(
        (name, int(step), float(value))
        for run, step, name, value in (row.split(",") for row in rows)
        if run == "1"
    )
    sent = sorted(read_events(tmp_path / "tensorboard" / "seed-1"))
    assert [row[:2] for row in sent] == [row[:2] for row in expected]
    assert [row[2] for row in sent] == pytest.approx([row[2] for row in expected], rel=1e-6)
    digests = [
        [run["state_sha256"] for run in json.loads((path / "summary.json").read_text())["runs"]]
        for path in (tmp_path, finished)
    ]
    assert digests[0] == digests[1]
