"""The fault injector: that runs survive, and that it would tell if they did not."""

import json

import pytest

from experiments import faults
from paradigms.core.errors import InputError


def injected(config, options):
    return {(o.fault, o.survived) for o in faults.inject(config, options)}


@pytest.mark.slow
def test_a_short_run_survives(short, tmp_path, capsys):
    config = faults.Config(
        "digits_mlp",
        faults=("kill", "sigterm", "flip", "nan"),
        times=1,
        output=tmp_path / "table.json",
    )
    assert faults.main(config, short) == 0, capsys.readouterr().out
    table = json.loads((tmp_path / "table.json").read_text())
    assert table["faults"]["flip"]["survived"] == table["faults"]["flip"]["strikes"] == 1
    assert table["faults"]["kill"]["most_lost"] <= 20  # the interval between two evaluations
    assert [outcome["fault"] for outcome in table["outcomes"]] == list(config.faults)
    assert "kill       1 of 1 survived" in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_that_ends_otherwise_is_lost(short, monkeypatch):
    """As where a checkpoint did not hold everything: here the metrics lose a row."""

    def forget(subject, directory, random_):
        subject.finish(directory)
        rows = (directory / "metrics.csv").read_text().splitlines(keepends=True)
        (directory / "metrics.csv").write_text("".join(rows[:-1]))
        return subject.outcome("kill", directory, "at the end", None)

    monkeypatch.setitem(faults.STRIKES, "kill", forget)
    (outcome,) = faults.inject(faults.Config("digits_mlp", faults=("kill",), times=1), short)
    assert not outcome.survived
    assert outcome.note == "at the end; it ended otherwise"


def test_the_parts_of_a_run_are_told_apart(tmp_path):
    """FixMatch and its twin, for instance, of which the second was killed."""
    for part, last in (("few_labels", 200), ("labels_alone", 100)):
        (tmp_path / part).mkdir()
        rows = f"run,step,name,value\n0,0,validation/loss,2.3\n0,{last},validation/loss,0.1\n"
        (tmp_path / part / "metrics.csv").write_text(rows)
    summary = json.dumps({"runs": [{"state_sha256": "0a"}]})
    (tmp_path / "few_labels" / "summary.json").write_text(summary)
    assert faults.reached_in(tmp_path) == 100
    (tmp_path / "labels_alone" / "summary.json").write_text(summary)
    assert faults.reached_in(tmp_path) == 0
    before = faults.result_of(tmp_path)
    assert set(before) == {"few_labels", "labels_alone"}
    (tmp_path / "labels_alone" / "metrics.csv").write_text("run,step,name,value\n")
    assert faults.result_of(tmp_path) != before


def test_a_mistake_is_one_line():
    with pytest.raises(InputError, match="there is no experiment 'digit_mpl': try supervised/dig"):
        faults.inject(faults.Config("digit_mpl"), ())
    with pytest.raises(InputError, match="--times 0"):
        faults.inject(faults.Config("digits_mlp", times=0), ())
    with pytest.raises(InputError, match="does not even run in peace: error: unknown option"):
        faults.inject(faults.Config("digits_mlp"), ("--sede", "1"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "experiment",
    ["digits_mlp", "vae_digits", "simclr_digits", "fixmatch_digits", "ppo_cartpole"],
)
def test_a_learner_of_each_paradigm_survives(experiment, capsys):
    config = faults.Config(experiment, faults=("kill",) * 4 + faults.Config("").faults, times=1)
    assert faults.main(config, ()) == 0, capsys.readouterr().out
