"""Learners under every strategy, on eight devices; `eight_devices.py` checks some of them too."""

import functools
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))  # the worlds that tests share
sys.path.insert(0, str(Path(__file__).parents[2]))

import jax
import jax.numpy as jnp
import numpy as np
import worlds

import nets
from paradigms.core import mesh, optimizers
from paradigms.core.checkpoint import Checkpoints
from paradigms.core.learner import Learner
from paradigms.core.transforms import averaged, resident
from paradigms.reinforcement import interact, ppo
from paradigms.self_supervised import gpt, mae, simclr
from paradigms.semi_supervised import fixmatch
from paradigms.supervised import classifier, regressor
from paradigms.unsupervised import vae

BATCH, STEPS = 16, 20


def momentum(learning_rate: float = 0.05) -> Any:
    return optimizers.sgd(learning_rate, 0.9)


def numbers(*shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(len(shape)), shape)


def shaken(key: jax.Array, x: jax.Array) -> jax.Array:
    return x + 0.1 * jax.random.normal(key, x.shape)


X = {"x": numbers(64, 16), "label": jnp.arange(64) % 8}
IMAGES = {"image": numbers(64, 8, 8, 1), "label": jnp.arange(64) % 8}
TEXT = {"tokens": jnp.arange(64 * 9).reshape(64, 9) ** 2 % 32}
HALVES = {"labelled": X, "unlabelled": {"x": X["x"]}}


def perceptron() -> tuple[Learner, Any]:
    net = nets.mlp((32, 32), 8)
    learner = classifier(net, momentum(), input_name="x")
    return resident(averaged(learner, 0.9, model_state="average"), BATCH), X


def convolutions() -> tuple[Learner, Any]:
    net = nets.cnn(8, features=(8, 16), dense=(32,), norm="batch")
    return resident(classifier(net, momentum()), BATCH), IMAGES


def vision_transformer() -> tuple[Learner, Any]:
    net = nets.vit(4, 16, 1, 2, 32, 8)
    return resident(classifier(net, momentum()), BATCH), IMAGES


def numbers_of_images() -> tuple[Learner, Any]:
    net, data = nets.vit(4, 16, 1, 2, 32, 8), {**IMAGES, "target": numbers(64, 8)}
    return resident(regressor(net, momentum(), input_name="image"), BATCH), data


def masked_patches() -> tuple[Learner, Any]:
    parts = nets.mae_encoder(4, 16, 1, 2, 32), nets.mae_decoder(4, 1, (2, 2), 16, 1, 2, 32)
    learner = mae(*parts, momentum(), patch_size=4, mask_ratio=0.5)
    return resident(learner, BATCH), {"image": IMAGES["image"]}


def language_model() -> tuple[Learner, Any]:
    net, _ = nets.gpt(32, layers=2, heads=2, width=16, context=8, bias=True)
    return resident(gpt(net, momentum()), BATCH), TEXT


def autoencoder() -> tuple[Learner, Any]:
    images = {"x": jax.nn.sigmoid(X["x"])}
    coder = nets.mlp((32,), 8), nets.mlp((32,), 16)
    return resident(vae(*coder, momentum(0.001), input_name="x"), BATCH), images


def contrast() -> tuple[Learner, Any]:
    parts = nets.mlp((32,), 16, norm="batch"), nets.projector((32,), 16)
    return resident(simclr(*parts, momentum(), shaken), BATCH), {"image": X["x"]}


def few_labels() -> tuple[Learner, Any]:
    views = shaken, shaken
    net = nets.mlp((32,), 8)
    learner = fixmatch(net, momentum(), *views, threshold=0.3, input_name="x")
    return resident(learner, {"labelled": BATCH, "unlabelled": BATCH}), HALVES


def pole() -> tuple[Learner, Any]:
    net = nets.actor_critic((32, 32), 2)
    agent = ppo(net, momentum(0.01), epochs=1, minibatches=2)
    return interact(agent, worlds.chain(3), num_envs=BATCH, num_steps=4), ()


LEARNERS = (
    perceptron,
    convolutions,
    vision_transformer,
    numbers_of_images,
    masked_patches,
    language_model,
    autoencoder,
    contrast,
    few_labels,
    pole,
)

# Instructions in the compiled update that talk to other devices; one may carry many arrays.
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
GOLDEN = {
    # The gradients with the loss, and whether all labels are probabilities that can be used.
    ("perceptron", "data=8"): (2, 0, 0, 0, 0),
    # The norms, the labels, the partial products of a layer, and what is left of the gradients;
    # gathered are the batch, the kernel of the head, two gradients of outputs (so small that they
    # travel in place of the kernels), and three times biases, moments and averages, which are
    # whole. The gradient of the logits changes from columns to rows.
    ("perceptron", "fsdp=8"): (4, 7, 0, 1, 0),
    # The norms, the labels, the gradients over `data`; over `model` the one sum of the pair of
    # layers and the one of its gradient. The logits are gathered, eight numbers an example.
    ("perceptron", "data=4,model=2"): (5, 1, 0, 0, 0),
    # Two a block and pass (attention, MLP) make eight; the norms, the labels, the gradients, and
    # the sum of the looked-up embeddings; of the softmax, whose classes are divided, maximum and
    # sum. Where the label stands among the classes is gathered: two numbers an example. Nothing of
    # the size of a parameter is.
    ("language_model", "data=4,model=2"): (14, 2, 0, 0, 0),
}


