"""What `test_mesh.py` checks on eight forced CPU devices; a process of its own, for the flag."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # the worlds that tests share
sys.path.insert(0, str(Path(__file__).parents[2]))

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import strategies
import worlds
from jax.sharding import PartitionSpec as P

import nets
from paradigms.core import mesh, optimizers
from paradigms.core.errors import InputError
from paradigms.core.loop import Every, fit
from paradigms.core.state import TrainState
from paradigms.core.transforms import accumulated, chunked, repeated, resident, seeded
from paradigms.reinforcement import (
    dqn,
    interact,
    normalise_observations,
    normalise_rewards,
    ppo,
    repeat_actions,
    stack_frames,
    time_limit,
    uniform_replay,
)
from paradigms.self_supervised import byol, moco, simclr, vicreg
from paradigms.supervised import classifier

BATCH, WIDTH = 64, 128
OPTIMIZER = optimizers.sgd(0.1, 0.9)


def data():
    draw = np.random.default_rng(0)
    return {
        "x": jnp.float32(draw.normal(size=(512, WIDTH))),
        "y": jnp.float32(draw.normal(size=(512, WIDTH))),
    }


@jax.jit
def start(key):
    first, second = jax.random.split(key)
    params = {
        "hidden": {"kernel": 0.1 * jax.random.normal(first, (WIDTH, 2 * WIDTH))},
        "head": {"kernel": 0.1 * jax.random.normal(second, (2 * WIDTH, WIDTH))},
    }
    return TrainState.create(
        key,
        params,
        opt_state=OPTIMIZER.init(params),
        target={"average": {"params": jax.tree.map(jnp.copy, params)}},
    )


def loss(params, batch):
    hidden = jnp.tanh(batch["x"] @ params["hidden"]["kernel"])
    return jnp.mean((hidden @ params["head"]["kernel"] - batch["y"]) ** 2)


def step(state, held, constrain=mesh.constrain_batch):
    """Draws a batch from resident data inside jit, as `resident` does, and descends."""
    # Rows that differ between seeds and steps; real draws would only add seconds of compiling.
    first = jax.random.key_data(state.key)[-1] + state.step.astype(jnp.uint32) * BATCH
    rows = (first + 7 * jnp.arange(BATCH, dtype=jnp.uint32)) % held["x"].shape[0]
    batch = constrain(jax.tree.map(lambda leaf: leaf[rows], held))
    value, grads = jax.value_and_grad(loss)(state.params, batch)
    updates, opt_state = OPTIMIZER.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return state.replace(step=state.step + 1, params=params, opt_state=opt_state), (value, grads)


def compiled(function, *args):
    return jax.jit(function).lower(*args).compile()


def flops(program):
    """Floating-point operations on each device, by the compiler's count."""
    cost = program.cost_analysis()
    return (cost[0] if isinstance(cost, list) else cost)["flops"]


def work_falls_with_the_devices():
    held, state = data(), start(jax.random.key(0))
    alone = compiled(step, state, held)
    expected, (value, grads) = alone(state, held)
    for text in ("data=8", "data=4,fsdp=2"):
        eight = mesh.make_mesh(text)
        on_mesh = mesh.replicate((state, held), eight)
        with jax.set_mesh(eight):
            idle = compiled(lambda *args: step(*args, constrain=lambda batch: batch), *on_mesh)
            shared = compiled(step, *on_mesh)
            after, (sharded, sharded_grads) = shared(*on_mesh)
        # Without the constraint every device does all the work, with the same result.
        assert flops(idle) > 0.95 * flops(alone)
        assert 7 < flops(alone) / flops(shared) <= 8
        np.testing.assert_allclose(sharded, value, rtol=1e-6)
        close(sharded_grads, grads)
        close(after.params, expected.params)


def close(first, second):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), first, second)


