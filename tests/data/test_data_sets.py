"""`load`, `prepare` and `digits`, and the command line."""

import errno
import io
import logging
import os
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from paradigms import data
from paradigms.core.errors import InputError
from paradigms.data import __main__ as command_line
from paradigms.data import official, prepared


def same(found, truth):
    np.testing.assert_array_equal(found["image"], truth["image"])
    np.testing.assert_array_equal(found["label"], truth["label"])
    assert found["image"].dtype == np.uint8
    assert found["label"].dtype == np.int32


@pytest.fixture
def network(monkeypatch):
    """A network whose every server sends the files that are put into this dict by name."""
    tfds = pytest.importorskip("tensorflow_datasets")
    contents, asked = {}, []

    def fetch(self, urls):
        asked.append(urls)
        paths = {}
        for file in urls:
            paths[file] = Path(self._download_dir) / f"{len(asked)}_{file}.tmp"
            paths[file].write_bytes(contents[file])
        return paths

    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: io.BytesIO())
    monkeypatch.setattr(tfds.download.DownloadManager, "download", fetch)
    contents["asked"] = asked
    return contents


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10"])
def test_loads_official_files_and_then_the_cache(tiny, name, monkeypatch):
    for split in ("train", "test"):
        same(data.load(name, split, tiny.folder), tiny.truth[name][split])
    monkeypatch.setattr(official, "decode", None)  # a call would fail
    for split in ("train", "test"):
        same(data.load(name, split, tiny.folder), tiny.truth[name][split])
    assert (tiny.folder / name / "decoded" / "train.npz").is_file()


def test_the_cache_is_enough(tiny):
    data.load("mnist", "train", tiny.folder)
    for file in (tiny.folder / "mnist").glob("*.gz"):
        file.unlink()
    same(data.load("mnist", "train", tiny.folder), tiny.truth["mnist"]["train"])


def test_a_damaged_cache_is_made_again(tiny, caplog):
    data.load("mnist", "train", tiny.folder)
    path = tiny.folder / "mnist" / "decoded" / "train.npz"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    same(data.load("mnist", "train", tiny.folder), tiny.truth["mnist"]["train"])
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("paradigms.data", logging.WARNING)
    assert str(path) in record.getMessage()
    assert path.read_bytes() == content


def test_a_read_only_folder_stays_untouched(tiny, cache_dir):
    folder = tiny.folder / "mnist"
    folder.chmod(0o555)
    before = sorted(tiny.folder.rglob("*"))
    same(data.load("mnist", "train", tiny.folder), tiny.truth["mnist"]["train"])
    assert sorted(tiny.folder.rglob("*")) == before
    assert len(list(cache_dir.rglob("train.npz"))) == 1
    for file in folder.glob("*.gz"):
        file.unlink()
    same(data.load("mnist", "train", tiny.folder), tiny.truth["mnist"]["train"])
    folder.chmod(0o755)


def test_manual_downloads_are_found(tiny):
    place = tiny.folder / "downloads" / "manual"
    place.mkdir(parents=True)
    (tiny.folder / "mnist").rename(place / "mnist")
    same(data.load("mnist", "test", tiny.folder), tiny.truth["mnist"]["test"])


def test_the_folder_comes_from_the_environment(tiny, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tiny.folder))
    monkeypatch.delenv("PARADIGMS_DATA_DIR", raising=False)
    same(data.load("mnist", "test"), tiny.truth["mnist"]["test"])
    monkeypatch.setenv("TFDS_DATA_DIR", "/nowhere")
    monkeypatch.setenv("PARADIGMS_DATA_DIR", str(tiny.folder))
    same(data.load("mnist", "train"), tiny.truth["mnist"]["train"])


def test_downloads_the_files_of_the_split_once(tiny, tmp_path, network, monkeypatch):
    for file in (tiny.folder / "fashion_mnist").iterdir():
        network[file.name] = file.read_bytes()
    found = data.load("fashion_mnist", "test", tmp_path / "new")
    same(found, tiny.truth["fashion_mnist"]["test"])
    base = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
    files = ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz")
    assert network["asked"] == [{file: base + file for file in files}]
    # The files stay, under their official names, in a folder of their own.
    kept = tmp_path / "new" / "downloads" / "manual" / "fashion_mnist"
    assert sorted(file.name for file in kept.iterdir()) == sorted(files)
    (tmp_path / "new" / "fashion_mnist" / "decoded" / "test.npz").unlink()
    same(data.load("fashion_mnist", "test", tmp_path / "new"), found)
    assert len(network["asked"]) == 1


def test_downloads_for_a_read_only_folder_go_to_its_twin(tiny, network, cache_dir):
    network.update({file.name: file.read_bytes() for file in (tiny.folder / "mnist").iterdir()})
    folder = tiny.folder / "empty"
    folder.mkdir(mode=0o555)
    for _ in range(2):
        same(data.load("mnist", "train", folder), tiny.truth["mnist"]["train"])
        next(cache_dir.rglob("train.npz")).unlink()
    assert list(folder.iterdir()) == []
    assert len(network["asked"]) == 1


