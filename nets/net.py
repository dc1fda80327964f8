"""`Net`: all that a paradigm sees of a network, and the adapters that give one."""

import math
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

if TYPE_CHECKING:
    from flax import nnx

PyTree = Any
Precision = Literal["float32", "bfloat16"]

_KEY_MISSING = "this net draws random numbers in training: call apply with key=..., train=True"


class Net(NamedTuple):
    """A network as two pure functions.

    Attributes:
      init: `(key, *inputs) -> (params, model_state)`. `params` get gradients; `model_state` holds
        the variables that do not (batch statistics) and is `{}` where there are none.
      apply: `(params, model_state, *inputs, key=None, train=False) -> (output, model_state)`.
        `key` feeds dropout and the like, and may be None where nothing is drawn. With
        `train=False` the model state comes back unchanged.
    """

    init: Callable[..., tuple[PyTree, PyTree]]
    apply: Callable[..., tuple[Any, PyTree]]


def from_linen(module: nn.Module, *, train_argument: str = "train") -> Net:
    """A Linen module as a `Net`.

    Args:
      module: called as `module(*inputs, train=False)`. Whatever it draws in training comes from
        the stream "dropout".
      train_argument: the module's name for `train`.

    Returns:
      A net whose `model_state` is every collection but `params`, by its name.
    """

    def mode(train: bool) -> dict[str, Any]:
        return {train_argument: train}

    def init(key: jax.Array, *inputs: Any) -> tuple[PyTree, PyTree]:
        variables = dict(module.init(key, *inputs, **mode(False)))
        return variables.pop("params", {}), variables

    def apply(
        params: PyTree,
        model_state: PyTree,
        *inputs: Any,
        key: jax.Array | None = None,
        train: bool = False,
    ) -> tuple[Any, PyTree]:
        try:
            output = module.apply(
                {"params": params, **model_state},
                *inputs,
                rngs=None if key is None else {"dropout": key},
                mutable=list(model_state) if train and model_state else False,
                **mode(train),
            )
        except flax.errors.InvalidRngError:
            if key is None:
                raise ValueError(_KEY_MISSING) from None
            raise
        if not (train and model_state):
            return output, model_state
        output, updated = output
        return output, {**model_state, **updated}

    return Net(init, apply)


def from_nnx(make: Callable[["nnx.Rngs"], "nnx.Module"]) -> Net:
    """An NNX module as a `Net`.

    Args:
      make: builds the module from its `nnx.Rngs`. The module is called as `module(*inputs)`;
        training or evaluation is set by its own `train()` and `eval()`.

    Returns:
      A net whose `params` are the `nnx.Param` and whose `model_state` is the rest (batch
      statistics) but random state and intermediates, both as nested dicts with string keys. Every
      random stream of the module is set from `key` and its own path, so nothing drawn is stored.
    """
    from flax import nnx

    drawn = (nnx.RngState, nnx.Intermediate)

    def build(key: jax.Array) -> "nnx.Module":
        return make(nnx.Rngs(params=key, default=jax.random.fold_in(key, 1)))

    def split(state: "nnx.State") -> tuple[PyTree, PyTree]:
        params: dict[tuple[str, ...], Any] = {}
        model_state: dict[tuple[str, ...], Any] = {}
        for path, variable in nnx.to_flat_state(state):
            if not isinstance(variable, drawn):
                group = params if isinstance(variable, nnx.Param) else model_state
                group[_names(path)] = variable[...]
        return traverse_util.unflatten_dict(params), traverse_util.unflatten_dict(model_state)

    def init(key: jax.Array, *inputs: Any) -> tuple[PyTree, PyTree]:
        del inputs  # an NNX module knows its shapes
        return split(nnx.state(build(key)))

    def apply(
        params: PyTree,
        model_state: PyTree,
        *inputs: Any,
        key: jax.Array | None = None,
        train: bool = False,
    ) -> tuple[Any, PyTree]:
        module = nnx.eval_shape(lambda: build(jax.random.key(0)))
        graph, state = nnx.split(module)
        values = {
            **traverse_util.flatten_dict(params),
            **traverse_util.flatten_dict(model_state),
        }
        seed = jax.random.key(0) if key is None else key
        filled = []
        for path, variable in nnx.to_flat_state(state):
            name = _names(path)
            value: Any
            if isinstance(variable, nnx.RngKey):
                value = fold_name(seed, "/".join(name))
            elif isinstance(variable, nnx.RngCount):
                # A numpy zero stays concrete under jit, so that drawing can be noticed below.
                value = np.zeros(variable.shape, variable.dtype)
            else:
                value = values[name]
            filled.append((path, variable.replace(value)))
        module = nnx.merge(graph, nnx.from_flat_state(filled))
        module.train() if train else module.eval()
        output = module(*inputs)
        if key is None:
            counts = [
                leaf.get_value()
                for _, leaf in nnx.to_flat_state(nnx.state(module))
                if isinstance(leaf, nnx.RngCount)
            ]
            if any(isinstance(count, jax.core.Tracer) or np.any(count) for count in counts):
                raise ValueError(_KEY_MISSING)
        return output, split(nnx.state(module))[1] if train else model_state

    return Net(init, apply)


def _names(path: tuple[Any, ...]) -> tuple[str, ...]:
    # Lists give integer keys, which checkpoints and path rules cannot tell from strings.
    return tuple(str(part) for part in path)


