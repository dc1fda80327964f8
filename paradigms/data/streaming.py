"""Batches from sets larger than memory, read ahead in the background."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, Self

import jax
import jax.numpy as jnp
import numpy as np

from paradigms.core.errors import InputError, MissingExtraError
from paradigms.core.sampling import batch_indices, data_key
from paradigms.data.arrays import narrow, size_of
from paradigms.data.cache import Data

_LAST_STEP = 2**31 - 1


class RandomAccess(Protocol):
    """A set whose examples are dicts of arrays, such as `tensorflow_datasets.data_source`."""

    def __len__(self) -> int:
        """Number of examples."""
        ...

    def __getitem__(self, index: int, /) -> Mapping[str, Any]:
        """The example of that number; called from several threads."""
        ...


class Stream:
    """A source for `fit` that reads each batch when it is due, ahead of time and in the background.

    Batch `step` holds the examples that `resident` would draw for a run of the same key. It depends
    on (key, step) alone, so that a resumed run needs no iterator, and the slices of any number of
    processes, joined in order, are the global batch. grain reads ahead, in threads.

    Attributes:
      size: number of examples.
      batch_size: size of the global batch.
    """

    def __init__(
        self,
        source: RandomAccess | Mapping[str, np.ndarray],
        batch_size: int,
        key: jax.Array,
        *,
        fields: Sequence[str] | None = None,
        process_index: int = 0,
        process_count: int = 1,
        threads: int = 4,
        prefetch: int = 2,
    ) -> None:
        """Checks what can be checked with one example.

        Args:
          source: examples by number, each a dict of arrays of one shape; or a dict of arrays
            [N, ...], for instance `numpy.load(..., mmap_mode="r")`.
          batch_size: of the global batch, B.
          key: typed PRNG key of the run (`TrainState.key`).
          fields: names to keep, by default all.
          process_index: which slice of each batch to read.
          process_count: number of slices, P; it must divide B.
          threads: that read at the same time, 1 or more.
          prefetch: calls to read ahead, 1 or more, and at least one batch for each thread.

        Raises:
          InputError: the batch does not fit the set or the processes, a name is missing, or a
            field does not hold numbers.
        """
        self._read: Callable[[Sequence[str], np.ndarray], Data]
        if isinstance(source, Mapping):
            self.size, names = size_of(source), tuple(source)
            self._read = functools.partial(_read_columns, source)
        else:
            self.size = len(source)
            names = tuple(source[0]) if self.size else ()
            self._read = functools.partial(_read_examples, source)
        self.batch_size = batch_size
        if not 1 <= batch_size <= self.size:
            raise InputError(
                f"batch size {batch_size} does not fit a data set of {self.size} examples: "
                f"choose a batch size from 1 to {self.size}"
            )
        if not 0 <= process_index < process_count or batch_size % process_count:
            raise InputError(
                f"process {process_index} of {process_count} cannot have its slice of batch size "
                f"{batch_size}: count processes from 0, and choose a multiple of their number"
            )
        if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
            raise InputError(f"key has type {key.dtype}: make it by jax.random.key(seed)")
        if threads < 1 or prefetch < 1:
            raise InputError(f"threads={threads}, prefetch={prefetch}: choose 1 or more")
        self._fields = names if fields is None else tuple(fields)
        if not set(self._fields) <= set(names):
            raise InputError(f"fields {self._fields}: the examples have only {names}")
        local = batch_size // process_count
        self._slice = slice(process_index * local, (process_index + 1) * local)
        self._key = _on_host(key)
        self._threads, self._prefetch = threads, prefetch
        self._iterator: Any = None
        self._due = (-1, 0)  # the call that the iterator reads ahead for
        self._read(self._fields, np.zeros(1, np.int32))  # wrong types show here, not in training

    def __call__(self, step: int, n: int) -> Data:
        """The batches of the updates `step ... step + n - 1`.

        Returns:
          The arrays [n, B / P, ...], with `index`, int32 [n, B / P], the examples they hold.

        Raises:
          InputError: an example cannot be read or has another shape; the message gives its number.
        """
        if self._due != (step, n):
            self.close()
            self._iterator = self._start(step, n)
        self._due = (-1, 0)  # after an error the iterator's place is lost
        batches = [next(self._iterator) for _ in range(n)]
        stacked = {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}
        self._due = (step + n, n)
        return stacked

    def close(self) -> None:
        """Stops reading ahead; a later call starts again."""
        if self._iterator is not None:
            self._iterator.close()
        self._iterator, self._due = None, (-1, 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _start(self, step: int, n: int) -> Iterator[Data]:
        try:
            import grain
        except ImportError as error:
            raise MissingExtraError("grain", "data", "streaming") from error
        steps = grain.MapDataset.range(step, _LAST_STEP).map(self._batch)
        # With fewer batches than threads some threads would have nothing to do.
        ahead = max(self._prefetch * n, self._threads)
        options = grain.ReadOptions(num_threads=self._threads, prefetch_buffer_size=ahead)
        return iter(steps.to_iter_dataset(options))

    def _batch(self, step: int) -> Data:
        rows = _rows(self._key, np.int32(step), self.size, self.batch_size)
        index = np.asarray(rows)[self._slice]
        return {**self._read(self._fields, index), "index": index}


@functools.partial(jax.jit, static_argnames=("size", "batch_size"))
def _rows(key: jax.Array, step: jax.Array, size: int, batch_size: int) -> jax.Array:
    return batch_indices(data_key(key), step, size, batch_size)


def _on_host(key: jax.Array) -> jax.Array:
    """The key on this process's CPU: indices are for the host, and must not queue behind a step."""
    try:
        device = jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS leaves the CPU out
        device = jax.local_devices()[0]
    data = jax.device_put(np.asarray(jax.random.key_data(key)), device)
    return jax.random.wrap_key_data(data, impl=jax.random.key_impl(key))


def _read_columns(
    columns: Mapping[str, np.ndarray], fields: Sequence[str], index: np.ndarray
) -> Data:
    return {name: narrow(name, np.asarray(columns[name][index])) for name in fields}


def _read_examples(source: RandomAccess, fields: Sequence[str], index: np.ndarray) -> Data:
    rows = index.tolist()
    try:
        # Sources that can read many examples at once do so faster than one by one.
        if hasattr(source, "__getitems__"):
            examples = source.__getitems__(rows)
        else:
            examples = [source[row] for row in rows]
    except Exception as error:  # the source's own, of any type
        raise _unreadable(source, rows, error) from error
    return {name: _stack(name, rows, examples) for name in fields}


def _unreadable(source: RandomAccess, rows: list[int], error: Exception) -> InputError:
    """Looks for the example that cannot be read."""
    for row in rows:
        try:
            source[row]
        except Exception as cause:
            return InputError(
                f"cannot read example {row}: {type(cause).__name__}: {cause}; "
                f"mend or replace the files of this set"
            )
    return InputError(f"cannot read examples: {type(error).__name__}: {error}; try again")


def _stack(name: str, rows: list[int], examples: Sequence[Mapping[str, Any]]) -> np.ndarray:
    arrays = [np.asarray(example[name]) for example in examples]
    for row, array in zip(rows, arrays, strict=True):
        if array.shape != arrays[0].shape:
            raise InputError(
                f"{name} of example {row} has shape {list(array.shape)}, that of example {rows[0]} "
                f"{list(arrays[0].shape)}: all examples must have one shape"
            )
    return narrow(name, np.stack(arrays))
