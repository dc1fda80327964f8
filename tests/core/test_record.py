"""The run directory: one process, one configuration, metrics that resume byte for byte."""

import errno
import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from paradigms.core import pictures, record
from paradigms.core.errors import InputError
from paradigms.core.pictures import draw_confusion, draw_curves, draw_images, draw_points
from paradigms.core.record import (
    Curve,
    Run,
    read_config,
    read_metrics,
)

CONFIG = {"seeds": 3, "optimizer": {"name": "adam", "rate": 1e-3}, "steps": [1, 2], "run_dir": "a"}


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.name != "lock"}


def test_a_run_is_taken_up_again(tmp_path):
    directory = tmp_path / "deep" / "run"
    with Run.open(directory, CONFIG) as run:
        assert not run.resumed and not run.finished
        assert json.loads((directory / "config.json").read_text()) == CONFIG
    with Run.open(str(directory), {**CONFIG, "steps": (1, 2)}) as run:
        assert run.resumed
        with pytest.raises(InputError, match="holds no finished run"):
            run.summary()
        run.finish({"accuracy": 0.5})
        assert run.finished
    with Run.open(directory, CONFIG) as run:
        assert run.finished and run.summary() == {"accuracy": 0.5}
    assert read_config(directory) == CONFIG
    with pytest.raises(InputError, match="already holds a run"):
        Run.open(directory, CONFIG, resume=False)
    with pytest.raises(InputError, match="is not a run directory"):
        read_config(tmp_path)


def test_another_configuration_is_told_field_by_field(tmp_path):
    Run.open(tmp_path, CONFIG).close()
    before = contents(tmp_path)
    other = {
        "seeds": 3,
        "optimizer": {"name": "sgd", "momentum": 0.9},
        "steps": [1, 2],
        "run_dir": "b",
        "debug": True,
    }
    with pytest.raises(InputError) as error:
        Run.open(tmp_path, other)
    text = str(error.value)
    assert "\n" not in text
    assert 'optimizer.name was "adam", now "sgd"' in text
    assert "optimizer.rate was 0.001, now absent" in text
    assert "optimizer.momentum was absent, now 0.9" in text
    assert "debug was absent, now true" in text
    assert "seeds" not in text and "steps" not in text and "run_dir" not in text
    assert contents(tmp_path) == before
    with Run.open(tmp_path, {**CONFIG, "debug": True}, ignored=["debug"]) as run:
        assert run.resumed
    assert contents(tmp_path) == before


def test_an_emptied_group_of_fields_is_a_difference(tmp_path):
    Run.open(tmp_path, {"grid": {}}).close()
    with pytest.raises(InputError, match="grid was {}, now absent; grid.rate was absent, now 1"):
        Run.open(tmp_path, {"grid": {"rate": 1}})


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(InputError, match=r"not a run directory: it holds 'thesis.tex'"):
        Run.open(tmp_path, CONFIG)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_run_killed_before_its_configuration_was_written_can_begin(tmp_path):
    (tmp_path / "lock").write_text("1\n")
    (tmp_path / "config.json.writing").write_text('{"see')
    with Run.open(tmp_path, CONFIG) as run:
        assert not run.resumed
    assert read_config(tmp_path) == CONFIG


def test_places_where_no_run_can_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot use the run directory .*file: File exists"):
        Run.open(tmp_path / "file", CONFIG)
    with pytest.raises(InputError, match="cannot use the run directory .*: Not a directory"):
        Run.open(tmp_path / "file" / "run", CONFIG)
    if os.geteuid():
        tmp_path.chmod(0o500)
        with pytest.raises(InputError, match="cannot use the run directory .*: Permission denied"):
            Run.open(tmp_path / "run", CONFIG)
        tmp_path.chmod(0o700)


def test_a_damaged_configuration_is_told(tmp_path):
    (tmp_path / "config.json").write_text('{"seeds"')
    with pytest.raises(InputError, match="config.json is damaged"):
        Run.open(tmp_path, CONFIG)


