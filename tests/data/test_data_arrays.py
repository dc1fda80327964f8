"""Own arrays, validation splits, few labels and evaluation batches."""

import numpy as np
import pytest

from paradigms import data
from paradigms.core.errors import InputError


def images(n=6, dtype=np.uint8):
    return np.zeros((n, 4, 4, 1), dtype)


def labelled(counts):
    """As many examples of each class, shuffled; `x` numbers the examples."""
    label = np.repeat(np.arange(len(counts)), counts).astype(np.int32)
    label = np.random.default_rng(0).permutation(label)
    return {"x": np.arange(len(label)), "label": label}


def test_arrays_get_the_types_of_learners():
    found = data.from_arrays(
        image=images(),
        label=np.arange(6, dtype=np.uint8),
        x=np.linspace(0, 1, 6),
        tokens=[[1, 2]] * 6,
        target=np.arange(6, dtype=">f4"),
    )
    types = {name: array.dtype for name, array in found.items()}
    assert types == {
        "image": np.uint8,
        "label": np.int32,
        "x": np.float32,
        "tokens": np.int32,
        "target": np.dtype("=f4"),
    }
    assert all(array.dtype.isnative for array in found.values())
    assert found["target"].tolist() == [0, 1, 2, 3, 4, 5]
    assert data.from_arrays(image=images(dtype=np.float64))["image"].dtype == np.float32


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "empty data set"),
        ({"image": images(0)}, "empty data set"),
        ({"image": images(6), "label": np.arange(5)}, "different lengths.*6.*5"),
        ({"x": 3.0}, "x is a single number"),
        ({"image": images()[..., 0]}, r"\[6, 4, 4\]: expected \[N, H, W, C\] \(add the channel"),
        ({"image": images()[..., 0, 0]}, r"\[6, 4\]: expected \[N, H, W, C\]$"),
        ({"image": images(dtype=np.int32)}, "image has type int32: give uint8, or floats"),
        ({"image": images(dtype=np.float32) + 255}, "values from 255 to 255: give uint8, or"),
        ({"image": images(dtype=np.float32) - 0.1}, "values from -0.1 to -0.1"),
        ({"label": np.ones(4)}, r"label is float32 \[4\]: give class numbers as integers"),
        ({"label": np.eye(4, dtype=int)}, r"label is int32 \[4, 4\].*argmax"),
        ({"label": np.array([True, False])}, "label is bool"),
        ({"label": np.array(["cat", "dog"])}, "label has type <U3: give an array of numbers"),
        ({"x": np.array([{}])}, "x has type object"),
        ({"x": np.array([[0, 1], [np.nan, 1]])}, r"x\[1, 0\] is nan"),
        ({"x": np.array([0, np.inf])}, r"x\[1\] is inf"),
        ({"label": np.array([2**31])}, "integers beyond 32 bits"),
        ({"label": np.array([2**63], np.uint64)}, "integers beyond 32 bits"),
    ],
)
def test_bad_arrays_are_refused(arrays, message):
    with pytest.raises(InputError, match=message):
        data.from_arrays(**arrays)


def test_labels_out_of_range_are_named():
    data.check_labels(np.array([0, 9]), 10)
    with pytest.raises(InputError, match=r"label\[2\] is 10, outside 0 to 9 \(1 such\)"):
        data.check_labels(np.array([0, 9, 10]), 10)
    with pytest.raises(InputError, match=r"label\[1\] is -1, outside 0 to 9 \(2 such\)"):
        data.check_labels(np.array([0, -1, 11]), 10)


@pytest.mark.parametrize("stratified", [True, False])
@pytest.mark.parametrize(("amount", "count"), [(0.2, 20), (17, 17), (1, 1), (99, 99)])
def test_a_split_is_a_partition(amount, count, stratified):
    everything = labelled([50, 30, 20])
    rest, held_out = data.split(everything, amount, seed=3, stratified=stratified)
    assert len(held_out["x"]) == count
    assert sorted([*rest["x"], *held_out["x"]]) == list(range(100))
    for part in (rest, held_out):
        np.testing.assert_array_equal(part["label"], everything["label"][part["x"]])
        assert np.all(np.diff(part["x"]) > 0)


def test_a_stratified_split_takes_each_class_its_share():
    everything = labelled([50, 30, 20])
    held_out = data.split(everything, 10, seed=0)[1]
    assert np.bincount(held_out["label"]).tolist() == [5, 3, 2]
    # 7.5, 4.5 and 3 are asked for: the remainders go to the first of the largest.
    held_out = data.split(everything, 15, seed=0)[1]
    assert np.bincount(held_out["label"]).tolist() == [8, 4, 3]


