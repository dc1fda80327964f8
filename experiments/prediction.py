"""A trained net, loaded back from its run directory."""

import importlib
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import catalogue, cli
from nets.net import Net
from paradigms.core import exchange
from paradigms.core.checkpoint import Checkpoints
from paradigms.core.errors import InputError
from paradigms.core.record import read_config, read_summary
from paradigms.core.state import PyTree


class Trained(NamedTuple):
    """The nets of a finished run, one per seed.

    Attributes:
      net: the pure functions; takes raw inputs, as the data set holds them.
      weights: `{"params": ..., "model_state": ...}` with an axis of runs in front of every array.
      config: the experiment's config.
      example: shape and dtype of a batch of one input.
    """

    net: Net
    weights: dict[str, PyTree]
    config: cli.Options
    example: jax.ShapeDtypeStruct

    def __call__(self, inputs: Any, run: int = 0) -> jax.Array:
        """The output of run number `run` for a batch of raw inputs, for instance `[B, H, W, C]`.

        Raises:
          InputError: the inputs have another shape or dtype than those of the training data, or
            there is no such run.
        """
        weights = self.of(run)
        inputs = np.asarray(inputs)
        if inputs.shape[1:] != self.example.shape[1:] or inputs.dtype != self.example.dtype:
            raise InputError(
                f"inputs are {inputs.dtype} {inputs.shape}: this net was trained on "
                f"{self.example.dtype} [B, {', '.join(map(str, self.example.shape[1:]))}]"
            )
        output, _ = jax.jit(self.net.apply)(
            weights["params"], weights["model_state"], jnp.asarray(inputs)
        )
        return output

    def of(self, run: int) -> dict[str, PyTree]:
        """The weights of run number `run` alone.

        Raises:
          InputError: there is no such run.
        """
        runs = len(jax.tree.leaves(self.weights)[0])
        if not 0 <= run < runs:  # jax would take the last one
            raise InputError(f"there is no run {run}: the directory holds {runs}, counted from 0")
        return jax.tree.map(lambda leaf: leaf[run], self.weights)


def export(run_dir: Path | str, path: Path, run: int = 0) -> None:
    """Writes the net of one run into a file.

    Args:
      run_dir: of a finished run.
      path: ends in ".safetensors" for the weights alone, or in ".jax" for the whole function: see
        `paradigms.core.exchange`.
      run: number of the run, counted from 0.

    Raises:
      InputError: another suffix, no such run, or what `load` raises.
    """
    if path.suffix not in (".safetensors", ".jax"):
        raise InputError(f"{path}: expected a name that ends in .safetensors or .jax")
    trained = load(run_dir)
    weights = trained.of(run)
    if path.suffix == ".safetensors":
        exchange.save_weights(weights, path)
        return
    exchange.save_function(
        lambda inputs: trained.net.apply(weights["params"], weights["model_state"], inputs)[0],
        trained.example,
        path,
    )


def load(run_dir: Path | str) -> Trained:
    """Loads the nets of a finished run for prediction.

    Example:
      `labels = load("runs/supervised/digits_mlp")(images).argmax(-1)`

    Raises:
      InputError: the directory holds no finished run of an experiment of this version.
    """
    settings = read_config(run_dir)
    name = settings.pop("experiment", None)
    # The name comes from a file, so it is looked up, never imported on trust.
    if name not in catalogue.names():
        raise InputError(f"{run_dir}: config.json names experiment {name!r}, which does not exist")
    module = importlib.import_module(f"experiments.{str(name).replace('/', '.')}")
    config = cli.from_json(module.Config, settings)
    net = module.network(config)
    return Trained(net, load_weights(run_dir, net), config, _example(run_dir))


def load_weights(run_dir: Path | str, net: Net) -> dict[str, PyTree]:
    """The weights that a finished run was tested with.

    Returns:
      `{"params": ..., "model_state": ...}` with an axis of runs in front of every array.

    Raises:
      InputError: the run has not finished, or its net is not `net`.
    """
    runs = len(read_summary(run_dir)["runs"])
    params, model_state = jax.eval_shape(net.init, jax.random.key(0), _example(run_dir))
    template = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((runs, *leaf.shape), leaf.dtype),
        {"params": params, "model_state": model_state},
    )
    return Checkpoints(Path(run_dir) / "net").restore(template)


def _example(run_dir: Path | str) -> jax.ShapeDtypeStruct:
    spec = read_summary(run_dir)["input"]
    return jax.ShapeDtypeStruct((1, *spec["shape"]), spec["dtype"])
