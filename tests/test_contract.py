"""What every learner promises, whatever it learns.

Each public function of `paradigms` that is annotated `-> Learner` or `-> Agent` has a line in
`CASES`; one that has none fails `test_every_learner_has_a_case`. To add a learner, add its line: a
small instance with plain SGD, whose arithmetic does not amplify rounding, and a batch. An agent
joins by `living(agent)`, the learner that it is in a world.
"""

import contextlib
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import worlds

import nets
import paradigms
from nets.net import Net
from paradigms.core import transforms
from paradigms.core.checkpoint import Checkpoints
from paradigms.core.learner import Learner, minimise
from paradigms.core.metrics import Mean
from paradigms.reinforcement import (
    Agent,
    Discrete,
    Environment,
    ddpg,
    dqn,
    interact,
    ppo,
    prioritised_replay,
    recurrent_ppo,
    sac,
    td3,
)
from paradigms.self_supervised import (
    bert,
    byol,
    gpt,
    mae,
    moco,
    probed,
    siamese,
    simclr,
    vicreg,
)
from paradigms.semi_supervised import (
    fixmatch,
    flexmatch,
    mean_teacher,
    mixmatch,
    pi_model,
    pseudo_label,
    vat,
)
from paradigms.supervised import classifier, regressor
from paradigms.unsupervised import autoencoder, gan, iwae, masking_noise, vae, vq_vae

SEEDS = 2
STEPS = 5
ONE_OF_EACH = {"classifier", "vae", "simclr", "fixmatch", "ppo"}


class Case(NamedTuple):
    """One learner to examine.

    Attributes:
      learner: the learner.
      batch: what its `update` takes.
      held_out: what its `evaluate` takes, with rows on the first axis of every array; by default
        `batch`.
      runs: how many keys its `init` takes; None for one key alone.
    """

    learner: Learner
    batch: Any
    held_out: Any = None
    runs: int | None = None

    def key(self, seed: int) -> jax.Array:
        """What `init` takes for `seed`."""
        key = jax.random.key(seed)
        return key if self.runs is None else jax.random.split(key, self.runs)

    def examples(self) -> Any:
        """What `evaluate` takes."""
        return self.batch if self.held_out is None else self.held_out


def numbers(*shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(len(shape)), shape)


# Batch norm has state without gradients, dropout draws random numbers: both are in the net.
NET = nets.mlp((8,), 7, norm="batch", dropout=0.2)
SGD = optax.sgd(0.05, momentum=0.9)
CONV_NET = nets.cnn(7, features=(2,), dense=(), norm="batch")
IMAGES = {"image": numbers(6, 4, 4, 1), "label": jnp.arange(6)}
LABELLED = {"x": numbers(6, 4), "label": jnp.arange(6)}
TARGETS = {"x": numbers(6, 4), "target": numbers(6, 7)}
INPUTS = {"x": numbers(6, 4)}
STACKED = {"x": numbers(3, 6, 4), "target": numbers(3, 6, 7)}


# Encoder and decoder: codes of three numbers, or means and log-variances of three latents.
DECODER = nets.mlp((8,), 4, norm="batch")
CODER = nets.mlp((8,), 3, norm="batch", dropout=0.2), DECODER
LATENT_CODER = nets.mlp((8,), 6, norm="batch", dropout=0.2), DECODER
SLOW_SGD = optax.sgd(0.01, momentum=0.9)  # for losses that are summed over an example


TEXT = {"tokens": jnp.arange(30).reshape(6, 5) % 7}
# One word of each to fill in, so that as many words count as there are rows.
GAPS = {"tokens": jnp.stack([jnp.ones(6, int), jnp.arange(6) % 4 + 2, jnp.ones(6, int)], 1)}
TRANSFORMER: dict[str, Any] = {"layers": 1, "heads": 2, "width": 8, "context": 8, "dropout": 0.2}
# Each word by the one before: what is about texts and not about Transformers compiles quickly.
PAIRS = Net(
    lambda key, tokens: (jax.random.normal(key, (7, 7)), {}),
    lambda params, model_state, tokens, **_: (params[tokens], model_state),
)
READER, FILLER = nets.gpt(7, **TRANSFORMER)[0], nets.bert(7, **TRANSFORMER)


def shaken(key: jax.Array, x: jax.Array) -> jax.Array:
    """Another view of anything."""
    return x + 0.3 * jax.random.normal(key, x.shape)


