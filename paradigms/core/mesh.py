"""Devices, named once at the edge: the mesh, and where batches and states lie on it.

A mesh has up to three axes. `data` holds copies of the state; `fsdp` also shares out the
parameters, their optimiser moments and their averages (Rajbhandari et al., 2020, ZeRO stage 3,
https://arxiv.org/abs/1910.02054). A batch is divided over both together. `model` divides the layers
themselves, of which each device computes a part for the whole batch (`tensor_parallel`).

Algorithms know nothing of this. They run inside `jax.set_mesh(mesh)`, and the few places
that draw a batch call `constrain_batch`: without it every device would draw the same whole batch
and do all of the work, with the right answer and no gain.
"""

import math
import os
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from paradigms.core import tensor_parallel
from paradigms.core.errors import InputError
from paradigms.core.state import PyTree

BATCH_AXES = ("data", "fsdp")
AXES = (*BATCH_AXES, "model")

Rules = Sequence[tuple[str, PartitionSpec]]


def initialize_distributed(
    coordinator: str | None = None, processes: int | None = None, index: int | None = None
) -> None:
    """Joins this process to the others of the run; does nothing for a run of one process.

    Call it before anything else touches a device. It acts when `coordinator` is given or the
    variable `JAX_COORDINATOR_ADDRESS` is set. A process that is silent for 20 seconds counts as
    lost, and jax then ends the others.

    Args:
      coordinator: `host:port` of process 0, or `"auto"` where the cluster says it (TPU pods,
        Slurm, Open MPI); by default `JAX_COORDINATOR_ADDRESS`.
      processes: how many processes there are; by default `JAX_NUM_PROCESSES`, and without that what
        the cluster says.
      index: which of them this is, from 0; by default `JAX_PROCESS_ID`, and without that what the
        cluster says.

    Raises:
      InputError: the processes cannot be joined, or a variable is not a number.
    """
    coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    if coordinator is None or jax.distributed.is_initialized():
        return
    processes = _from_environment("JAX_NUM_PROCESSES") if processes is None else processes
    index = _from_environment("JAX_PROCESS_ID") if index is None else index
    if coordinator == "auto":
        os.environ.pop("JAX_COORDINATOR_ADDRESS", None)  # jax would take the word for an address
    try:
        jax.distributed.initialize(
            None if coordinator == "auto" else coordinator,
            processes,
            index,
            heartbeat_timeout_seconds=20,
            shutdown_timeout_seconds=60,
        )
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(
            f"cannot join process {index} of {processes} at {coordinator}: {reason}"
        ) from error


def _from_environment(name: str) -> int | None:
    text = os.environ.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit()):
        raise InputError(f"{name} is '{text}': expected a number such as 2")
    return int(text)


def parse_mesh(spec: str | None) -> dict[str, int]:
    """Reads `"data=4,fsdp=2"` as `{"data": 4, "fsdp": 2}`; nothing gives `{}`, one device.

    Raises:
      InputError: not of that form, or an axis that there is not.
    """
    sizes: dict[str, int] = {}
    if spec is None or not spec.strip():
        return sizes
    for part in spec.split(","):
        name, _, size = (word.strip() for word in part.partition("="))
        where = f"mesh '{spec}'"
        if name not in AXES:
            raise InputError(
                f"{where}: unknown axis '{name}', not one of {', '.join(AXES)}; "
                "write for example 'data=4,model=2'"
            )
        if name in sizes:
            raise InputError(f"{where}: the axis '{name}' is given twice")
        if not (size.isascii() and size.isdigit() and int(size) >= 1):
            raise InputError(f"{where}: '{name}' needs a whole number of at least 1, not '{size}'")
        sizes[name] = int(size)
    return sizes


def make_mesh(spec: str | None = None) -> Mesh:
    """The mesh that `spec` names (see `parse_mesh`), on the first devices; by default on one.

    Raises:
      InputError: `spec` cannot be read, needs more devices than there are, or, with several
        processes, leaves some out.
    """
    sizes = parse_mesh(spec) or {"data": 1}
    needed, there = math.prod(sizes.values()), jax.device_count()
    if needed > there:
        raise InputError(
            f"mesh '{spec}' needs {needed} devices and there are {there}; to try it on a CPU set "
            f"XLA_FLAGS=--xla_force_host_platform_device_count={needed}"
        )
    if needed < there and jax.process_count() > 1:
        raise InputError(
            f"mesh '{spec or 'data=1'}' takes {needed} of {there} devices; "
            f"with {jax.process_count()} processes it must take all"
        )
    return jax.make_mesh(
        tuple(sizes.values()),
        tuple(sizes),
        # Since jax 0.8.1 the default is Explicit, under which an ordinary `jnp.where` may raise.
        axis_types=(AxisType.Auto,) * len(sizes),
        devices=jax.devices()[:needed] if needed < there else None,
    )


def batch_axes(mesh: Mesh | jax.sharding.AbstractMesh) -> tuple[str, ...]:
    """The axes of `mesh` over which a batch is divided; `()` where that divides nothing."""
    # Within shard_map an axis is Manual: what is at hand there is one device's share already.
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    axes = tuple(name for name in BATCH_AXES if kinds.get(name) == AxisType.Auto)
    return axes if math.prod(mesh.shape[name] for name in axes) > 1 else ()


def parameters_are_divided() -> bool:
    """Whether the mesh that is set has devices which hold but a part of the parameters."""
    sizes = jax.sharding.get_abstract_mesh().shape
    return any(size > 1 for axis, size in sizes.items() if axis != "data")


def _along(axes: tuple[str, ...], axis: int) -> PartitionSpec:
    """Dimension `axis` over the mesh axes `axes`, the dimensions before it whole."""
    return PartitionSpec(*[None] * axis, axes)


def constrain_batch(tree: PyTree, axis: int = 0) -> PyTree:
    """Divides dimension `axis` of every leaf over the mesh that is set, inside jit.

    Values do not change, only where they are computed. It is the identity where no mesh is set
    (`jax.set_mesh`), where the mesh is one device, and for leaves without that dimension. Under
    `vmap` the mapped dimension is not counted and stays whole.

    Args:
      tree: arrays `[..., B, ...]` with the batch at `axis`.
      axis: the batch dimension, not negative.

    Raises:
      InputError: B does not divide by the number of devices that share a batch.
    """
    mesh = jax.sharding.get_abstract_mesh()
    axes = batch_axes(mesh)
    if not axes:
        return tree
    shards = math.prod(mesh.shape[name] for name in axes)

    def constrain(leaf: jax.Array) -> jax.Array:
        if leaf.ndim <= axis:
            return leaf
        _check_divisible(leaf.shape[axis], shards)
        return jax.lax.with_sharding_constraint(leaf, _along(axes, axis))

    return jax.tree.map(constrain, tree)


def _check_divisible(batch: int, shards: int) -> None:
    # XLA would accept it, and quietly use fewer devices.
    if batch % shards:
        raise InputError(
            f"a batch of {batch} does not divide over the {shards} devices of the mesh; "
            f"take a multiple of {shards}"
        )


def batch_share(mesh: Mesh) -> tuple[int, int]:
    """Which share of every batch this process reads, and how many shares there are.

    Processes whose devices work on the same rows, together along `model`, read the same share. For
    a stream: `Stream(..., process_index=index, process_count=count)`.
    """
    axes = batch_axes(mesh)
    order = [*axes, *(name for name in mesh.axis_names if name not in axes)]
    devices = mesh.devices.transpose([mesh.axis_names.index(name) for name in order])
    rows = devices.reshape(math.prod(mesh.shape[name] for name in axes), -1)
    own = [
        row
        for row, holders in enumerate(rows)
        if any(device.process_index == jax.process_index() for device in holders)
    ]
    return min(own) // len(own), len(rows) // len(own)


def shard_batch(tree: PyTree, mesh: Mesh, axis: int = 0, *, own_share: bool = False) -> PyTree:
    """Puts a batch from the host on the mesh, divided along dimension `axis`.

    Args:
      tree: arrays `[..., B, ...]`, the whole batch in every process.
      mesh: where to put it.
      axis: the batch dimension, not negative; leaves without it are copied to every device.
      own_share: each process passes its `batch_share` alone, `B / count` rows, which stay on its
        own devices; what comes back is the global batch all the same.

    Raises:
      InputError: the global batch does not divide by the number of devices that share it.
    """
    axes = batch_axes(mesh)
    shards = math.prod(mesh.shape[name] for name in axes)
    shares = batch_share(mesh)[1] if own_share else 1

    def put(leaf: Any) -> jax.Array:
        if np.ndim(leaf) <= axis or not axes:
            return replicate(leaf, mesh)
        _check_divisible(np.shape(leaf)[axis] * shares, shards)
        sharding = NamedSharding(mesh, _along(axes, axis))
        if not own_share:
            return _put(leaf, sharding)
        return jax.make_array_from_process_local_data(sharding, np.asarray(leaf))

    return jax.tree.map(put, tree)


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """Copies every leaf to every device of the mesh; all processes must hold the same values."""
    sharding = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda leaf: _put(leaf, sharding), tree)


