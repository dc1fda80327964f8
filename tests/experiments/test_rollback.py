"""Runs that diverge go back and on with other data, and end in the same bits however disturbed."""

import json
import os
import re
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nets
from experiments import cli, rollback, tasks, training
from experiments.supervised import digits_mlp
from paradigms.core import loop
from paradigms.core.checkpoint import Checkpoints
from paradigms.core.errors import InputError, NonFiniteError, Stopped
from paradigms.core.metrics import Mean
from paradigms.core.progress import Progress
from paradigms.core.provenance import state_sha256_per_run
from paradigms.core.record import Curve, read_metrics
from paradigms.core.state import TrainState, fold_name
from paradigms.core.transforms import resident, seeded
from paradigms.supervised import classifier

NET = nets.mlp((4,), 2)
DATA = {
    "x": np.asarray(jax.random.normal(jax.random.key(1), (40, 3))),
    "label": np.arange(40) % 2,
}
PLAIN = classifier(NET, optax.sgd(0.1), input_name="x")


def poisoned(where, poison=float("nan")):
    """A classifier whose loss is multiplied with `poison` where `where(state)` says so."""

    def update(state, batch):
        new, metrics = PLAIN.update(state, batch)
        bad = jnp.where(where(state), poison, 1.0)
        loss = metrics["loss"]
        return new, {**metrics, "loss": Mean(total=loss.total * bad, count=loss.count)}

    return PLAIN._replace(update=update)


def in_update(*numbers, of_seed, folds=(0,)):
    """Whether a state is about to do one of these updates with one of these keys of a seed."""
    keys = [jax.random.key(of_seed)]
    for _ in range(max(folds)):
        keys.append(fold_name(keys[-1], "rollback"))
    data = np.stack([jax.random.key_data(keys[fold]) for fold in folds])

    def where(state):
        own = (jax.random.key_data(state.key) == data).all(-1).any()
        return own & jnp.isin(state.step + 1, np.asarray(numbers))

    return where


def either(*places):
    return lambda state: jnp.stack([place(state) for place in places]).any()


@pytest.fixture(scope="module")
def train():
    """Trains 40 updates of two runs, evaluated every 10, two to a dispatch: the summary."""

    def train(directory, learner, **options):
        config = cli.Options(
            seeds=(0, 1),
            steps=40,
            evaluate_every=10,
            run_dir=directory,
            **{"on_nonfinite": "rollback", **options},
        )
        task = tasks.labelled(
            NET,
            learner,
            train=DATA,
            batch_size=8,
            validation=None,
            test=DATA,
            input_name="x",
            headline="loss",
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(training, "_UPDATES_PER_CALL", 2)
            patch.setattr(training, "draw_curves", lambda *_: None)
            patch.setattr(loop, "_SECONDS_BETWEEN_FETCHES", 0)
            return training.train(digits_mlp.main, config, task)

    return train


def digests(summary):
    return [run["state_sha256"] for run in summary["runs"]]


# Seed 1 fails twice, the second time sooner, and seed 0 does not.
FAILING = either(in_update(27, of_seed=1), in_update(23, of_seed=1, folds=(1,)))
RECORDS = [
    {"seed": 1, "number": number, "step": step, "back_to": 20, "what": "loss is not finite"}
    for number, step in ((1, 27), (2, 23))
]


@pytest.fixture(scope="module")
def by_hand():
    """The fingerprints that the two runs of `FAILING` must end with, from a loop of its own."""
    learner = seeded(resident(poisoned(FAILING), 8))
    update = jax.jit(learner.update)
    data = jax.tree.map(jnp.asarray, DATA)
    state = jax.jit(learner.init)(jnp.stack([jax.random.key(seed) for seed in (0, 1)]), data)

    for step in range(40):
        if step == 20:
            key = fold_name(fold_name(state.key[1], "rollback"), "rollback")
            state = state.replace(key=state.key.at[1].set(key))
        state, _ = update(state, data)
    return state_sha256_per_run(state, 2)


@pytest.fixture(scope="module")
def peace(train, tmp_path_factory):
    """The directory of a run that fails, and that nothing disturbs."""
    directory = tmp_path_factory.mktemp("peace")
    train(directory, poisoned(FAILING))
    return directory


def test_a_run_that_fails_goes_on_with_the_next_of_its_keys_and_the_others_as_they_would(
    peace, by_hand
):
    summary = json.loads((peace / "summary.json").read_text())
    assert digests(summary) == by_hand
    assert summary["rollbacks"] == json.loads((peace / "rollbacks.json").read_text()) == RECORDS
    curve = read_metrics(peace)["train/loss"]
    assert curve.steps.tolist() == [10, 20, 30, 40] and np.isfinite(curve.values).all()


class Killed(BaseException):
    """Stands for SIGKILL: nothing after it is done."""


@pytest.fixture
def disturb(monkeypatch):
    """`disturb((how, step), ...)`: each of them once, in this order."""
    save, advance = Checkpoints.save, Progress.advance
    todo = []

    def dying(self, step, state, score=None):
        save(self, step, state, score)
        self.wait()
        if todo[:1] == [("kill after saving", step)]:
            todo.pop(0)
            raise Killed

    def stopping(self, step):
        advance(self, step)
        if todo[:1] == [("stop", step)]:
            todo.pop(0)
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Checkpoints, "save", dying)
    monkeypatch.setattr(Progress, "advance", stopping)
    return todo.extend