@pytest.mark.parametrize("value", [float("nan"), Path("a"), np.float32(1)], ids=repr)
def test_what_json_does_not_know_is_refused_before_anything_is_written(tmp_path, value):
    with pytest.raises(InputError, match="configuration cannot be written as JSON"):
        Run.open(tmp_path / "run", {"x": value})
    assert not (tmp_path / "run").exists()
    with Run.open(tmp_path, {}) as run:
        with pytest.raises(InputError, match="summary cannot be written as JSON"):
            run.finish({"x": value})
        assert not run.finished


HOLD = """
import sys, time
from paradigms.core.record import Run
with Run.open(sys.argv[1], {"seeds": 3}):
    print("held", flush=True)
    time.sleep(100)
"""


def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=f"is in use by process {process.pid}:"):
            Run.open(tmp_path, {"seeds": 3})
        # Not even another configuration gets in front of the lock.
        with pytest.raises(InputError, match="is in use"):
            Run.open(tmp_path, {"seeds": 4})
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    # A shorter process id than the last one leaves none of its digits behind.
    (tmp_path / "lock").write_text("123456789012\n")
    with Run.open(tmp_path, {"seeds": 3}) as run:
        assert run.resumed
        assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"
        with pytest.raises(InputError, match=f"process {os.getpid()}"):
            Run.open(tmp_path, {"seeds": 3})
    Run.open(tmp_path, {"seeds": 3}).close()


def test_a_refused_configuration_does_not_keep_the_lock(tmp_path):
    Run.open(tmp_path, {"seeds": 3}).close()
    with pytest.raises(InputError):
        Run.open(tmp_path, {"seeds": 4})
    Run.open(tmp_path, {"seeds": 3}).close()


def test_metrics_read_back_exactly(tmp_path):
    awkward = [0.1, 1 / 3, 1e-310, -0.0, float("inf"), 2.0**60]
    with Run.open(tmp_path, {}) as run:
        assert run.read_metrics() == {}
        run.log(0, {"train/loss": awkward, "a, b": 1})
        run.log(10, {"train/loss": np.float32(0.1), "rate": jnp.float32(0.1)})
        metrics = run.read_metrics()
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    assert lines[0] == "run,step,name,value"
    assert lines[2] == "1,0,train/loss,0.3333333333333333"
    assert len(lines) == 1 + 7 + 2
    assert list(metrics) == ["train/loss", "a, b", "rate"]
    steps, values = metrics["train/loss"]
    assert steps.tolist() == [0, 10]
    assert values[:, 0].tobytes() == np.array(awkward).tobytes()
    # Only run 0 logged a value at step 10, and float32 is written as the number that it is.
    assert values[0, 1] == np.float32(0.1)
    assert np.isnan(values[1:, 1]).all()
    assert metrics["rate"].values.tolist() == [[float(np.float32(0.1))]]


def log_steps(run, first, last):
    generator = np.random.default_rng(0)
    for step in range(1, last + 1):
        losses, accuracy = generator.normal(size=3), generator.normal()
        if step >= first:
            run.log(step, {"train/loss": losses})
            if step % 5 == 0:
                run.log(step, {"test, held out/accuracy": accuracy})


@pytest.mark.parametrize("torn", ["", "2,8,train/lo", "0,99,train/loss,1.2"])
def test_a_resumed_run_has_the_metrics_of_an_uninterrupted_one(tmp_path, torn):
    with Run.open(tmp_path / "whole", {}) as run:
        log_steps(run, 1, 20)
    directory = tmp_path / "resumed"
    with Run.open(directory, {}) as run:
        log_steps(run, 1, 8)
    with (directory / "metrics.csv").open("a") as file:
        file.write(torn)
    with Run.open(directory, {}) as run:
        run.rewind(5)
        log_steps(run, 6, 14)
        run.rewind(10)
        log_steps(run, 11, 20)
        whole = (tmp_path / "whole" / "metrics.csv").read_bytes()
        assert (directory / "metrics.csv").read_bytes() == whole
        # Killed before its first checkpoint: everything is done again.
        run.rewind(-1)
        log_steps(run, 1, 20)
    assert (directory / "metrics.csv").read_bytes() == whole
    assert {path.name for path in directory.iterdir()} == {"config.json", "lock", "metrics.csv"}


