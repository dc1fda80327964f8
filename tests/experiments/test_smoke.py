"""Every experiment's rehearsal: offline, from its command line, and it learns."""

import csv
from collections import defaultdict

import numpy as np
import pytest

from experiments import catalogue

# What `make test` rehearses, something of every paradigm; `make test-slow` takes the others.
QUICK = {
    "reinforcement/ppo_cartpole",
    "self_supervised/gpt_shakespeare",
    "semi_supervised/pi_model_mnist100",
    "supervised/digits_mlp",
    "unsupervised/ae_digits",
}
# What the first held-out metric of these that there is must gain in a rehearsal, or lose where less
# is better: from the untrained net to the trained one, on the same examples.
GAINS = {
    "accuracy": 0.05,
    "return": 20.0,
    "log_likelihood": 10.0,
    "elbo_1": 10.0,
    "modes": 5.0,
    "frechet": -50.0,
    "squared_error": -0.05,
    "subspace_distance": -0.5,
    "reconstruction": -0.01,
    "few_label_probe": 0.015,
    "loss": -0.5,
}
BRICK = 1.0  # what one is worth in MinAtar's Breakout
COMMANDS = [(name,) for name in catalogue.names()]
COMMANDS.append(("supervised/fashion_mnist_cnn", "--size", "large"))


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(command, marks=[] if command[0] in QUICK else [pytest.mark.slow])
        for command in COMMANDS
    ],
    ids=lambda command: "_".join(command),
)
def test_smoke_learns_offline(python, tmp_path, command):
    name, *options = command
    module = f"experiments.{name.replace('/', '.')}"
    done = python("-m", module, "--smoke", *options, "--run-dir", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "test/" in done.stdout
    gains = [_gain(path, name) for path in tmp_path.rglob("metrics.csv")]
    learnt = [gain for gain in gains if gain is not None]
    assert learnt
    assert all(learnt), gains


def _gain(path, name):
    """Whether a run has learnt; None where it has nothing to be judged by."""
    values = defaultdict(lambda: defaultdict(list))
    for row in csv.DictReader(path.read_text().splitlines()):
        values[row["name"]][int(row["step"])].append(float(row["value"]))
    # What a masked autoencoder of so few updates has learnt is to fill in, not yet to tell apart.
    gains = {"loss": GAINS["loss"]} if "mae_" in name else GAINS
    for metric, enough in gains.items():
        if found := values.get(f"validation/{metric}"):
            least = BRICK if "minatar" in name else enough
            gain = np.mean(found[max(found)]) - np.mean(found[min(found)])
            return gain > least if enough > 0 else gain < least
    return None