def test_a_run_that_fails_ends_in_the_same_bits_however_disturbed(
    train, peace, by_hand, tmp_path, disturb
):
    disturbances = (
        # Before it fails, so often that the checkpoint to go back to is not among the newest two.
        *(("stop", 22), ("stop", 24), ("stop", 26)),
        # In the attempt that succeeds, behind a checkpoint of the one that fails.
        ("stop", 24),
        ("kill after saving", 30),
    )
    disturb(disturbances)
    for _ in disturbances:
        with pytest.raises((Killed, Stopped)):
            train(tmp_path, poisoned(FAILING))
    summary = train(tmp_path, poisoned(FAILING))
    assert digests(summary) == by_hand
    assert summary["rollbacks"] == RECORDS
    for name in ("metrics.csv", "rollbacks.json"):
        assert (tmp_path / name).read_bytes() == (peace / name).read_bytes()


class Directory:
    """What rollbacks see of a run directory, with these losses of two runs behind it."""

    def __init__(self, directory=None, losses=()):
        curve = Curve(np.arange(len(losses)), np.asarray(losses, float).T)
        self.directory = directory
        self.read_metrics = lambda: {"train/loss": curve} if losses else {}


def test_a_run_that_fails_with_every_key_gives_up(tmp_path, capsys):
    def start():
        keys = jnp.stack([jax.random.key(seed) for seed in (4, 5)])
        return TrainState(step=jnp.full(2, 10), key=keys, params=jnp.ones(2))

    config = cli.Options(seeds=(4, 5), evaluate_every=10)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(10, start())
    # In the third update of a dispatch, after 12 others, and seed 4 later still.
    loss = Mean(total=np.ones((6, 2)), count=np.ones((6, 2)))
    loss.total[2:, 1] = loss.total[4:, 0] = np.nan
    error = NonFiniteError("", 12, {"loss": loss})
    state, seen = start(), []
    for _ in range(3):
        # A process of its own each time, that knows no more than the state.
        rollbacks = rollback.Rollbacks(Directory(tmp_path), config, checkpoints, start, start().key)
        rollbacks.resumes(state)
        state = rollbacks.back(error)
        seen += jax.random.key_data(state.key).tolist()
    assert len({tuple(key) for key in seen}) == 6
    said = capsys.readouterr().err
    assert "loss is not finite at step 15 of seed 5: back to step 10, for the 3. time" in said
    log = rollbacks.log()
    assert [(r["seed"], r["step"]) for r in log] == [(4, 17)] * 3 + [(5, 15)] * 3
    with pytest.raises(NonFiniteError, match="step 17 of seed 4, .* back 3 times") as caught:
        rollbacks.back(error)
    assert "\n" not in str(caught.value)


def test_a_spike_of_the_loss_is_a_failure(train, tmp_path):
    high = poisoned(in_update(*range(31, 41), of_seed=0), poison=10.0)
    with pytest.raises(NonFiniteError, match="train/loss is .* usual, at step 40 of seed 0: the"):
        train(tmp_path, high, spike=3.0, on_nonfinite="stop")
    (record,) = train(tmp_path, high, spike=3.0)["rollbacks"]
    assert (record["seed"], record["step"], record["back_to"]) == (0, 40, 30)
    assert re.fullmatch(r"train/loss is \S+, where \S+ is usual,", record["what"])
    assert read_metrics(tmp_path)["train/loss"].values.max() < 3


@pytest.mark.parametrize(
    ("before", "now", "spikes"),
    [
        ([], (9, 9), {}),
        ([(1, 1)] * 2, (9, 9), {}),  # too few to tell what is usual
        ([(1, 1)] * 3, (2, 2.01), {1}),
        ([(9, 9), (1, 1), (1, 1), (1, 2), (2, 1), (2, 3)], (2.01, 4.01), {0, 1}),
        ([(9, 9), (9, 9), (9, 9), (1, 9), (1, 9), (1, 9)], (2.01, 17), {0}),  # the last five
        ([(-4, 0), (-4, 0), (-4, 0)], (0.01, 0), {0}),
        ([(-4, 0), (-4, 0), (-4, 0)], (-0.01, -1), {}),
        ([(1, 1)] * 3, (float("nan"), 1), {0}),
    ],
)
def test_a_spike_is_above_the_factor_times_the_median_of_the_last_five(before, now, spikes):
    config = cli.Options(seeds=(0, 1), spike=2.0)
    found = {}
    try:
        rollback.check_loss(config, Directory(losses=before), 60, {"train/loss": list(now)}, "")
    except rollback.LossSpikeError as error:
        found = error.failures
    assert set(found) == set(spikes)


def test_a_loss_that_is_not_reported_cannot_be_looked_at(train, tmp_path):
    def update(state, batch):
        new, metrics = PLAIN.update(state, batch)
        return new, {"accuracy": metrics["accuracy"]}

    with pytest.raises(InputError, match="--spike: this experiment reports accuracy, but no loss"):
        train(tmp_path, PLAIN._replace(update=update), spike=2.0)
    assert not (tmp_path / "config.json").exists()  # nothing was computed


def test_a_key_of_another_seed_is_refused():
    states = [TrainState.create(jnp.stack([jax.random.key(seed)]), ()) for seed in (0, 1)]
    config = cli.Options(seeds=(0,))
    rollbacks = rollback.Rollbacks(Directory(Path()), config, None, None, states[0].key)
    rollbacks.resumes(states[0])
    with pytest.raises(InputError, match="the key in the checkpoint is none of seed 0's"):
        rollbacks.resumes(states[1])
