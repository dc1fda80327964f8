"""The command line: what it takes, and that a user's mistake is one line and status 2."""

import importlib
import json
import os
import re
import shutil
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

import jax
import pytest

from experiments import catalogue, cli
from experiments.supervised import cifar10_speedrun, digits_mlp, mnist_cnn, transfer
from paradigms.core.record import Run

# Tiny, for what these tests run is compiled.
TINY = ("--steps", "2", "--evaluate-every", "2", "--seeds", "0", "--width", "4")


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    """Nothing outside the temporary folder is read or written, and nothing is downloaded."""

    def refuse(*_, **__):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setenv("PARADIGMS_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("PARADIGMS_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)


def is_one_line(found, status, *expected):
    """Whether a command left with a status and one line that has all that is expected."""
    left, _, stderr = found
    *progress, line = stderr.strip().splitlines()
    assert left == status
    assert line.startswith("error: ")
    assert all(entry.startswith(("step ", "resuming ")) for entry in progress), stderr
    for part in expected:
        assert part in line
    return True


@pytest.fixture
def parsed(command, monkeypatch):
    """Parses a command line and gives the config that `main` would get."""

    def parse(*options):
        def main(config):
            seen.append(config)

        seen = []
        monkeypatch.setattr(main, "__module__", digits_mlp.__name__)
        monkeypatch.setattr(digits_mlp, "main", main)
        assert command(*options)[0] == 0
        return seen[0]

    return parse


def test_options_become_the_config(parsed):
    options = "--seeds 3 5 --steps 7 --run-dir a --mesh data=2 --precision bfloat16 --split 1"
    assert parsed(*options.split()) == digits_mlp.Config(
        seeds=(3, 5), steps=7, run_dir=Path("a"), mesh="data=2", precision="bfloat16", split=1
    )


def test_a_config_survives_json():
    config = digits_mlp.Config(seeds=(3,), run_dir=Path("a"), learning_rate=1e-30, smoke=True)
    values = json.loads(json.dumps(cli.to_json(config)))
    assert cli.from_json(digits_mlp.Config, values) == config


@pytest.mark.parametrize("name", catalogue.names())
def test_every_experiment_can_be_built_rehearsed_and_loaded(name):
    module = importlib.import_module(f"experiments.{name.replace('/', '.')}")
    config = module.Config()
    assert cli.name_of(module.main) == name
    assert cli.from_json(module.Config, cli.to_json(config)) == config
    assert config.rehearsal().steps < config.steps
    assert len(config.seeds) >= 3
    assert callable(module.network(config).apply)
    assert f"python -m experiments.{name.replace('/', '.')}" in module.__doc__


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--stepz", "4"), ["unknown option --stepz", "did you mean --steps?"]),
        (("--zzz",), ["unknown option --zzz", "--help"]),
        (("--steps", "4", "5"), ["unknown option 5"]),
        (("--seeds", "1", "2", "1"), ["--seeds 1 2 1", "distinct"]),
        (("--seeds",), ["--seeds (none)"]),
        (("--seeds", "-1"), ["--seeds -1"]),
        (("--seeds", "4294967296"), ["--seeds 4294967296", "2**32 - 1"]),
        (("--steps", "0"), ["--steps 0", "at least 1"]),
        (("--evaluate-every", "0"), ["--evaluate-every 0", "at least 1"]),
        (("--dropout", "2"), ["dropout", "2.0"]),
        (("--learning-rate", "-1"), ["-1", "at least 0"]),
        (("--batch-size", "1101"), ["batch size 1101", "1 to 1100"]),
        (("--batch-size", "0"), ["batch size 0"]),
        (("--validation", "1297"), ["1297", "1 to 1296"]),
        (("--spike", "1"), ["--spike 1", "a factor above 1"]),
        (("--spike", "2", "--on-nonfinite", "skip"), ["--spike --on-nonfinite skip", "rollback"]),
        (("--watchdog", "-1"), ["--watchdog -1", "expected seconds"]),
        (("--watchdog", "nan"), ["--watchdog nan", "expected seconds"]),
        (("--profile", "10"), ["--profile 10", "expected FIRST:LAST"]),
        (("--profile", "7:7"), ["--profile 7:7", "smaller one first"]),
        (("--profile=-1:7",), ["--profile -1:7", "expected FIRST:LAST"]),
        (("--steps", "9", "--profile", "5:10"), ["--profile 5:10", "only 9 updates (--steps)"]),
        (("--mesh", "data=3"), ["data=3", "3 devices"]),
        (("--mesh", "model=3"), ["model=3", "3 devices"]),
        (("--mesh", "data"), ["mesh 'data'"]),
    ],
)
def test_bad_options_are_one_clear_line(command, options, expected):
    assert is_one_line(command("--run-dir", "run", *options), 2, *expected)


