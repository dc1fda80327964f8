"""`python -m experiments compare` and `reproduce`."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from experiments import catalogue, comparison
from experiments.supervised import digits_mlp
from paradigms.core import pictures
from paradigms.core.errors import InputError
from paradigms.core.intervals import summarise
from paradigms.core.record import Curve, Run


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def finished(directory, values, name="test/accuracy"):
    """A run directory with one curve and one final metric of as many runs as there are values."""
    with Run.open(directory, {"experiment": "supervised/digits_mlp"}) as run:
        for step in (0, 10):
            run.log(step, {"validation/accuracy": [value * step / 10 for value in values]})
        runs = [{"seed": i, "state_sha256": f"{value}"} for i, value in enumerate(values)]
        run.finish({"metrics": summarise({name: values}), "runs": runs})
    return directory


def test_runs_are_laid_beside_each_other(tmp_path, capsys):
    first = finished(tmp_path / "runs" / "first", [0.5, 0.7])
    second = finished(tmp_path / "runs" / "second", [0.9], "test/loss")
    with Run.open(tmp_path / "runs" / "third", {}) as unfinished:
        unfinished.log(0, {"validation/accuracy": [0.1]})
    comparison.compare([first, second, unfinished.directory], Path("together.png"))
    lines = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    cells = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    assert cells == [
        ["metric", "first", "second", "third"],
        ["test/accuracy", "0.6 (-0.6706 to 1.871)"],  # 0.6 +- 12.706 * 0.1414 / sqrt(2)
        ["test/loss", "0.9"],
        ["together.png"],
    ]
    assert Path("together.png").read_bytes().startswith(b"\x89PNG")


def test_what_cannot_be_compared_is_refused(tmp_path):
    first = finished(tmp_path / "first", [0.5])
    for directories, message in {
        (first,): "two run directories or more",
        (first, tmp_path / "x" / ".." / "first"): "each of them once",
        (first, tmp_path): "is not a run directory",
    }.items():
        with pytest.raises(InputError, match=message):
            comparison.compare(directories, Path("together.png"))
    assert not Path("together.png").exists()


def test_the_picture_has_means_in_their_intervals(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(pictures, "_save_figure", lambda figure, path: drawn.append(figure))
    steps = np.array([0, 10])
    wide = Curve(steps, np.array([[0.0, 0.5], [0.0, 0.7]]))
    alone = Curve(steps, np.array([[0.1, 0.9]]))
    pictures.draw_comparison(
        {"wide": {"a": wide, "b": wide, "c[0]": wide}, "alone": {"a": alone, "c[0]": alone}},
        tmp_path / "a.png",
    )
    (panel,) = drawn[0].axes  # b is measured in one of them only, c is an array
    assert panel.get_title(loc="left") == "a"
    assert [text.get_text() for text in drawn[0].legends[0].texts] == ["wide", "alone"]
    np.testing.assert_allclose([line.get_ydata() for line in panel.lines], [[0, 0.6], [0.1, 0.9]])
    (band,) = panel.collections
    assert band.get_datalim(panel.transData).y1 == pytest.approx(0.6 + 12.7062 * 0.1, rel=1e-5)
    with pytest.raises(InputError, match="one, two: no metric was measured in two of them"):
        pictures.draw_comparison({"one": {"a": wide}, "two": {"b": wide}}, tmp_path / "b.png")


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A result of digits_mlp, and a stand-in for the process of the experiment."""
    monkeypatch.setattr(catalogue, "RESULTS", tmp_path / "results")
    folder = finished(tmp_path / "results" / "digits_mlp", [0.98, 0.99, 0.97])
    summary = json.loads((folder / "summary.json").read_text())
    summary["command"] = "python -m experiments.supervised.digits_mlp --seeds 0 1 2"
    (folder / "summary.json").write_text(json.dumps(summary))
    commands = []

    def gives(values, status=0):
        def run(command):
            commands.append(command[1:])
            if status == 0:
                finished(Path(command[command.index("--run-dir") + 1]), values)
            return subprocess.CompletedProcess(command, status)

        monkeypatch.setattr(comparison.subprocess, "run", run)
        return commands

    return gives


def test_a_result_is_run_again_by_its_command(published, capsys):
    commands = published([0.98, 0.99, 0.96])
    assert comparison.reproduce("digits_mlp", ["--width", "4"]) == 0
    assert digits_mlp.__name__ == "experiments.supervised.digits_mlp"
    assert commands == [
        ["-m", "experiments.supervised.digits_mlp", "--seeds", "0", "1", "2"]
        + ["--run-dir", "runs/reproduced/digits_mlp", "--width", "4"]
    ]
    out = capsys.readouterr().out
    assert "0.976667, published 0.98 (0.955159 to 1.00484): agrees" in out
    assert "2 of 3 runs ended in the same bits" in out


def test_another_result_is_told(published, capsys):
    published([0.9, 0.9, 0.9])
    assert comparison.reproduce("digits_mlp", [], Path("own")) == 1
    assert "published 0.98 (0.955159 to 1.00484): does not agree" in capsys.readouterr().out
    published([], status=3)
    assert comparison.reproduce("digits_mlp", [], Path("other")) == 3


def test_a_result_of_one_run_has_to_be_the_same(published, tmp_path, capsys):
    folder = tmp_path / "results" / "digits_mlp"
    summary = json.loads((folder / "summary.json").read_text())
    summary["metrics"] = summarise({"test/accuracy": [0.98]})
    (folder / "summary.json").write_text(json.dumps(summary))
    published([0.98])
    assert comparison.reproduce("digits_mlp", [], Path("same")) == 0
    published([0.981])
    assert comparison.reproduce("digits_mlp", [], Path("near")) == 1
    assert "0.981, published 0.98 (one run): does not agree" in capsys.readouterr().out


def test_only_published_results_are_run(published, tmp_path):
    commands = published([0.98])
    with pytest.raises(InputError, match="no published result 'mnist': choose digits_mlp"):
        comparison.reproduce("mnist", [])
    folder = tmp_path / "results" / "digits_mlp"
    summary = json.loads((folder / "summary.json").read_text())
    for command in ("rm -rf /", "python -m experiments.supervised.mnist_cnn", "python -c 1"):
        (folder / "summary.json").write_text(json.dumps({**summary, "command": command}))
        with pytest.raises(InputError, match="expected one that begins with python -m"):
            comparison.reproduce("digits_mlp", [])
    assert not commands
