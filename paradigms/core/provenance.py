"""What a result came from: versions, device and commit; and fingerprints of states."""

import hashlib
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from paradigms.core.state import PyTree


def state_sha256(state: PyTree) -> str:
    """A fingerprint of every array of a state: its path, dtype, shape and bytes.

    Equal for equal states wherever they live and however they are sharded; typed keys count by
    their key data. Hexadecimal.
    """
    return _sha256(_host_leaves(state))


def state_sha256_per_run(state: PyTree, runs: int) -> list[str]:
    """The fingerprint of each run in a state that stacks `runs` of them on axis 0 of every leaf.

    Entry `i` equals `state_sha256` of the state that run `i` has alone.
    """
    leaves = list(_host_leaves(state))
    return [
        _sha256((path, dtype, array[run], shape[1:]) for path, dtype, array, shape in leaves)
        for run in range(runs)
    ]


def environment() -> dict[str, Any]:
    """What a result depends on besides its configuration: versions, device, commit.

    `commit` is None where the source is not a git checkout; `dirty` tells whether its code differs
    from the commit. No name of a machine or path is in it.
    """
    packages = ("jax", "jaxlib", "flax", "optax", "numpy", "paradigms")
    device = jax.devices()[0]
    commit, dirty = _commit()
    return {
        "python": platform.python_version(),
        **{package: _version(package) for package in packages},
        "platform": device.platform,
        "device": device.device_kind,
        "device_count": jax.device_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu_count": cpu_count(),
        "commit": commit,
        "dirty": dirty,
    }


def cpu_count() -> int:
    """How many cores this process may use, which a scheduler may have made fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _host_leaves(state: PyTree) -> Iterable[tuple[str, str, np.ndarray, tuple[int, ...]]]:
    """Path, dtype, host array and shape of each leaf; the array of keys has one axis more."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    for path, leaf in leaves:
        array = leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
        is_key = jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key)
        data = np.asarray(jax.random.key_data(array) if is_key else array)
        yield jax.tree_util.keystr(path), str(array.dtype), data, array.shape


def _sha256(leaves: Iterable[tuple[str, str, np.ndarray, tuple[int, ...]]]) -> str:
    digest = hashlib.sha256()
    for path, dtype, array, shape in leaves:
        digest.update(f"{path} {dtype} {list(shape)}\n".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> tuple[str | None, bool | None]:
    """The commit of this source tree, if git tracks this very file there."""
    here = Path(__file__)

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here.parents[2]), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", str(here))
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--", "*.py", "*.toml"))
    except (OSError, subprocess.CalledProcessError):
        return None, None
