"""A batch in parts: the same learning as at once, in less memory."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nets
from paradigms.core.errors import InputError
from paradigms.core.learner import Learner, descend_net, minimise
from paradigms.core.metrics import Mean, derive
from paradigms.core.state import TrainState
from paradigms.core.transforms import accumulated, chunked, guarded, repeated, resident, seeded
from paradigms.self_supervised import gpt, simclr
from paradigms.semi_supervised import fixmatch
from paradigms.supervised import classifier

KEY = jax.random.key(0)
NET = nets.mlp((16,), 5)
BATCH = {"image": jax.random.normal(KEY, (12, 4, 4, 1)), "label": jnp.arange(12) % 5}
# Of three parts, every third row to each: two examples count in the first, none in the second,
# three in the third.
MASK = jnp.array([1, 0, 1, 0, 0, 1, 0, 0, 1, 1, 0, 0])


def plain():
    return classifier(NET, optax.adam(0.01))


def after(learner, batch, updates=3):
    state = learner.init(KEY, batch)
    for _ in range(updates):
        state, metrics = jax.jit(learner.update)(state, batch)
    return (state.params, state.opt_state), derive(metrics)


def close(first, second, rtol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol, 1e-7), first, second)


def noisy(by_example=True):
    """One number that is drawn, as gradient and as metrics; the model state counts calls."""

    def loss(params, state, batch):
        drawn = jax.random.normal(state.rng("noise"), ())
        metrics = {
            "loss": Mean.of(params * drawn),
            "drawn": Mean.of(drawn),
            "square": Mean.of(drawn**2),
        }
        return metrics["loss"].value(), (metrics, state.model_state * 2 + batch["x"].sum())

    return minimise(
        loss,
        optax.sgd(1.0),
        init=lambda key, example: (jnp.ones(()), jnp.zeros(())),
        evaluate=lambda state, batch, key: {},
        by_example=by_example,
    )


@pytest.mark.parametrize("mask", [None, MASK])
@pytest.mark.parametrize("parts", [2, 3, 12])
def test_parts_learn_what_the_batch_does(parts, mask):
    batch = BATCH if mask is None else {**BATCH, "mask": mask}
    whole, metrics = after(plain(), batch)
    in_parts, measured = after(accumulated(plain(), parts), batch)
    close(in_parts, whole)
    close(measured, metrics)


def test_where_nothing_counts_nothing_is_learnt():
    batch = {**BATCH, "mask": jnp.zeros(12)}
    learner = accumulated(classifier(NET, optax.sgd(0.1)), 3)
    state = learner.init(KEY, batch)
    params, _ = after(learner, batch)
    close(params[0], state.params, 0)


def test_text_and_few_labels_divide_too():
    reader, _ = nets.gpt(7, layers=1, heads=2, width=8, context=8)
    text = {"tokens": jax.random.randint(KEY, (6, 5), 0, 7)}
    both = {
        "labelled": {"image": BATCH["image"][:4], "label": BATCH["label"][:4]},
        "unlabelled": {"image": BATCH["image"]},
    }

    def as_it_is(key, image):
        return image

    # Such labels as the net is half sure of: of each part another share is taken.
    few = fixmatch(NET, optax.adam(0.01), as_it_is, as_it_is, threshold=0.25)
    for learner, batch in ((gpt(reader, optax.adam(0.01)), text), (few, both)):
        whole, metrics = after(learner, batch)
        in_parts, measured = after(accumulated(learner, 2), batch)
        close(in_parts, whole, 1e-4)
        close(measured, metrics, 1e-4)


def test_each_part_draws_its_own_and_passes_its_statistics_on():
    batch = {"x": jnp.array([1.0, 10.0, 2.0, 20.0])}
    state = noisy().init(KEY, batch)
    moved, metrics = accumulated(noisy(), 2).update(state, batch)
    values = derive(metrics)
    spread = values["square"] - values["drawn"] ** 2
    assert spread > 0.01  # 0 where both had drawn the same
    np.testing.assert_allclose(1 - moved.params, values["drawn"], rtol=1e-6)
    # The first part is 1 + 2, the second 10 + 20: 2 * (0 + 3) + 30.
    assert moved.model_state == 36
    assert moved.step == 1
    # The run's seed stays what it was.
    np.testing.assert_array_equal(*(jax.random.key_data(s.key) for s in (moved, state)))


def test_it_goes_with_other_transformations():
    """Drawn, repeated, over seeds, guarded: the same parts."""

    def build(parts):
        learner = accumulated(resident(plain(), 6), parts)
        return seeded(repeated(guarded(learner), 2))

    states = []
    for parts in (1, 3):
        learner = build(parts)
        state = learner.init(jax.random.split(KEY, 2), BATCH)
        states.append(jax.jit(learner.update)(state, BATCH)[0].params)
    close(*states)


def test_what_was_traced_whole_and_what_in_parts_do_not_meet():
    """JAX knows a function again by its identity, whatever it was traced in."""
    learner, batches = plain(), jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), BATCH)
    whole, in_parts = chunked(learner, unroll=False), accumulated(chunked(learner, unroll=False), 3)
    state = whole.init(KEY, batches)

    def loops(learner):
        return jax.jit(learner.update).lower(state, batches).as_text().count("stablehlo.while")

    assert loops(whole) == 1
    assert loops(in_parts) == 2
    assert loops(chunked(learner, unroll=False)) == 1


def test_sums_are_float32_where_parameters_are_not():
    """Counts of parts have more digits than bfloat16."""
    batch = {"x": jnp.ones(24 * 43)}

    def loss(params, state, batch):
        mean = Mean.of(params.astype(jnp.float32) * batch["x"])
        return mean.value(), ({"loss": mean}, ())

    learner = minimise(
        loss,
        optax.sgd(1.0),
        init=lambda key, example: (jnp.zeros((), jnp.bfloat16), ()),
        evaluate=lambda state, batch, key: {},
    )
    state = learner.init(KEY, batch)
    moved, _ = accumulated(learner, 24).update(state, batch)
    assert moved.params == -1 and moved.params.dtype == jnp.bfloat16


def test_it_needs_less_memory():
    """Of a wide layer's activations an eighth is there at a time, though CPUs keep more of it."""
    net = nets.mlp((512,), 5)
    batch = {"image": jnp.zeros((2048, 4, 4, 1)), "label": jnp.zeros(2048, int)}

    def needed(parts):
        learner = accumulated(classifier(net, optax.sgd(0.1)), parts)
        state = jax.eval_shape(learner.init, KEY, batch)
        memory = jax.jit(learner.update).lower(state, batch).compile().memory_analysis()
        return memory.temp_size_in_bytes

    assert needed(8) < needed(1) / 4


