"""A run whose directory is copied to a bucket: here a folder that fsspec reaches as any other."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from experiments import mirror, processes
from experiments.mirror import Mirror
from paradigms.core import digests
from paradigms.core.errors import InputError
from paradigms.core.record import LOCK, MIRROR
from paradigms.core.signals import StopRequest

TINY = ("--steps", "4", "--evaluate-every", "2", "--seeds", "0", "--width", "4")


@pytest.fixture(autouse=True)
def at_home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def bucket(tmp_path):
    """A folder, and its address."""
    return tmp_path / "bucket" / "run", f"file://{tmp_path}/bucket/run/"


def contents(directory):
    """All files but the lock, by name."""
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and path.name != LOCK
    }


def without_probe(folder):
    return {name: data for name, data in contents(folder).items() if name != ".mirror"}


class StopSoon(StopRequest):
    """As where SIGTERM comes when something has been learnt."""

    asked = 0

    def __bool__(self):
        self.asked += 1
        if self.asked > 1:
            self.received = "SIGTERM"
        return super().__bool__()


def test_a_run_goes_on_elsewhere_from_its_copy(command, bucket, tmp_path, monkeypatch):
    folder, address = bucket
    assert command(*TINY, "--run-dir", "peace")[0] == 0
    with monkeypatch.context() as stopped:
        stopped.setattr(processes, "stop_request", StopSoon)
        assert command(*TINY, "--run-dir", "first", "--mirror", address)[0] == 75
    assert without_probe(folder) == contents(tmp_path / "first")
    shutil.rmtree("first")  # with its machine

    status, _, stderr = command(*TINY, "--run-dir", "second", "--mirror", address)
    assert status == 0
    assert f"second was fetched from {address}" in stderr and "resuming" in stderr
    peace, second = contents(tmp_path / "peace"), contents(tmp_path / "second")
    assert second["metrics.csv"] == peace["metrics.csv"]
    digests = [
        json.loads(run["summary.json"])["runs"][0]["state_sha256"] for run in (peace, second)
    ]
    assert digests[0] == digests[1]
    # What was dropped here is gone there, and what is there is whole.
    assert without_probe(folder) == second
    assert not [name for name in second if name.startswith("checkpoints/0/")]

    status, out, _ = command(*TINY, "--run-dir", "third", "--mirror", address)
    assert status == 0 and "third is finished" in out


def run_directory(directory, *steps):
    """What a run leaves behind that has come to the last of these steps and keeps them all."""
    directory.mkdir(parents=True, exist_ok=True)
    if not (directory / "config.json").exists():
        (directory / "config.json").write_text("{}")
    for name in ("lock", "config.json.writing", "checkpoints/unfinished/new/digests.json"):
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text("passing")
    (directory / "metrics.csv").write_text(f"up to {steps[-1]}")
    for old in (directory / "checkpoints").iterdir():
        if old.name.isdigit() and int(old.name) not in steps:
            shutil.rmtree(old)
    for step in steps:
        folder = directory / "checkpoints" / str(step)
        if not folder.exists():
            (folder / "arrays").mkdir(parents=True)
            for name in ("arrays/0", "arrays/1", "manifest"):
                (folder / name).write_text(f"{name} of {step}")
            digests.write(folder)


def whole(directory):
    """The steps of the checkpoints that are whole."""
    folders = (directory / "checkpoints").glob("[0-9]*")
    return sorted(int(folder.name) for folder in folders if not digests.find_damage(folder))


def test_only_what_changed_is_copied_and_the_newest_checkpoint_first(bucket, tmp_path, monkeypatch):
    folder, address = bucket
    here = tmp_path / "run"
    run_directory(here, 10, 20)
    follower = Mirror(here, address)
    assert not follower.begin()
    follower.push()
    assert whole(folder) == [10, 20]
    run_directory(here, 20, 30, 40)
    (here / "summary.json").write_text("{}")
    copied, put = [], follower._put

    def record(file, name):
        copied.append(name)
        put(file, name)

    monkeypatch.setattr(follower, "_put", record)
    follower.push()
    parts = ("arrays/0", "arrays/1", "manifest", "digests.json")
    assert copied == [
        "metrics.csv",
        *(f"checkpoints/40/{name}" for name in parts),
        *(f"checkpoints/30/{name}" for name in parts),
        "summary.json",
    ]  # and nothing that is passing
    assert whole(folder) == [20, 30, 40] and not (folder / "checkpoints/10/manifest").exists()
    for again in (follower, Mirror(here, address)):  # as where the command is given once more
        monkeypatch.setattr(again, "_put", record)
        again.begin()
        copied.clear()
        again.push()
        assert not [name for name in copied if "checkpoints" in name]


def copied_once(bucket, tmp_path):
    """A run directory of ten updates, the folder with its copy, and what follows it."""
    folder, address = bucket
    here = tmp_path / "run"
    run_directory(here, 10)
    follower = Mirror(here, address)
    follower.begin()
    follower.push()
    return here, folder, follower


@pytest.mark.parametrize("files", range(9))
def test_a_copy_that_breaks_off_goes_on_as_a_killed_run(bucket, tmp_path, monkeypatch, files):
    here, folder, follower = copied_once(bucket, tmp_path)
    run_directory(here, 20)
    done, put, remove = [], follower._put, follower._files.rm_file

    def once_more(function):
        def call(*arguments):
            if len(done) == files:
                raise OSError("no network")
            done.append(arguments)
            function(*arguments)

        return call

    monkeypatch.setattr(follower, "_put", once_more(put))
    monkeypatch.setattr(follower._files, "rm_file", once_more(remove))
    with pytest.raises(InputError, match="cannot write --mirror .*: no network"):
        follower.push()
    assert Mirror(tmp_path / "other", bucket[1]).begin()
    # Five files are new, the metrics first: rows beyond the checkpoint are dropped by the run.
    assert whole(tmp_path / "other")[-1] == (20 if files >= 5 else 10)
    assert (tmp_path / "other/metrics.csv").read_text() == ("up to 20" if files else "up to 10")


def test_a_run_that_drops_checkpoints_meanwhile_leaves_one_in_the_bucket(
    bucket, tmp_path, monkeypatch
):
    here, folder, follower = copied_once(bucket, tmp_path)
    # While files are on their way: what was frozen is there all the same.
    step, put = 20, follower._put

    def drop(file, name):
        nonlocal step
        step += 10
        run_directory(here, step)
        put(file, name)

    run_directory(here, step)
    monkeypatch.setattr(follower, "_put", drop)
    follower.push()
    assert whole(folder) == [20]
    # While they are frozen: none is whole, and the old one stays.
    monkeypatch.setattr(mirror, "_is_all_there", lambda checkpoint: False)
    follower.push()
    assert whole(folder) == [20]
    assert not (here / MIRROR / "frozen").exists()


def test_a_copy_that_is_asked_to_leave_does_so_between_two_files(bucket, tmp_path):
    folder, address = bucket
    run_directory(tmp_path / "run", 10)
    follower = Mirror(tmp_path / "run", address)
    follower.begin()
    asked = iter([False, False, True])
    follower.push(lambda: next(asked))
    assert sorted(contents(folder)) == [".mirror", "config.json", "metrics.csv"]


def test_what_the_copy_would_lose_or_mix_up_is_refused(bucket, tmp_path, monkeypatch):
    folder, address = bucket
    here = tmp_path / "run"
    run_directory(here, 10)
    Mirror(here, address).push()
    assert not Mirror(here, address).begin()  # the directory is as far

    run_directory(folder, 20)
    with pytest.raises(InputError, match="further on than .*run .checkpoints.: remove that dir"):
        Mirror(here, address).begin()
    shutil.rmtree(folder / "checkpoints")
    (folder / "summary.json").write_text("{}")
    with pytest.raises(InputError, match="further on than .*run .summary.json."):
        Mirror(here, address).begin()
    (folder / "config.json").write_text('{"steps": 1}')
    with pytest.raises(InputError, match="is the copy of another run than that in"):
        Mirror(here, address).begin()

    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "thesis.tex").write_text("")
    with pytest.raises(InputError, match="not a run directory: it holds 'thesis.tex' but no conf"):
        Mirror(thesis, address).begin()
    assert sorted(contents(thesis)) == ["thesis.tex"]
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match="is no copy of a run: it holds .* but no config.json"):
        Mirror(tmp_path / "new", address).begin()
    assert not (tmp_path / "new").exists()

    monkeypatch.setitem(sys.modules, "gcsfs", None)
    for address, reason in (("gs9://a/b", "Protocol not known: gs9"), ("gs://a/b", "gcsfs")):
        with pytest.raises(InputError, match=f"--mirror {address}: .*{reason}"):
            Mirror(here, address)


def test_nothing_is_written_beside_the_run_directory(bucket, tmp_path, monkeypatch):
    folder, address = bucket
    run_directory(folder, 10)
    for name in ("../x", f"{tmp_path}/x"):
        follower = Mirror(tmp_path / "run", address)
        found = [f"{follower._root}/{each}" for each in ("", "a/", "config.json", name)]
        monkeypatch.setattr(follower._files, "find", lambda _, found=found: found)
        with pytest.raises(InputError, match=f"'{name}' is not within it"):
            follower.begin()
    assert not (tmp_path / "x").exists()
    assert contents(tmp_path / "run") == {}


def test_a_mistake_leaves_nothing_behind(command, bucket, tmp_path):
    folder, address = bucket
    options = ("--run-dir", "run", "--mirror", address)
    status, _, stderr = command(*TINY, *options, "--batch-size", "4000")
    assert status == 2 and "batch" in stderr
    assert not contents(tmp_path / "run") and list(contents(folder)) == [".mirror"]


def test_two_processes_do_not_follow_one_directory(bucket, tmp_path):
    _, address = bucket
    with (
        mirror.mirrored(tmp_path / "run", address),
        pytest.raises(InputError, match="is in use by process"),
        mirror.mirrored(tmp_path / "run", address),
    ):
        pass
    assert not (tmp_path / "run").exists()


def test_a_bucket_that_fails_does_not_stop_the_run(command, bucket, monkeypatch):
    _, address = bucket

    def fail(*_, **__):
        raise PermissionError("Forbidden: no quota\n and a page of XML")

    monkeypatch.setattr("fsspec.implementations.local.LocalFileSystem.put_file", fail)
    monkeypatch.setattr(mirror, "_SECONDS_BETWEEN_COPIES", 0.01)
    status, _, stderr = command(*TINY, "--run-dir", "run", "--mirror", address)
    *_, warning, last = [line for line in stderr.splitlines() if "mirror" in line]
    reason = f"cannot write --mirror {address}: Forbidden: no quota"
    assert warning == f"warning: {reason}; it is tried again"
    assert last == f"error: {reason}; the run itself is whole in run"
    assert status == 2
    assert Path("run", "summary.json").exists()