def _put(leaf: Any, sharding: NamedSharding) -> jax.Array:
    """Places an array that every process holds whole."""
    if jax.process_count() == 1:
        return jax.device_put(leaf, sharding)
    if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        # Keys do not travel between processes, the numbers within them do.
        data = _put(jax.random.key_data(leaf), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    whole = np.asarray(leaf)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])


def state_shardings(
    state: PyTree, mesh: Mesh, rules: Rules = (), *, min_size: int = 2**14
) -> PyTree:
    """Where each leaf of a state lies on the mesh.

    The first rule whose pattern is found in a leaf's path decides. Failing one, a `model` axis
    divides what `tensor_parallel` names, and an `fsdp` axis every floating leaf of at least
    `min_size` elements, along the largest dimension that is left and that the axis divides.
    Optimiser moments and averages have the shapes of their parameters, and the path of a parameter
    within their own, so they are divided alike. All else, and always scalars and PRNG keys, is
    copied to every device.

    Args:
      state: arrays, or `jax.eval_shape` of them: with the latter
        `jax.jit(init, out_shardings=state_shardings(...))` makes a state that no one device holds.
      mesh: the mesh.
      rules: `(pattern, spec)` pairs, for instance `("head/kernel$", PartitionSpec(None, "fsdp"))`.
        A path reads `params/head/kernel` or `opt_state/0/trace/head/kernel`.
      min_size: smaller leaves are not worth the communication that `fsdp` takes.

    Returns:
      A tree like `state` of `NamedSharding`.

    Raises:
      InputError: a pattern that is no regular expression or is found nowhere, or a spec that does
        not fit its leaf.
    """
    patterns = [(_compile(pattern), spec) for pattern, spec in rules]
    unused = {pattern.pattern for pattern, _ in patterns}

    def shard(path: tuple[Any, ...], leaf: jax.Array) -> NamedSharding:
        is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        if is_key or leaf.ndim == 0:
            return NamedSharding(mesh, PartitionSpec())
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        found = [(pattern, spec) for pattern, spec in patterns if pattern.search(name)]
        unused.difference_update(pattern.pattern for pattern, _ in found)
        if found:
            _check_fits(name, leaf.shape, found[0][1], mesh)
            return NamedSharding(mesh, found[0][1])
        if not jax.dtypes.issubdtype(leaf.dtype, np.floating):
            return NamedSharding(mesh, PartitionSpec())
        return NamedSharding(mesh, _usual_spec(name, leaf.shape, mesh, min_size))

    shardings = jax.tree_util.tree_map_with_path(shard, state)
    if unused:
        raise InputError(
            f"sharding rule '{min(unused)}' is found in no path of the state; "
            f"paths read like 'params/Dense_0/kernel'"
        )
    return shardings


def _compile(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise InputError(f"'{pattern}' is not a regular expression: {error}") from error


def _usual_spec(name: str, shape: tuple[int, ...], mesh: Mesh, min_size: int) -> PartitionSpec:
    """How a floating leaf is divided that no rule of the caller's names."""
    entries: list[Any] = [None] * len(shape)
    model = tensor_parallel.dimension(name, shape, mesh.shape.get("model", 1))
    if model is not None:
        entries[model] = "model"
    devices = mesh.shape.get("fsdp", 1)
    if devices > 1 and math.prod(shape) >= min_size:
        left = [
            axis for axis, length in enumerate(shape) if axis != model and length % devices == 0
        ]
        if left:
            entries[max(left, key=lambda axis: shape[axis])] = ("fsdp",)
    while entries and entries[-1] is None:
        entries.pop()
    return PartitionSpec(*entries)


def _check_fits(name: str, shape: tuple[int, ...], spec: PartitionSpec, mesh: Mesh) -> None:
    what = f"sharding rule {spec} for '{name}' of shape {shape}"
    if len(spec) > len(shape):
        raise InputError(f"{what}: it names {len(spec)} dimensions and there are {len(shape)}")
    for length, entry in zip(shape, spec, strict=False):
        axes = entry if isinstance(entry, tuple) else () if entry is None else (entry,)
        for axis in axes:
            if axis not in mesh.shape:
                raise InputError(f"{what}: the mesh has no axis '{axis}', only {mesh.axis_names}")
        size = math.prod(mesh.shape[axis] for axis in axes)
        if length % size:
            raise InputError(f"{what}: {length} does not divide by the {size} devices of {axes}")


def shard_state(state: PyTree, mesh: Mesh, rules: Rules = (), *, min_size: int = 2**14) -> PyTree:
    """Puts a state on the mesh as `state_shardings` says; raises what that raises."""
    return jax.tree.map(_put, state, state_shardings(state, mesh, rules, min_size=min_size))
