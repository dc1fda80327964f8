"""What an update of FixMatch costs beside the passes that it must make, in one process.

  passes              one forward and backward pass over labelled, weak and strong views, which are
                      the images as they are, with the cross entropy of all, and the optimiser
  fixmatch            the update on the same images as views
  fixmatch_with_views the update with its flips, shifts, RandAugment and cutout

`of_passes` is the median over rounds of the time over that of `passes` in the same round. An update
is one dispatch in all modes. The network is a small one on a CPU, WRN-28-2 on an accelerator. How
it is measured is in `measuring`.

  python -m experiments.benchmarks.fixmatch        some minutes on two CPU cores
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import nets
from experiments import few_labels, joint_embedding
from experiments.benchmarks.measuring import Mode, Ready, System
from nets.net import Net
from paradigms.core.classification import cross_entropy
from paradigms.core.learner import Learner, minimise
from paradigms.core.metrics import Mean
from paradigms.data import augment
from paradigms.semi_supervised import fixmatch

BATCH_SIZE, RATIO = 64, 7


def size() -> str:
    """Of the network."""
    return "small" if jax.default_backend() == "cpu" else "full"


def network() -> Net:
    """WRN-28-2, or the small network of the other learners of CIFAR-10, which is on pixels."""
    if size() == "full":
        return few_labels.cifar_net(few_labels.Cifar())
    return nets.preprocess(joint_embedding.small_cnn(10), augment.normalise(*augment.CIFAR10))


def passes() -> Learner:
    """A classifier of as many images as an update of FixMatch has views."""
    net = network()

    def loss(params: Any, state: Any, batch: Any) -> tuple[jax.Array, Any]:
        labelled, unlabelled = batch["labelled"], batch["unlabelled"]
        image = jnp.concatenate([part["image"] for part in (labelled, unlabelled, unlabelled)])
        label = jnp.concatenate([part["label"] for part in (labelled, unlabelled, unlabelled)])
        logits, model_state = net.apply(
            params, state.model_state, image, key=state.rng("net"), train=True
        )
        mean = Mean.of(cross_entropy(logits, label))
        return mean.value(), ({"loss": mean}, model_state)

    return minimise(
        loss,
        few_labels.cifar_optimizer(few_labels.Cifar()),
        init=lambda key, batch: net.init(key, batch["labelled"]["image"]),
        evaluate=lambda state, batch, key: {},
    )


def same_views() -> Learner:
    """FixMatch with the images as they are for views."""
    same = augment.identity
    return fixmatch(network(), few_labels.cifar_optimizer(few_labels.Cifar()), same, same)


def usual_views() -> Learner:
    """FixMatch as the experiments have it."""
    optimizer = few_labels.cifar_optimizer(few_labels.Cifar())
    return fixmatch(network(), optimizer, few_labels.weak(), few_labels.strong())


def data() -> dict[str, dict[str, jax.Array]]:
    """One batch of noise."""
    generator = np.random.default_rng(0)

    def part(size: int) -> dict[str, jax.Array]:
        return {
            "image": jnp.asarray(generator.integers(0, 256, (size, 32, 32, 3), np.uint8)),
            "label": jnp.asarray(generator.integers(0, 10, size, np.int32)),
        }

    return {"labelled": part(BATCH_SIZE), "unlabelled": part(RATIO * BATCH_SIZE)}


def mode(make: Callable[[], Learner]) -> Mode:
    """Updates of a learner on the batch, each a dispatch."""

    def ready(updates: int) -> Ready:
        learner, batch = make(), data()
        start = jax.jit(learner.init)(jax.random.key(0), batch)
        begin = time.perf_counter()
        step = jax.jit(learner.update).lower(start, batch).compile()
        compile_seconds = time.perf_counter() - begin

        def run() -> float:
            state = start
            begin = time.perf_counter()
            for _ in range(updates):
                state, _ = step(state, batch)
            jax.block_until_ready(state)
            return time.perf_counter() - begin

        return Ready(run, compile_seconds)

    return ready


def of_passes(seconds: Mapping[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """The time of every mode over that of the passes."""
    return {
        name: {"of_passes": float(np.median(values / seconds["passes"]))}
        for name, values in seconds.items()
    }


def system() -> System:
    """To be measured."""
    return System(
        ours={"fixmatch_with_views": mode(usual_views)},
        bare={"fixmatch": mode(same_views), "passes": mode(passes)},
        updates=5,
        details=lambda: {"size": size(), "batch_size": BATCH_SIZE, "ratio": RATIO},
        derive=of_passes,
    )


if __name__ == "__main__":
    from experiments.benchmarks import __main__ as command

    command.main(["fixmatch", "--peers"])