def test_convolutions_are_written_out_on_the_cpu():
    net = nets.cnn(5, features=(2,), dense=())
    learner = accumulated(classifier(net, optax.sgd(0.1)), 2)
    state = jax.eval_shape(learner.init, KEY, BATCH)
    program = jax.jit(learner.update).lower(state, BATCH).as_text()
    assert ("stablehlo.while" in program) == (jax.default_backend() != "cpu")


def two_nets():
    def update(state, batch):
        loss = lambda params: (params, (None, ()))  # noqa: E731
        return descend_net(state, "one", loss, optax.sgd(0.1))[0], {}

    def init(key, example):
        ones = {"one": jnp.ones(())}
        start = {"one": optax.sgd(0.1).init(ones["one"])}
        return TrainState.create(key, ones, opt_state=start, model_state={"one": ()})

    return Learner(init, update, lambda state, batch, key: {})


@pytest.mark.parametrize(
    "learner",
    [
        noisy(by_example=False),
        simclr(NET, nets.mlp((), 4), optax.sgd(0.1), lambda key, image: image),
        two_nets(),
    ],
    ids=["declared", "contrast", "two nets"],
)
def test_what_has_no_parts_is_refused(learner):
    learner = accumulated(learner, 2)
    batch = {"x": jnp.ones(4), **BATCH}
    state = jax.eval_shape(learner.init, KEY, batch)
    with pytest.raises(InputError, match="this learner does not take its gradient in parts"):
        jax.eval_shape(learner.update, state, batch)


def test_numbers_that_make_no_parts_are_refused():
    with pytest.raises(InputError, match=r"accumulated\(parts=0\): expected at least one part"):
        accumulated(plain(), 0)
    for parts in (5, 24):
        with pytest.raises(InputError, match=f"a batch of 12 does not divide into {parts} parts"):
            after(accumulated(plain(), parts), BATCH)
    with pytest.raises(InputError, match="a batch of 1 does not divide into 2 parts"):
        after(accumulated(plain(), 2), {**BATCH, "mask": jnp.ones(())})
    learner = plain()
    assert accumulated(learner, 1) is learner