def twins(constructor: Callable[..., Learner], *parts: nets.Net, **options: Any) -> Case:
    """A learner from two views of numbers, with batch norm in the backbone and dropout behind."""
    backbone, projector = nets.mlp((8,), 8, norm="batch"), nets.mlp((8,), 7, dropout=0.2)
    learner = constructor(backbone, projector, *parts, SLOW_SGD, shaken, **options)
    return Case(learner, {"image": INPUTS["x"]})


def contrast(first: jax.Array, second: jax.Array, mask: jax.Array | None) -> Any:
    return {"loss": Mean.of(jnp.square(first - second - 1).mean(1), mask)}


def line(optimizer: optax.GradientTransformation = SGD) -> Learner:
    """Noisy least squares, with a running mean: all that a net has, and quick to compile."""

    def loss(params, state, batch):
        noise = 0.1 * jax.random.normal(state.rng("noise"), batch["target"].shape)
        losses = jnp.square(batch["x"] @ params - batch["target"] - noise).mean(-1)
        mean = Mean.of(losses, batch.get("mask"))
        running = 0.9 * state.model_state["mean"] + 0.1 * batch["x"].mean(0)
        return mean.value(), ({"loss": mean}, {"mean": running})

    def init(key, batch):
        return 0.1 * jax.random.normal(key, (4, 7)), {"mean": jnp.zeros(4)}

    def evaluate(state, batch, key):
        centred = batch["x"] - state.model_state["mean"]
        losses = jnp.square(centred @ state.params - batch["target"]).mean(-1)
        return {"loss": Mean.of(losses, batch.get("mask"))}

    return minimise(loss, optimizer, init=init, evaluate=evaluate)


def sweep() -> Learner:
    grid = {"learning_rate": jnp.array([0.1, 0.01])}
    return transforms.swept(lambda h: line(optax.sgd(h["learning_rate"], momentum=0.9)), grid)


def half_labelled(constructor: Callable[..., Learner], *parts: Any, **options: Any) -> Case:
    """A learner from few labels, three to six examples without."""
    learner = constructor(NET, SLOW_SGD, *parts, input_name="x", **options)
    labelled = {"x": numbers(3, 4), "label": jnp.arange(3)}
    unlabelled = {"x": numbers(6, 4), "index": jnp.arange(6)}
    return Case(learner, {"labelled": labelled, "unlabelled": unlabelled}, LABELLED)


def quantising(**options: Any) -> Case:
    """A VQ-VAE with maps of 2x2, whose unused codes come back every second update."""
    encoder = nets.postprocess(nets.mlp((5,), 8, norm="batch"), lambda z: z.reshape(-1, 2, 2, 2))
    decoder = nets.postprocess(nets.mlp((5,), 16, dropout=0.2), lambda x: x.reshape(-1, 4, 4, 1))
    return Case(vq_vae(encoder, decoder, SGD, codes=6, revive_every=2, **options), IMAGES)


def living(agent: Agent, env: Environment | None = None) -> Case:
    """The agent in a small world, by default on a short chain."""
    env = worlds.chain(3) if env is None else env
    return Case(interact(agent, env, num_envs=2, num_steps=4, episodes=3), ())


def pulling(algorithm: Callable[..., Agent], actor: nets.Net, **options: Any) -> Case:
    """An actor and its critics in the bandit of one state."""
    world = worlds.bandit()
    agent = algorithm(
        actor,
        nets.critic((4,)),
        SGD,
        SGD,
        prioritised_replay(80, n_step=2),
        actions=world.actions,
        batch_size=4,
        warm_up=0,
        train_every=4,
        **options,
    )
    return living(agent, world)