class Placed(NamedTuple):
    """A learner on a mesh: its compiled update with its first state and data; "" is one device."""

    update: Any
    state: Any
    data: Any


@functools.cache
def placed(make: Callable[[], tuple[Learner, Any]], text: str) -> Placed:
    if not text:
        learner, data = make()
        state = jax.jit(learner.init)(jax.random.key(0), data)
        return Placed(jax.jit(learner.update).lower(state, data).compile(), state, data)
    learner, _ = make()
    on, alone = mesh.make_mesh(text), placed(make, "")
    state = mesh.shard_state(alone.state, on, min_size=64)
    data = mesh.replicate(alone.data, on)
    where = jax.tree.map(lambda leaf: leaf.sharding, state)
    with jax.set_mesh(on):
        update = jax.jit(learner.update, out_shardings=(where, None)).lower(state, data).compile()
    return Placed(update, state, data)


def train(
    there: Placed, state: Any = None, steps: int = STEPS
) -> tuple[Any, list[float], dict[str, np.ndarray]]:
    """The final state, the loss of every update, and all metrics of the first one."""
    state, found, first = there.state if state is None else state, [], {}
    for _ in range(steps):
        state, means = there.update(state, there.data)
        # What PPO minimises passes through zero, where a relative difference means nothing.
        found.append(float(means["loss/value" if "loss/value" in means else "loss"].value()))
        first = first or {name: np.asarray(mean.value()) for name, mean in means.items()}
    return state, found, first


def agrees(make: Callable[[], tuple[Learner, Any]], text: str) -> None:
    """Losses are those of one device, and what the strategy divides takes less memory."""
    there, told = placed(make, text), f"{make.__name__} on {text}"
    _, expected, expected_first = train(placed(make, ""))
    assert len(set(expected)) > STEPS / 2  # it learns, or there is nothing to compare
    state, found, first = train(there)
    np.testing.assert_allclose(found, expected, rtol=1e-5, err_msg=told)
    for name, value in expected_first.items():
        np.testing.assert_allclose(first[name], value, rtol=1e-5, atol=1e-6, err_msg=told + name)
    sizes = mesh.parse_mesh(text)
    divided = sizes.get("fsdp", 1) * sizes.get("model", 1)
    leaves = jax.tree.leaves(state.params)
    here = sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves)
    share = here / sum(leaf.nbytes for leaf in leaves)
    # Norms, positions and what does not divide stay whole.
    assert share == 1 if divided == 1 else share < 1 / divided + 0.13, (told, share)
    check_followers(state)


def check_followers(state: Any) -> None:
    """Moments and averages lie where their parameters do."""
    where = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.sharding
        for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]
    }
    for path, sharding in where.items():
        group, _, name = path.partition("/")
        if group == "params":
            copies = [other for other in where if other.endswith(f"/{name}") and other != path]
            assert copies and all(where[copy] == sharding for copy in copies), path


def collectives_are_the_golden_ones() -> None:
    """An all-gather more is a parameter that travels: say why here, or mend it."""
    for (name, text), expected in GOLDEN.items():
        program = placed(globals()[name], text).update.as_text()
        found = tuple(len(re.findall(rf" {kind}(?:-start)?\(", program)) for kind in COLLECTIVES)
        assert found == expected, f"{name} on {text}: {dict(zip(COLLECTIVES, found, strict=True))}"


def strategies_agree_with_one_device() -> None:
    for name, text in GOLDEN:
        agrees(globals()[name], text)
    # What XLA gets wrong where the classes of the logits are divided too.
    agrees(vision_transformer, "data=2,fsdp=2,model=2")


def a_run_goes_on_with_another_mesh() -> None:
    """From one device to eight, which share the state out, and on to two that copy it."""
    _, expected, _ = train(placed(perceptron, ""))
    losses: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(Path(folder))
        for text, steps in (("", 7), ("fsdp=8", 6), ("data=2", 7)):
            there = placed(perceptron, text)
            state = checkpoints.restore(there.state) if losses else there.state
            assert int(state.step) == len(losses)
            where = [leaf.sharding for leaf in jax.tree.leaves(state)]
            assert where == [leaf.sharding for leaf in jax.tree.leaves(there.state)]
            state, more, _ = train(there, state, steps)
            losses += more
            checkpoints.save(len(losses), state)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


def every_paradigm_agrees_on_every_mesh() -> None:
    meshes = ("data=2", "data=4", "data=8", "fsdp=2", "fsdp=4", "fsdp=8")
    for make in LEARNERS:
        for text in (*meshes, "data=4,model=2", "data=2,fsdp=2,model=2"):
            agrees(make, text)
        placed.cache_clear()


if __name__ == "__main__":
    strategies_agree_with_one_device()
    collectives_are_the_golden_ones()
    every_paradigm_agrees_on_every_mesh()