@pytest.mark.parametrize(
    "options", [("--steps", "x"), ("--seeds", "a"), ("--precision", "float16"), ("--width",)]
)
def test_values_of_another_type_are_explained_without_a_traceback(command, options):
    status, _, stderr = command(*options)
    assert status == 2
    assert options[0] in stderr
    assert "Traceback" not in stderr


@pytest.mark.parametrize(
    ("experiment", "options", "expected"),
    [
        (cifar10_speedrun, ("--momentum", "1"), "--momentum 1.0"),
        (cifar10_speedrun, ("--learning-rate", "0"), "--learning-rate 0.0"),
        (transfer, ("--labels-per-class", "4"), "at most the 40 labels"),
        (transfer, ("--pretrain-steps", "2"), "--pretrain-steps 2"),
    ],
)
def test_mistakes_of_one_experiment(command, experiment, options, expected):
    found = command("--smoke", "--run-dir", "run", *options, experiment=experiment)
    assert is_one_line(found, 2, expected)
    assert not Path("run", "pretrain").exists()


def test_a_rehearsal_keeps_what_was_asked_for(parsed):
    usual = digits_mlp.Config()
    config = parsed("--smoke", "--seeds", "3", "4", "--evaluate-every", str(usual.evaluate_every))
    assert config == replace(
        usual.rehearsal(), smoke=True, seeds=(3, 4), evaluate_every=usual.evaluate_every
    )
    assert usual.rehearsal().evaluate_every < usual.evaluate_every  # asked for, though the default


def test_variations_of_an_experiment_have_directories_of_their_own():
    usual, smoke = digits_mlp.Config(), digits_mlp.Config(smoke=True).rehearsal()
    assert cli.variation(usual) == ""
    elsewhere = replace(usual, data_dir=Path("a"), mesh="data=2", debug=True, profile="1:2")
    assert cli.variation(elsewhere) == ""
    assert cli.variation(replace(usual, split=1, seeds=(3, 4))) == "-seeds=3,4-split=1"
    assert cli.variation(smoke) == "-smoke"
    assert cli.variation(replace(smoke, width=4)) == "-smoke-width=4"


def test_an_unreadable_file_is_one_clear_line(command, monkeypatch):
    def refuse(config):
        raise PermissionError(13, "Permission denied", "data/train.gz")

    monkeypatch.setattr(refuse, "__module__", digits_mlp.__name__)
    monkeypatch.setattr(digits_mlp, "main", refuse)
    assert is_one_line(command(), 2, "data/train.gz: Permission denied")


def test_a_mistake_does_not_keep_the_directory(command):
    for size in (5000, 6000):
        assert is_one_line(command("--run-dir", "run", "--batch-size", size), 2, str(size))


def test_another_configuration_is_refused_and_says_what_differs(command, finished, short, tmp_path):
    before = {path.name: path.read_bytes() for path in finished.glob("*.*")}
    found = command(*short, "--run-dir", finished, "--learning-rate", "0.5", "--max-shift", "2")
    differing = ("learning_rate was 0.002, now 0.5", "max_shift was 1, now 2", str(finished))
    assert is_one_line(found, 2, *differing)
    assert "width" not in found[2]
    assert {path.name: path.read_bytes() for path in finished.glob("*.*")} == before
    # Where data and devices are does not matter.
    elsewhere = ("--data-dir", tmp_path, "--mesh", "data=2")
    assert command(*short, "--run-dir", finished, *elsewhere)[0] == 0


def test_a_run_directory_serves_one_process(command, python, tmp_path):
    config = {"experiment": "supervised/digits_mlp", **cli.to_json(digits_mlp.Config())}
    with Run.open(tmp_path / "run", config):
        second = python("-m", "experiments", "run", "digits_mlp", "--run-dir", tmp_path / "run")
    found = (second.returncode, second.stdout, second.stderr)
    assert is_one_line(found, 2, f"in use by process {os.getpid()}")


def test_a_directory_that_cannot_be_written_is_one_clear_line(command, tmp_path):
    (tmp_path / "file").write_text("")
    found = command("--run-dir", tmp_path / "file" / "run")
    assert is_one_line(found, 2, "cannot use the run directory", "file/run")
    found = command("--run-dir", tmp_path / "file")
    assert is_one_line(found, 2, "cannot use the run directory", "File exists")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("")
    assert is_one_line(command("--run-dir", tmp_path / "thesis"), 2, "chapter.txt")


def test_a_full_disk_is_one_clear_line(command, monkeypatch):
    usage = shutil.disk_usage(".")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    found = command("--run-dir", "run", *TINY)
    assert is_one_line(found, 2, "too full for the checkpoint of step 0", "1,000 bytes free")


