"""A state as arrays by name: what a file holds of it, and how it comes back bit for bit."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from paradigms.core.state import PyTree


def by_path(tree: PyTree) -> dict[str, Any]:
    """The leaves of a tree by their path."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def abstract(tree: PyTree) -> PyTree:
    """Shapes and dtypes in place of arrays; weak types are kept."""
    return jax.eval_shape(lambda tree: tree, tree)


def describe(tree: PyTree) -> dict[str, dict[str, Any]]:
    """Shape and dtype of every leaf by path, as JSON."""
    return {
        path: {
            "shape": list(struct.shape),
            "dtype": str(struct.dtype),
            "weak_type": struct.weak_type,
        }
        for path, struct in by_path(abstract(tree)).items()
    }


def differences(stored: Mapping[str, Any], expected: Mapping[str, Any], shown: int = 3) -> str:
    """In a few words where two sets of arrays differ; empty where they do not.

    Args:
      stored: by name, `{"shape": [...], "dtype": ...}` of what is in a file.
      expected: likewise, of what should be.
      shown: how many of the differences to name.
    """

    def form(leaf: Mapping[str, Any]) -> str:
        return f"{leaf['dtype']}[{','.join(map(str, leaf['shape']))}]"

    found = []
    for path in [*expected, *(path for path in stored if path not in expected)]:
        if path not in stored:
            found.append(f"{path} is missing from it")
        elif path not in expected:
            found.append(f"{path} is extra in it")
        elif form(stored[path]) != form(expected[path]):
            found.append(f"{path} is {form(stored[path])}, not {form(expected[path])}")
    more = f", and {len(found) - shown} more" if len(found) > shown else ""
    return ", ".join(found[:shown]) + more


def is_key(leaf: Any) -> bool:
    """Whether it is a typed PRNG key."""
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def as_data(leaf: jax.Array) -> jax.Array:
    """An array that a file can hold: a typed key's data, anything else as it is."""
    return jax.random.key_data(leaf) if is_key(leaf) else leaf


def _data_struct(struct: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    return jax.eval_shape(jax.random.key_data, struct) if is_key(struct) else struct


def _key_impl(struct: jax.ShapeDtypeStruct) -> Any:
    """The generator of a key known by its shape and dtype alone; jax tells it of arrays only."""
    found = []
    jax.eval_shape(lambda key: found.append(jax.random.key_impl(key)), struct)
    return found[0]


def sharding_of(leaf: Any) -> jax.sharding.Sharding | None:
    """Where a leaf must live; None where jax is free to choose, which is part of a jit's cache."""
    if isinstance(leaf, jax.Array) and not leaf.committed:
        return None
    return getattr(leaf, "sharding", None)


def check(path: str, item: Any, struct: jax.ShapeDtypeStruct) -> None:
    """Raises ValueError unless what a file held, `item`, is the data of `struct`."""
    wanted = _data_struct(struct)
    if item.shape != wanted.shape or item.dtype != wanted.dtype:
        raise ValueError(f"{path} is {item.dtype}{list(item.shape)} on disk")


def place(
    item: Any,
    struct: jax.ShapeDtypeStruct,
    weak_type: bool,
    sharding: jax.sharding.Sharding | None,
) -> jax.Array:
    """A fresh array, which may be donated, from what a file held.

    Args:
      item: the data; None where the leaf is empty.
      struct: what the leaf is to be.
      weak_type: whether its type is weak.
      sharding: where it is to lie; None for wherever jax likes.
    """
    if item is None:  # Orbax stores no array of size zero.
        wanted = _data_struct(struct)
        item = np.zeros(wanted.shape, wanted.dtype)
    # A copy, because jax may otherwise use numpy's own memory, which cannot be donated.
    array = item if isinstance(item, jax.Array) else jnp.array(item, copy=True)
    if is_key(struct):
        array = jax.random.wrap_key_data(array, impl=_key_impl(struct))
    if weak_type:
        # Weak types decide promotions, so they come back too. Python numbers make them, and setting
        # values keeps them.
        weak = jnp.full(array.shape, array.dtype.type(0).item())
        array = weak.at[...].set(array) if weak.dtype == array.dtype else array
    return array if sharding is None else jax.device_put(array, sharding)
