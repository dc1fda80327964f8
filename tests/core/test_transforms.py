"""Transformations against loops written by hand, and numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nets
from paradigms.core.errors import InputError
from paradigms.core.learner import Learner, minimise
from paradigms.core.metrics import Mean
from paradigms.core.sampling import batch_indices, cycled_indices, data_key
from paradigms.core.scan import loops_are_slow
from paradigms.core.state import TrainState, fold_name
from paradigms.core.transforms import (
    averaged,
    chunked,
    guarded,
    lookahead,
    repeated,
    resident,
    run_data,
    seeded,
    swept,
    windowed,
)
from paradigms.supervised import classifier

KEY = jax.random.key(0)
DATA = {
    "x": jax.random.normal(jax.random.key(1), (20, 3)),
    "y": jax.random.normal(jax.random.key(2), (20,)),
}


def line(learning_rate=0.1):
    """Noisy least squares; the model state is a running mean of the inputs.

    The batch's `index`, where it has one, comes back as a metric.
    """

    def loss(params, state, batch):
        noise = 0.1 * jax.random.normal(state.rng("noise"), batch["y"].shape)
        value = jnp.square(batch["x"] @ params["w"] - batch["y"] - noise).mean()
        metrics = {"loss": Mean.of(value)}
        if "index" in batch:
            index = jnp.float32(batch["index"])
            metrics["index"] = Mean(total=index, count=jnp.ones_like(index))
        running = 0.9 * state.model_state["mean"] + 0.1 * batch["x"].mean(0)
        return value, (metrics, {"mean": running})

    def init(key, batch):
        return {"w": jax.random.normal(key, (3,))}, {"mean": jnp.zeros(3)}

    def evaluate(state, batch, key):
        return {"w": Mean.of(state.params["w"]), "mean": Mean.of(state.model_state["mean"])}

    return minimise(loss, optax.sgd(learning_rate), init=init, evaluate=evaluate)


def rows(first, count=4):
    return jax.tree.map(lambda leaf: leaf[first : first + count], DATA)


def loop(learner, state, batches):
    """States and metrics after each update, one call after another."""
    update, states, metrics = jax.jit(learner.update), [], []
    for batch in batches:
        state, reported = update(state, batch)
        states.append(state)
        metrics.append(reported)
    return states, metrics


def stack(trees):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def at(tree, i):
    return jax.tree.map(lambda leaf: leaf[i], tree)


def numbers(tree):
    def number(leaf):
        is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(leaf) if is_key else leaf)

    return jax.tree.map(number, tree)


def close(first, second, tolerance=1e-6):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance),
        numbers(first),
        numbers(second),
    )


def equal(first, second):
    jax.tree.map(np.testing.assert_array_equal, numbers(first), numbers(second))


# repeated, chunked -------------------------------------------------------------------------------


@pytest.mark.parametrize("unroll", [None, True, False])
@pytest.mark.parametrize("n", [1, 3])
def test_repeated_is_a_loop_with_one_argument(n, unroll):
    learner = line()
    state = learner.init(KEY, DATA)
    states, metrics = loop(learner, state, [DATA] * n)
    after, stacked = jax.jit(repeated(learner, n, unroll=unroll).update)(state, DATA)
    close((after, stacked), (states[-1], stack(metrics)))
    assert stacked["loss"].total.shape == (n,) and after.step == n


@pytest.mark.parametrize("unroll", [None, True, False])
@pytest.mark.parametrize("n", [1, 3])
def test_chunked_is_a_loop_over_stacked_batches(n, unroll):
    learner, batches = line(), [rows(4 * i) for i in range(n)]
    fused = chunked(learner, unroll=unroll)
    state = fused.init(KEY, stack(batches))
    equal(state, learner.init(KEY, batches[0]))
    states, metrics = loop(learner, state, batches)
    after, stacked = jax.jit(fused.update)(state, stack(batches))
    close((after, stacked), (states[-1], stack(metrics)))


def test_at_least_one_update_a_call():
    with pytest.raises(InputError, match=r"repeated\(n=0\): expected at least one"):
        repeated(line(), 0)


def test_loops_are_slow_where_there_is_a_convolution():
    def convolve(x):
        return jax.lax.conv(x, x, (1, 1), "SAME")

    image = jnp.ones((1, 1, 4, 4))
    on_cpu = jax.default_backend() == "cpu"
    assert loops_are_slow(jax.jit(convolve), image) == on_cpu
    assert loops_are_slow(jax.grad(lambda x: convolve(x).sum()), image) == on_cpu
    assert not loops_are_slow(lambda x: x @ x, jnp.ones((2, 2)))


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="loops are slow on the CPU alone")
@pytest.mark.parametrize("layers", [(4,), ()])
def test_loops_of_convolutions_are_written_out_on_the_cpu(layers):
    net = nets.cnn(2, features=layers, dense=()) if layers else nets.mlp((4,), 2)
    learner = classifier(net, optax.sgd(0.1))
    batch = {"image": jnp.ones((2, 8, 8, 1)), "label": jnp.array([0, 1])}
    state = jax.eval_shape(learner.init, KEY, batch)
    program = jax.jit(repeated(learner, 3).update).lower(state, batch).as_text()
    assert ("stablehlo.while" in program) == (not layers)


# resident ----------------------------------------------------------------------------------------


def test_resident_feeds_the_batches_of_the_common_order():
    learner, drawing = line(), resident(line(), 6)
    state = jax.jit(drawing.init)(KEY, DATA)
    close(state, learner.init(KEY, rows(0, 6)))
    steps = 7  # two epochs and a bit, each leaving two examples out
    order = [batch_indices(data_key(KEY), step, 20, 6) for step in range(steps)]
    states, metrics = loop(learner, state, [at(DATA, index) for index in order])
    update = jax.jit(drawing.update)
    for index, expected, reported in zip(order, states, metrics, strict=True):
        state, found = update(state, DATA)
        np.testing.assert_array_equal(found.pop("index").total, index)
        close((state, found), (expected, reported))


def test_a_resident_set_is_an_argument_and_stays_as_it_is():
    size = 5000
    data = {"image": jnp.zeros((size, 28, 28, 1), jnp.uint8), "label": jnp.zeros(size, jnp.int32)}
    learner = repeated(resident(classifier(nets.mlp((8,), 10), optax.sgd(0.1)), 32), 2)
    state = learner.init(KEY, data)
    lowered = jax.jit(learner.update).lower(state, data)
    assert len(lowered.as_text()) < 200_000  # the images alone would be millions of digits
    compiled = lowered.compile()
    memory = compiled.memory_analysis()
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(data))
    assert held < memory.argument_size_in_bytes < held + 100_000
    # A copy of the set, above all one in float32, would show here.
    assert memory.temp_size_in_bytes < held / 4
    assert memory.generated_code_size_in_bytes < held / 4


@pytest.mark.parametrize(
    ("data", "batch_size", "words"),
    [
        (DATA, 21, "batch size 21 does not fit a data set of 20 examples"),
        (DATA, 0, "batch size 0"),
        ({**DATA, "y": DATA["y"][:19]}, 4, "resident: .*'x': 20, 'y': 19"),
        ({**DATA, "scale": jnp.ones(())}, 4, "'scale': None"),
        ({}, 4, "resident: expected arrays"),
    ],
)
def test_a_set_that_does_not_fit_is_one_line(data, batch_size, words):
    with pytest.raises(InputError, match=words) as caught:
        resident(line(), batch_size).init(KEY, data)
    assert "\n" not in str(caught.value)


def two_sets():
    """Sums the inputs of two parts, and reports which rows they are."""

    def loss(params, state, batch):
        value = params * sum(part["x"].sum() for part in batch.values())
        metrics = {
            name: Mean(total=jnp.float32(part["index"]), count=jnp.ones(len(part["index"])))
            for name, part in batch.items()
        }
        return value, ({**metrics, "loss": Mean.of(value)}, {})

    return minimise(
        loss,
        optax.sgd(1.0),
        init=lambda key, batch: (jnp.ones(()), {}),
        evaluate=lambda state, batch, key: {},
    )


SETS = {"few": {"x": DATA["x"][:3]}, "many": {"x": DATA["x"][3:]}}


def test_resident_sets_are_drawn_in_orders_of_their_own():
    learner = resident(two_sets(), {"few": 7, "many": 5})
    state, update = learner.init(KEY, SETS), jax.jit(learner.update)
    key = data_key(KEY)
    for step in range(4):
        before = state.params
        state, metrics = update(state, SETS)
        few = cycled_indices(fold_name(key, "few"), step, 3, 7)
        many = batch_indices(fold_name(key, "many"), step, 17, 5)
        np.testing.assert_array_equal(metrics["few"].total, few)
        np.testing.assert_array_equal(metrics["many"].total, many)
        gathered = SETS["few"]["x"][few].sum() + SETS["many"]["x"][many].sum()
        np.testing.assert_allclose(before - state.params, gathered, rtol=1e-4)
    # Sets of one size are not drawn alike.
    twins = resident(two_sets(), {"few": 3, "many": 3})
    alike = dict.fromkeys(SETS, SETS["few"])
    orders = [twins.update(state.replace(step=step), alike)[1] for step in range(6)]
    assert any((found["few"].total != found["many"].total).any() for found in orders)


def test_sizes_and_sets_have_the_same_names():
    learner = resident(two_sets(), {"few": 3, "more": 5})
    message = r"batch sizes for \['few', 'more'\] and data sets \['few', 'many'\]: expected one"
    with pytest.raises(InputError, match=message):
        learner.init(KEY, SETS)


# windowed ----------------------------------------------------------------------------------------

STREAM = {"tokens": jnp.arange(100, 123, dtype=jnp.uint8), "document": jnp.arange(23) // 8}


def reader():
    """Reports the windows that it gets, and adds them up."""

    def init(key, batch):
        return jnp.zeros(batch["tokens"].shape[1]), {}

    def loss(params, state, batch):
        metrics = {name: Mean(total=jnp.float32(leaf), count=1) for name, leaf in batch.items()}
        return params @ jnp.float32(batch["tokens"].sum(0)), (metrics, state.model_state)

    return minimise(loss, optax.sgd(1e-3), init=init, evaluate=None)


def test_windowed_is_resident_with_the_windows_for_rows():
    starts = np.arange(23 - 4)
    tables = {name: leaf[starts[:, None] + np.arange(5)] for name, leaf in STREAM.items()}
    drawing, materialised = windowed(reader(), 6, 4), resident(reader(), 6)
    state, other = jax.jit(drawing.init)(KEY, STREAM), jax.jit(materialised.init)(KEY, tables)
    equal(state, other)
    update, expect = jax.jit(drawing.update), jax.jit(materialised.update)
    seen = []
    for step in range(6):  # two epochs, each of which leaves one window out
        state, found = update(state, STREAM)
        other, expected = expect(other, tables)
        equal((state, found), (other, expected))
        index = np.int32(found["index"].total)
        np.testing.assert_array_equal(index, batch_indices(data_key(KEY), step, 19, 6))
        np.testing.assert_array_equal(found["tokens"].total, 100 + index[:, None] + np.arange(5))
        seen.append(index)
    for epoch in (seen[:3], seen[3:]):
        assert len(np.unique(epoch)) == 18
    assert (np.ravel(seen[:3]) != np.ravel(seen[3:])).any()
    # The batch of a step needs no history.
    _, again = update(drawing.init(KEY, STREAM).replace(step=jnp.int32(4)), STREAM)
    np.testing.assert_array_equal(again["index"].total, seen[4])


def test_every_window_comes_once_in_an_epoch():
    update = jax.jit(repeated(windowed(reader(), 2, 5), 9).update)  # 18 places
    _, metrics = update(windowed(reader(), 2, 5).init(KEY, STREAM), STREAM)
    assert sorted(np.asarray(metrics["index"].total).ravel()) == list(range(18))
    np.testing.assert_array_equal(metrics["tokens"].total[..., -1].max(), 122)


def test_a_stream_may_be_one_window_long():
    learner = windowed(reader(), 1, 22)
    _, metrics = jax.jit(learner.update)(learner.init(KEY, STREAM), STREAM)
    np.testing.assert_array_equal(metrics["tokens"].total[0], STREAM["tokens"])


@pytest.mark.parametrize(
    ("data", "batch_size", "length", "words"),
    [
        (STREAM, 1, 23, r"a window of 23 \+ 1 tokens does not fit a text of 23"),
        ({"tokens": jnp.zeros(0, jnp.int32)}, 1, 4, r"windowed: expected arrays.*'tokens': 0"),
        ({}, 1, 4, "windowed: expected arrays of one length"),
        (STREAM, 1, 0, r"windowed\(length=0\): expected at least 1"),
        (STREAM, 20, 4, "batch size 20 does not fit a data set of 19 examples"),
        ({**STREAM, "document": jnp.zeros(22)}, 1, 4, "'document': 22, 'tokens': 23"),
    ],
)
def test_a_stream_that_does_not_fit_is_one_line(data, batch_size, length, words):
    with pytest.raises(InputError, match=words) as caught:
        windowed(reader(), batch_size, length).init(KEY, data)
    assert "\n" not in str(caught.value)


# seeded ------------------------------------------------------------------------------------------

METHODS = ["map", "unroll", "vmap", None]


@pytest.mark.parametrize("inside", [True, False], ids=["repeated inside", "repeated outside"])
@pytest.mark.parametrize("method", METHODS)
def test_seeded_runs_are_the_runs(method, inside):
    keys = jax.random.split(KEY, 3)
    drawing = resident(line(), 6)
    if inside:
        together = seeded(repeated(drawing, 4), method=method, metrics_axis=1)
    else:
        together = repeated(seeded(drawing, method=method), 4)
    states = jax.jit(together.init)(keys, DATA)
    states, metrics = jax.jit(together.update)(states, DATA)
    assert metrics["loss"].total.shape == (4, 3)
    for i, key in enumerate(keys):
        alone = jax.jit(drawing.init)(key, DATA)
        alone, reported = loop(drawing, alone, [DATA] * 4)
        close(at(states, i), alone[-1])
        close(jax.tree.map(lambda leaf, i=i: leaf[:, i], metrics), stack(reported))
    # Each run draws its own batches.
    index = np.asarray(metrics["index"].total)
    assert not (index[0, 0] == index[0, 1]).all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("axis", [0, 1])
def test_runs_may_have_data_of_their_own(method, axis):
    keys = jax.random.split(KEY, 2)
    sets = [rows(0, 6), rows(6, 6)]
    data = jax.tree.map(lambda *leaves: jnp.stack(leaves, axis), *sets)
    drawing = resident(line(), 4)
    together = seeded(drawing, method=method, data_axis=axis)
    states = jax.jit(together.init)(keys, data)
    states, metrics = jax.jit(together.update)(states, data)
    for i in range(2):
        alone, reported = drawing.update(drawing.init(keys[i], sets[i]), sets[i])
        close((at(states, i), at(metrics, i)), (alone, reported))


@pytest.mark.parametrize("method", METHODS)
def test_runs_may_have_one_set_of_their_own_and_share_the_other(method):
    keys = jax.random.split(KEY, 2)
    own = [SETS["few"], {"x": 10 * SETS["few"]["x"]}]
    data = {"few": stack(own), "many": SETS["many"]}
    axes = {"few": 0, "many": None}
    drawing = resident(two_sets(), {"few": 2, "many": 5})
    together = seeded(drawing, method=method, data_axis=axes)
    states = jax.jit(together.init)(keys, data)
    states, metrics = jax.jit(together.update)(states, data)
    for i in range(2):
        one = {"few": own[i], "many": SETS["many"]}
        jax.tree.map(np.testing.assert_array_equal, run_data(data, axes, i), one)
        alone, reported = drawing.update(drawing.init(keys[i], one), one)
        close((at(states, i), at(metrics, i)), (alone, reported))


@pytest.mark.parametrize("method", METHODS)
def test_seeded_evaluation_shares_data_and_key(method):
    seen = []

    def evaluate(state, batch, key):
        seen.append(key.shape)
        return {"sum": Mean.of(state.params["w"][0] * jax.random.uniform(key) + batch["x"].sum())}

    learner = line()._replace(evaluate=evaluate)
    keys = jax.random.split(KEY, 3)
    together = seeded(learner, method=method)
    states = together.init(keys, DATA)
    found = together.evaluate(states, DATA, KEY)["sum"].total
    for i in range(3):
        expected = learner.evaluate(learner.init(keys[i], DATA), DATA, KEY)["sum"].total
        np.testing.assert_allclose(found[i], expected, rtol=1e-5)
    assert set(seen) == {()}


def test_bad_seeds_are_one_line():
    learner = seeded(line())
    with pytest.raises(InputError, match=r"expected keys \[S\].*jax.random.split.*single run"):
        learner.init(KEY, DATA)
    with pytest.raises(InputError, match=r"or a state made from them; got a single run"):
        learner.update(line().init(KEY, DATA), DATA)
    states = learner.init(jax.random.split(KEY, 3), DATA)
    for method in ("vmap", "map", "unroll"):
        own = seeded(line(), method=method, data_axis=0)
        with pytest.raises(InputError, match="data for 2 runs and there are 3"):
            own.update(states, stack([DATA, DATA]))
    with pytest.raises(InputError, match="method 'pmap': expected 'vmap'"):
        seeded(line(), method="pmap").update(states, DATA)


# swept -------------------------------------------------------------------------------------------

RATES = {"learning_rate": np.array([0.5, 0.1, 0.02])}


def make(hparams):
    return line(hparams["learning_rate"])


@pytest.mark.parametrize("method", METHODS)
def test_a_point_of_a_sweep_is_a_run_with_its_value(method):
    learner = swept(make, RATES, method=method)
    states = jax.jit(learner.init)(KEY, DATA)
    np.testing.assert_array_equal(states.hparams["learning_rate"], np.float32([0.5, 0.1, 0.02]))
    swept_states, _ = loop(learner, states, [DATA] * 3)
    evaluated = jax.jit(learner.evaluate)(swept_states[-1], DATA, KEY)
    for g, rate in enumerate(RATES["learning_rate"]):
        alone = line(rate)
        expected, _ = loop(alone, alone.init(KEY, DATA), [DATA] * 3)
        found = at(swept_states[-1], g)
        close(found.replace(hparams=()), expected[-1], 1e-5)
        assert found.hparams == {"learning_rate": np.float32(rate)}
        close(at(evaluated, g), alone.evaluate(expected[-1], DATA, KEY), 1e-5)


def test_new_values_compile_nothing(compilations):
    learner = swept(make, RATES)
    update, evaluate = jax.jit(learner.update), jax.jit(learner.evaluate)
    states = learner.init(KEY, DATA)
    update(states, DATA)
    evaluate(states, DATA, KEY)
    other = swept(make, {"learning_rate": np.array([0.3, 0.2, 0.0])}).init(KEY, DATA)
    compilations.clear()
    updated, _ = update(other, DATA)
    evaluate(other, DATA, KEY)
    assert not compilations
    equal(updated.params["w"][2], other.params["w"][2])  # a rate of 0
    assert (updated.params["w"][1] != other.params["w"][1]).all()


def test_sweeps_of_seeds_and_of_resident_data():
    def drawing(hparams):
        return resident(make(hparams), 6)

    learner = repeated(seeded(swept(drawing, RATES)), 2)
    keys = jax.random.split(KEY, 2)
    states = jax.jit(learner.init)(keys, DATA)
    states, metrics = jax.jit(learner.update)(states, DATA)
    assert states.step.shape == (2, 3) and metrics["loss"].total.shape == (2, 2, 3)
    alone = resident(line(0.02), 6)
    expected, _ = loop(alone, alone.init(keys[1], DATA), [DATA] * 2)
    close(at(at(states, 1), 2).replace(hparams=()), expected[-1])
    # One seed is one order of the data, whatever the rate.
    index = np.asarray(metrics["index"].total)
    assert (index[:, :, :1] == index).all() and (index[:, 0] != index[:, 1]).any()


@pytest.mark.parametrize(
    "grid",
    [
        {},
        {"a": []},
        {"a": 0.1},
        {"a": [0.1, 0.2], "b": [1.0]},
        {"a": [[0.1, 0.2]]},
    ],
)
def test_a_bad_grid_is_one_line(grid):
    with pytest.raises(InputError, match="swept: expected one-dimensional arrays of one length"):
        swept(make, grid)


# averaged ----------------------------------------------------------------------------------------


def counter():
    """Parameters are 1 and statistics 2 after each update, and 0 at first."""

    def init(key, batch):
        return jnp.zeros(()), {"mean": jnp.zeros(())}

    def evaluate(state, batch, key):
        return {"params": Mean.of(state.params), "mean": Mean.of(state.model_state["mean"])}

    learner = minimise(None, optax.identity(), init=init, evaluate=evaluate)

    def update(state, batch):
        one = jnp.ones(())
        state = state.replace(step=state.step + 1, params=one, model_state={"mean": 2 * one})
        return state, {}

    return learner._replace(update=update)


@pytest.mark.parametrize(("choice", "mean"), [("average", 2 * (1 - 0.99**100)), ("live", 2.0)])
def test_an_average_from_0_towards_1(choice, mean):
    learner = averaged(counter(), 0.99, model_state=choice)
    state = learner.init(KEY, None)
    start = learner.evaluate(state, None, KEY)
    assert start["params"].value() == start["mean"].value() == 0
    state, _ = jax.jit(repeated(learner, 100).update)(state, None)
    found = learner.evaluate(state, None, KEY)
    assert float(found["params"].value()) == pytest.approx(0.63397, abs=1e-5)
    assert float(found["mean"].value()) == pytest.approx(mean, rel=1e-5)
    # Training goes on from the live weights.
    assert state.params == 1 and state.model_state["mean"] == 2


def test_the_current_weights_may_stand_beside_their_average():
    learner = averaged(counter(), 0.99, model_state="live", beside=("params",))
    state, _ = learner.update(learner.init(KEY, None), None)
    found = learner.evaluate(state, None, KEY)
    assert set(found) == {"params", "mean", "live/params"}
    assert found["live/params"].value() == 1
    np.testing.assert_allclose(found["params"].value(), 0.01, rtol=1e-5)


@pytest.mark.parametrize("choice", ["average", "live"])
def test_an_average_follows_the_weights_and_leaves_them_alone(choice):
    plain, learner = line(), averaged(line(), 0.8, model_state=choice)
    state = learner.init(KEY, DATA)
    average, mean = np.asarray(state.params["w"]), np.zeros(3)
    alone, _ = loop(plain, plain.init(KEY, DATA), [rows(i) for i in range(5)])
    for i, expected in enumerate(alone):
        state, _ = learner.update(state, rows(i))
        average = 0.8 * average + 0.2 * np.asarray(expected.params["w"])
        mean = 0.8 * mean + 0.2 * np.asarray(expected.model_state["mean"])
    close(state.replace(target={}), alone[-1])
    shown = state.target["average"]
    np.testing.assert_allclose(shown["params"]["w"], average, rtol=1e-5)
    live = np.asarray(alone[-1].model_state["mean"])
    expected_mean = mean if choice == "average" else live
    np.testing.assert_allclose(shown["model_state"]["mean"], expected_mean, rtol=1e-5)
    metrics = learner.evaluate(state, DATA, KEY)
    np.testing.assert_allclose(metrics["w"].value(), average.mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["mean"].value(), expected_mean.mean(), rtol=1e-5)


def test_averages_nest_with_everything():
    learner = repeated(
        seeded(averaged(resident(line(), 6), jnp.float32(0.8), model_state="live")), 2
    )
    keys = jax.random.split(KEY, 2)
    states, _ = jax.jit(learner.update)(jax.jit(learner.init)(keys, DATA), DATA)
    alone = averaged(resident(line(), 6), 0.8, model_state="live")
    expected, _ = loop(alone, alone.init(keys[1], DATA), [DATA] * 2)
    close(at(states, 1), expected[-1])
    swept_decay = swept(
        lambda h: averaged(line(), h["decay"], model_state="average"), {"decay": [0.0, 1.0]}
    )
    start = swept_decay.init(KEY, DATA)
    after, _ = jax.jit(swept_decay.update)(start, DATA)
    close(after.target["average"]["params"]["w"][0], after.params["w"][0])
    equal(after.target["average"]["params"]["w"][1], start.params["w"][1])


def test_a_fresh_state_may_be_donated():
    """One buffer under two names could not."""
    for learner in (averaged(line(), 0.9, model_state="live"), lookahead(line())):
        state = learner.init(KEY, DATA)
        jax.jit(learner.update, donate_argnums=0)(state, DATA)
        assert state.params["w"].is_deleted() and not KEY.is_deleted()


def test_an_average_says_what_happens_to_statistics():
    with pytest.raises(InputError, match="model_state='copied'.*'average'.*'live'"):
        averaged(line(), 0.9, model_state="copied")
    learner = averaged(line(), 1.5, model_state="live")
    with pytest.raises(InputError, match=r"must lie in \[0, 1\], not 1.5"):
        learner.update(learner.init(KEY, DATA), DATA)


# guarded -----------------------------------------------------------------------------------------


def test_an_update_that_gives_nan_is_left_out():
    plain, learner = line(), guarded(line())
    batches = [rows(i) for i in range(0, 20, 4)]
    batches[2]["y"] = batches[2]["y"].at[1].set(jnp.nan)
    states, metrics = loop(learner, learner.init(KEY, DATA), batches)
    assert [float(each["skipped"].value()) for each in metrics] == [0, 0, 1, 0, 0]
    assert [float(each["loss"].count) for each in metrics] == [1, 1, 0, 1, 1]
    assert [int(state.step) for state in states] == [1, 2, 3, 4, 5]
    equal(states[2], states[1].replace(step=states[2].step))
    # What follows is what the learner does there, with the randomness of its own step.
    expected, reported = plain.update(states[2], batches[3])
    close(states[3], expected)
    close(metrics[3]["loss"], reported["loss"])


def test_a_state_that_overflows_is_left_out_though_its_loss_is_finite():
    learner = guarded(line(1e38))
    state = learner.init(KEY, DATA)
    after, metrics = learner.update(state, jax.tree.map(lambda leaf: 100 * leaf, rows(0)))
    assert metrics["skipped"].value() == 1
    equal(after, state.replace(step=after.step))


def test_one_run_is_left_out_and_the_others_go_on():
    learner = seeded(guarded(line()), method="vmap", data_axis=0)
    batch = stack([rows(0), rows(4)])
    batch["x"] = batch["x"].at[0, 0, 0].set(jnp.inf)
    start = learner.init(jax.random.split(KEY, 2), batch)
    state, metrics = learner.update(start, batch)
    np.testing.assert_array_equal(metrics["skipped"].value(), [1, 0])
    equal(state.params["w"][0], start.params["w"][0])
    assert (state.params["w"][1] != start.params["w"][1]).any()


def test_worlds_are_not_stepped_back():
    def update(state, batch):
        world = {"t": state.world["t"] + 1}
        state = state.replace(step=state.step + 1, params=state.params / batch, world=world)
        return state, {"loss": Mean.of(batch)}

    learner = guarded(Learner(None, update, None))
    state = TrainState.create(KEY, jnp.ones(())).replace(world={"t": jnp.zeros(())})
    after, _ = learner.update(state, jnp.zeros(()))
    assert (after.params, after.world["t"], after.step) == (1, 1, 1)


# lookahead ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("decay", [0.3, "schedule"])
def test_lookahead_by_hand(decay):
    period = 3

    def schedule(step):
        return 0.1 * step / 3

    plain = line()
    learner = lookahead(line(), schedule if decay == "schedule" else decay, period=period)
    state = learner.init(KEY, DATA)
    fast = plain.init(KEY, DATA)
    slow = {"params": fast.params, "model_state": fast.model_state}
    update, ahead = jax.jit(plain.update), jax.jit(learner.update)
    for step in range(1, 11):
        batch = rows(step)
        state, metrics = ahead(state, batch)
        fast, expected = update(fast, batch)
        if step % period == 0:
            share = 0.1 * step / 3 if decay == "schedule" else decay
            slow = jax.tree.map(
                lambda old, new, share=share: share * old + (1 - share) * new,
                slow,
                {"params": fast.params, "model_state": fast.model_state},
            )
            fast = fast.replace(**slow)
        close(state.replace(target={}), fast)
        close(state.target["lookahead"], slow)
        close(metrics, expected)
    assert (state.params["w"] != slow["params"]["w"]).any()  # step 10 is between two meetings
    found = learner.evaluate(state, DATA, KEY)
    np.testing.assert_allclose(found["w"].value(), slow["params"]["w"].mean(), rtol=1e-5)


def test_lookahead_known_answers():
    def start(learner):
        return learner.init(KEY, None)

    # Fast weights go to 1, and the slow ones half way.
    learner = lookahead(counter(), period=2)
    state, _ = learner.update(start(learner), None)
    assert state.params == 1 and state.target["lookahead"]["params"] == 0
    state, _ = learner.update(state, None)
    assert state.params == 0.5 and state.target["lookahead"]["params"] == 0.5
    assert state.model_state["mean"] == 1
    # Decay 0 is no lookahead at all; decay 1 never leaves the start.
    learner = lookahead(counter(), 0.0, period=1)
    assert learner.update(start(learner), None)[0].params == 1
    learner = lookahead(counter(), 1.0, period=1)
    assert learner.update(start(learner), None)[0].params == 0


def test_lookahead_needs_a_period():
    with pytest.raises(InputError, match=r"lookahead\(period=0\)"):
        lookahead(line(), period=0)
