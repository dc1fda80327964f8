"""A learner beside the same in PyTorch: the modes of both.

Ours all are `fit` on resident data:

  paradigms            as many updates to a dispatch as long experiments take
  paradigms_step       one update to a dispatch
  paradigms_unrolled   a few updates to a dispatch, written out

and PyTorch's, as it is written or with the loss, and so its gradient, through `torch.compile`, each
for networks of images with their memory channels first or last:

  torch_eager, torch_compiled, torch_eager_channels_last, torch_compiled_channels_last

Both sides get the same arrays, dtype, arithmetic of network and optimiser, and as many threads, and
draw their minibatches inside of the timed loop. To reach a target they start from the same weights.
PyTorch is optional and not among the dependencies.
"""

import functools
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import training
from experiments.benchmarks.measuring import (
    Mode,
    Reached,
    Ready,
    System,
    Target,
    threads,
)
from paradigms.core.learner import Learner
from paradigms.core.loop import Every, fit
from paradigms.core.scan import loops_are_slow
from paradigms.core.transforms import repeated

Data = Mapping[str, np.ndarray]

# Updates of an experiment that is worth some time of the compiler's.
_LONG = 1000
_UNROLLED = 4


class Peer(NamedTuple):
    """The same in PyTorch.

    Attributes:
      model: the module.
      optimizer: of its parameters.
      loss: of the arrays of a minibatch, which come as positional arguments.
      batches: makes minibatches without end, from the start of an epoch.
      max_norm: to which the gradient is clipped.
    """

    model: Any
    optimizer: Any
    loss: Callable[..., Any]
    batches: Callable[[], Iterator[tuple[Any, ...]]]
    max_norm: float | None = None


def system(
    learner: Callable[[], Learner],
    data: Callable[[], Data],
    peer: Callable[[Data, bool], Peer],
    weights: Callable[[Any], dict[str, np.ndarray]],
    *,
    updates: int,
    images: bool = False,
    target: Target | None = None,
    details: Callable[[], dict[str, Any]] = dict,
) -> System:
    """A learner and its peer as something to measure.

    Args:
      learner: makes ours, which takes the whole data set.
      data: makes the arrays, by name.
      peer: makes PyTorch's from the arrays, and from whether memory is channels last.
      weights: from our parameters to PyTorch's, by the names of the module. It is linear, so that
        it takes gradients too.
      updates: as in `System`.
      images: whether PyTorch may lay memory out channels last.
      target: as in `System`.
      details: as in `System`.
    """
    arrays = functools.cache(data)

    def ours(fused: int | None = None) -> Mode:
        return lambda updates: our_mode(learner(), arrays(), updates, fused)

    def torchs(compiled: bool, channels_last: bool = False) -> Mode:
        def start(seed: int) -> dict[str, np.ndarray]:
            state = jax.jit(learner().init)(jax.random.key(seed), dict(arrays()))
            return weights(jax.device_get(state.params))

        return lambda updates: torch_mode(
            lambda: peer(arrays(), channels_last), start, updates, compiled
        )

    peers = {"torch_eager": torchs(False), "torch_compiled": torchs(True)}
    if images:
        peers["torch_eager_channels_last"] = torchs(False, channels_last=True)
        peers["torch_compiled_channels_last"] = torchs(True, channels_last=True)
    return System(
        ours={
            "paradigms": ours(),
            "paradigms_step": ours(1),
            "paradigms_unrolled": ours(_UNROLLED),
        },
        updates=updates,
        peers=peers,
        target=target,
        details=details,
    )


# Ours ---------------------------------------------------------------------------------------------


def our_mode(learner: Learner, data: Data, updates: int, fused: int | None = None) -> Ready | None:
    """`fit` on resident data.

    Args:
      learner: takes the whole data set.
      data: its arrays.
      updates: of a round.
      fused: updates to a dispatch, written out, or as many below as divide a round; None for those
        that experiments take, and their kind of loop.

    Returns:
      None where `fused` asks for what is taken anyway, or for one where more do not divide a round.
    """
    resident = jax.tree.map(jnp.asarray, dict(data))
    start = jax.jit(learner.init)

    def fresh(seed: int = 0) -> Any:
        return jax.block_until_ready(start(jax.random.key(seed), resident))

    example = fresh()

    def usual(interval: int) -> int:
        return training.updates_per_call(learner, example, resident, interval, steps=_LONG)

    def per_call(interval: int) -> int:
        return usual(interval) if fused is None else largest_divisor(interval, fused)

    n = per_call(updates)
    if fused is not None:
        written_out = n == 1 or loops_are_slow(learner.update, example, resident)
        if (n == usual(updates) and written_out) or n == 1 < fused:
            return None

    def train(steps: int, n: int, seed: int = 0, **options: Any) -> Any:
        unroll = None if fused is None else True
        program = repeated(learner, n, unroll=unroll)
        return fit(
            program, fresh(seed), lambda *_: resident, steps=steps, steps_per_call=n, **options
        )

    def reach(target: Target, seed: int) -> Reached | None:
        losses = [np.inf]
        fitted = train(
            target.limit,
            per_call(target.every),
            seed,
            callbacks=[
                Every(target.every, lambda _, m, __: losses.append(float(m["loss"].value())))
            ],
            stop=lambda: losses[-1] <= target.loss,
        )
        if losses[-1] > target.loss:
            return None
        return Reached(fitted.train_seconds, fitted.steps)

    compile_seconds = train(n, n).compile_seconds
    return Ready(lambda: train(updates, n).train_seconds, compile_seconds, reach)


