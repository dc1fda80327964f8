"""Data sets that are arrays in RAM: a user's own, divided, thinned out, or cut into batches."""

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import ArrayLike

from paradigms.core.errors import InputError
from paradigms.data.cache import Data


def from_arrays(**arrays: ArrayLike) -> Data:
    """Checks a user's own arrays and gives them the types that learners expect.

    Args:
      **arrays: one or more by name, each with one entry per example. `image` is uint8, or floating
        with values in [0, 1], [N, H, W, C]; `label` holds integers [N]; other names (`x`, `tokens`,
        `target`) any finite numbers [N, ...].

    Returns:
      The arrays; `label` has become int32, and other 64-bit numbers 32-bit ones.

    Raises:
      InputError: wrong type, shape, range or length, or not finite; the message names the array.
    """
    data = {name: narrow(name, np.asarray(array)) for name, array in arrays.items()}
    for name, array in data.items():
        if array.ndim == 0:
            raise InputError(f"{name} is a single number: give one entry per example")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            where = np.argwhere(~np.isfinite(array))[0].tolist()
            raise InputError(f"{name}{where} is {array[tuple(where)]}: remove or replace it")
    size_of(data)
    if "image" in data:
        _check_image(data["image"])
    if "label" in data:
        label = data["label"]
        if label.dtype.kind not in "iu" or label.ndim != 1:
            raise InputError(
                f"label is {label.dtype} {list(label.shape)}: give class numbers as integers [N] "
                f"(for one-hot labels take argmax(-1); name regression targets `target`)"
            )
        data["label"] = label.astype(np.int32)
    return data


def check_labels(label: np.ndarray, num_classes: int) -> None:
    """Checks that labels are class numbers.

    Args:
      label: integers [N].
      num_classes: labels must lie in [0, num_classes).

    Raises:
      InputError: one does not; the message gives its index and value.
    """
    wrong = np.flatnonzero((label < 0) | (label >= num_classes))
    if len(wrong):
        raise InputError(
            f"label[{wrong[0]}] is {label[wrong[0]]}, outside 0 to {num_classes - 1} "
            f"({len(wrong)} such): correct the labels or the number of classes"
        )


def split(
    data: Mapping[str, np.ndarray],
    fraction_or_count: float | int,
    seed: int,
    stratified: bool = True,
) -> tuple[Data, Data]:
    """Holds out a validation set.

    Args:
      data: arrays [N, ...]; `label` [N] is needed if stratified.
      fraction_or_count: of the examples to hold out: a float in (0, 1), or an int.
      seed: of numpy's PCG64; the same seed holds out the same examples anywhere.
      stratified: each class gives its share, to within one example.

    Returns:
      `(rest, held_out)`, both in the order of `data`.

    Raises:
      InputError: nothing would be left on one side, or labels are missing.
    """
    size = size_of(data)
    is_fraction = isinstance(fraction_or_count, float)
    count = round(size * fraction_or_count) if is_fraction else int(fraction_or_count)
    if not 0 < count < size:
        raise InputError(
            f"cannot hold out {fraction_or_count} of {size} examples: "
            f"choose a count from 1 to {size - 1}, or a fraction between 0 and 1"
        )
    order = np.random.Generator(np.random.PCG64(seed)).permutation(size)
    if stratified:
        held_out = np.concatenate(
            [
                rows[:share]
                for rows, share in zip(
                    _by_class(data, order), _shares(_label(data), count), strict=True
                )
            ]
        )
    else:
        held_out = order[:count]
    chosen = np.zeros(size, bool)
    chosen[held_out] = True
    return _take(data, ~chosen), _take(data, chosen)


def few_labels(data: Mapping[str, np.ndarray], per_class: int, seed: int) -> Data:
    """A fixed subset with as many examples of each class.

    Args:
      data: arrays [N, ...] with `label` [N].
      per_class: examples of each class, K; with the same seed a smaller subset lies within a
        larger one.
      seed: of numpy's PCG64.

    Returns:
      The arrays [K * classes, ...], in the order of `data`.

    Raises:
      InputError: a class has fewer examples, or labels are missing.
    """
    size = size_of(data)
    classes, counts = np.unique(_label(data), return_counts=True)
    if not 1 <= per_class <= counts.min():
        raise InputError(
            f"cannot take {per_class} examples per class: class {classes[counts.argmin()]} has "
            f"{counts.min()}; choose from 1 to {counts.min()}"
        )
    order = np.random.Generator(np.random.PCG64(seed)).permutation(size)
    rows = np.concatenate([rows[:per_class] for rows in _by_class(data, order)])
    return _take(data, np.sort(rows))