def test_a_wrong_download_is_refused(tiny, tmp_path, network):
    network.update({file.name: file.read_bytes() for file in (tiny.folder / "mnist").iterdir()})
    with pytest.raises(InputError, match="not the official file of Fashion-MNIST"):
        data.load("fashion_mnist", "test", tmp_path / "new")


@pytest.mark.parametrize(
    "error", [urllib.error.URLError("Name or service not known"), TimeoutError("timed out")]
)
def test_no_network_is_one_line_that_says_what_to_do(tmp_path, monkeypatch, error):
    def refuse(request, timeout):
        raise error

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    with pytest.raises(InputError) as raised:
        data.load("mnist", "train", tmp_path / "none")
    assert str(raised.value) == (
        "cannot download mnist (no answer from storage.googleapis.com): without a network, put "
        "train-images-idx3-ubyte.gz and train-labels-idx1-ubyte.gz into "
        f"{tmp_path / 'none' / 'mnist'}"
    )
    with pytest.raises(InputError, match=r"put cifar-10-binary\.tar\.gz into"):
        data.load("cifar10", "test", tmp_path / "none")


@pytest.mark.parametrize(
    "answer",
    [
        urllib.error.HTTPError("http://x", 405, "HEAD is not allowed", {}, None),
        urllib.error.URLError(ssl.SSLError("certificate verify failed")),
    ],
)
def test_a_server_that_answers_oddly_is_asked_for_the_file(
    tiny, tmp_path, network, monkeypatch, answer
):
    def odd(request, timeout):
        raise answer

    monkeypatch.setattr(urllib.request, "urlopen", odd)
    network.update({file.name: file.read_bytes() for file in (tiny.folder / "mnist").iterdir()})
    same(data.load("mnist", "test", tmp_path / "new"), tiny.truth["mnist"]["test"])


def test_a_failed_download_is_one_line(tmp_path, network, monkeypatch):
    tfds = pytest.importorskip("tensorflow_datasets")

    def refuse(self, urls):
        raise RuntimeError("HTTP code: 404.\nand more")

    monkeypatch.setattr(tfds.download.DownloadManager, "download", refuse)
    with pytest.raises(InputError, match=r"cannot download mnist \(HTTP code: 404\.\): without"):
        data.load("mnist", "train", tmp_path / "none")


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        ("minst", "train", "unknown data set 'minst' .did you mean 'mnist'.*fashion_mnist"),
        ("no_such_thing_at_all", "train", "known are mnist, fashion_mnist, cifar10"),
        ("digits", "train", r"data\.digits"),
        ("../secret", "train", "not the name of a data set"),
        ("", "train", "not the name of a data set"),
        ("mnist", "validation", "mnist has no split 'validation': choose train or test"),
        ("mnist", "../x", "not the name of a split"),
        ("kmnist", "train", r"kmnist is not prepared in .*tfds build kmnist"),
    ],
)
def test_names_that_cannot_be_loaded(tmp_path, name, split, message):
    with pytest.raises(InputError, match=message):
        data.load(name, split, tmp_path)


def test_a_file_is_not_a_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file is a file: give a folder"):
        data.load("mnist", "train", tmp_path / "file")


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_prepare_makes_a_set_that_load_reads_back(tiny, tmp_path, name):
    tfds = pytest.importorskip("tensorflow_datasets")
    target = tmp_path / "prepared"
    folder = data.prepare(name, target, raw_dir=tiny.folder / name)
    assert folder.parent == target / name
    source = tfds.data_source(name, data_dir=target, split="train")
    truth = tiny.truth[name]["train"]
    # The records lie in the order of the stock preparation, not in the official one.
    where = prepared.official_order("train", 50)
    for i in (0, 17, 49):
        record = source[int(where[i])]
        np.testing.assert_array_equal(record["image"], truth["image"][i])
        assert record["label"] == truth["label"][i]
        assert record.get("id", b"train_%05d" % i) == b"train_%05d" % i
    for split in ("train", "test"):
        same(data.load(name, split, target), tiny.truth[name][split])
    assert data.prepare(name, target, raw_dir="/nowhere") == folder  # it is there already


def test_prepare_in_a_read_only_folder_uses_its_twin(tiny, cache_dir):
    folder = tiny.folder / "mnist"
    folder.chmod(0o555)
    made = data.prepare("mnist", tiny.folder)
    assert cache_dir in made.parents
    for file in folder.glob("*.gz"):
        file.unlink()
    same(data.load("mnist", "train", tiny.folder), tiny.truth["mnist"]["train"])
    folder.chmod(0o755)


