"""A run whose directory is copied to a bucket: here a folder that fsspec reaches as any other."""

import json
import shutil
from pathlib import Path

import pytest

from experiments import mirror, processes
from experiments.mirror import Mirror
from paradigms.core.errors import InputError
from paradigms.core.record import LOCK
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
    assert contents(folder) == contents(tmp_path / "first")
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
    assert contents(folder) == second
    assert not [name for name in second if name.startswith("checkpoints/0/")]

    status, out, _ = command(*TINY, "--run-dir", "third", "--mirror", address)
    assert status == 0 and "third is finished" in out


def run_directory(directory, step):
    """What a run leaves behind that has come to `step`."""
    for name in (
        "config.json",
        "metrics.csv",
        "lock",
        "config.json.writing",
        "checkpoints/unfinished/new/digests.json",
        f"checkpoints/{step}/arrays/d/0",
        f"checkpoints/{step}/digests.json",
        f"checkpoints/{step}/manifest/metadata",
    ):
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name == "metrics.csv" or not path.exists():
            path.write_text(f"{name} of {step}")


def test_a_copy_that_breaks_off_is_that_of_a_killed_run(bucket, tmp_path, monkeypatch):
    folder, address = bucket
    run_directory(tmp_path / "run", 10)
    follower = Mirror(tmp_path / "run", address)
    follower.push()
    assert "checkpoints/10/digests.json" in contents(folder)

    shutil.rmtree(tmp_path / "run" / "checkpoints" / "10")
    run_directory(tmp_path / "run", 20)
    (tmp_path / "run" / "summary.json").write_text("{}")
    copied = []
    put = follower._files.put_file

    def record(here, there, **options):
        # As long as the new checkpoint is not whole the old one is.
        assert (folder / "checkpoints" / "10" / "digests.json").exists()
        copied.append(there.removeprefix(f"{folder}/"))
        put(here, there, **options)

    monkeypatch.setattr(follower._files, "put_file", record)
    follower.push()
    assert copied == [
        "metrics.csv",
        "checkpoints/20/arrays/d/0",
        "checkpoints/20/manifest/metadata",
        "checkpoints/20/digests.json",
        "summary.json",
    ]  # and no file that has not changed, nor what is still being written
    assert not [name for name in contents(folder) if "/10/" in name]
    copied.clear()
    follower.push()
    assert copied == []


def test_what_is_gone_here_is_passed_over_and_a_bucket_that_is_gone_is_told(
    bucket, tmp_path, monkeypatch
):
    folder, address = bucket
    run_directory(tmp_path / "run", 10)
    follower = Mirror(tmp_path / "run", address)
    put = follower._files.put_file

    def vanish(here, there, **options):
        if here.endswith("digests.json"):
            Path(here).unlink()
        put(here, there, **options)

    monkeypatch.setattr(follower._files, "put_file", vanish)
    follower.push()
    assert "checkpoints/10/manifest/metadata" in contents(folder)

    def missing(here, there, **options):
        raise FileNotFoundError(f"the bucket of {there}")

    (tmp_path / "run" / "metrics.csv").write_text("more")
    monkeypatch.setattr(follower._files, "put_file", missing)
    with pytest.raises(InputError, match="cannot write --mirror .*: the bucket of .*metrics.csv"):
        follower.push()


def test_nothing_is_written_beside_the_run_directory(bucket, tmp_path, monkeypatch):
    folder, address = bucket
    run_directory(folder, 10)
    follower = Mirror(tmp_path / "run", address)
    root = follower._root
    monkeypatch.setattr(follower._files, "find", lambda _: [f"{root}/config.json", f"{root}/../x"])
    with pytest.raises(InputError, match="'../x' is not within it"):
        follower.fetch()
    assert not (tmp_path / "run").exists()


def test_what_the_copy_would_lose_or_mix_up_is_refused(bucket, tmp_path):
    folder, address = bucket
    here = tmp_path / "run"
    run_directory(here, 10)
    Mirror(here, address).push()
    assert not Mirror(here, address).fetch()  # the directory is as far

    run_directory(folder, 20)
    with pytest.raises(InputError, match="further on than .*run .checkpoints.: remove that dir"):
        Mirror(here, address).fetch()
    shutil.rmtree(folder / "checkpoints")
    (folder / "summary.json").write_text("{}")
    with pytest.raises(InputError, match="further on than .*run .summary.json."):
        Mirror(here, address).fetch()

    (folder / "config.json").write_text("{}")
    with pytest.raises(InputError, match="is the copy of another run than that in"):
        Mirror(here, address).fetch()
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match="is no copy of a run: it holds .* but no config.json"):
        Mirror(tmp_path / "new", address).fetch()
    assert not (tmp_path / "new").exists()
    for address, reason in (("gs9://a/b", "Protocol not known: gs9"), ("gs://a/b", "gcsfs")):
        with pytest.raises(InputError, match=f"--mirror {address}: .*{reason}"):
            Mirror(here, address)


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
