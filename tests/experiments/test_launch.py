"""The templates for clusters: their syntax, and that they start a stopped run again as it was.

No cluster is at hand: what they call is replaced by scripts that note how they were called.
"""

import importlib.util
import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from paradigms.core.mesh import parse_mesh
from paradigms.core.signals import EXIT_STATUS

FOLDER = Path(__file__).parents[2] / "experiments" / "launch"
TEMPLATES = sorted(path.name for path in FOLDER.iterdir() if path.is_file())
SHELL = [name for name in TEMPLATES if not name.endswith(".yaml")]


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_is_short_and_names_a_command_that_exists(name):
    text = (FOLDER / name).read_text()
    assert len(text.splitlines()) <= 40
    assert str(EXIT_STATUS) in text and "the same run directory resumes" in " ".join(
        text.replace("#", " ").split()
    )
    assert "--run-dir" in text and "JAX_COORDINATOR_ADDRESS" in text
    # In the YAML it is a list of words; in the shell an example within a comment.
    words = " ".join(re.sub(r"[\[\],\\#]", " ", text.replace("=", "\0")).split())
    module, mesh = re.search(
        r"(?:experiments\.)?(supervised\.\w+) --mesh ([\w\0]+)", words
    ).groups()
    assert importlib.util.find_spec(f"experiments.{module}")
    assert parse_mesh(mesh.replace("\0", "="))


@pytest.mark.parametrize("name", SHELL)
def test_a_script_parses(name):
    subprocess.run(["bash", "-n", FOLDER / name], check=True)


def launched(name, folder, statuses, **variables):
    """Runs a script where all that it calls is noted; its main command ends as told, one by one."""
    (folder / "statuses").write_text("\n".join(map(str, statuses)) + "\n")
    for called, status in {
        "gcloud": "$(head -n1 statuses); sed -i 1d statuses",
        "srun": "$(head -n1 statuses)",
        "scontrol": "0",
        "sleep": "0",
    }.items():
        status, _, after = status.partition("; ")
        (folder / called).write_text(
            f'#!/bin/sh\necho "{called} $*" >> calls\nstatus={status}\n{after}\nexit $status\n'
        )
        (folder / called).chmod(0o755)
    done = subprocess.run(
        ["bash", FOLDER / name, "supervised.digits_mlp", "--mesh", "data=2", "--width", "a b"],
        cwd=folder,
        env={
            "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
            **{"RUN_DIR": "/runs/x", "SLURM_JOB_ID": "7", "TPU": "pod", "ZONE": "zone"},
            **variables,
        },
    )
    return done.returncode, (folder / "calls").read_text().splitlines()


def test_a_stopped_slurm_job_is_put_into_the_queue_again(tmp_path):
    command = "srun --kill-on-bad-exit=1 python -m experiments.supervised.digits_mlp"
    command += " --run-dir /runs/x --mesh data=2 --width a b"
    again = [command, "scontrol requeue 7"]
    # Stopped, or a process was killed or ended by jax, which shall not go on for ever.
    for status in (75, 134, 137):
        assert launched("slurm.sbatch", tmp_path, [status]) == (status, again)
        (tmp_path / "calls").unlink()
    often = {"SLURM_RESTART_COUNT": "10"}
    for status, variables in ((0, {}), (2, {}), (3, {}), (137, often)):
        assert launched("slurm.sbatch", tmp_path, [status], **variables) == (status, [command])
        (tmp_path / "calls").unlink()


def test_a_stopped_run_on_a_tpu_goes_on_by_the_same_command(tmp_path):
    status, calls = launched("tpu_vm.sh", tmp_path, [75, 134, 2])
    command, pause, *_ = calls
    assert status == 2 and calls == [command, pause, command, pause, command]
    words = "experiments.supervised.digits_mlp --run-dir /runs/x --mesh data=2 --width a\\ b"
    assert words in command and "--worker=all" in command and pause.startswith("sleep")


def test_jobset_ends_for_mistakes_alone_and_starts_all_hosts_again_else():
    spec = yaml.safe_load((FOLDER / "gke_jobset.yaml").read_text())["spec"]
    (job,) = spec["replicatedJobs"]
    job = job["template"]["spec"]
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule == {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [2, 3]}}
    assert spec["failurePolicy"]["rules"] == [
        {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    ]
    assert spec["failurePolicy"]["maxRestarts"] > 0 and job["backoffLimit"] == 0
    assert job["parallelism"] == job["completions"]
    pod = job["template"]["spec"]
    assert pod["restartPolicy"] == "Never"
    assert pod["containers"][0]["args"][-2:] == ["--run-dir", "/runs/resnet"]


def test_skypilot_starts_again_on_the_status_of_a_stopped_run():
    task = yaml.safe_load((FOLDER / "skypilot.yaml").read_text())
    assert task["resources"]["job_recovery"]["recover_on_exit_codes"] == [EXIT_STATUS, 134]
    assert task["resources"]["use_spot"] and "/runs" in task["volumes"]
    subprocess.run(["bash", "-n"], input=task["run"], text=True, check=True)