def test_prepare_on_a_full_disk_is_one_line(tiny, tmp_path, monkeypatch):
    tfds = pytest.importorskip("tensorflow_datasets")

    def full(self, **_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", full)
    with pytest.raises(InputError, match=r"cannot write mnist to .*No space left on device"):
        data.prepare("mnist", tmp_path / "p", raw_dir=tiny.folder / "mnist")


def test_a_prepared_set_of_other_contents_is_refused(tiny, tmp_path):
    """What a shared extraction folder does: a fashion_mnist full of digits."""
    made = data.prepare("mnist", tmp_path / "a", raw_dir=tiny.folder / "mnist")
    wrong = tmp_path / "b" / "fashion_mnist" / made.name
    wrong.parent.mkdir(parents=True)
    made.rename(wrong)
    for file in wrong.iterdir():
        file.rename(file.with_name(file.name.replace("mnist", "fashion_mnist")))
    info = wrong / "dataset_info.json"
    info.write_text(info.read_text().replace('"mnist"', '"fashion_mnist"'))
    with pytest.raises(InputError, match="not those of Fashion-MNIST"):
        data.load("fashion_mnist", "test", tmp_path / "b")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prepare", "kmnist"], "cannot prepare 'kmnist': choose from mnist"),
        (["prepare", "mnist", "--raw-dir", "/nowhere"], "/nowhere lacks official files of mnist"),
        (["prepare"], "required: name"),
        (["prepare", "mnist", "--wrong"], "unrecognized arguments: --wrong"),
        ([], "required: command"),
    ],
)
def test_mistakes_on_the_command_line_are_one_line(tmp_path, capsys, arguments, message):
    if "prepare" in arguments:
        arguments = [*arguments, "--data-dir", str(tmp_path)]
    try:
        status = command_line.main(arguments)
    except SystemExit as leave:
        status = leave.code
    assert status == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""


def test_the_command_prints_where_the_set_is(tiny, tmp_path, capfd):
    arguments = ["prepare", "mnist", "--data-dir", str(tmp_path / "p")]
    raw = ["--raw-dir", str(tiny.folder / "mnist")]
    assert command_line.main(arguments + raw) == 0
    assert capfd.readouterr().out.splitlines()[-1] == str(tmp_path / "p" / "mnist" / "3.0.1")


def run(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_importing_the_package_imports_no_decoder():
    heavy = ["tensorflow", "tensorflow_datasets", "grain", "sklearn", "PIL", "scipy.special"]
    code = (
        f"import sys; from paradigms import data; print([m for m in {heavy} if m in sys.modules])"
    )
    result = run(code)
    assert result.stdout.strip() == "[]", result.stderr


def test_tensorflow_is_never_imported(tiny, tmp_path):
    """Not even where it is installed, which a package of that name feigns here."""
    folder = data.prepare("mnist", tmp_path / "p", raw_dir=tiny.folder / "mnist")
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow" / "__init__.py").write_text("raise AssertionError('imported')")
    code = f"""
import sys
import urllib.error
import urllib.request
from pathlib import Path
from paradigms.data import prepared
folder = Path({str(folder)!r})
data = prepared.read(folder, "train")
prepared.write("mnist", {{"train": data, "test": data}}, folder.parent.parent / "again")
assert "tensorflow_datasets" in sys.modules
assert "tensorflow" not in sys.modules
print("fine", data["image"].shape)
"""
    result = run(code, PYTHONPATH=str(tmp_path))
    assert result.stdout.splitlines()[-1:] == ["fine (50, 28, 28, 1)"], result.stderr


def test_digits_are_divided_into_1297_and_500():
    datasets = pytest.importorskip("sklearn.datasets")
    bunch = datasets.load_digits()
    train, test = data.digits("train", 0), data.digits("test", 0)
    assert train["image"].shape == (1297, 8, 8, 1)
    assert test["image"].shape == (500, 8, 8, 1)
    assert (train["image"].dtype, train["label"].dtype) == (np.uint8, np.int32)
    # Together they are the whole set, each example once, and no grey level was lost.
    levels = np.concatenate([train["image"], test["image"]])[..., 0].astype(float) * 16 / 255
    found = sorted(map(bytes, np.rint(levels).astype(np.uint8).reshape(-1, 64)))
    assert found == sorted(map(bytes, bunch.images.astype(np.uint8).reshape(-1, 64)))
    assert (train["image"].min(), train["image"].max()) == (0, 255)
    assert np.abs(levels - np.rint(levels)).max() <= 0.5 * 16 / 255
    # Stratified: each class gives its share of the test set, to within one.
    shares = np.bincount(bunch.target) * 500 / 1797
    assert np.abs(np.bincount(test["label"]) - shares).max() <= 1


def test_digits_depend_on_the_seed_alone():
    first, again, other = (data.digits("test", seed)["label"] for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    with pytest.raises(InputError, match="no split 'validation'"):
        data.digits("validation", 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10"])
def test_real_sets_prepared_and_read_back(real_data, tmp_path, name):
    data.prepare(name, tmp_path, raw_dir=real_data / name)
    for split in ("train", "test"):
        prepared_set = data.load(name, split, tmp_path)
        same(prepared_set, data.load(name, split, real_data))


def test_the_real_prepared_mnist_comes_in_the_official_order(real_data, tmp_path):
    folder = prepared.find("mnist", real_data)
    if folder is None:
        pytest.skip(f"no prepared mnist in {real_data}")
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / folder.name).symlink_to(folder)
    assert data.load("mnist", "test", tmp_path)["label"][:5].tolist() == [7, 2, 1, 0, 4]