def test_a_split_depends_on_the_seed_alone():
    everything = labelled([50, 50])
    first, again, other = (data.split(everything, 20, seed)[1]["x"] for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    # Pinned, so that runs of different years hold out the same examples.
    assert data.split({"x": np.arange(10)}, 3, 0, stratified=False)[1]["x"].tolist() == [2, 4, 6]


@pytest.mark.parametrize("amount", [0, 100, -1, 0.0, 1.0, 0.001, 1.5])
def test_a_split_leaves_something_on_both_sides(amount):
    with pytest.raises(InputError, match="cannot hold out .* of 100 examples"):
        data.split(labelled([50, 50]), amount, seed=0)


def test_a_stratified_split_needs_labels():
    with pytest.raises(InputError, match="no label, only x"):
        data.split({"x": np.arange(9)}, 3, seed=0)


def test_few_labels_are_balanced_and_nested():
    everything = labelled([50, 30, 20])
    four, ten = (data.few_labels(everything, k, seed=0) for k in (4, 10))
    assert np.bincount(four["label"]).tolist() == [4, 4, 4]
    assert np.bincount(ten["label"]).tolist() == [10, 10, 10]
    assert set(four["x"]) < set(ten["x"])
    np.testing.assert_array_equal(ten["label"], everything["label"][ten["x"]])
    assert not np.array_equal(four["x"], data.few_labels(everything, 4, seed=1)["x"])
    assert np.array_equal(four["x"], data.few_labels(everything, 4, seed=0)["x"])


@pytest.mark.parametrize("per_class", [0, 21])
def test_few_labels_must_exist(per_class):
    with pytest.raises(InputError, match="class 2 has 20; choose from 1 to 20"):
        data.few_labels(labelled([50, 30, 20]), per_class, seed=0)


@pytest.mark.parametrize("balanced", [True, False])
def test_hidden_labels_belong_to_all_examples(balanced):
    everything = labelled([50, 30, 20])
    few, rest = data.hide_labels(everything, 12, seed=0, balanced=balanced)
    assert rest.keys() == everything.keys() and len(few["label"]) == 12
    np.testing.assert_array_equal(rest["x"], everything["x"])
    np.testing.assert_array_equal(few["row"], few["x"])
    np.testing.assert_array_equal(few["label"], everything["label"][few["row"]])
    assert len(set(few["row"])) == 12
    assert (np.bincount(few["label"]).tolist() == [4, 4, 4]) == balanced
    again = data.hide_labels(everything, 12, seed=0, balanced=balanced)[0]
    other = data.hide_labels(everything, 12, seed=1, balanced=balanced)[0]
    assert again["row"].tolist() == few["row"].tolist() != other["row"].tolist()


def test_random_draws_take_each_example_as_often():
    everything = labelled([30, 20])
    drawn = [data.hide_labels(everything, 25, seed, balanced=False)[0]["row"] for seed in range(80)]
    counts = np.bincount(np.concatenate(drawn), minlength=50)
    assert abs(counts - 40).max() < 20  # 4.5 standard deviations


@pytest.mark.parametrize(
    ("count", "balanced", "message"),
    [
        (2, True, "cannot keep 2 labels of 100 examples of 3 classes: choose a number from 3 to"),
        (101, False, "cannot keep 101 labels of 100 examples of 3 classes: .* from 3 to 100"),
        (10, True, "as many of each of 3 classes: choose a multiple of 3, or a draw that is not"),
        (63, True, "class 2 has 20; choose from 1 to 20"),
        (3, False, "the draw of 3 labels with seed 0 has none of class"),
    ],
)
def test_labels_that_cannot_be_kept(count, balanced, message):
    with pytest.raises(InputError, match=message):
        data.hide_labels(labelled([50, 30, 20]), count, seed=0, balanced=balanced)


@pytest.mark.parametrize("batch_size", [1, 3, 5, 10, 16])
def test_padded_batches_hold_each_example_once(batch_size):
    everything = labelled([6, 4])
    batches = list(data.padded_batches(everything, batch_size))
    assert {batch["x"].shape for batch in batches} == {(batch_size,)}
    assert {batch["mask"].dtype for batch in batches} == {np.dtype(np.float32)}
    rows = np.concatenate([batch["x"] for batch in batches])
    mask = np.concatenate([batch["mask"] for batch in batches])
    assert rows[mask == 1].tolist() == list(range(10))
    assert set(rows[mask == 0]) <= {0}
    assert mask.sum() == 10


def test_padded_batches_keep_a_mask():
    everything = {"x": np.arange(3), "mask": np.array([1, 0, 1], np.float32)}
    batches = list(data.padded_batches(everything, 2))
    assert [batch["mask"].tolist() for batch in batches] == [[1, 0], [1, 0]]


def test_padded_batches_refuse_at_once():
    with pytest.raises(InputError, match="batch size 0: choose 1 or more"):
        data.padded_batches({"x": np.arange(3)}, 0)
    with pytest.raises(InputError, match="empty data set"):
        data.padded_batches({"x": np.arange(0)}, 2)
    with pytest.raises(InputError, match="different lengths"):
        data.padded_batches({"x": np.arange(3), "y": np.arange(4)}, 2)