CASES: dict[str, Callable[[], Case]] = {
    "paradigms.core.learner.minimise": lambda: Case(line(), TARGETS),
    "paradigms.core.transforms.repeated": lambda: Case(transforms.repeated(line(), 2), TARGETS),
    "paradigms.core.transforms.chunked": lambda: Case(transforms.chunked(line()), STACKED, TARGETS),
    "paradigms.core.transforms.accumulated": lambda: Case(
        transforms.accumulated(line(), 3), TARGETS
    ),
    "paradigms.core.transforms.resident": lambda: Case(transforms.resident(line(), 4), TARGETS),
    "paradigms.core.transforms.seeded": lambda: Case(transforms.seeded(line()), TARGETS, runs=2),
    "paradigms.core.transforms.swept": lambda: Case(sweep(), TARGETS),
    "paradigms.core.transforms.averaged": lambda: Case(
        transforms.averaged(line(), 0.9, model_state="average"), TARGETS
    ),
    "paradigms.core.transforms.guarded": lambda: Case(transforms.guarded(line()), TARGETS),
    "paradigms.core.transforms.lookahead": lambda: Case(
        transforms.lookahead(line(), period=2), TARGETS
    ),
    "paradigms.core.transforms.windowed": lambda: Case(
        transforms.windowed(gpt(PAIRS, SGD), 4, 4), {"tokens": jnp.arange(40) % 7}, TEXT
    ),
    "paradigms.self_supervised.bert.bert": lambda: Case(
        bert(FILLER, SGD, vocab_size=7, mask_token=0, special_tokens=[1], rate=1 - 1e-6), GAPS
    ),
    "paradigms.self_supervised.byol.byol": lambda: twins(
        byol, nets.mlp((8,), 7, norm="batch"), steps=8, decay=0.9
    ),
    "paradigms.self_supervised.evaluation.probed": lambda: Case(
        probed(line(), lambda state, batch: batch["x"] @ state.params, 7, SGD),
        {**TARGETS, "label": jnp.arange(6)},
    ),
    "paradigms.self_supervised.gpt.gpt": lambda: Case(gpt(READER, SGD), TEXT),
    "paradigms.self_supervised.joint_embedding.siamese": lambda: twins(siamese, loss=contrast),
    "paradigms.self_supervised.mae.mae": lambda: Case(
        mae(
            nets.mae_encoder(2, 8, 1, 2, 8),
            nets.mae_decoder(2, 1, (2, 2), 8, 1, 2, 8),
            SGD,
            patch_size=2,
            mask_ratio=0.5,
        ),
        IMAGES,
    ),
    "paradigms.self_supervised.moco.moco": lambda: twins(moco, queue_size=24),
    "paradigms.self_supervised.simclr.simclr": lambda: twins(simclr),
    "paradigms.self_supervised.vicreg.vicreg": lambda: twins(vicreg),
    "paradigms.semi_supervised.consistency.mean_teacher": lambda: half_labelled(
        mean_teacher, weight=1.0, decay=0.9, augment=shaken
    ),
    "paradigms.semi_supervised.consistency.pi_model": lambda: half_labelled(pi_model, weight=1.0),
    "paradigms.semi_supervised.fixmatch.fixmatch": lambda: half_labelled(
        fixmatch, shaken, shaken, threshold=0.2
    ),
    "paradigms.semi_supervised.fixmatch.flexmatch": lambda: half_labelled(
        flexmatch, shaken, shaken, examples=6, threshold=0.2
    ),
    "paradigms.semi_supervised.mixmatch.mixmatch": lambda: half_labelled(
        mixmatch, shaken, weight=1.0
    ),
    "paradigms.semi_supervised.pseudo_label.pseudo_label": lambda: half_labelled(
        pseudo_label, threshold=0.2
    ),
    "paradigms.semi_supervised.vat.vat": lambda: half_labelled(
        vat, epsilon=0.5, entropy_weight=0.5
    ),
    "paradigms.supervised.classification.classifier": lambda: Case(
        classifier(NET, SGD, input_name="x", label_smoothing=0.1), LABELLED
    ),
    # Convolutions are written out on the CPU where all else loops.
    "paradigms.supervised.classification.classifier (images)": lambda: Case(
        classifier(CONV_NET, SGD), IMAGES
    ),
    "paradigms.supervised.regression.regressor": lambda: Case(
        regressor(NET, SGD, loss="huber"), TARGETS
    ),
    "paradigms.reinforcement.agent.interact": lambda: living(
        ppo(nets.actor_critic((4,), 2), SGD, epochs=1, minibatches=1)
    ),
    "paradigms.reinforcement.ppo.ppo": lambda: living(
        ppo(nets.actor_critic((4,), 2), SGD, minibatches=2)
    ),
    # Four steps of one environment are a minibatch: where they pay nothing, their advantages are
    # all but alike, and normalised they are rounding errors. In this world they never are.
    "paradigms.reinforcement.recurrent_ppo.recurrent_ppo": lambda: living(
        recurrent_ppo(
            *nets.recurrent_actor_critic((4,), 2, cell="gru", width=3), SGD, minibatches=2
        ),
        worlds.truncation_probe(Discrete(2)),
    ),
    "paradigms.reinforcement.dqn.dqn": lambda: living(
        dqn(
            nets.q_network((4,), 2),
            SGD,
            prioritised_replay(80, n_step=2),
            batch_size=4,
            warm_up=0,
            train_every=4,
            target_every=16,
        )
    ),
    "paradigms.reinforcement.ddpg.ddpg": lambda: pulling(ddpg, nets.deterministic_actor((4,), 1)),
    "paradigms.reinforcement.td3.td3": lambda: pulling(td3, nets.deterministic_actor((4,), 1)),
    "paradigms.reinforcement.sac.sac": lambda: pulling(
        sac, nets.squashed_gaussian((4,), 1), temperature_optimizer=SGD
    ),
    "paradigms.unsupervised.autoencoder.autoencoder": lambda: Case(
        autoencoder(*CODER, SLOW_SGD, corrupt=masking_noise(0.3), sparsity=0.1, input_name="x"),
        INPUTS,
    ),
    # Narrower nets differ in the last bit of their norms between a loop and separate runs.
    "paradigms.unsupervised.gan.gan": lambda: Case(
        gan(
            nets.mlp((8,), 4, norm="batch"),
            nets.mlp((8,), 1, norm="batch", dropout=0.2),
            SGD,
            SGD,
            latent=3,
            decay=0.9,
            input_name="x",
        ),
        INPUTS,
    ),
    "paradigms.unsupervised.gan.gan (gradient penalty)": lambda: Case(
        gan(
            nets.mlp((8,), 4, norm="batch"),
            nets.mlp((8,), 1, activation="tanh"),
            SGD,
            SGD,
            latent=3,
            loss="wasserstein",
            gradient_penalty=1.0,
            critic_steps=2,
            input_name="x",
        ),
        INPUTS,
    ),
    "paradigms.unsupervised.iwae.iwae": lambda: Case(
        iwae(*LATENT_CODER, SLOW_SGD, k=3, likelihood="gaussian", input_name="x"), INPUTS
    ),
    "paradigms.unsupervised.vae.vae": lambda: Case(
        vae(
            nets.mlp((8,), 6, norm="batch"),
            DECODER,
            SLOW_SGD,
            likelihood="gaussian",
            beta=lambda step: 0.1 * step,
            importance_samples=3,
            chunk=2,
            input_name="x",
        ),
        INPUTS,
    ),
    "paradigms.unsupervised.vq_vae.vq_vae": quantising,
    "paradigms.unsupervised.vq_vae.vq_vae (gradient)": lambda: quantising(codebook="gradient"),
}