def fsdp_divides_parameters_moments_and_averages():
    eight = mesh.make_mesh("fsdp=8")
    state = start(jax.random.key(0))
    placed = mesh.shard_state(state, eight)
    for tree in (placed.params, placed.opt_state, placed.target):
        for leaf in jax.tree.leaves(tree):
            assert leaf.addressable_shards[0].data.size * 8 == leaf.size
    # The largest dimension, which is the second of one kernel and the first of the other.
    assert placed.params["hidden"]["kernel"].sharding.spec == P(None, ("fsdp",))
    assert placed.params["head"]["kernel"].sharding.spec == P(("fsdp",))
    assert placed.key.sharding.is_fully_replicated and placed.step.sharding.is_fully_replicated
    assert placed.key == state.key

    copied = mesh.replicate(state, eight)
    held = mesh.replicate(data(), eight)
    with jax.set_mesh(eight):
        shardings = jax.tree.map(lambda leaf: leaf.sharding, placed)
        update = jax.jit(step, out_shardings=(shardings, None))
        small = update.lower(placed, held).compile().memory_analysis()
        large = compiled(step, copied, held).memory_analysis()
        after, (value, _) = update(placed, held)
    expected, (same, _) = jax.jit(step)(state, data())
    held_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(held))
    ratio = (large.argument_size_in_bytes - held_bytes) / (
        small.argument_size_in_bytes - held_bytes
    )
    assert 7 < ratio <= 8, ratio
    assert small.output_size_in_bytes < large.output_size_in_bytes
    np.testing.assert_allclose(value, same, rtol=1e-6)
    close(after.params, expected.params)

    # A state can be made where it will lie, without ever being whole on one device.
    shapes = jax.eval_shape(start, jax.random.key(0))
    made = jax.jit(start, out_shardings=mesh.state_shardings(shapes, eight))(jax.random.key(0))
    assert made.params["head"]["kernel"].addressable_shards[0].data.shape == (32, WIDTH)
    close(made.params, state.params)


def rules_come_first():
    eight = mesh.make_mesh("data=2,fsdp=4")
    state = start(jax.random.key(0))
    rules = [("head/kernel$", P(None, "fsdp")), ("hidden/kernel$", P())]
    placed = mesh.shard_state(state, eight, rules)
    for tree in (placed.params, placed.opt_state[1].trace, placed.target["average"]["params"]):
        assert tree["head"]["kernel"].sharding.spec == P(None, "fsdp")
        assert tree["hidden"]["kernel"].sharding.is_fully_replicated
    # A data axis alone divides no parameter.
    copied = mesh.shard_state(state, mesh.make_mesh("data=8"))
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(copied))
    # Small leaves, integers, and shapes that do not divide stay whole.
    odd = {"a": jnp.ones((7, 129)), "n": jnp.ones((64, 64), jnp.int32), "s": jnp.ones(8)}
    shardings = mesh.state_shardings(odd, eight, min_size=16)
    assert all(sharding.is_fully_replicated for sharding in shardings.values())
    # Not even a rule for everything divides keys (which belong to seeds) and scalars.
    seeds = {"keys": jax.random.split(jax.random.key(0), 8), "n": jnp.int32(0), "w": jnp.ones(8)}
    shardings = mesh.state_shardings(seeds, eight, [("", P("fsdp"))])
    assert shardings["keys"].is_fully_replicated and shardings["n"].is_fully_replicated
    assert shardings["w"].spec == P("fsdp")
    with pytest.raises(InputError, match=r"'a' of shape \(7, 129\): 7 does not divide by the 4"):
        mesh.state_shardings(odd, eight, [("^a$", P("fsdp"))])


def the_model_axis_divides_by_name():
    """Of a transformer by columns and rows; on top of that, `fsdp` takes another dimension."""
    net, _ = nets.gpt(96, layers=1, heads=2, width=32, context=8, bias=True)
    params, _ = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((2, 8), jnp.int32))
    both = mesh.make_mesh("data=2,fsdp=2,model=2")
    shardings = mesh.state_shardings({"params": params}, both, min_size=0)["params"]
    block = shardings["block_0"]
    columns, rows, whole = P(("fsdp",), "model"), P("model", ("fsdp",)), P(("fsdp",))
    for layer, kernel, bias in (
        *((block["SelfAttention_0"][name], columns, P("model")) for name in ("query", "value")),
        (block["SelfAttention_0"]["out"], rows, whole),
        (block["Dense_0"], columns, P("model")),
        (block["Dense_1"], rows, whole),
    ):
        assert (layer["kernel"].spec, layer["bias"].spec) == (kernel, bias)
    assert shardings["tokens"]["embedding"].spec == rows
    assert block["LayerNorm_0"]["scale"].spec == whole

    four = mesh.make_mesh("data=2,model=4")
    odd = {"Conv_0": {"kernel": jnp.ones((3, 3, 4, 8))}, "Dense_0": {"kernel": jnp.ones((8, 10))}}
    shardings = mesh.state_shardings(odd, four)
    assert shardings["Conv_0"]["kernel"].spec == P(None, None, None, "model")
    assert shardings["Dense_0"]["kernel"].is_fully_replicated  # 10 does not divide by 4
    # Seeds come first; a rule of the caller's comes before those of the library.
    seeds = {"Dense_3": {"kernel": jnp.ones((4, 8, 16))}}
    shardings = mesh.state_shardings(seeds, four)
    assert shardings["Dense_3"]["kernel"].spec == P(None, "model")
    shardings = mesh.state_shardings(seeds, four, [("kernel", P("model"))])
    assert shardings["Dense_3"]["kernel"].spec == P("model")


def batches_divide_over_all_axes():
    batch = mesh.shard_batch({"x": np.ones((4, 3))}, mesh.make_mesh("data=4,model=2"))
    assert batch["x"].addressable_shards[0].data.shape == (1, 3)  # the pair has the same row
    for text in ("data=8", "fsdp=8", "data=4,fsdp=2"):
        eight = mesh.make_mesh(text)
        host = {"image": np.arange(16 * 3, dtype=np.uint8).reshape(16, 3), "weight": 2.0}
        batch = mesh.shard_batch(host, eight)
        shards = batch["image"].addressable_shards
        assert len(shards) == 8 and all(shard.data.shape == (2, 3) for shard in shards)
        np.testing.assert_array_equal(batch["image"], host["image"])
        assert batch["image"].dtype == np.uint8
        assert batch["weight"].sharding.is_fully_replicated
        stacked = mesh.shard_batch({"image": np.ones((5, 16, 3))}, eight, axis=1)
        assert stacked["image"].addressable_shards[0].data.shape == (5, 2, 3)
        with pytest.raises(InputError, match="a batch of 12 does not divide over the 8 devices"):
            mesh.shard_batch({"image": np.ones((12, 3))}, eight)
        with jax.set_mesh(eight), pytest.raises(InputError, match="a batch of 12 .* 8 devices"):
            jax.jit(mesh.constrain_batch)(jnp.ones((12, 3)))


def constraints_work_under_every_transformation():
    eight = mesh.make_mesh("data=4,fsdp=2")
    held = data()
    seeds = jax.vmap(start)(jax.random.split(jax.random.key(1), 3))

    def many(states, held):
        return jax.vmap(step, in_axes=(0, None))(states, held)

    def scanned(states, held):
        return jax.lax.scan(lambda states, _: many(states, held), states, length=2)

    for function in (many, scanned):
        alone = compiled(function, seeds, held)
        expected = alone(seeds, held)
        with jax.set_mesh(eight):
            on_mesh = mesh.replicate((seeds, held), eight)
            shared = compiled(function, *on_mesh)
            found = shared(*on_mesh)
        close(found[0].params, expected[0].params)
        close(found[1], expected[1])
        # The seeds' axis stays whole and each seed's batch is divided.
        assert 7 < flops(alone) / flops(shared) <= 8

    with jax.set_mesh(eight):
        other = jax.jit(lambda tree: mesh.constrain_batch(tree, axis=1))
        keys = jax.random.split(jax.random.key(0), (2, 16))
        placed = other({"obs": jnp.ones((5, 16, 3)), "key": keys, "t": jnp.ones(4)})
    assert placed["obs"].addressable_shards[0].data.shape == (5, 2, 3)
    assert placed["key"].addressable_shards[0].data.shape == (2, 2)
    assert (placed["key"] == keys).all()

    # Inside shard_map the batch is one device's share already.
    with jax.set_mesh(eight):
        total = jax.shard_map(
            lambda x: jax.lax.psum(mesh.constrain_batch(x).sum(), ("data", "fsdp")),
            in_specs=P(("data", "fsdp")),
            out_specs=P(),
        )(jnp.ones((16, 3)))
    assert total == 48


def the_second_step_compiles_nothing():
    # `_cache_size` would not tell: on a mesh it grows without a compilation.
    events = []
    jax.monitoring.register_event_duration_secs_listener(lambda name, *_, **__: events.append(name))
    eight = mesh.make_mesh("data=8")
    state, held = mesh.replicate((start(jax.random.key(0)), data()), eight)
    update = jax.jit(lambda *args: step(*args))
    with jax.set_mesh(eight):
        state, _ = update(state, held)
        assert any("backend_compile" in name for name in events)
        events.clear()
        for _ in range(3):
            state, _ = update(state, held)
    assert not [name for name in events if "compile" in name or "trace" in name]