def fold_name(key: jax.Array, name: str) -> jax.Array:
    """A key of its own for the part called `name`, the same in every process."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def chain(**nets: Net) -> Net:
    """Nets one after another, each fed the output of the one before.

    `chain(backbone=..., head=...)` has params and model state `{"backbone": ..., "head": ...}`, so
    that a head can be replaced, or a backbone kept, by name. Every part has a key of its own.
    """
    if not nets:
        raise ValueError("chain needs at least one net: write chain(backbone=..., head=...)")

    def init(key: jax.Array, *inputs: Any) -> tuple[PyTree, PyTree]:
        params, model_state = {}, {}
        for name, net in nets.items():
            params[name], model_state[name] = net.init(fold_name(key, name), *inputs)
            # Only the shape of what the next net will see matters.
            shape, _ = jax.eval_shape(net.apply, params[name], model_state[name], *inputs)
            inputs = (jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shape),)
        return params, model_state

    def apply(
        params: PyTree,
        model_state: PyTree,
        *inputs: Any,
        key: jax.Array | None = None,
        train: bool = False,
    ) -> tuple[Any, PyTree]:
        updated = {}
        for name, net in nets.items():
            output, updated[name] = net.apply(
                params[name],
                model_state[name],
                *inputs,
                key=None if key is None else fold_name(key, name),
                train=train,
            )
            inputs = (output,)
        return inputs[0], updated if train else model_state

    return Net(init, apply)


def ensemble(net: Net, size: int) -> Net:
    """Nets of one architecture and different weights, side by side.

    Args:
      net: one of them.
      size: how many, M. Parameters and model state have them on a new first axis.

    Returns:
      A net that gives all of them the same inputs; its outputs are `[M, ...]`.

    Raises:
      ValueError: a size below 1.
    """
    if size < 1:
        raise ValueError(f"ensemble(size={size}): expected at least 1 net")

    def init(key: jax.Array, *inputs: Any) -> tuple[PyTree, PyTree]:
        return jax.vmap(lambda key: net.init(key, *inputs))(jax.random.split(key, size))

    def apply(
        params: PyTree,
        model_state: PyTree,
        *inputs: Any,
        key: jax.Array | None = None,
        train: bool = False,
    ) -> tuple[Any, PyTree]:
        def one(params: PyTree, model_state: PyTree, key: jax.Array | None) -> tuple[Any, PyTree]:
            return net.apply(params, model_state, *inputs, key=key, train=train)

        keys = None if key is None else jax.random.split(key, size)
        return jax.vmap(one)(params, model_state, keys)

    return Net(init, apply)


def preprocess(net: Net, function: Callable[[Any], Any]) -> Net:
    """A net that sees `function(input)` in place of its first input.

    Normalisation belongs here: images then travel as uint8 up to the network, and whoever loads
    the network cannot forget it.

    Args:
      net: the net behind.
      function: deterministic. Its floating output takes the dtype of the net's params, so that
        `with_precision` may be applied before or after.
    """

    def init(key: jax.Array, first: Any, *others: Any) -> tuple[PyTree, PyTree]:
        return net.init(key, function(first), *others)

    def apply(
        params: PyTree, model_state: PyTree, first: Any, *others: Any, **options: Any
    ) -> tuple[Any, PyTree]:
        dtypes = [leaf.dtype for leaf in jax.tree.leaves(params) if _is_floating(leaf)]
        first = function(first)
        if dtypes:
            first = _cast(first, jnp.result_type(*dtypes))
        return net.apply(params, model_state, first, *others, **options)

    return Net(init, apply)


def postprocess(net: Net, function: Callable[[Any], Any]) -> Net:
    """A net that gives `function(output)`, for instance images where a dense layer gives vectors.

    Args:
      net: the net in front.
      function: deterministic.
    """

    def apply(params: PyTree, model_state: PyTree, *inputs: Any, **options: Any) -> Any:
        output, model_state = net.apply(params, model_state, *inputs, **options)
        return function(output), model_state

    return Net(net.init, apply)


def with_precision(net: Net, policy: Precision) -> Net:
    """Chooses the dtype of the arithmetic, not of what is kept.

    Args:
      net: the net.
      policy: "float32" changes nothing. "bfloat16" casts parameters and floating inputs to
        bfloat16 for the forward and backward pass; parameters, gradients, model state (and batch
        norm's statistics) and the output stay float32.
    """
    if policy not in ("float32", "bfloat16"):
        raise ValueError(f"unknown precision {policy!r}: choose 'float32' or 'bfloat16'")
    if policy == "float32":
        return net

    def apply(
        params: PyTree, model_state: PyTree, *inputs: Any, **options: Any
    ) -> tuple[Any, PyTree]:
        output, updated = net.apply(
            _cast(params, jnp.bfloat16), model_state, *_cast(inputs, jnp.bfloat16), **options
        )
        # Running statistics must not change their dtype from one step to the next.
        kept = jax.tree.map(lambda new, old: new.astype(old.dtype), updated, model_state)
        return _cast(output, jnp.float32), kept if options.get("train") else model_state

    return Net(net.init, apply)


def count_parameters(params: PyTree) -> int:
    """The number of scalars in a tree of arrays or of their shapes."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def _is_floating(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.asarray(leaf).dtype, jnp.floating)


def _cast(tree: PyTree, dtype: Any) -> PyTree:
    return jax.tree.map(lambda leaf: leaf.astype(dtype) if _is_floating(leaf) else leaf, tree)
