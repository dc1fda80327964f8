"""`python -m experiments verify`: are the checkpoints of a run as they were written?"""

import shutil

import pytest

from experiments.verification import verify
from paradigms.core.errors import InputError


def test_a_run_is_verified_checkpoint_by_checkpoint(finished, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    assert verify(run) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["checkpoints/20: whole", "checkpoints/40: whole", "net/40: whole"]

    array = max((run / "checkpoints" / "40").rglob("*"), key=lambda path: path.stat().st_size)
    content = bytearray(array.read_bytes())
    content[len(content) // 2] ^= 1
    array.write_bytes(content)
    assert verify(run) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "checkpoints/20: whole"
    assert lines[1].startswith("checkpoints/40: damaged: arrays/")
    assert "holds other bytes" in lines[1]
    # To look changes nothing.
    assert (run / "checkpoints" / "40").is_dir()


def test_a_directory_without_checkpoints_is_one_line(tmp_path):
    with pytest.raises(InputError, match="no checkpoint in"):
        verify(tmp_path)


def test_the_command_takes_a_directory(python, finished):
    done = python("-m", "experiments", "verify", finished)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "checkpoints/20: whole"
    missing = python("-m", "experiments", "verify", finished / "net" / "nothing")
    assert missing.returncode == 2 and missing.stderr.startswith("error: there is no checkpoint")
