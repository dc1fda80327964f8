"""Weights and trained functions in files that other programs read, neither of them pickled."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp

from paradigms.core.errors import InputError, MissingExtraError
from paradigms.core.leaves import differences
from paradigms.core.record import explained, write_whole
from paradigms.core.state import PyTree

# Which of them runs an exported function is decided where it is loaded.
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def save_weights(tree: PyTree, path: Path | str) -> None:
    """Writes arrays as safetensors, named by their path in the tree: `params.hidden_0.kernel`.

    Args:
      tree: of arrays; keys of random numbers are no weights.
      path: of the file, which is replaced if it is there.

    Raises:
      InputError: two arrays have one name, or the file cannot be written.
      MissingExtraError: safetensors is not installed.
    """
    save_file = _safetensors().save_file
    arrays = {name: jnp.asarray(leaf) for name, leaf in _named(tree).items()}
    write_whole(Path(path), lambda file: save_file(arrays, str(file)))


def load_weights(path: Path | str, template: PyTree) -> PyTree:
    """Reads what `save_weights` wrote into the form of `template`.

    Args:
      path: of the file.
      template: arrays or `jax.ShapeDtypeStruct`s; names, shapes and dtypes must be the file's.

    Raises:
      InputError: the file is missing, cut short or no safetensors, or its weights are of another
        net.
      MissingExtraError: safetensors is not installed.
    """
    flax = _safetensors()
    path = Path(path)
    try:
        with explained(f"cannot read {path}"):
            arrays = flax.load_file(str(path))
    except InputError:
        raise
    except Exception as error:  # of a class that its Rust side makes
        raise InputError(f"{path} is damaged or not a safetensors file: {error}") from error

    def forms(named: dict[str, Any]) -> dict[str, dict[str, Any]]:
        return {
            name: {"shape": list(leaf.shape), "dtype": str(leaf.dtype)}
            for name, leaf in named.items()
        }

    expected = _named(template)
    if found := differences(forms(arrays), forms(expected)):
        raise InputError(f"{path} has the weights of another net: {found}")
    return jax.tree.unflatten(jax.tree.structure(template), [arrays[name] for name in expected])


def save_function(
    function: Callable[[jax.Array], Any], example: jax.ShapeDtypeStruct, path: Path | str
) -> None:
    """Writes a function, weights and all, as the portable program of `jax.export`.

    Args:
      function: of one array `[B, ...]`; it may close over its weights.
      example: shape and dtype of the array; the size of its first axis does not matter, for the
        program takes any.
      path: of the file, which is replaced if it is there.

    Raises:
      InputError: it cannot be written.
      MissingExtraError: flatbuffers is not installed.
    """
    export = _export()
    (batch,) = export.symbolic_shape("batch")
    struct = jax.ShapeDtypeStruct((batch, *example.shape[1:]), example.dtype)
    program = export.export(jax.jit(function), platforms=PLATFORMS)(struct).serialize()
    write_whole(Path(path), lambda file: file.write_bytes(program))


def load_function(path: Path | str) -> Callable[[Any], Any]:
    """Reads what `save_function` wrote: a function, which needs nothing of this library.

    Raises:
      InputError: the file is missing, damaged, or no such program.
      MissingExtraError: flatbuffers is not installed.
    """
    path = Path(path)
    with explained(f"cannot read {path}"):
        content = path.read_bytes()
    export = _export()
    try:
        return jax.jit(export.deserialize(bytearray(content)).call)
    except Exception as error:  # whatever its reader stumbles over
        reason = str(error).partition("\n")[0]
        raise InputError(f"{path} is damaged or not a program of jax.export: {reason}") from error


def _named(tree: PyTree) -> dict[str, Any]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    named = {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}
    if len(named) < len(leaves):
        raise InputError("two weights have the same name, for one of theirs has a dot in it")
    return named


def _safetensors() -> Any:
    try:
        import safetensors.flax
    except ImportError as error:
        raise MissingExtraError("safetensors", "experiments", "weights in a file") from error
    return safetensors.flax


def _export() -> Any:
    """`jax.export`, whose files are written by a package that jax does not bring."""
    if importlib.util.find_spec("flatbuffers") is None:
        raise MissingExtraError("flatbuffers", "experiments", "a function in a file")
    return jax.export
