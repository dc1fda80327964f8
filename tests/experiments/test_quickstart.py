"""What `make run` does."""

import importlib
import json
import signal
import subprocess
import sys
import time

import pytest
import tyro

from experiments import quickstart
from paradigms.core.errors import InputError, NonFiniteError, Stopped

PARADIGMS = {
    "supervised",
    "unsupervised",
    "self_supervised",
    "semi_supervised",
    "reinforcement",
}


def test_each_paradigm_has_a_part_that_its_experiment_understands():
    assert {part.paradigm for part in quickstart.PARTS} == PARADIGMS
    for part in quickstart.PARTS:
        module = importlib.import_module(f"experiments.{part.paradigm}.{part.experiment}")
        config = tyro.cli(module.Config, args=part.options.split())
        assert config.steps <= module.Config().steps and not config.smoke


def saying(text, status):
    return [sys.executable, "-c", f"import sys; print({text!r}); sys.exit({status})"]


def test_a_part_ends_as_its_process_does():
    children = quickstart.Children()
    assert list(children.lines(saying("one\ntwo", 0))) == ["one", "two"]
    for status, kind in ((2, InputError), (3, NonFiniteError), (75, Stopped), (1, RuntimeError)):
        with pytest.raises(kind, match=r"^no space left$"):
            list(children.lines(saying("step 1\nerror: no space left\n", status)))


def test_no_part_begins_after_the_others_were_stopped():
    children = quickstart.Children()
    patient = children.lines([sys.executable, "-uc", "import time; print(1); time.sleep(60)"])
    assert next(patient) == "1"
    begin = time.perf_counter()
    children.stop()
    with pytest.raises(RuntimeError):
        next(patient)
    assert time.perf_counter() - begin < 30
    assert list(children.lines(saying("one", 0))) == []


def test_all_parts_leave_when_asked_to(tmp_path):
    command = [sys.executable, "-m", "experiments.quickstart", "--run-dir", tmp_path]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while not (tmp_path / "semi_supervised").exists():  # the second of the first two
            assert process.poll() is None
            time.sleep(0.05)
        begin = time.perf_counter()
        process.send_signal(signal.SIGTERM)
        said = process.stderr.read()
    assert time.perf_counter() - begin < 12
    assert process.returncode == 75
    # It had waited for them, and did not leave them behind as it gave up.
    expected = "stopped: SIGTERM: the same command goes on from the last checkpoints"
    assert said.splitlines()[-1] == expected
    assert not list(tmp_path.rglob("summary.json"))


def test_a_number_of_parts_that_is_none_is_one_line(tmp_path):
    with pytest.raises(InputError, match="--at-once 0: expected at least 1"):
        quickstart.main(quickstart.Config(run_dir=tmp_path, at_once=0))


def test_a_seed_that_is_none_is_one_line(tmp_path):
    with pytest.raises(InputError, match="--seed -1: expected a number from 0"):
        quickstart.main(quickstart.Config(seed=-1, run_dir=tmp_path))
    assert not list(tmp_path.iterdir())


def test_an_unknown_option_is_one_line(python, tmp_path):
    done = python("-m", "experiments.quickstart", "--sead", 1, "--run-dir", tmp_path / "run")
    assert done.returncode == 2
    assert done.stderr == ("error: unknown option --sead: did you mean --seed? --help lists all\n")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_five_paradigms_learn(python, tmp_path):
    command = ("-m", "experiments.quickstart", "--run-dir", tmp_path)
    done = python(*command)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("before") == 1  # one table
    assert (tmp_path / "quickstart.png").read_bytes().startswith(b"\x89PNG")
    rows = json.loads((tmp_path / "summary.json").read_text())["parts"]
    for row in rows:
        assert row["before"] < row.get("labels_alone", 0) + row["aim"] <= row["after"], row
        assert row["after"] >= 0.9 or row["paradigm"] != "semi_supervised", row
    again = python(*command)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("earlier") == len(rows)
