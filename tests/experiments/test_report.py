"""`python -m experiments`: the list, and the results that README.md shows."""

import ast
import json
import re
import shutil
import sys

import pytest

from experiments import __main__ as command
from experiments import catalogue, front_door, report, speed, survival
from paradigms.core.errors import InputError

BEGIN, END = report.markers("results")
SPEED_BEGIN, SPEED_END = report.markers("speed")
SURVIVAL = "".join(report.markers("survival"))
QUICKSTART = "".join(report.markers("quickstart"))


@pytest.fixture
def results(tmp_path, monkeypatch):
    """An empty folder of results, and a README with nothing between its markers."""
    monkeypatch.setattr(catalogue, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(report, "README", tmp_path / "README.md")
    (tmp_path / "README.md").write_text(
        f"above\n{BEGIN}\nold\n{END}\nbelow\n{SPEED_BEGIN}\n{SPEED_END}\n"
        f"{QUICKSTART}\n{SURVIVAL}\nend\n"
    )
    return tmp_path / "results"


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs `python -m experiments` in this process: `(status, stdout, stderr)`."""

    def main(*arguments):
        monkeypatch.setattr(sys, "argv", ["experiments", *map(str, arguments)])
        status = 0
        try:
            command.main()
        except SystemExit as leave:
            status = leave.code
        return status, *capsys.readouterr()

    return main


def put(results, name, metric, mean, interval=None, **summary):
    (results / name).mkdir(parents=True)
    environment = {"platform": "cpu", "cpu_count": 2, "device": "cpu", "device_count": 1}
    speed = {"train_seconds": 60.0, "compile_seconds": 30.0, "steps_this_session": 50}
    whole = {
        "metrics": {metric: {"mean": mean, "interval": interval, "values": [mean]}},
        "runs": [{}] * (3 if interval else 1),
        "steps": 100,
        "speed": speed,
        "command": f"python -m experiments.supervised.{name}",
        "environment": {**environment, "commit": "0123456789abcdef", "dirty": False},
        **summary,
    }
    (results / name / "summary.json").write_text(json.dumps(whole))


def rows(text):
    return [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")][
        2:
    ]


def test_readme_is_current(run):
    status, _, stderr = run("report", "--check")
    assert status == 0, stderr


@pytest.mark.parametrize("name", catalogue.names())
def test_every_experiment_claims_a_number(name):
    claims = catalogue.claims(name)
    assert claims[0].title
    for claim in claims:
        assert re.fullmatch(r"(test|gain|evaluation)/\w+", claim.metric)
        assert claim.source


def test_every_result_is_of_an_experiment():
    known = {claim.result for claim in catalogue.all_claims()}
    found = {path.parent.name for path in catalogue.RESULTS.glob("*/config.json")}
    assert found <= known


def test_the_list_is_read_without_importing(run, results):
    put(results, "mnist_cnn", "test/accuracy", 0.9931, [0.992, 0.9942])
    before = set(sys.modules)
    status, shown, _ = run()
    assert status == 0
    assert "experiments.supervised.mnist_cnn" not in set(sys.modules) - before
    lines = shown.splitlines()
    assert len(lines) == 1 + len(catalogue.all_claims())
    (mnist,) = [line for line in lines if line.startswith("supervised/mnist_cnn ")]
    assert "0.992 " in mnist
    assert "0.9931 (0.992 to 0.9942)" in mnist
    (large,) = [line for line in lines if line.startswith("supervised/fashion_mnist_cnn_large")]
    assert "0.934" in large
    assert "not run" in large


def test_a_claim_may_be_of_the_interquartile_mean(run, results):
    metric = {"mean": 480.0, "interval": [460, 500], "iqm": 496.0, "iqm_interval": [494, 499]}
    put(results, "ppo_cartpole", "test/return", 480.0, metrics={"test/return": metric})
    (claim,) = catalogue.claims("reinforcement/ppo_cartpole")
    assert claim.ours == (496.0, [494, 499]) and not claim.missed
    _, shown, _ = run()
    (line,) = [line for line in shown.splitlines() if "ppo_cartpole" in line]
    assert "test/return, iqm" in line and "496 (494 to 499)" in line


def test_a_claim_may_be_the_better_for_being_lower():
    claim = catalogue.claims("supervised/digits_mlp")[0]
    for better, missed in (("higher", [True, False, False]), ("lower", [False, False, True])):
        summaries = [{"metrics": {claim.metric: {"mean": m, "interval": None}}} for m in (1, 2, 3)]
        claims = [claim._replace(value=2, better=better, summary=s) for s in summaries]
        assert [claim.missed for claim in claims] == missed


def test_the_list_on_a_terminal(run, results, monkeypatch):
    monkeypatch.setattr(report.sys.stdout, "isatty", lambda: True, raising=False)
    status, shown, _ = run()
    assert status == 0
    assert "┃" in shown


def test_runs_by_name_with_options(run, monkeypatch):
    ran = []
    monkeypatch.setattr(
        command.runpy,
        "run_module",
        lambda module, run_name, alter_sys: ran.append((module, sys.argv[1:])),
    )
    for name in ("supervised/digits_mlp", "digits_mlp", "experiments.supervised.digits_mlp"):
        assert run("run", name, "--steps", "3", "--help")[0] == 0
    assert ran == [("experiments.supervised.digits_mlp", ["--steps", "3", "--help"])] * 3


def test_an_unknown_name_lists_those_that_are_near(run):
    status, _, stderr = run("run", "mnist_cmn")
    assert status == 2
    near = "error: there is no experiment 'mnist_cmn': try supervised/mnist_cnn"
    assert stderr.startswith(near) and stderr.count("\n") == 1
    status, _, stderr = run("run", "zzz")
    assert status == 2
    assert "supervised/mnist_cnn" in stderr


def test_publishing_keeps_what_backs_a_number_and_no_path(run, results, finished):
    status, shown, stderr = run("publish", finished, "--as", "digits_mlp")
    assert status == 0, stderr
    folder = results / "digits_mlp"
    assert shown.strip() == str(folder)
    names = {"config.json", "summary.json", "curves.png", "confusion.png"}
    assert {path.name for path in folder.iterdir()} == names
    config = json.loads((folder / "config.json").read_text())
    assert (config["run_dir"], config["data_dir"], config["width"]) == (None, None, 32)
    summary = json.loads((folder / "summary.json").read_text())
    original = json.loads((finished / "summary.json").read_text())
    assert summary["metrics"] == original["metrics"]
    assert summary["command"] == (
        "python -m experiments.supervised.digits_mlp"
        " --steps 40 --evaluate-every 20 --seeds 0 1 --width 32"
    )
    for path in ("summary.json", "config.json"):
        assert '"/' not in (folder / path).read_text()
        assert str(finished) not in (folder / path).read_text()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("a --run-dir x --steps 3", "a --steps 3"),
        ("a --run-dir=/x/y --data_dir /z", "a"),
        ("a --run_dir=/x/y --run-directory z", "a --run-directory z"),
    ],
)
def test_paths_are_dropped_from_a_command(before, after):
    assert list(catalogue._without_paths(before.split())) == after.split()


def test_results_are_refused_that_back_nothing(run, results, finished, tmp_path):
    def refused(*arguments, because):
        status, _, stderr = run("publish", *arguments)
        assert status == 2
        assert because in stderr
        assert stderr.count("\n") == 1

    def variation(name, file, **changes):
        shutil.copytree(finished, tmp_path / name, ignore=shutil.ignore_patterns("c*points"))
        values = json.loads((tmp_path / name / file).read_text()) | changes
        (tmp_path / name / file).write_text(json.dumps(values))
        return tmp_path / name

    assert run("publish", finished, "--as", "digits_mlp")[0] == 0
    refused(finished, because="--as digits_mlp or digits_mlp_split1")
    refused(finished, "--as", "digits_mlp", because="--replace")
    assert run("publish", finished, "--as", "digits_mlp", "--replace")[0] == 0
    refused(finished, "--as", "mnist_cnn", because="a run of supervised/digits_mlp")
    refused(tmp_path, because="not a run directory")
    refused(variation("smoke", "config.json", smoke=True), because="rehearsal")
    empty = variation("empty", "summary.json", metrics={})
    refused(empty, "--as", "digits_mlp", because="has no test/accuracy")
    fashion = {"experiment": "supervised/fashion_mnist_cnn"}
    refused(variation("two", "config.json", **fashion), because="fashion_mnist_cnn_large")
    unfinished = variation("unfinished", "config.json")
    (unfinished / "summary.json").unlink()
    refused(unfinished, because="no finished run")


def test_the_table_begins_with_what_was_missed(run, results):
    put(results, "mnist_cnn", "test/accuracy", 0.9931, [0.992, 0.9942])
    put(
        results,
        "cifar10_resnet20",
        "test/accuracy",
        0.7,
        environment={
            "platform": "gpu",
            "device": "H100",
            "device_count": 2,
            "commit": None,
            "dirty": None,
        },
        speed=None,
    )
    assert run("report", "--check")[0] == 1
    assert run("report")[0] == 0
    assert run("report", "--check")[0] == 0
    text = report.README.read_text()
    assert text.startswith(f"above\n{BEGIN}\n| experiment | metric |")
    assert f"|\n{END}\nbelow\n{SPEED_BEGIN}\n| what | ours |" in text
    assert f"|\n{SPEED_END}\n" in text
    assert text.endswith("|\n<!-- survival: end -->\nend\n")
    assert "old" not in text
    missed, reached, *others = rows(text.partition(END)[0])
    assert missed == [
        *("cifar10_resnet20", "test/accuracy", "0.9125 (He et al. 2016, table 6)", "0.7", "1"),
        *("2 x H100", "", "unknown", "`python -m experiments.supervised.cifar10_resnet20`"),
    ]
    # Half of the steps took a minute, so all of them two, and compilation half a one.
    assert reached[3:8] == ["0.9931 (0.992 to 0.9942)", "3", "2 CPU cores", "2.5", "012345678"]
    assert all(row[3] == "not run" for row in others)
    assert len(others) == len(catalogue.all_claims()) - 2


@pytest.mark.parametrize(
    "text",
    ["", BEGIN, f"{END}{BEGIN}", f"{BEGIN}{END}{BEGIN}"],
)
def test_a_readme_without_markers_is_left_alone(text):
    with pytest.raises(InputError, match="README.md: expected"):
        report.inserted(text, "table", "results")


def test_speeds_below_their_aim_come_first(tmp_path, monkeypatch):
    monkeypatch.setattr(speed, "FOLDER", tmp_path)
    monkeypatch.setattr(speed, "SPEEDS", [one for one in speed.SPEEDS if one.file != "agents"])
    common = {"command": "python -m it", "environment": {"cpu_count": 2}}

    def beside_torch(eager, compiled):
        modes = {"torch_eager": {"speedup": eager}, "torch_compiled": {"speedup": compiled}}
        return {"modes": {"paradigms": {"speedup": 1.0}, **modes}, **common}

    modes = {"fixmatch_with_views": {"of_passes": 1.2}}
    for name, results in {
        "vae": beside_torch(1.5, 1.4),
        "gpt": beside_torch(1.3, 1.1),
        "simclr": beside_torch(0.6, 0.9),
        "fixmatch": {"modes": modes, **common},
    }.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(results))
    # PyTorch in the faster of its modes; without an aim, as fast as it.
    assert [row[:3] for row in rows(speed.markdown())] == [
        ["character GPT, a step", "1.10 of PyTorch's speed", "at least 1.22"],
        ["SimCLR on CIFAR-10, a step", "0.60 of PyTorch's speed", ""],
        ["FixMatch with its views, a step", "1.20 of the time of its passes", "at most 1.1"],
        ["VAE on MNIST, a step", "1.40 of PyTorch's speed", "at least 1.4"],
    ]
    for damaged in ("", "{}"):
        (tmp_path / "gpt.json").write_text(damaged)
        with pytest.raises(InputError, match=r"gpt.json is damaged"):
            speed.markdown()


def test_what_did_not_survive_comes_first(tmp_path, monkeypatch):
    monkeypatch.setattr(survival, "FOLDER", tmp_path)

    def put(file, name, commit, **faults):
        results = {"experiment": name, "faults": faults, "environment": {"commit": commit}}
        (tmp_path / f"{file}.json").write_text(json.dumps(results))

    whole = {"strikes": 3, "survived": 3, "most_lost": 50}
    kills = {"strikes": 40, "survived": 40, "most_lost": 20}
    put("digits_mlp", "digits_mlp", "0123456789a", kill=kills)
    put(
        "ppo_again",
        "ppo_cartpole",
        "abcdefghijk",
        flip={"strikes": 2, "survived": 1, "most_lost": None},
        kill={"strikes": 5, "survived": 5, "most_lost": 1},
    )
    put("ppo_cartpole", "ppo_cartpole", "0123456789a", flip=whole, kill=kills)
    header, _, *found = survival.markdown().splitlines()
    assert header.startswith("| experiment | kill | sigterm | flip | ")
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in found]
    assert [row[:4] + row[-2:] for row in cells] == [
        ["ppo_cartpole", "45 of 45", "", "4 of 5", "20", "abcdefghi, 012345678"],
        ["digits_mlp", "40 of 40", "", "", "20", "012345678"],
    ]
    for damaged in ("", "[]", "{}"):
        (tmp_path / "digits_mlp.json").write_text(damaged)
        with pytest.raises(InputError, match=r"digits_mlp.json is damaged"):
            survival.markdown()


def test_the_least_of_all_seeds_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(front_door, "FOLDER", tmp_path)

    def put(seed, right, with_all, alone):
        common = {"metric": "accuracy", "unit": "right"}
        classifier = {"paradigm": "supervised", "learner": "classifier", "aim": 0.96, **common}
        fixmatch = {"paradigm": "semi_supervised", "learner": "FixMatch", "aim": 0.05, **common}
        parts = [
            {**classifier, "before": 0.1, "after": right},
            {**fixmatch, "before": 0.1, "after": with_all, "labels_alone": alone},
        ]
        (tmp_path / f"seed_{seed}.json").write_text(json.dumps({"seed": seed, "parts": parts}))

    put(0, 0.98, 0.95, 0.85)
    put(1, 0.97, 0.99, 0.93)
    twin = "accuracy (right), above that without unlabelled digits"
    assert rows(front_door.markdown()) == [
        ["supervised", "classifier", "accuracy (right)", "0.96", "0.97", "0.975", "2"],
        ["semi_supervised", "FixMatch", twin, "0.05", "0.06", "0.08", "2"],
    ]
    for damaged in ("", "[]", "{}"):
        (tmp_path / "seed_1.json").write_text(damaged)
        with pytest.raises(InputError, match=r"seed_1.json is damaged"):
            front_door.markdown()


def test_a_file_without_a_claim_is_one_clear_line(tmp_path):
    with pytest.raises(InputError, match="expected PUBLISHED"):
        catalogue._published(ast.parse("X = 1"), tmp_path / "a.py")