def a_resident_network_divides_its_work():
    """What an experiment runs: seeds of a CNN with batch norm on data that lives on the devices."""
    net = nets.cnn(10, features=(8, 8), dense=(64,), norm="batch")
    drawing = resident(classifier(net, optimizers.sgd(0.05, 0.9)), 64)
    learner = seeded(repeated(drawing, 1), metrics_axis=1)
    held = {
        "image": jax.random.randint(jax.random.key(0), (256, 28, 28, 1), 0, 256).astype(jnp.uint8),
        "label": jnp.arange(256) % 10,
    }
    state = jax.jit(learner.init)(jax.random.split(jax.random.key(0), 1), held)

    def train(state, held):
        losses, state = [], jax.tree.map(jnp.copy, state)  # for `fit` donates it
        every = Every(1, lambda step, metrics, _: losses.append(float(metrics["loss"].value()[0])))
        fitted = fit(learner, state, lambda *_: held, steps=4, callbacks=[every])
        return fitted, losses

    def flops(state, held):
        return jax.jit(learner.update).lower(state, held).compile().cost_analysis()["flops"]

    _, expected = train(state, held)
    alone = flops(state, held)
    for text in ("data=8", "fsdp=8"):
        eight = mesh.make_mesh(text)
        with jax.set_mesh(eight):
            placed = mesh.shard_state(state, eight), mesh.replicate(held, eight)
            ratio = alone / flops(*placed)
            shared, losses = train(*placed)
        assert 6 <= ratio <= 8, ratio
        np.testing.assert_allclose(losses, expected, rtol=1e-5)
        large = shared.state.params["Dense_0"]["kernel"]
        assert large.addressable_shards[0].data.size * (8 if "fsdp" in text else 1) == large.size
    with jax.set_mesh(eight), pytest.raises(InputError, match="a batch of 60 .* 8 devices"):
        uneven = resident(classifier(net, optimizers.sgd(0.1)), 60)
        jax.eval_shape(uneven.update, jax.tree.map(lambda leaf: leaf[0], state), held)


def batches_from_the_host_divide_their_work():
    learner = chunked(classifier(nets.mlp((64,), 10), optimizers.sgd(0.05, 0.9), input_name="x"))
    batches = {"x": data()["x"].reshape(4, 128, WIDTH), "label": jnp.arange(512).reshape(4, -1) % 9}
    state = jax.jit(learner.init)(jax.random.key(0), batches)

    def run(state):
        update = jax.jit(learner.update).lower(state, batches).compile()
        return flops(update), update(state, batches)[1]["loss"].value()

    alone, expected = run(state)
    eight = mesh.make_mesh("data=8")
    with jax.set_mesh(eight):
        shared, losses = run(mesh.replicate(state, eight))
    assert 6 <= alone / shared <= 8
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


def parts_of_a_batch_divide_their_work():
    """Each device takes rows of every part, not all of one."""
    net = nets.mlp((64,), 10)
    learner = resident(classifier(net, optimizers.sgd(0.05, 0.9), input_name="x"), 512)
    learner = accumulated(learner, 4)
    held = {"x": data()["x"], "label": jnp.arange(512) % 10}
    state = jax.jit(learner.init)(jax.random.key(0), held)
    alone = compiled(learner.update, state, held)
    expected, _ = alone(state, held)
    eight = mesh.make_mesh("data=8")
    with jax.set_mesh(eight):
        placed = mesh.replicate((state, held), eight)
        shared = compiled(learner.update, *placed)
        found, _ = shared(*placed)
    assert 6 <= flops(alone) / flops(shared) <= 8, flops(alone) / flops(shared)
    close(found.params, expected.params)


