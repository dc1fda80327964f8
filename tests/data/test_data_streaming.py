"""Streamed batches are those of data in memory, whoever asks for them and in whatever order."""

import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paradigms import data
from paradigms.core.errors import InputError
from paradigms.core.sampling import batch_indices, data_key

pytest.importorskip("grain")

SIZE, BATCH = 50, 8
KEY = jax.random.key(7)


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (SIZE, 4, 4, 1), np.uint8),
        "label": np.arange(SIZE),
    }


class Examples:
    """A random-access source; it counts, and may be slow or damaged."""

    def __init__(self, arrays, delay=0.0, damaged=None):
        self.arrays, self.delay, self.damaged = arrays, delay, damaged
        self.read = []

    def __len__(self):
        return SIZE

    def __getitem__(self, index):
        if index == self.damaged:
            raise OSError("checksum mismatch")
        time.sleep(self.delay)
        self.read.append(index)
        return {name: array[index] for name, array in self.arrays.items()}


class ManyExamples(Examples):
    """One that reads many examples at once, as tensorflow-datasets does."""

    def __getitems__(self, indices):
        return [self[index] for index in indices]


@jax.jit
def indices(step):
    return batch_indices(data_key(KEY), step, SIZE, BATCH)


def in_memory(arrays, step, n):
    """What `resident` draws for the updates `step ... step + n - 1`."""
    index = np.stack([indices(i) for i in range(step, step + n)])
    return {**{name: array[index] for name, array in arrays.items()}, "index": index}


def assert_same(found, expected):
    assert set(found) == set(expected)
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name])


def reading_threads():
    return [thread for thread in threading.enumerate() if "grain" in thread.name]


@pytest.mark.parametrize("kind", [dict, Examples, ManyExamples])
def test_batches_are_those_of_data_in_memory(arrays, kind):
    """Over more than one epoch, which has six batches."""
    with data.Stream(kind(arrays), BATCH, KEY) as stream:
        for step in range(0, 14, 2):
            found = stream(step, 2)
            assert_same(found, in_memory(arrays, step, 2))
        assert (found["image"].dtype, found["label"].dtype) == (np.uint8, np.int32)
        assert found["image"].shape == (2, BATCH, 4, 4, 1)


def test_memory_mapped_files(arrays, tmp_path):
    mapped = {}
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
        mapped[name] = np.load(tmp_path / f"{name}.npy", mmap_mode="r")
    with data.Stream(mapped, BATCH, KEY) as stream:
        found = stream(3, 1)
    assert_same(found, in_memory(arrays, 3, 1))
    assert type(found["image"]) is np.ndarray


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_the_slices_of_all_processes_are_the_batch(arrays, processes):
    parts = []
    for index in range(processes):
        with data.Stream(
            arrays, BATCH, KEY, process_index=index, process_count=processes
        ) as stream:
            parts.append(stream(5, 3))
    joined = {name: np.concatenate([part[name] for part in parts], 1) for name in parts[0]}
    assert_same(joined, in_memory(arrays, 5, 3))


def test_a_process_reads_its_own_slice_only(arrays):
    source = Examples(arrays)
    with data.Stream(source, BATCH, KEY, process_index=1, process_count=2, threads=1) as stream:
        source.read.clear()
        stream(0, 1)
        first = source.read[: BATCH // 2]
    assert sorted(first) == sorted(in_memory(arrays, 0, 1)["index"][0, BATCH // 2 :].tolist())


def test_any_step_can_be_asked_for(arrays):
    """Resumed, asked again, backwards, by other numbers of batches."""
    with data.Stream(arrays, BATCH, KEY) as stream:
        for step, n in [(100, 2), (102, 2), (102, 2), (0, 2), (2, 1), (3, 4), (1_000_000, 1)]:
            assert_same(stream(step, n), in_memory(arrays, step, n))


def test_it_reads_ahead_while_nobody_asks(arrays):
    source = Examples(arrays)
    with data.Stream(source, BATCH, KEY, prefetch=2) as stream:
        source.read.clear()
        stream(0, 2)
        due = 3 * 2 * BATCH  # the batches asked for, and two calls ahead
        deadline = time.monotonic() + 10
        while len(source.read) < due and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)
        assert len(source.read) == due


def test_threads_read_at_the_same_time(arrays):
    source = Examples(arrays, delay=0.005)
    with data.Stream(source, BATCH, KEY, threads=4) as stream:
        stream(0, 4)
        assert len(reading_threads()) == 4


def test_closing_ends_the_threads(arrays):
    stream = data.Stream(Examples(arrays, delay=0.001), BATCH, KEY)
    stream(0, 2)
    assert reading_threads()
    stream.close()
    deadline = time.monotonic() + 10
    while reading_threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not reading_threads()
    stream.close()
    assert_same(stream(2, 2), in_memory(arrays, 2, 2))
    stream.close()


def test_fields_are_chosen(arrays):
    named = {**arrays, "id": np.array(["x"] * SIZE)}
    with pytest.raises(InputError, match="id has type <U1"):
        data.Stream(Examples(named), BATCH, KEY)
    with data.Stream(Examples(named), BATCH, KEY, fields=("label",)) as stream:
        assert set(stream(0, 1)) == {"label", "index"}
    with pytest.raises(InputError, match="have only"):
        data.Stream(arrays, BATCH, KEY, fields=("image", "lable"))


def test_an_unreadable_example_is_named_and_may_be_mended(arrays):
    bad = int(in_memory(arrays, 1, 1)["index"][0].max())
    source = Examples(arrays, damaged=bad)
    with data.Stream(source, BATCH, KEY) as stream:
        stream(0, 1)
        with pytest.raises(InputError, match=f"example {bad}: OSError: checksum mismatch"):
            stream(1, 1)
        source.damaged = None
        assert_same(stream(1, 1), in_memory(arrays, 1, 1))


def test_examples_of_different_shapes_are_named(arrays):
    class Ragged(Examples):
        def __getitem__(self, index):
            return {"x": np.zeros(2 if index == 9 else 3)}

    with (
        data.Stream(Ragged(arrays), SIZE, KEY) as stream,
        pytest.raises(InputError, match=r"x of example \d+ has shape \[\d\], that of example"),
    ):
        stream(0, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": SIZE + 1}, "batch size 51 does not fit a data set of 50 examples"),
        ({"batch_size": 0}, "choose a batch size from 1 to 50"),
        ({"process_count": 3}, "choose a multiple"),
        ({"process_index": 2, "process_count": 2}, "process 2 of 2"),
        ({"key": jnp.zeros(2, jnp.uint32)}, r"key has type uint32: make it by jax\.random\.key"),
        ({"threads": 0}, "threads=0"),
        ({"prefetch": 0}, "prefetch=0"),
        ({"source": {}}, "empty data set"),
        ({"source": {"a": np.zeros(3), "b": np.zeros(4)}}, "different lengths"),
    ],
)
def test_bad_arguments(arrays, options, message):
    with pytest.raises(InputError, match=message):
        data.Stream(**{"source": arrays, "batch_size": BATCH, "key": KEY, **options})
