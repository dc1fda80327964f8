"""The decoded cache: it may be missing, stale or damaged, but never wrong."""

import errno
import logging
import threading

import numpy as np
import pytest

from paradigms.data import cache

SOURCE = {"file": [1, 2]}


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (40, 8, 8, 1), np.uint8),
        "label": np.arange(40, dtype=np.int32),
    }


def same(first, second):
    return set(first) == set(second) and all(
        first[name].dtype == second[name].dtype and np.array_equal(first[name], second[name])
        for name in first
    )


def test_what_is_written_is_read(tmp_path, arrays):
    path = tmp_path / "deep" / "train.npz"
    assert cache.read(path, SOURCE) is None
    cache.write(path, SOURCE, arrays)
    assert same(cache.read(path, SOURCE), arrays)
    assert [file.name for file in path.parent.iterdir()] == ["train.npz"]


def test_a_cache_of_other_files_is_not_used(tmp_path, arrays, caplog):
    path = tmp_path / "train.npz"
    cache.write(path, SOURCE, arrays)
    assert cache.read(path, {"file": [1, 3]}) is None
    assert "of other files" in caplog.text


def test_a_cache_of_another_format_is_not_used(tmp_path, arrays, monkeypatch):
    path = tmp_path / "train.npz"
    cache.write(path, SOURCE, arrays)
    monkeypatch.setattr(cache, "FORMAT", cache.FORMAT + 1)
    assert cache.read(path, SOURCE) is None


def test_damage_anywhere_is_noticed(tmp_path, arrays, caplog):
    """A bit flipped, or the file cut off, at any place: nothing, or the very arrays."""
    path = tmp_path / "train.npz"
    cache.write(path, SOURCE, arrays)
    content = path.read_bytes()
    noticed = 0
    for place in range(0, len(content), 23):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 7
        for version in (bytes(damaged), content[:place]):
            path.write_bytes(version)
            caplog.clear()
            found = cache.read(path, SOURCE)
            assert found is None or same(found, arrays)
            assert (found is None) == bool(caplog.records)
            noticed += found is None
    # A flip in a time stamp harms nothing; one in the pixels, half of the file, must be seen.
    assert noticed > 1.5 * len(content) / 23


def test_pickled_objects_are_not_loaded(tmp_path, caplog):
    path = tmp_path / "train.npz"
    np.savez(path, manifest=np.array(cache.manifest(SOURCE)), image=np.array([{"a": 1}], object))
    assert cache.read(path, SOURCE) is None
    assert "unusable" in caplog.text


def test_a_full_disk_costs_a_warning(tmp_path, arrays, monkeypatch, caplog):
    def full(file, **_):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    cache.write(tmp_path / "new" / "train.npz", SOURCE, arrays)
    assert "No space left on device" in caplog.text
    assert list((tmp_path / "new").iterdir()) == []


def test_writers_and_readers_at_the_same_time(tmp_path, arrays, caplog):
    """Two processes decode the same set: a reader sees one whole file or the other."""
    path = tmp_path / "train.npz"
    other = {name: array[::-1].copy() for name, array in arrays.items()}
    cache.write(path, SOURCE, arrays)

    def write(data):
        for _ in range(30):
            cache.write(path, SOURCE, data)

    writers = [threading.Thread(target=write, args=(data,)) for data in (arrays, other)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        found = cache.read(path, SOURCE)
        assert found is not None
        assert same(found, arrays) or same(found, other)
    assert not caplog.records


def test_a_read_only_folder_has_a_writable_twin(tmp_path, cache_dir):
    """By its mode, too: root could write there all the same."""
    folder = tmp_path / "data"
    (folder / "mnist").mkdir(parents=True)
    assert cache.home(folder, "mnist") == folder
    assert cache.home(folder, "new/config") == folder
    (folder / "mnist").chmod(0o555)
    twin = cache.home(folder, "mnist")
    assert twin == cache.twin(folder)
    assert cache_dir in twin.parents
    assert cache.twin(tmp_path / "other") != twin
    (folder / "mnist").chmod(0o755)


def test_the_twin_is_in_the_home_folder_by_default(tmp_path, monkeypatch):
    monkeypatch.delenv("PARADIGMS_CACHE_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert (tmp_path / ".cache" / "paradigms") in cache.twin(tmp_path / "data").parents


def test_warnings_are_visible_by_default():
    assert logging.getLogger("paradigms.data").isEnabledFor(logging.WARNING)
