"""`--remat`: the same learning, and no work that changes nothing."""

import jax
import numpy as np
import pytest

import nets
from experiments import cli, tasks, training
from experiments.self_supervised import mae_digits
from paradigms.core import optimizers
from paradigms.core.errors import InputError
from paradigms.supervised import classifier

DATA = {
    "image": np.asarray(jax.random.normal(jax.random.key(1), (16, 8, 8, 1))),
    "label": np.arange(16) % 4,
}


def train(directory, net, remat):
    learner = classifier(net, optimizers.adam(0.01))
    task = tasks.labelled(net, learner, train=DATA, batch_size=8, validation=None, test=DATA)
    options = cli.Options((0,), 4, 4, run_dir=directory, remat=remat)
    return training.train(mae_digits.main, options, task)


def test_a_run_learns_the_same(tmp_path):
    # Dropout, so that what is drawn is drawn again.
    net = nets.vit(4, 8, 2, 2, 16, 4, dropout=0.2)
    plain = train(tmp_path / "plain", net, remat=False)
    again = train(tmp_path / "again", net, remat=True)
    loss = [each["metrics"]["test/loss"]["mean"] for each in (plain, again)]
    np.testing.assert_allclose(*loss, rtol=1e-5)
    # A model's operations are its own: utilisation is not raised by doing them twice.
    flops = [each["speed"]["flops_per_update"] for each in (plain, again)]
    assert flops[0] == flops[1] > 0


def test_nets_without_blocks_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(InputError, match="--remat: the nets of this experiment have no blocks"):
        train(tmp_path, nets.mlp((4,), 4), remat=True)
    assert not (tmp_path / "metrics.csv").exists()