def test_rewinding_what_was_never_written(tmp_path):
    with Run.open(tmp_path, {}) as run:
        run.rewind(5)
        run.log(6, {"x": 1})
    assert (tmp_path / "metrics.csv").read_text() == "run,step,name,value\n0,6,x,1.0\n"


def test_damaged_metrics_are_told(tmp_path):
    with Run.open(tmp_path, {}) as run:
        run.log(1, {"x": 1})
        with (tmp_path / "metrics.csv").open("a") as file:
            file.write("0,what?,x,1\n")
        for read in (run.read_metrics, lambda: run.rewind(1)):
            with pytest.raises(InputError, match=r"metrics.csv is damaged in line 3"):
                read()


def test_a_full_disk_leaves_whole_rows(tmp_path, monkeypatch):
    with Run.open(tmp_path, {}) as run:
        run.log(1, {"x": 1, "y": 2})
        before = contents(tmp_path)
        write = os.write
        written = []

        def fill(file, data):
            if written:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            written.append(write(file, data[:9]))
            return written[0]

        with monkeypatch.context() as patch:
            patch.setattr(record.os, "write", fill)
            with pytest.raises(InputError, match="metrics.csv: No space left on device"):
                run.log(2, {"x": 1, "y": 2})
        assert written == [9]
        assert contents(tmp_path) == before

        def full(_):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patch:
            patch.setattr(record.os, "fsync", full)
            with pytest.raises(InputError, match="summary.json: No space left on device"):
                run.finish({"x": 1})
            with pytest.raises(InputError, match="metrics.csv: No space left on device"):
                run.rewind(1)
        assert not run.finished
        assert contents(tmp_path) == before


def test_a_short_write_is_completed(tmp_path, monkeypatch):
    write = os.write
    with Run.open(tmp_path, {}) as run:
        monkeypatch.setattr(record.os, "write", lambda file, data: write(file, data[:7]))
        run.log(1, {"x": [1, 2]})
    assert (tmp_path / "metrics.csv").read_text() == "run,step,name,value\n0,1,x,1.0\n1,1,x,2.0\n"


def make_metrics():
    steps = np.arange(1, 1001)
    falling = np.stack([np.exp(-steps / 200), 1.1 * np.exp(-steps / 200)])
    return {
        "train/loss": Curve(steps, falling),
        "train/accuracy": Curve(steps, 1 - falling / 2),
        "validation/accuracy": Curve(steps[::100], 1 - falling[:, ::100] / 2),
        "test/accuracy": Curve(steps[-1:], 1 - falling[:, -1:] / 2),
        "gap": Curve(steps[:3], np.array([[1.0, np.nan, 2.0]])),
        "train/share[0]": Curve(steps, falling / 2),
        "train/share[1]": Curve(steps, 1 - falling / 2),
    }