def hide_labels(
    data: Mapping[str, np.ndarray], count: int, seed: int, *, balanced: bool = True
) -> tuple[Data, Data]:
    """A few examples that keep their labels, and all of them for learning without.

    Labelled examples are among the unlabelled ones too, as papers have it.

    Args:
      data: arrays [N, ...] with `label` [N], of which every class has some.
      count: how many labels are kept.
      seed: of numpy's PCG64, of the draw alone.
      balanced: as many of each class (see `few_labels`), else drawn at random from all.

    Returns:
      `(labelled, unlabelled)`: `count` examples in the order of `data`, with `row` int32, where
      they stand in it; and `data` itself, whose `label` is then the hidden truth, for measurements.

    Raises:
      InputError: fewer labels than classes, more than there are examples, a number that no balanced
        draw has, or a random draw that leaves a class without a label.
    """
    size, classes = size_of(data), np.unique(_label(data))
    if not len(classes) <= count <= size:
        raise InputError(
            f"cannot keep {count} labels of {size} examples of {len(classes)} classes: choose a "
            f"number from {len(classes)} to {size}"
        )
    numbered = {**data, "row": np.arange(size, dtype=np.int32)}
    if balanced:
        if count % len(classes):
            raise InputError(
                f"cannot keep {count} labels, as many of each of {len(classes)} classes: choose a "
                f"multiple of {len(classes)}, or a draw that is not balanced"
            )
        return few_labels(numbered, count // len(classes), seed), dict(data)
    order = np.random.Generator(np.random.PCG64(seed)).permutation(size)
    labelled = _take(numbered, np.sort(order[:count]))
    if missing := sorted(set(classes.tolist()) - set(labelled["label"].tolist())):
        raise InputError(
            f"the draw of {count} labels with seed {seed} has none of class {missing[0]}: keep "
            "more labels, take another seed, or a balanced draw"
        )
    return labelled, dict(data)


def padded_batches(data: Mapping[str, np.ndarray], batch_size: int) -> Iterator[Data]:
    """Cuts a set into evaluation batches of one shape, in order.

    Args:
      data: arrays [N, ...]; a `mask` [N] of its own is kept.
      batch_size: examples in each batch, B; it may exceed N.

    Returns:
      An iterator over batches: the arrays [B, ...] and `mask`, float32 [B], which is 1 for an
      example and 0 for the copies of example 0 that fill the last batch.

    Raises:
      InputError: the batch size is not positive, or the set is empty.
    """
    size = size_of(data)
    if batch_size < 1:
        raise InputError(f"batch size {batch_size}: choose 1 or more")

    def cut() -> Iterator[Data]:
        for start in range(0, size, batch_size):
            rows = np.arange(start, start + batch_size)
            valid = rows < size
            # A slice of a full batch is a view; only the last batch is copied.
            which = slice(start, start + batch_size) if valid.all() else np.where(valid, rows, 0)
            batch = {name: array[which] for name, array in data.items()}
            mask = valid.astype(np.float32) * batch.get("mask", np.float32(1))
            yield {**batch, "mask": mask.astype(np.float32)}

    return cut()


def narrow(name: str, array: np.ndarray) -> np.ndarray:
    """Turns 64-bit numbers into 32-bit ones of the machine's byte order, and never wraps.

    Raises:
      InputError: not numbers, or integers that do not fit; the message gives `name`.
    """
    if array.dtype.kind not in "biuf":
        raise InputError(f"{name} has type {array.dtype}: give an array of numbers")
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if array.dtype.itemsize <= 4:
        return array
    if array.dtype.kind == "f":
        return array.astype(np.float32)
    limits = np.iinfo(np.int32)
    if array.size and (array.min() < limits.min or array.max() > limits.max):
        raise InputError(f"{name} holds integers beyond 32 bits ({array.min()} to {array.max()})")
    return array.astype(np.int32)


def _check_image(image: np.ndarray) -> None:
    if image.ndim != 4:
        raise InputError(
            f"image has shape {list(image.shape)}: expected [N, H, W, C]"
            + (" (add the channel: image[..., None])" if image.ndim == 3 else "")
        )
    if image.dtype == np.uint8:
        return
    if image.dtype.kind != "f":
        raise InputError(f"image has type {image.dtype}: give uint8, or floats in [0, 1]")
    low, high = image.min(), image.max()
    if low < 0 or high > 1:
        raise InputError(
            f"image has values from {low:g} to {high:g}: give uint8, or floats in [0, 1]"
        )


def size_of(data: Mapping[str, np.ndarray]) -> int:
    """The number of examples, N.

    Raises:
      InputError: the set is empty, or its arrays have different lengths.
    """
    sizes = {name: len(array) for name, array in data.items()}
    if not sizes or 0 in sizes.values():
        raise InputError(f"empty data set (lengths {sizes}): give at least one example")
    if len(set(sizes.values())) > 1:
        raise InputError(f"arrays of different lengths {sizes}: each needs one entry per example")
    return next(iter(sizes.values()))


def _label(data: Mapping[str, np.ndarray]) -> np.ndarray:
    if "label" not in data:
        raise InputError(f"the data set has no label, only {', '.join(data)}: give `label`")
    return data["label"]


def _by_class(data: Mapping[str, np.ndarray], order: np.ndarray) -> list[np.ndarray]:
    """The rows of each class, in the order given."""
    label = _label(data)[order]
    return [order[label == value] for value in np.unique(label)]


def _shares(label: np.ndarray, count: int) -> np.ndarray:
    """Divides `count` among the classes by largest remainder, so that the sum is exact."""
    sizes = np.unique(label, return_counts=True)[1]
    shares, remainders = np.divmod(sizes * count, len(label))
    extra = np.argsort(-remainders, kind="stable")[: count - shares.sum()]
    shares[extra] += 1
    return shares


def _take(data: Mapping[str, np.ndarray], rows: np.ndarray) -> Data:
    return {name: array[rows] for name, array in data.items()}