def constructors() -> set[str]:
    """The public functions that are annotated `-> Learner` or `-> Agent`, by their full names."""
    found = set()
    for module in pkgutil.walk_packages(paradigms.__path__, "paradigms."):
        for name, function in vars(importlib.import_module(module.name)).items():
            if (
                inspect.isfunction(function)
                and function.__module__ == module.name
                and not name.startswith("_")
                and inspect.signature(function).return_annotation
                in (Learner, Agent, "Learner", "Agent")
            ):
                found.add(f"{module.name}.{name}")
    return found


def test_every_learner_has_a_case():
    found = constructors()
    named = {case.partition(" ")[0] for case in CASES}
    missing = sorted(found - named)
    assert not missing, (
        f"no contract for {missing}: add to CASES in tests/test_contract.py for each a line "
        f'"{missing[0]}": lambda: Case({missing[0].rpartition(".")[2]}(...), batch)'
    )
    assert not named - found, "a case without a constructor annotated `-> Learner`"


class Subject:
    """A case with its compiled functions, which its tests share."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.init = jax.jit(case.learner.init)
        self.update = jax.jit(case.learner.update)
        self.evaluate = jax.jit(case.learner.evaluate)
        self.start = self.init(case.key(0), case.batch)

    def train(self, state: Any, steps: int) -> tuple[Any, Any]:
        """Calls `update` `steps` times: the state, and the metrics stacked in numpy."""
        return train(self.update, state, self.case.batch, steps)


def train(update: Callable[..., Any], state: Any, batch: Any, steps: int) -> tuple[Any, Any]:
    metrics = []
    for _ in range(steps):
        state, reported = update(state, batch)
        metrics.append(host(reported))
    # Numpy compiles nothing, unlike jnp, and compiling is nearly all that these tests cost.
    return state, jax.tree.map(lambda *leaves: np.stack(leaves), *metrics)


def is_one_of_each(case: str) -> bool:
    return case.split(".")[-1] in ONE_OF_EACH


def is_examined_in_full(case: str) -> bool:
    """By `make test` too: the transformations, and a learner of each paradigm."""
    return is_one_of_each(case) or case.startswith("paradigms.core.")


@pytest.fixture(scope="module", params=sorted(CASES))
def subject(request: pytest.FixtureRequest, quickly: Any) -> Iterator[Subject]:
    """In the program that users get, where runs of several programs are compared to the bit."""
    full = is_examined_in_full(request.param) or request.config.option.markexpr == "slow"
    with contextlib.nullcontext() if full else quickly():
        yield Subject(CASES[request.param]())


# For tests that compile the update once more, which is what a contract costs.
otherwise_slow = pytest.mark.parametrize(
    "subject",
    [
        pytest.param(case, marks=[] if is_examined_in_full(case) else pytest.mark.slow)
        for case in sorted(CASES)
    ],
    indirect=True,
)


def host(tree: Any) -> Any:
    """A copy in numpy, keys as their numbers."""

    def copy(leaf: Any) -> np.ndarray:
        is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.array(jax.random.key_data(leaf) if is_key else leaf)

    return jax.tree.map(copy, tree)


def assert_same(first: Any, second: Any) -> None:
    """Equal to the last bit, in values, shapes and dtypes."""
    first, second = host(first), host(second)
    assert jax.tree.structure(first) == jax.tree.structure(second)
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def assert_close(first: Any, second: Any, tolerance: float) -> None:
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance),
        host(first),
        host(second),
    )


def test_update_learns_and_advances(subject):
    state, metrics = subject.train(subject.start, 2)
    before, after = host(subject.start), host(state)
    for part in ("params", "opt_state"):
        leaves = map(jax.tree.leaves, (getattr(before, part), getattr(after, part)))
        assert any((a != b).any() for a, b in zip(*leaves, strict=True)), part
    assert (after.step > before.step).all()
    assert_same(state.key, subject.start.key)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(metrics))


def forms(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype), leaf.weak_type), tree)


def test_update_is_a_fixed_point_of_shapes_dtypes_and_weak_types(subject):
    made = jax.eval_shape(subject.init, subject.case.key(0), subject.case.batch)
    updated, _ = jax.eval_shape(subject.update, made, subject.case.batch)
    assert forms(updated) == forms(made)
    assert updated.step.dtype == jnp.int32
    assert jax.dtypes.issubdtype(updated.key.dtype, jax.dtypes.prng_key)


def test_metrics_are_float32_means(subject):
    _, metrics = jax.eval_shape(subject.update, subject.start, subject.case.batch)
    evaluated = jax.eval_shape(
        subject.evaluate, subject.start, subject.case.examples(), jax.random.key(0)
    )
    # Several nets have a loss each: "loss/actor", "loss/critic".
    assert any(name.partition("/")[0] == "loss" for name in metrics)
    assert "loss" in evaluated or "return" in evaluated
    for means in (metrics, evaluated):
        for name, mean in means.items():
            assert isinstance(mean, Mean), name
            assert mean.total.shape == mean.count.shape, name
            assert mean.total.dtype == mean.count.dtype == jnp.float32, name


def test_functions_are_pure(subject):
    case = subject.case
    arguments = (case.key(0), case.batch, case.examples(), subject.start)
    before = host(arguments)
    for _ in range(2):
        assert_same(subject.init(case.key(0), case.batch), subject.start)
    first = subject.update(subject.start, case.batch)
    assert_same(subject.update(subject.start, case.batch), first)
    key = jax.random.key(1)
    evaluated = subject.evaluate(subject.start, case.examples(), key)
    assert_same(subject.evaluate(subject.start, case.examples(), key), evaluated)
    assert_same(arguments, before)
    other = subject.init(case.key(1), case.batch)
    assert any((a != b).any() for a, b in zip(*map(leaves_of, (other, subject.start)), strict=True))


def leaves_of(state: Any) -> list[np.ndarray]:
    return jax.tree.leaves(host(state.params))


@otherwise_slow
def test_a_scan_is_a_loop(subject):
    case = subject.case

    @jax.jit
    def scan(state, batch):
        return jax.lax.scan(lambda state, _: case.learner.update(state, batch), state, length=STEPS)

    # XLA fuses a loop's body in another way than a whole program, so sums round differently.
    assert_close(scan(subject.start, case.batch), subject.train(subject.start, STEPS), 1e-6)


@pytest.fixture(scope="module")
def apart(subject):
    """What each seed gives by itself."""
    case = subject.case
    runs = [subject.train(subject.init(case.key(i), case.batch), STEPS) for i in range(SEEDS)]
    return host(runs)


@pytest.fixture(scope="module")
def start_together(subject):
    case = subject.case
    keys = jnp.stack([case.key(i) for i in range(SEEDS)])
    return jax.jit(transforms.seeded(case.learner).init)(keys, case.batch)


@otherwise_slow
@pytest.mark.parametrize(
    "method",
    [None, *(pytest.param(name, marks=pytest.mark.slow) for name in ("unroll", "vmap"))],
)
def test_seeds_together_are_seeds_apart(subject, start_together, apart, method):
    """By default in a loop, and written out where there are convolutions."""
    update = jax.jit(transforms.seeded(subject.case.learner, method=method).update)
    state, metrics = host(train(update, start_together, subject.case.batch, STEPS))
    for i in range(SEEDS):
        together = (
            jax.tree.map(lambda leaf, i=i: leaf[i], state),
            jax.tree.map(lambda leaf, i=i: leaf[:, i], metrics),
        )
        if method == "vmap":
            assert_close(together, apart[i], 1e-5)
        else:
            assert_same(together, apart[i])


def test_seeds_can_be_traced_side_by_side(subject):
    """What vmap then gives is compared in a slow test, for each takes seconds to compile."""
    case = subject.case
    learner = transforms.seeded(case.learner, method="vmap")
    keys = jnp.stack([case.key(i) for i in range(SEEDS)])
    start = jax.eval_shape(learner.init, keys, case.batch)
    state, metrics = jax.eval_shape(learner.update, start, case.batch)
    assert forms(state) == forms(start)
    assert all(mean.count.shape[:1] == (SEEDS,) for mean in metrics.values())


def test_a_run_resumes_to_the_last_bit(subject, request, tmp_path):
    """After ten interruptions, a learner of each paradigm; the others after five."""
    updates = 1 if is_one_of_each(request.node.callspec.params["subject"]) else 2
    whole, _ = subject.train(subject.start, 10)
    checkpoints, state = Checkpoints(tmp_path), subject.start
    for step in range(updates, 11, updates):
        state, _ = subject.train(state, updates)
        checkpoints.save(step, state)
        state = checkpoints.restore(subject.start)
    assert_same(state, whole)


def test_the_second_call_compiles_nothing(subject, tmp_path, compilations):
    jax.jit(lambda x: x + 1)(0)
    assert compilations  # they are counted
    checkpoints = Checkpoints(tmp_path)
    state, _ = subject.update(subject.start, subject.case.batch)
    checkpoints.save(1, state)
    restored = checkpoints.restore(state)
    compilations.clear()
    for start in (state, restored):
        for _ in range(2):
            start, _ = subject.update(start, subject.case.batch)
    assert not compilations


def test_evaluation_honours_the_mask(subject):
    case, key = subject.case, jax.random.key(0)
    state, _ = subject.train(subject.start, 1)
    held_out = case.examples()
    if held_out == ():
        pytest.skip("evaluated in a world, by whole episodes")
    rows = len(jax.tree.leaves(held_out)[0])
    mask = jnp.arange(rows) < rows - 2
    kept = jax.tree.map(lambda leaf: leaf[: rows - 2], held_out)
    # What is masked could hold anything.
    spoilt = jax.tree.map(lambda leaf: leaf.at[rows - 2 :].set(1), held_out)
    masked = subject.evaluate(state, {**spoilt, "mask": jnp.float32(mask)}, key)
    assert_close(masked, subject.evaluate(state, kept, key), 1e-6)
    everything = subject.evaluate(state, {**held_out, "mask": jnp.ones(rows)}, key)
    assert_close(everything, subject.evaluate(state, held_out, key), 1e-6)
    assert (np.asarray(masked["loss"].count) == rows - 2).all()
