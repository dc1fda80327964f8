"""What `make run` does."""

import json

import pytest

from experiments import quickstart
from paradigms.core.errors import InputError

PARADIGMS = {
    "supervised",
    "unsupervised",
    "self_supervised",
    "semi_supervised",
    "reinforcement",
}


def test_each_paradigm_has_a_part_with_a_directory_of_its_own(tmp_path):
    parts = quickstart.parts(quickstart.Config(seed=3, run_dir=tmp_path))
    assert {part.paradigm for part in parts} == PARADIGMS
    for part in parts:
        assert part.config.seeds == (3,)
        assert part.config.run_dir == tmp_path / part.paradigm
        assert not part.config.smoke


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
