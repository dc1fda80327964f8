import json
import shutil

import numpy as np
import pytest

from experiments import load
from experiments.prediction import load_weights
from nets import mlp
from paradigms import data
from paradigms.core.errors import InputError
from paradigms.core.exchange import load_function
from paradigms.core.exchange import load_weights as load_weights_file


def copy_of(finished, directory, leave_out=(), **changes):
    shutil.copytree(finished, directory, ignore=shutil.ignore_patterns(*leave_out, "checkpoints"))
    config = json.loads((directory / "config.json").read_text()) | changes
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def test_predicts_as_the_final_evaluation_did(finished):
    trained, test = load(finished), data.digits("test")
    assert trained.config.width == 32
    summary = json.loads((finished / "summary.json").read_text())
    for run, of_run in enumerate(summary["runs"]):
        logits = np.asarray(trained(test["image"], run=run))
        assert logits.shape == (500, 10)
        accuracy = (logits.argmax(-1) == test["label"]).mean()
        assert accuracy == pytest.approx(of_run["metrics"]["test/accuracy"], abs=1e-6)


@pytest.mark.parametrize(
    "inputs",
    [
        np.zeros((1, 8, 8), np.uint8),
        np.zeros((8, 8, 1), np.uint8),
        np.zeros((1, 9, 8, 1), np.uint8),
        np.zeros((1, 8, 8, 1), np.float32),
        np.uint8(0),
    ],
)
def test_other_inputs_are_one_clear_line(finished, inputs):
    with pytest.raises(InputError, match=r"trained on uint8 \[B, 8, 8, 1\]$"):
        load(finished)(inputs)


@pytest.mark.parametrize("run", [2, -1])
def test_a_run_that_is_not_there_is_refused(finished, run):
    with pytest.raises(InputError, match=f"no run {run}: the directory holds 2"):
        load(finished)(np.zeros((1, 8, 8, 1), np.uint8), run=run)


def test_directories_that_cannot_be_loaded_are_one_clear_line(finished, tmp_path):
    with pytest.raises(InputError, match="is not a run directory"):
        load(tmp_path / "nowhere")
    unfinished = copy_of(finished, tmp_path / "unfinished", leave_out=["summary.json"])
    with pytest.raises(InputError, match="holds no finished run"):
        load(unfinished)
    without_net = copy_of(finished, tmp_path / "without_net", leave_out=["net"])
    with pytest.raises(InputError, match="no checkpoint"):
        load(without_net)
    other = copy_of(finished, tmp_path / "other", momentum=0.9)
    with pytest.raises(InputError, match=r"another version.*\['momentum'\]"):
        load(other)


@pytest.mark.parametrize(
    "name", ["supervised/unknown", "supervised/__init__", "benchmarks/execution", "os", None]
)
def test_a_config_cannot_name_what_is_no_experiment(finished, tmp_path, name):
    forged = copy_of(finished, tmp_path / "forged", experiment=name)
    with pytest.raises(InputError, match="which does not exist"):
        load(forged)


def test_weights_of_another_net_are_refused(finished):
    with pytest.raises(InputError, match="another configuration"):
        load_weights(finished, mlp((16, 16), 10))


def test_a_trained_net_is_exported(python, finished, tmp_path):
    images = data.digits("test")["image"][:5]
    trained = load(finished)
    for name in ("net.safetensors", "net.jax"):
        done = python("-m", "experiments", "export", finished, tmp_path / name, "--run", 1)
        assert done.returncode == 0, done.stderr
    weights = load_weights_file(tmp_path / "net.safetensors", trained.of(1))
    output, _ = trained.net.apply(weights["params"], weights["model_state"], images)
    np.testing.assert_allclose(output, trained(images, run=1), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        load_function(tmp_path / "net.jax")(images), trained(images, run=1), rtol=1e-5, atol=1e-5
    )
    refused = python("-m", "experiments", "export", finished, tmp_path / "net.pickle")
    assert refused.returncode == 2
    assert "expected a name that ends in .safetensors or .jax" in refused.stderr