def agents_divide_their_worlds_and_their_learning():
    # Compiling is all that this costs.
    jax.config.update("jax_disable_most_optimizations", True)
    eight = mesh.make_mesh("data=4,fsdp=2")
    plain = worlds.chain(3)
    # With what all wrappers keep, of each world and of all of them together. Some episodes end in
    # the middle of an action, of themselves or cut short.
    wrapped = stack_frames(repeat_actions(time_limit(plain, 7), 2), 2)
    wrapped = normalise_rewards(normalise_observations(wrapped), worlds.DISCOUNT)

    def proximal(num_envs=16, minibatches=2):
        # So wide that the keys of all worlds, which every device draws, are little beside it.
        net = nets.actor_critic((4 * WIDTH,), 2)
        agent = ppo(net, OPTIMIZER, epochs=2, minibatches=minibatches)
        return interact(agent, wrapped, num_envs=num_envs, num_steps=4)

    def replaying(batch_size=64):
        net, replay = nets.q_network((WIDTH,), 2), uniform_replay(256)
        often = {"epsilon": 0.5, "warm_up": 0, "train_every": 32}
        agent = dqn(net, OPTIMIZER, replay, batch_size=batch_size, **often)
        return interact(agent, plain, num_envs=16, num_steps=4)

    def part(leaf):
        return leaf.addressable_shards[0].data.shape

    for living in (proximal(), replaying()):
        learner = repeated(living, 3)
        state = jax.jit(learner.init)(jax.random.key(0), ())
        alone = compiled(learner.update, state, ())
        expected, means = alone(state, ())
        assert means["episode/length"].count.sum() > 0
        with jax.set_mesh(eight):
            placed = mesh.shard_state(state, eight)
            shared = compiled(learner.update, placed, ())
            found, same_means = shared(placed, ())
        # Every device does what is left: the advantages, the optimiser, the draws of the replay.
        assert 6 < flops(alone) / flops(shared) <= 8, flops(alone) / flops(shared)
        close((found.params, found.world), (expected.params, expected.world))
        close(*({k: m.value() for k, m in each.items()} for each in (same_means, means)))
        # A device has two environments with all that is kept of them, and all statistics.
        for leaf in jax.tree.leaves(found.world):
            assert part(leaf) == ((2, *leaf.shape[1:]) if leaf.shape[:1] == (16,) else leaf.shape)

    for size, living in (
        (12, proximal(num_envs=12)),
        (4, proximal(minibatches=16)),
        (60, replaying(batch_size=60)),
    ):
        words = f"a batch of {size} does not divide over the 8 devices"
        with jax.set_mesh(eight), pytest.raises(InputError, match=words):
            jax.eval_shape(living.update, jax.eval_shape(living.init, jax.random.key(0), ()), ())
    jax.config.update("jax_disable_most_optimizations", False)


def joint_embeddings_see_the_global_batch():
    """Negatives, queue, batch norm and covariances are of all devices; so are their gradients."""
    jax.config.update("jax_disable_most_optimizations", True)
    backbone, projector = nets.mlp((WIDTH,), WIDTH, norm="batch"), nets.mlp((WIDTH,), 16)
    parts = backbone, projector, optimizers.sgd(0.1)

    def noise(key, image):
        return image + jax.random.normal(key, image.shape)

    predictor = nets.mlp((16,), 16, norm="batch")
    eight, batch = mesh.make_mesh("data=4,fsdp=2"), {"image": data()["x"][:BATCH]}
    for learner in (
        simclr(*parts, noise),
        vicreg(*parts, noise),
        moco(*parts, noise, queue_size=2 * BATCH),
        byol(backbone, projector, predictor, parts[2], noise, steps=9),
    ):
        state = jax.jit(learner.init)(jax.random.key(0), batch)
        alone = compiled(learner.update, state, batch)
        expected, means = alone(state, batch)
        with jax.set_mesh(eight):
            placed = mesh.shard_state(state, eight), mesh.shard_batch(batch, eight)
            shared = compiled(learner.update, *placed)
            found, same_means = shared(*placed)
        assert 5 < flops(alone) / flops(shared) <= 8
        close(*({k: m.value() for k, m in each.items()} for each in (same_means, means)))
        # One step of plain descent: the difference is the gradient.
        for part in ("params", "model_state", "target", "memory"):
            close(getattr(found, part), getattr(expected, part))
    jax.config.update("jax_disable_most_optimizations", False)


if __name__ == "__main__":
    assert jax.device_count() == 8
    assert len(mesh.make_mesh("data=2").devices) == 2
    for check in (
        work_falls_with_the_devices,
        fsdp_divides_parameters_moments_and_averages,
        rules_come_first,
        the_model_axis_divides_by_name,
        batches_divide_over_all_axes,
        constraints_work_under_every_transformation,
        the_second_step_compiles_nothing,
        a_resident_network_divides_its_work,
        batches_from_the_host_divide_their_work,
        parts_of_a_batch_divide_their_work,
        agents_divide_their_worlds_and_their_learning,
        joint_embeddings_see_the_global_batch,
        strategies.a_run_goes_on_with_another_mesh,
    ):
        check()
        print(check.__name__, "passed")
