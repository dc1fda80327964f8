"""`--accumulate`: the same learning from parts of each batch, or a clear no beforehand."""

import numpy as np
import pytest

import nets
from experiments import cli, tasks, training
from experiments.semi_supervised import pseudo_label_mnist100
from experiments.supervised import digits_mlp, transfer
from paradigms.core import optimizers
from paradigms.core.errors import InputError
from paradigms.self_supervised import simclr
from paradigms.supervised import classifier

DATA = {
    "image": np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32),
    "label": np.arange(16) % 4,
}
NET = nets.mlp((4,), 4)


def train(directory, accumulate, learner=None):
    learner = learner or classifier(NET, optimizers.adam(0.01))
    task = tasks.labelled(NET, learner, train=DATA, batch_size=8, validation=None, test=DATA)
    options = cli.Options((0, 1), 4, 4, run_dir=directory, accumulate=accumulate)
    return training.train(digits_mlp.main, options, task)


def test_a_run_learns_the_same(tmp_path):
    whole, in_parts = train(tmp_path / "whole", 1), train(tmp_path / "parts", 4)
    for name in ("test/loss", "test/accuracy"):
        values = [each["metrics"][name]["values"] for each in (whole, in_parts)]
        np.testing.assert_allclose(*values, rtol=1e-5)
    # XLA counts the body of a loop once; the work is that of the whole batch all the same.
    assert whole["speed"]["flops_per_update"] == in_parts["speed"]["flops_per_update"] > 0
    with pytest.raises(InputError, match="accumulate was 4, now 2"):
        train(tmp_path / "parts", 2)


def test_what_cannot_be_is_refused_before_anything_is_written(tmp_path):
    contrast = simclr(NET, nets.mlp((), 4), optimizers.sgd(0.1), lambda key, image: image)
    for accumulate, learner, message in (
        (3, None, "a batch of 8 does not divide into 3 parts"),
        (2, contrast, "this learner does not take its gradient in parts"),
    ):
        with pytest.raises(InputError, match=message):
            train(tmp_path, accumulate, learner)
        assert not (tmp_path / "metrics.csv").exists()


@pytest.mark.parametrize(
    ("experiment", "options", "size"),
    [
        (transfer, {"batch_size": 50, "pretrain_batch_size": 128}, 50),
        (pseudo_label_mnist100, {"batch_size": 64, "labels": 30}, 30),
    ],
)
def test_of_several_stages_none_is_begun(experiment, options, size, tmp_path):
    config = experiment.Config(smoke=True, accumulate=4, run_dir=tmp_path / "run", **options)
    with pytest.raises(InputError, match=f"--accumulate 4: a batch of {size} does not divide"):
        experiment.main(config)
    assert not (tmp_path / "run" / "summary.json").exists()


def test_fewer_than_one_part_is_one_line():
    with pytest.raises(InputError, match="--accumulate 0: expected at least 1"):
        cli.prepare(cli.Options(accumulate=0))