def test_a_missing_data_set_is_one_clear_line(command, tmp_path):
    found = command("--data-dir", tmp_path / "none", experiment=mnist_cnn)
    assert is_one_line(found, 2, "cannot download mnist", "train-images-idx3-ubyte.gz")


def test_a_damaged_data_set_is_one_clear_line(command, tmp_path):
    (tmp_path / "mnist").mkdir()
    for part in ("images-idx3", "labels-idx1"):
        (tmp_path / "mnist" / f"train-{part}-ubyte.gz").write_bytes(b"half a downl")
    found = command("--data-dir", tmp_path, experiment=mnist_cnn)
    assert is_one_line(found, 2, str(tmp_path / "mnist"))


def test_training_that_diverges_stops_and_names_the_last_good_checkpoint(command, tmp_path):
    options = (*TINY[2:], "--steps", "40", "--learning-rate", "1e30", "--run-dir", "run")
    found = command(*options)
    assert is_one_line(found, 3, "not finite at step", "the last good checkpoint is step")
    step, good = map(int, re.findall(r"step (\d+)", found[2].splitlines()[-1]))
    assert good < step <= 40
    assert (tmp_path / "run" / "checkpoints" / str(good)).is_dir()
    assert not (tmp_path / "run" / "checkpoints" / str(step)).exists()
    assert not (tmp_path / "run" / "summary.json").exists()


def test_updates_that_diverge_may_be_left_out_but_not_all_of_them(command, tmp_path):
    options = (*TINY[2:], "--steps", "80", "--evaluate-every", "20", "--run-dir", "run")
    found = command(*options, "--learning-rate", "1e30", "--on-nonfinite", "skip")
    assert is_one_line(found, 3, "every update up to step", "was left out", "last good checkpoint")
    assert "skipped" in (tmp_path / "run" / "metrics.csv").read_text()


def test_a_run_may_be_traced_and_watched_and_stays_the_run_that_it_is(command, tmp_path):
    options = ("--run-dir", "run", *TINY)
    assert command(*options, "--profile", "0:2", "--watchdog", "600")[0] == 0
    assert len(list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))) == 1
    (tmp_path / "run" / "summary.json").unlink()
    status, _, stderr = command(*options, "--profile", "1:2")
    assert status == 0 and "--profile 1:2: these updates were done before" in stderr


def test_an_interrupt_says_how_to_go_on(command, monkeypatch):
    def interrupt(config):
        raise KeyboardInterrupt

    monkeypatch.setattr(interrupt, "__module__", digits_mlp.__name__)
    monkeypatch.setattr(digits_mlp, "main", interrupt)
    assert is_one_line(command(), 130, "the same command resumes")


@pytest.fixture
def restored():
    """Sets back what `--debug` sets for the whole process."""
    before = {name: getattr(jax.config, name) for name in ("jax_disable_jit", "jax_debug_nans")}
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_debug_turns_jit_off_and_stops_where_a_nan_appears(restored):
    cli.prepare(digits_mlp.Config(debug=True))
    assert jax.config.jax_disable_jit
    with pytest.raises(FloatingPointError):
        jax.numpy.log(-1.0)


@pytest.mark.slow  # without jit every operation is compiled on its own
def test_debug_trains(command, restored):
    options = ("--steps", "1", "--seeds", "0", "--width", "2", "--batch-size", "4")
    assert command("--debug", *options, "--validation", "10", "--run-dir", "run")[0] == 0


def test_a_batch_that_does_not_divide_over_the_mesh_is_refused(python, tmp_path):
    """In a process of its own, for the number of devices is fixed when jax starts."""
    script = (
        "import os, runpy, sys; "
        "os.environ['XLA_FLAGS'] = '--xla_force_host_platform_device_count=2'; "
        "runpy.run_module('experiments.supervised.digits_mlp', run_name='__main__', alter_sys=True)"
    )
    options = (*TINY, "--mesh", "data=2", "--batch-size", "33", "--run-dir", tmp_path)
    done = python("-c", script, *options)
    found = (done.returncode, done.stdout, done.stderr)
    assert is_one_line(found, 2, "batch of 33 does not divide over the 2 devices")


def test_an_evaluation_is_compiled_once(command, short, caplog, tmp_path):
    with jax.log_compiles():
        status, *_ = command(*short, "--run-dir", tmp_path)
    assert status == 0
    compiled = [line for line in caplog.messages if line.startswith("Finished XLA compilation")]
    # Before training, during it and on test data, of which there is twice as much.
    assert len([line for line in compiled if "jit(evaluate)" in line]) == 1