def test_curves_share_a_panel_by_what_they_measure(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    drawn = []
    save = pictures._save_figure

    def kept(figure, path):
        drawn.append(figure)
        save(figure, path)

    monkeypatch.setattr(pictures, "_save_figure", kept)
    draw_curves(make_metrics(), tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["curves.png"]
    panels = {axes.get_title(loc="left"): axes for axes in drawn[0].axes}
    assert list(panels) == ["loss", "accuracy", "gap", "share"]
    assert [len(axes.lines) for axes in panels.values()] == [1, 3, 1, 2]
    assert [axes.get_yscale() for axes in panels.values()] == ["log", *["linear"] * 3]
    assert [text.get_text() for text in drawn[0].legends[0].texts] == [
        "train",
        "validation",
        "test",
    ]
    # 1000 steps in 200 points: each the mean of five steps, then the mean of two runs.
    (line,) = panels["loss"].lines
    assert line.get_xdata()[:2].tolist() == [3, 8]
    assert line.get_ydata()[0] == pytest.approx(1.05 * np.exp(-np.arange(1, 6) / 200).mean())
    draw_curves({}, tmp_path / "nothing.png")
    assert not (tmp_path / "nothing.png").exists()


@pytest.mark.parametrize("classes", [2, 10, 30])
def test_confusion_matrix_is_drawn(tmp_path, classes):
    pytest.importorskip("matplotlib")
    matrix = np.diag(np.arange(classes) * 300) + np.eye(classes, k=1)  # The first row is nearly
    matrix[-1] = 0  # empty, the last one is.
    draw_confusion(matrix, [f"class {i}" for i in range(classes)], tmp_path / "c.png")
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(InputError, match="a confusion matrix of 3 classes has shape"):
        draw_confusion(matrix, ["a", "b", "c"], tmp_path / "d.png")


def test_a_table_of_images_shows_their_pixels(tmp_path):
    image = pytest.importorskip("matplotlib.image")
    grey = np.zeros((2, 3, 28, 30, 1), np.uint8)
    grey[1, 2, 5, 7] = 51
    for name, given in (("bytes", grey), ("shares", grey / 255)):
        draw_images(given, tmp_path / f"{name}.png")
        table = np.rint(255 * image.imread(tmp_path / f"{name}.png"))[..., :3]
        # Twice as large, with white gaps of two pixels between and none around.
        assert table.shape == (2 * 56 + 2, 3 * 60 + 4, 3)
        assert (table[56:58] == 255).all() and (table[:, 60:62] == 255).all()
        rows, columns = np.nonzero(table[..., 0] == 51)
        assert set(rows) == {58 + 10, 58 + 11} and set(columns) == {124 + 14, 124 + 15}
    colours = np.zeros((1, 1, 60, 60, 3), np.uint8)
    colours[..., 1] = 9
    draw_images(colours, tmp_path / "colours.png")
    table = np.rint(255 * image.imread(tmp_path / "colours.png"))[..., :3]
    np.testing.assert_array_equal(table, colours[0, 0])
    with pytest.raises(InputError, match=r"expected \[rows, columns, H, W, 1 or 3\]"):
        draw_images(grey[0], tmp_path / "d.png")


def test_points_are_drawn_by_name(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    drawn = []
    monkeypatch.setattr(pictures, "_save_figure", lambda figure, path: drawn.append(figure))
    points = {"data": np.zeros((5, 2)), "samples": np.ones((1200, 2))}
    draw_points(points, tmp_path / "points.png")
    (axes,) = drawn[0].axes
    places = [collection.get_offsets() for collection in axes.collections]
    for place, expected in zip(places, points.values(), strict=True):
        np.testing.assert_array_equal(place, expected)
    labels = [text.get_text() for text in drawn[0].legends[0].texts]
    assert labels == ["data, 5", "samples, 1,200"]
    with pytest.raises(InputError, match=r"expected arrays \[N, 2\]"):
        draw_points({"data": np.zeros((5, 3))}, tmp_path / "points.png")


def test_shares_are_rounded_so_that_errors_do_not_vanish():
    shares = {0.0: "0", 0.001: "<1", 0.014: "1", 0.994: "99", 0.996: ">99", 1.0: "100"}
    assert {share: pictures._per_cent(share) for share in shares} == shares


def test_a_picture_that_cannot_be_written(tmp_path):
    pytest.importorskip("matplotlib")
    with pytest.raises(InputError, match="cannot write .*curves.png: No such file"):
        draw_curves(make_metrics(), tmp_path / "nowhere" / "curves.png")


def test_without_matplotlib_a_line_in_the_log(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with caplog.at_level(logging.WARNING):
        draw_curves(make_metrics(), tmp_path / "curves.png")
        draw_confusion(np.eye(2), ["a", "b"], tmp_path / "confusion.png")
    assert [entry.getMessage().split(":")[1] for entry in caplog.records] == [
        " matplotlib is missing",
        " matplotlib is missing",
    ]
    assert list(tmp_path.iterdir()) == []


def test_metrics_of_a_run_that_another_process_holds_can_be_read(tmp_path):
    with Run.open(tmp_path, {}) as run:
        run.log(3, {"x": 1})
        assert read_metrics(tmp_path)["x"].values.tolist() == [[1.0]]
