"""The memory that an update takes on each device of a mesh which this machine need not have.

XLA's CPU compiler divides the program over as many devices as are asked for, and tells what it
would allocate; nothing is run. Another compiler fuses differently, so temporaries are an estimate;
what the state and the data take is exact.
"""

import importlib
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from experiments import catalogue, cli, training
from paradigms.core.errors import InputError
from paradigms.core.mesh import make_mesh, parse_mesh, state_shardings
from paradigms.core.state import PyTree
from paradigms.core.transforms import accumulated, seeded

_MIB = 2**20


class _Reported(Exception):  # noqa: N818, for it is no error
    """Ends an experiment where its training would begin."""


def report(name: str, mesh: str, options: Sequence[str]) -> None:
    """Prints what the first training of an experiment takes on each device.

    Args:
      name: of the experiment.
      mesh: as for `--mesh`, of any size.
      options: of the experiment, as its command line has them.

    Raises:
      InputError: there is no such experiment, the mesh cannot be read, or the process has used a
        device already.
    """
    module = importlib.import_module(f"experiments.{catalogue.find(name).replace('/', '.')}")
    devices = math.prod(parse_mesh(mesh).values())
    try:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", devices)
    except RuntimeError as error:
        raise InputError(f"the report needs a process of its own: {error}") from error
    sys.argv[1:] = ["--mesh", mesh, *options]
    # An experiment builds its task and hands it to this function of the module.
    with mock.patch.object(training, "train", _report):
        try:
            cli.run(module.main, module.Config)
        except _Reported:
            return
    raise InputError(f"{name} trains nothing with these options, or has finished already")


def _report(
    main: Callable[..., Any], config: cli.Options, task: training.Task, part: str = ""
) -> dict[str, Any]:
    """Stands in for `training.train`."""
    if task.source is not None:
        raise InputError(f"{cli.name_of(main)} draws from a world on the host: nothing to divide")
    for what, size in per_device(config, task).items():
        print(f"{what:36}{size / _MIB:12.2f} MiB")
    raise _Reported


def per_device(config: cli.Options, task: training.Task) -> dict[str, int]:
    """Bytes on each device of `config.mesh` by what takes them, for one update of all runs."""
    mesh = make_mesh(config.mesh)
    # As accelerators have it: written out, as for a CPU, parts would share little memory.
    learner = accumulated(task.learner, config.accumulate, unroll=False)
    learner = seeded(learner, method="vmap", data_axis=task.data_axis)
    seeds = jnp.zeros(len(config.seeds), jnp.uint32)
    keys = jax.eval_shape(jax.vmap(jax.random.key), seeds)
    data = jax.eval_shape(lambda tree: tree, task.data)
    state = jax.eval_shape(learner.init, keys, data)
    where = state_shardings(state, mesh)
    state = _placed(state, where)
    whole = NamedSharding(mesh, PartitionSpec())
    data = _placed(data, jax.tree.map(lambda _: whole, data))
    with jax.set_mesh(mesh):
        update = jax.jit(learner.update, donate_argnums=0, out_shardings=(where, None))
        used: Any = update.lower(state, data).compile().memory_analysis()
    sizes = {
        "parameters": _bytes(state.params),
        "optimiser and all else of the state": _bytes(state) - _bytes(state.params),
        "data": _bytes(data),
        "metrics": used.output_size_in_bytes - used.alias_size_in_bytes,
        "temporaries": used.temp_size_in_bytes,
    }
    return {**sizes, "in all": sum(sizes.values())}


def _placed(tree: PyTree, where: PyTree) -> PyTree:
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        tree,
        where,
    )


def _bytes(tree: PyTree) -> int:
    """What the shapes of a tree take on one device."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )
