"""`fit` against a loop written by hand, and evaluation against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nets
from paradigms.core import metrics as metrics_lib
from paradigms.core.checkpoint import Checkpoints
from paradigms.core.errors import InputError, NonFiniteError
from paradigms.core.learner import Learner, minimise
from paradigms.core.loop import Every, LiveSource, evaluator, fit
from paradigms.core.metrics import Mean
from paradigms.core.sampling import batch_indices, data_key
from paradigms.core.transforms import chunked, repeated, resident, seeded
from paradigms.supervised import classifier

KEY = jax.random.key(0)
DATA = {
    "x": jax.random.normal(jax.random.key(1), (20, 3)),
    "y": jax.random.normal(jax.random.key(2), (20,)),
}
BATCH = 6


def learner():
    """Least squares, which compiles quickly; the contract test has nets."""

    def loss(params, state, batch):
        mean = Mean.of(jnp.square(batch["x"] @ params - batch["y"]))
        return mean.value(), ({"loss": mean}, {})

    return minimise(
        loss,
        optax.sgd(0.1, momentum=0.9),
        init=lambda key, batch: (jax.random.normal(key, (3,)), {}),
        evaluate=lambda state, batch, key: {},
    )


RESIDENT = resident(learner(), BATCH)
START = jax.jit(RESIDENT.init)


def fresh():
    return START(KEY, DATA)


def resident_data(step, n):
    return DATA


def numbers(tree):
    def number(leaf):
        is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.array(jax.random.key_data(leaf) if is_key else leaf)

    return jax.tree.map(number, tree)


def equal(first, second):
    jax.tree.map(np.testing.assert_array_equal, numbers(first), numbers(second))


@pytest.fixture(scope="module")
def by_hand():
    """States (in numpy) and losses after each of 12 updates."""
    update, state = jax.jit(RESIDENT.update), fresh()
    states, losses = [numbers(state)], []
    for _ in range(12):
        state, metrics = update(state, DATA)
        states.append(numbers(state))
        losses.append(float(metrics["loss"].value()))
    return states, losses


class Recorder:
    """A callback that keeps what it was given."""

    def __init__(self):
        self.steps, self.losses, self.counts, self.states = [], [], [], []

    def __call__(self, step, metrics, state):
        self.steps.append(step)
        self.losses.append(metrics_lib.derive(metrics)["loss"])
        self.counts.append(float(metrics["loss"].count))
        self.states.append(numbers(state))


# The same updates in every way ------------------------------------------------------------------


def test_fit_is_a_loop_to_the_last_bit(by_hand):
    states, losses = by_hand
    recorder = Recorder()
    fitted = fit(
        repeated(RESIDENT, 1), fresh(), resident_data, steps=12, callbacks=[Every(1, recorder)]
    )
    equal(fitted.state, states[12])
    for step in range(12):
        equal(recorder.states[step], states[step + 1])
    assert recorder.losses == losses
    assert fitted.steps == 12
    assert fitted.compile_seconds > 0 and fitted.train_seconds > 0


def streamed(step, n):
    """The batches that `resident` draws, from the host."""
    indices = [batch_indices(data_key(KEY), step + i, 20, BATCH) for i in range(n)]
    return {name: np.stack([np.asarray(array)[i] for i in indices]) for name, array in DATA.items()}


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("form", ["repeated", "chunked", "one seed"])
def test_every_way_of_feeding_gives_the_same_losses(by_hand, form, n):
    states, losses = by_hand
    state, source, recorder = fresh(), resident_data, Recorder()
    if form == "repeated":
        fused = repeated(RESIDENT, n)
    elif form == "chunked":
        fused, source = chunked(learner()), streamed
    else:
        fused = repeated(seeded(RESIDENT), n)
        state = jax.jit(seeded(RESIDENT).init)(jnp.stack([KEY]), DATA)

    def record(step, metrics, state):
        if form == "one seed":
            metrics, state = jax.tree.map(lambda leaf: leaf[0], (metrics, state))
        recorder(step, metrics, state)

    fit(fused, state, source, steps=12, steps_per_call=n, callbacks=[Every(n, record)])
    expected = np.mean(np.reshape(losses, (-1, n)), axis=1)
    np.testing.assert_allclose(recorder.losses, expected, rtol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6),
        recorder.states[-1].params,
        states[12].params,
    )


def test_fit_resumes_to_the_last_bit(by_hand, tmp_path):
    states, _ = by_hand
    checkpoints = Checkpoints(tmp_path)
    for steps in (4, 8, 12):
        state = fresh()
        if checkpoints.latest() is not None:
            state = checkpoints.restore(state)
        fitted = fit(
            repeated(RESIDENT, 1),
            state,
            resident_data,
            steps=steps,
            callbacks=[Every(4, lambda step, _, state: checkpoints.save(step, state))],
        )
        assert fitted.steps == 4
    equal(fitted.state, states[12])


def test_fit_compiles_once(compilations):
    seen = []
    # Once before, for the check of a finite state, which is compiled once for every structure.
    checked = [Every(1, lambda *_: None)]
    fit(repeated(RESIDENT, 1), fresh(), resident_data, steps=1, callbacks=checked)
    state = fresh()
    compilations.clear()
    fit(
        repeated(RESIDENT, 2),
        state,
        resident_data,
        steps=8,
        steps_per_call=2,
        callbacks=[Every(2, lambda step, *_: seen.append((step, len(compilations))))],
    )
    assert seen == [(2, 1), (4, 1), (6, 1), (8, 1)]


@pytest.mark.parametrize("n", [1, 2])
def test_without_jit_fit_does_the_same(by_hand, n):
    """As `--debug` has it: every operation runs on its own, and a NaN stops at the first."""
    states, losses = by_hand
    recorder, traced = Recorder(), []

    def update(state, batch):
        traced.append(isinstance(state.step, jax.core.Tracer))
        return RESIDENT.update(state, batch)

    state = fresh()
    with jax.disable_jit():
        fitted = fit(
            repeated(RESIDENT._replace(update=update), n, unroll=False),
            state,
            resident_data,
            steps=2,
            steps_per_call=n,
            callbacks=[Every(n, recorder)],
        )
    assert traced == [False, False]
    expected = np.mean(np.reshape(losses[:2], (-1, n)), axis=1)
    np.testing.assert_allclose(recorder.losses, expected, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        numbers(fitted.state),
        states[2],
    )


def test_without_jit_a_nan_stops_at_its_operation():
    broken = repeated(breaks_at(2), 1)
    state = broken.init(KEY, None)
    with jax.disable_jit(), jax.debug_nans(True), pytest.raises(FloatingPointError):
        fit(broken, state, lambda *_: (), steps=3)


# Callbacks --------------------------------------------------------------------------------------


def test_callbacks_get_the_metrics_since_their_last_call(by_hand):
    states, losses = by_hand
    often, seldom = Recorder(), Recorder()
    fit(
        repeated(RESIDENT, 1),
        fresh(),
        resident_data,
        steps=12,
        callbacks=[Every(2, often), Every(5, seldom)],
    )
    assert often.steps == [2, 4, 6, 8, 10, 12]
    assert seldom.steps == [5, 10, 12]  # the remainder too
    assert seldom.counts == [5 * BATCH, 5 * BATCH, 2 * BATCH]
    windows = [losses[:5], losses[5:10], losses[10:]]
    np.testing.assert_allclose(seldom.losses, [np.mean(window) for window in windows], rtol=1e-6)
    np.testing.assert_allclose(often.losses, np.mean(np.reshape(losses, (6, 2)), 1), rtol=1e-6)
    for step, state in zip(seldom.steps, seldom.states, strict=True):
        equal(state, states[step])


@pytest.mark.parametrize("stops", [(1, 2), (3, 4), (2, 0, 6)])
def test_a_call_that_was_stopped_is_gone_on_with(by_hand, stops):
    """Callbacks get what they would have got in one call, wherever it was stopped."""
    states, _ = by_hand
    whole, parts = [Recorder(), Recorder()], [Recorder(), Recorder()]
    fused = repeated(RESIDENT, 1)

    def every(recorders):
        return [Every(4, recorders[0]), Every(6, recorders[1])]

    fit(fused, fresh(), resident_data, steps=12, callbacks=every(whole))
    state, pending, done = fresh(), None, 0
    for updates in (*stops, None):
        asked = iter(range(100))
        fitted = fit(
            fused,
            state,
            resident_data,
            steps=12,
            callbacks=every(parts),
            stop=lambda asked=asked, updates=updates: next(asked) == updates,
            pending=pending,
        )
        state, pending, done = fitted.state, fitted.pending, done + fitted.steps
        assert fitted.steps == (12 - sum(stops) if updates is None else updates)
        assert (pending is None) == (done == 12)
        equal(state, states[done])
    for one, other in zip(whole, parts, strict=True):
        assert (one.steps, one.losses, one.counts) == (other.steps, other.losses, other.counts)


def test_callbacks_are_called_in_order():
    order = []
    fit(
        repeated(RESIDENT, 2),
        fresh(),
        resident_data,
        steps=4,
        steps_per_call=2,
        callbacks=[Every(2, lambda *_: order.append("a")), Every(4, lambda *_: order.append("b"))],
    )
    assert order == ["a", "a", "b"]


def test_a_resumed_run_calls_back_at_the_same_steps():
    recorder = Recorder()
    state = fit(repeated(RESIDENT, 1), fresh(), resident_data, steps=3).state
    fitted = fit(
        repeated(RESIDENT, 1), state, resident_data, steps=9, callbacks=[Every(4, recorder)]
    )
    assert recorder.steps == [4, 8, 9]
    assert recorder.counts == [1 * BATCH, 4 * BATCH, 1 * BATCH]
    assert fitted.steps == 6


@pytest.mark.parametrize("steps", [3, 2])
def test_nothing_left_to_do(steps):
    state = fresh().replace(step=jnp.int32(3))
    fitted = fit(
        repeated(RESIDENT, 1),
        state,
        lambda step, n: pytest.fail("asked for data"),
        steps=steps,
        callbacks=[Every(1, lambda *_: pytest.fail("called back"))],
    )
    assert fitted.state is state and fitted.steps == 0


def test_progress_is_told_to_the_end_and_is_no_callback():
    told = []
    fit(repeated(RESIDENT, 2), fresh(), resident_data, steps=8, steps_per_call=2,
        on_progress=told.append)  # fmt: skip
    assert told[0] == 2 and told[-1] == 8 and told == sorted(told)
    assert len(told) < 5 or told[1] > 2  # not at every dispatch, but for a machine that sleeps


def test_the_source_is_asked_for_the_right_updates():
    asked = []

    def source(step, n):
        asked.append((step, n))
        return streamed(step, n)

    state = fresh().replace(step=jnp.int32(4))
    fit(chunked(learner()), state, source, steps=10, steps_per_call=2)
    assert asked == [(4, 2), (6, 2), (8, 2)]


def test_a_live_source_sees_the_state_that_is_to_be_updated(by_hand):
    states, _ = by_hand
    asked = []

    def draw(step, n, state):
        asked.append((step, n, numbers(state)))
        return DATA

    called = []
    fitted = fit(
        repeated(RESIDENT, 1),
        fresh(),
        LiveSource(draw),
        steps=3,
        callbacks=[Every(1, lambda step, *_: called.append((step, len(asked))))],
    )
    assert [(step, n) for step, n, _ in asked] == [(0, 1), (1, 1), (2, 1)]
    for step, _, state in asked:
        equal(state, states[step])
    equal(fitted.state, states[3])
    assert called == [(1, 1), (2, 2), (3, 3)]  # not ahead of what a callback may look at


# Mistakes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "steps", "n", "interval", "words"),
    [
        (0, 10, 4, 4, "steps is 10: expected a positive multiple of steps_per_call, 4"),
        (0, 12, 4, 6, "the interval of callback 0 is 6: .* 4"),
        (0, 12, 4, 0, "the interval of callback 0 is 0"),
        (0, 12, 1, -3, "the interval of callback 0 is -3"),
        (3, 12, 2, 2, "the step to resume from is 3: .* 2"),
        (0, 0, 1, 1, "steps is 0"),
        (0, 12, 0, 1, "steps_per_call=0: expected at least 1"),
    ],
)
def test_intervals_are_multiples(start, steps, n, interval, words):
    state = fresh().replace(step=jnp.int32(start))
    callbacks = [Every(interval, lambda *_: None)]
    with pytest.raises(InputError, match=words) as caught:
        fit(
            RESIDENT,
            state,
            lambda step, n: pytest.fail("asked for data"),
            steps=steps,
            steps_per_call=n,
            callbacks=callbacks,
        )
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fused", "n", "runs", "words"),
    [
        (
            repeated(RESIDENT, 3),
            2,
            None,
            r"did 3 updates .*steps_per_call is 2: .*repeated\(\.\.\., 2\)",
        ),
        (RESIDENT, 2, None, "did 1 updates"),
        # Without an axis of updates, metrics would be added up over something else.
        (RESIDENT, 1, None, r"did 1 updates and gave metrics with first axes \[\(\)"),
        (seeded(repeated(RESIDENT, 1)), 1, 2, r"first axes \[\(2,\)\]"),
    ],
)
def test_a_call_does_as_many_updates_as_it_should(fused, n, runs, words):
    state = fused.init(KEY if runs is None else jax.random.split(KEY, runs), DATA)
    called = []
    with pytest.raises(InputError, match=words) as caught:
        fit(
            fused,
            state,
            resident_data,
            steps=12,
            steps_per_call=n,
            callbacks=[Every(n, lambda *_: called.append(1))],
        )
    assert not called and "\n" not in str(caught.value)


def breaks_at(step, *, late=False):
    """A learner whose loss is NaN at update `step`, counted from 1; `late`: its gradient before."""

    def loss(params, state, batch):
        value = (params**2).sum()
        broken = jnp.where(state.step + 1 >= step, jnp.nan, 1.0)
        return (value if late else value * broken), ({"loss": Mean.of(value * broken)}, {})

    descent = minimise(
        loss,
        optax.sgd(0.1),
        init=lambda key, batch: (jnp.ones(2), {}),
        evaluate=lambda state, batch, key: {},
    )
    if not late:
        return descent

    def update(state, batch):
        state, metrics = descent.update(state, batch)
        gradient = metrics["norm/gradient"].total * jnp.where(state.step >= step - 1, jnp.inf, 1.0)
        return state, {**metrics, "norm/gradient": Mean.of(gradient)}

    return descent._replace(update=update)


@pytest.mark.parametrize("n", [1, 4])
def test_nan_stops_training_and_names_the_step(n, tmp_path):
    fused, checkpoints = repeated(breaks_at(7), n), Checkpoints(tmp_path)

    def describe():
        return f"the last good checkpoint is step {checkpoints.latest()} in {tmp_path}"

    with pytest.raises(NonFiniteError, match="not finite at step 7: ") as caught:
        fit(
            fused,
            fused.init(KEY, None),
            lambda *_: (),
            steps=16,
            steps_per_call=n,
            callbacks=[Every(4, lambda step, _, state: checkpoints.save(step, state))],
            last_good=describe,
        )
    message = str(caught.value)
    assert f"checkpoint is step 4 in {tmp_path}" in message and "\n" not in message
    assert checkpoints.steps() == [4]


@pytest.mark.parametrize("steps_between", [1, 16])
def test_nan_is_found_without_callbacks_and_at_the_last_step(steps_between):
    fused = repeated(breaks_at(16), steps_between)
    with pytest.raises(NonFiniteError, match="step 16: no checkpoint was kept"):
        fit(
            fused,
            fused.init(KEY, None),
            lambda *_: (),
            steps=16,
            steps_per_call=steps_between,
        )


def test_the_first_bad_number_is_named():
    """An infinite gradient at step 6 makes the loss NaN at step 7, and the gradient is to blame."""
    fused = repeated(breaks_at(7, late=True), 10)
    with pytest.raises(NonFiniteError, match="norm/gradient is not finite at step 6"):
        fit(fused, fused.init(KEY, None), lambda *_: (), steps=10, steps_per_call=10)


def test_nan_in_one_seed_of_many_is_found():
    def loss(params, state, batch):
        key = jax.random.key_data(state.key)[-1]
        bad = (key == 1) & (state.step == 2)
        value = jnp.where(bad, jnp.nan, 1.0) * params.sum()
        return value, ({"loss": Mean.of(value)}, {})

    one = minimise(
        loss,
        optax.sgd(0.1),
        init=lambda key, batch: (jnp.ones(2), {}),
        evaluate=lambda state, batch, key: {},
    )
    together = seeded(one)
    state = together.init(jnp.stack([jax.random.key(i) for i in range(3)]), None)
    with pytest.raises(NonFiniteError, match="step 3"):
        fit(repeated(together, 5), state, lambda *_: (), steps=5, steps_per_call=5)


def test_no_callback_sees_parameters_that_are_not_finite():
    """They may be so after a finite loss, and a checkpoint of them would be the last good one."""

    def bursting(key):
        at = jnp.where(jax.random.key_data(key)[-1] == 1, 8, 100)
        one = breaks_at(100)

        def update(state, batch):
            state, metrics = one.update(state, batch)
            spoilt = state.params.at[0].set(jnp.where(state.step == at, jnp.inf, state.params[0]))
            return state.replace(params=spoilt), metrics

        return one._replace(update=update)

    together = seeded(bursting(KEY)._replace(update=lambda s, b: bursting(s.key).update(s, b)))
    state = together.init(jnp.stack([jax.random.key(i) for i in range(2)]), None)
    seen = []
    with pytest.raises(NonFiniteError, match="a parameter is not finite after step 8: ") as caught:
        fit(
            repeated(together, 4),
            state,
            lambda *_: (),
            steps=16,
            steps_per_call=4,
            callbacks=[Every(4, lambda step, *_: seen.append(step))],
        )
    assert seen == [4]
    (broken,) = caught.value.metrics.values()
    assert np.isfinite(broken.total).tolist() == [[True, False]] and caught.value.step == 7


# Evaluation of a whole set ----------------------------------------------------------------------


def mean_learner():
    """Reports the mean of `x` and some randomness; its state is a factor."""

    def evaluate(state, batch, key):
        mask = batch["mask"]
        draw = jax.random.uniform(key, mask.shape)
        return {"loss": Mean.of(state * batch["x"], mask), "draw": Mean.of(draw, mask)}

    return Learner(None, None, evaluate)


def test_batches_of_4_4_and_2():
    x = np.array([1.0] * 8 + [6.0] * 2)
    metrics = evaluator(mean_learner(), {"x": x}, 4)(jnp.float32(1), KEY)
    assert metrics_lib.derive(metrics)["loss"] == 2.0
    assert metrics["loss"].count == 10
    assert isinstance(metrics["loss"].total, np.ndarray | np.generic)


@pytest.mark.parametrize("batch_size", [1, 3, 10, 11, 1000])
def test_every_example_counts_once(batch_size):
    x = np.random.default_rng(0).normal(size=10)
    metrics = evaluator(mean_learner(), {"x": x}, batch_size)(jnp.float32(2), KEY)
    assert metrics["loss"].count == 10
    np.testing.assert_allclose(metrics["loss"].value(), 2 * x.mean(), rtol=1e-5)


def test_padding_never_counts_even_where_it_is_infinite():
    x = np.array([np.nan, 1.0, 2.0])  # row 0 pads the last batch
    metrics = evaluator(mean_learner(), {"x": x, "mask": np.array([0, 1, 1])}, 2)(jnp.ones(()), KEY)
    assert metrics["loss"].value() == 1.5 and metrics["loss"].count == 2


def test_evaluation_equals_numpy():
    """A classifier over a ragged last batch, against all examples at once and numpy."""
    net = nets.mlp((5,), 2, norm="batch", dropout=0.2)
    data = {"x": DATA["x"], "label": jnp.arange(20) % 2}
    one = classifier(net, optax.sgd(0.1), input_name="x")
    state = jax.jit(one.init)(KEY, data)
    metrics = evaluator(one, data, 8)(state, KEY)
    logits = np.asarray(net.apply(state.params, state.model_state, DATA["x"])[0], np.float64)
    logp = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    label = np.arange(20) % 2
    derived = metrics_lib.derive(metrics)
    assert derived["loss"] == pytest.approx(-logp[np.arange(20), label].mean(), rel=1e-5)
    assert derived["accuracy"] == pytest.approx((logits.argmax(1) == label).mean())
    assert metrics["confusion"].total.sum() == 20


def test_evaluation_is_a_function_of_its_key():
    evaluate = evaluator(mean_learner(), {"x": np.ones(10)}, 4)
    first, again = evaluate(jnp.ones(()), KEY), evaluate(jnp.ones(()), KEY)
    other = evaluate(jnp.ones(()), jax.random.key(1))
    assert first["draw"].total == again["draw"].total != other["draw"].total
    draws = [jax.random.uniform(jax.random.fold_in(KEY, i), (4,)) for i in range(3)]
    expected = np.concatenate([draws[0], draws[1], draws[2][:2]]).mean()
    np.testing.assert_allclose(first["draw"].value(), expected, rtol=1e-5)


def test_evaluation_compiles_once(compilations):
    evaluate = evaluator(mean_learner(), {"x": np.ones(10)}, 4)
    evaluate(jnp.ones(()), KEY)
    compilations.clear()
    evaluate(jnp.zeros(()), KEY)
    assert not compilations


def test_sets_of_one_batch_size_share_what_is_compiled(compilations):
    learner = mean_learner()
    evaluator(learner, {"x": np.ones(5)}, 4)(jnp.ones(()), KEY)
    compilations.clear()
    metrics = evaluator(learner, {"x": np.full(11, 3.0)}, 4)(jnp.ones(()), KEY)
    assert not compilations
    assert metrics["loss"].value() == 3


def test_evaluation_bakes_in_no_data():
    traced = []

    def evaluate(state, batch, key):
        traced.append(isinstance(batch["x"], jax.core.Tracer))
        return {"loss": Mean.of(batch["x"], batch["mask"])}

    evaluator(Learner(None, None, evaluate), {"x": np.ones(10)}, 4)(jnp.ones(()), KEY)
    assert traced == [True]


@pytest.mark.parametrize(
    ("data", "batch_size", "words"),
    [
        ({"x": np.ones(0)}, 4, "evaluator: expected arrays of one length.*'x': 0"),
        ({"x": np.ones(3), "y": np.ones(4)}, 4, "'x': 3, 'y': 4"),
        ({"x": np.ones(3)}, 0, r"evaluator\(batch_size=0\)"),
    ],
)
def test_a_set_that_cannot_be_evaluated_is_one_line(data, batch_size, words):
    with pytest.raises(InputError, match=words):
        evaluator(mean_learner(), data, batch_size)