def largest_divisor(number: int, most: int) -> int:
    """The largest divisor of `number` that is at most `most`."""
    return max(n for n in range(1, most + 1) if number % n == 0)


# PyTorch's ----------------------------------------------------------------------------------------


def torch_mode(
    make: Callable[[], Peer],
    start: Callable[[int], dict[str, np.ndarray]],
    updates: int,
    compiled: bool,
) -> Ready:
    """A loop as PyTorch's users write it.

    Args:
      make: makes the peer.
      start: initial weights of a seed, by the names of the module.
      updates: of a round.
      compiled: whether the loss goes through `torch.compile`.
    """
    import torch

    torch.set_num_threads(threads())
    torch.manual_seed(0)
    peer = make()
    loss_of = torch.compile(peer.loss) if compiled else peer.loss
    running = peer.batches()

    def descend(batch: tuple[Any, ...]) -> Any:
        peer.optimizer.zero_grad()
        loss = loss_of(*batch)
        loss.backward()
        return loss.detach()

    def update(batches: Iterator[tuple[Any, ...]]) -> Any:
        loss = descend(next(batches))
        take_step(peer)
        return loss

    def run() -> float:
        begin = time.perf_counter()
        for _ in range(updates):
            update(running)
        return time.perf_counter() - begin

    def reach(target: Target, seed: int) -> Reached | None:
        torch.manual_seed(seed)
        load(peer.model, start(seed))
        peer.optimizer.state.clear()
        batches = peer.batches()
        begin = time.perf_counter()
        for done in range(target.every, target.limit + 1, target.every):
            losses = [update(batches) for _ in range(target.every)]
            if torch.stack(losses).mean().item() <= target.loss:
                return Reached(time.perf_counter() - begin, done)
        return None

    first, second = (_seconds(lambda: descend(next(running))) for _ in range(2))
    return Ready(run, max(first - second, 0.0) if compiled else 0.0, reach)


def take_step(peer: Peer) -> None:
    """Moves the parameters by their gradients."""
    import torch

    if peer.max_norm is not None:
        torch.nn.utils.clip_grad_norm_(peer.model.parameters(), peer.max_norm)
    peer.optimizer.step()


def _seconds(function: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def minibatches(arrays: tuple[Any, ...], batch_size: int) -> Iterator[tuple[Any, ...]]:
    """Minibatches of tensors `[N, ...]` without end, without replacement within an epoch."""
    import torch

    while True:
        order = torch.randperm(len(arrays[0]))
        for index in order[: len(order) // batch_size * batch_size].split(batch_size):
            yield tuple(array[index] for array in arrays)


def images_tensor(images: np.ndarray, channels_last: bool) -> Any:
    """Images `[N, H, W, C]` as PyTorch names them, `[N, C, H, W]`, in one of the two layouts."""
    import torch

    tensor = torch.from_numpy(images).permute(0, 3, 1, 2)
    return tensor if channels_last else tensor.contiguous()


def kernels_decay(model: Any, decay: float, spared: str = "") -> list[dict[str, Any]]:
    """Groups of parameters such that the decay is for kernels only, as with our optimisers.

    Args:
      model: the module.
      decay: of its kernels.
      spared: a parameter with two axes that is no kernel.
    """
    groups: dict[bool, list[Any]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        groups[parameter.ndim > 1 and name != spared].append(parameter)
    return [
        {"params": groups[True], "weight_decay": decay},
        {"params": groups[False], "weight_decay": 0.0},
    ]


def load(model: Any, arrays: Mapping[str, np.ndarray]) -> None:
    """Copies weights into a module, by name: one for each of its parameters, of its shape."""
    import torch

    parameters = dict(model.named_parameters())
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    given = {name: array.shape for name, array in arrays.items()}
    if shapes != given:
        raise ValueError(f"weights of {given} for parameters of {shapes}")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(torch.from_numpy(np.array(arrays[name])))


# Weights ------------------------------------------------------------------------------------------


def named(modules: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Weights by the full names of PyTorch: `{"0": {"weight": ...}}` has `0.weight`."""
    return {
        f"{module}.{name}": array
        for module, arrays in modules.items()
        for name, array in arrays.items()
    }


def dense(layer: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Of `nn.Dense` for `Linear`."""
    return {"weight": layer["kernel"].T, **{n: layer[n] for n in ("bias",) if n in layer}}


def conv(layer: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Of `nn.Conv` without bias for `Conv2d`."""
    return {"weight": layer["kernel"].transpose(3, 2, 0, 1)}


def norm(layer: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Of a norm, for PyTorch's of the same kind."""
    return {"weight": layer["scale"], **{n: layer[n] for n in ("bias",) if n in layer}}
