"""`python -m experiments.benchmarks`: both sides compute the same, and what is told of them."""

import functools
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nets
from experiments import speed
from experiments.benchmarks import __main__ as command
from experiments.benchmarks import (
    alone,
    beside_torch,
    cnn,
    gpt,
    labelled,
    measuring,
    mlp,
    resnet,
    saving,
    simclr,
    vae,
)
from experiments.benchmarks.measuring import Reached, Ready, System, Target
from experiments.benchmarks.systems import SYSTEMS
from paradigms.core import optimizers
from paradigms.core.checkpoint import Checkpoints
from paradigms.core.transforms import resident
from paradigms.supervised import classifier

OPTIMISERS = ("adam", "adamw", "sgd")
BESIDE_TORCH = pytest.mark.parametrize("module", [mlp, cnn, resnet, gpt, vae, simclr])


# Both sides -----------------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch):
    """Makes a benchmark's batches small, and gives data of which every example is in the first."""

    def shrink(module):
        monkeypatch.setattr(module, "BATCH_SIZE", 8)
        size = 8 + (gpt.CONTEXT if module is gpt else 0)
        return {name: array[:size] for name, array in module.data().items()}

    return shrink


def float64(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), jax.device_get(tree))


@BESIDE_TORCH
@pytest.mark.parametrize("channels_last", [False, True])
def test_loss_and_gradient_are_those_of_pytorch(module, channels_last, small, monkeypatch):
    """In float64: in float32 some relu or max-pool decides otherwise at a tie, on either side."""
    torch = pytest.importorskip("torch")
    if channels_last and "image" not in module.data():
        pytest.skip("there are no channels")
    for name in OPTIMISERS:  # at rate 1 the gradient is what the parameters move by
        monkeypatch.setattr(optimizers, name, lambda *_, **__: optax.sgd(1.0))
    data = small(module)
    learner = module.our_learner()
    state = jax.jit(learner.init)(jax.random.key(0), data)
    before = float64(state.params)
    # The VAE's noise, the same on both sides.
    monkeypatch.setattr(jax.random, "normal", lambda key, shape: jnp.ones(shape))
    monkeypatch.setattr(torch, "randn_like", torch.ones_like)
    with jax.enable_x64(True):
        wide = state.replace(params=before, model_state=float64(state.model_state))
        moved, metrics = jax.jit(learner.update)(wide, data)
        gradient = module.weights(jax.tree.map(np.subtract, before, float64(moved.params)))

    monkeypatch.setattr(beside_torch, "minibatches", lambda arrays, size: iter([arrays]))
    torch.set_default_dtype(torch.float64)
    try:
        peer = module.peer(data, channels_last)
        batch = next(peer.batches())
        if module is gpt:
            windows = torch.arange(gpt.BATCH_SIZE)[:, None] + torch.arange(gpt.CONTEXT + 1)
            batch = (torch.from_numpy(data["tokens"]).long()[windows],)
        beside_torch.load(peer.model, module.weights(before))
        loss = peer.loss(*(one.double() if one.is_floating_point() else one for one in batch))
        loss.backward()
    finally:
        torch.set_default_dtype(torch.float32)
    assert loss.item() == pytest.approx(float(metrics["loss"].value()), rel=1e-6)
    for name, parameter in peer.model.named_parameters():
        largest = np.abs(gradient[name]).max()
        assert largest > 0
        np.testing.assert_allclose(
            parameter.grad.numpy(), gradient[name], rtol=0, atol=1e-5 * largest, err_msg=name
        )


@BESIDE_TORCH
def test_the_optimiser_is_that_of_pytorch(module, small, monkeypatch):
    torch = pytest.importorskip("torch")
    made = []
    for name in OPTIMISERS:
        kind = getattr(optimizers, name)
        monkeypatch.setattr(
            optimizers, name, lambda *a, kind=kind, **k: made.append(kind(*a, **k)) or made[-1]
        )
    data = small(module)
    learner = module.our_learner()
    (optimizer,) = made
    params = jax.device_get(jax.jit(learner.init)(jax.random.key(0), data).params)
    peer = module.peer(data, False)
    beside_torch.load(peer.model, module.weights(params))
    opt_state = optimizer.init(params)
    generator = np.random.default_rng(0)
    for _ in range(3):
        gradient = jax.tree.map(
            lambda leaf: generator.normal(size=leaf.shape).astype(np.float32), params
        )
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        params = jax.device_get(optax.apply_updates(params, updates))
        named = module.weights(gradient)
        for name, parameter in peer.model.named_parameters():
            parameter.grad = torch.from_numpy(np.ascontiguousarray(named[name]))
        beside_torch.take_step(peer)
    expected = module.weights(params)
    for name, parameter in peer.model.named_parameters():
        np.testing.assert_allclose(
            parameter.detach().numpy(), expected[name], rtol=1e-4, atol=1e-5, err_msg=name
        )


def test_weights_that_do_not_fit_are_refused():
    torch = pytest.importorskip("torch")
    layer = torch.nn.Linear(3, 2)
    with pytest.raises(ValueError, match="for parameters of"):
        beside_torch.load(layer, {"weight": np.zeros((1, 3)), "bias": np.zeros(2)})


def test_minibatches_hold_every_example_once_in_an_epoch():
    torch = pytest.importorskip("torch")
    numbers = torch.arange(10)
    batches = beside_torch.minibatches((numbers, 2 * numbers), 4)
    for _ in range(3):  # epochs of two full batches
        first, second = next(batches), next(batches)
        seen = torch.cat([first[0], second[0]])
        assert len(set(seen.tolist())) == 8
        assert (torch.cat([first[1], second[1]]) == 2 * seen).all()


def test_pytorch_goes_to_the_target_from_the_given_weights():
    torch = pytest.importorskip("torch")
    data = {name: array[: 3 * mlp.BATCH_SIZE] for name, array in mlp.data().items()}
    peer = mlp.peer(data, False)

    def start(seed):
        state = jax.jit(mlp.our_learner().init)(jax.random.key(seed), data)
        return mlp.weights(jax.device_get(state.params))

    ready = beside_torch.torch_mode(lambda: peer, start, 2, compiled=False)
    assert ready.compile_seconds == 0 and ready.run() > 0
    assert ready.reach(Target(loss=1e9, every=5, limit=20), 0).updates == 5
    ends = []
    for _ in range(2):  # whatever the model has been through, weights, moments and order are anew
        assert ready.reach(Target(loss=-1.0, every=1, limit=4), 3) is None
        ends.append([parameter.detach().clone() for parameter in peer.model.parameters()])
    torch.testing.assert_close(*ends)


# Ours -----------------------------------------------------------------------------------------


def linear():
    return resident(classifier(nets.mlp((), 10), optimizers.sgd(0.1), input_name="x"), 16)


def test_ours_stops_at_the_first_look_that_finds_the_target():
    data = labelled.patterns((4,), 64, contrast=0.9)
    ready = beside_torch.our_mode(linear(), data, 4)
    assert ready.run() > 0 and ready.compile_seconds > 0
    assert ready.reach(Target(loss=1e9, every=6, limit=60), 0).updates == 6
    assert ready.reach(Target(loss=-1.0, every=6, limit=12), 0) is None


def test_ways_that_are_the_default_again_are_left_out():
    data = labelled.patterns((4,), 64, contrast=0.9)

    def ways(updates):
        modes = [beside_torch.our_mode(linear(), data, updates, n) for n in (1, 4)]
        return [mode is not None for mode in modes]

    assert ways(8) == [True, True]
    assert ways(7) == [True, False]  # 4 does not divide 7, and one by one is measured already
    assert ways(1) == [False, False]


def test_patterns_are_as_strong_as_was_asked_for():
    arrays = labelled.patterns((50,), 20_000, contrast=0.6)
    x, label = arrays["x"], arrays["label"]
    assert x.dtype == np.float32 and x.mean() == pytest.approx(0, abs=0.1)
    assert x.var() == pytest.approx(1, abs=0.1)
    within = np.mean([x[label == k].var(0).mean() for k in range(10)])
    assert within == pytest.approx(1 - 0.6**2, abs=0.01)


# Rounds and figures ---------------------------------------------------------------------------


def slow(*seconds):
    """A mode whose rounds take these seconds, the first of them that which is not counted."""
    left = iter(seconds)
    return lambda updates: Ready(lambda: next(left), 0.5)


def test_rounds_take_turns_and_the_first_does_not_count():
    turns = []
    runs = {name: lambda name=name: turns.append(name) or len(turns) for name in "ab"}
    seconds = measuring.interleaved(runs, 2)
    assert turns == list("ababab")
    assert {name: list(values) for name, values in seconds.items()} == {"a": [3, 5], "b": [4, 6]}


def test_figures_are_medians_of_what_a_round_tells():
    system = System(
        ours={
            "paradigms": slow(9, 2, 4, 4),
            "paradigms_step": slow(9, 1, 4, 2),
            "paradigms_unrolled": lambda updates: None,
        },
        bare={"bare": slow(9, 1, 2, 4)},
        peers={"torch_eager": slow(9, 4, 4, 12)},
        updates=1000,
        derive=lambda seconds: {"bare": {"least": float(seconds["bare"].min())}},
    )
    found = measuring.measure(system, 1000, 3, peers=True)
    modes = found["modes"]
    assert list(modes) == ["paradigms", "paradigms_step", "bare", "torch_eager"]
    assert modes["paradigms"]["milliseconds_per_update"] == 4
    assert modes["paradigms"]["quartiles"] == [3, 4]
    assert modes["torch_eager"]["speedup"] == 2  # of 2, 1 and 3
    assert modes["torch_eager"]["seconds"] == [4, 4, 12]
    assert modes["bare"]["least"] == 0.001
    assert found["default_over_best"] == 1  # a step takes half of the default in most rounds
    without = System(ours={"paradigms": slow(9, 2)}, peers={"torch_eager": slow()}, updates=1)
    assert list(measuring.measure(without, 1, 1, peers=False)["modes"]) == ["paradigms"]


def test_a_target_that_one_seed_misses_has_no_time():
    def mode(updates):
        def reach(target, seed):
            return None if seed == 1 and target.loss < 1 else Reached(seed + 1.0, 10)

        return Ready(lambda: 0.0, 7.0, reach)

    found = alone.figures(mode, 1, Target(0.5, 1, 1))
    assert found["compile_seconds"] == 7
    assert found["target"]["seconds"] == [1, None, 3]
    assert found["target"]["median_seconds"] is None
    assert alone.figures(mode, 1, Target(2, 1, 1))["target"]["median_seconds"] == 2
    assert "target" not in alone.figures(mode, 1, None)


def test_saving_is_what_tells_the_two_modes_apart(monkeypatch):
    monkeypatch.setattr(saving, "PER_CALL", 2)
    monkeypatch.setattr(saving, "EVERY", 4)
    saved = []
    save = Checkpoints.save

    def record(self, step, state):
        saved.append(step)
        save(self, step, state)

    monkeypatch.setattr(Checkpoints, "save", record)
    for mode, steps in (("saved", [4, 8]), ("not_saved", [])):
        modes = {**saving.system().ours, **saving.system().bare}
        ready = modes[mode](8)
        saved.clear()  # compilation takes a run too
        assert ready.run() > 0
        assert saved == steps
    share = saving.over_not_saved({"saved": np.array([2.0, 3]), "not_saved": np.array([1.0, 2])})
    assert share == {"saved": {"over_not_saved": 0.75}}


@pytest.mark.slow
@pytest.mark.skipif(alone.resident_mib() is None, reason="it is Linux that tells")
def test_memory_is_of_the_process_and_not_of_its_parent():
    before = alone.resident_mib()
    held = np.ones(int(before + 400) * 2**17)  # float64, so that as many MiB are resident
    assert alone.resident_mib() > before + 390
    code = "from experiments.benchmarks.alone import resident_mib as f; print(f())"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    assert 20 < float(shown) < held.nbytes / 2**20


# The command ----------------------------------------------------------------------------------


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Runs `python -m experiments.benchmarks` in this process: `(status, stdout, stderr)`."""
    monkeypatch.chdir(tmp_path)

    def main(*arguments):
        monkeypatch.setattr(sys, "argv", ["benchmarks", *map(str, arguments)])
        status = 0
        try:
            command.main()
        except SystemExit as leave:
            status = leave.code
        return status, *capsys.readouterr()

    return main


@pytest.mark.parametrize(
    ("arguments", "because"),
    [
        (["vea"], "there is no benchmark 'vea': try vae"),
        (["vae", "zzz"], "there is no benchmark 'zzz': try mlp, cnn, resnet, gpt, vae, simclr"),
        (["mlp", "--rounds", "0"], "--rounds 0 --updates None: expected at least 1"),
        (["mlp", "--updates", "0"], "--updates 0: expected at least 1"),
        (["mlp", "--peers", "--rounds", "4"], "at least 5 rounds"),
        (["mlp", "--peers"], "PyTorch is not installed: run `pip install torch`"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_measured(run, monkeypatch, arguments, because):
    monkeypatch.setattr(command, "figures", lambda *_: pytest.fail("it was measured"))
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "torch" else find(name, *a)
    )
    status, _, stderr = run(*arguments)
    assert status == 2
    assert because in stderr and stderr.count("\n") == 1


def test_a_process_that_fails_is_one_line():
    with pytest.raises(alone.InputError, match="mlp, fastest, in a process of its own: KeyError"):
        alone.in_a_process("mlp", "fastest", 1)


def test_every_system_has_its_row_and_is_named_in_the_help():
    files = [one.file for one in speed.SPEEDS]
    for name in SYSTEMS:
        assert files.count(name) == 1
        assert name in command.__doc__.split("each has")[0]


def in_the_file(results):
    """What every result file of a system tells of its modes."""
    assert list(results["modes"]) == ["paradigms", "paradigms_step", "paradigms_unrolled"]
    for mode in results["modes"].values():
        low, high = mode["quartiles"]
        assert 0 < low <= mode["milliseconds_per_update"] <= high
        assert len(mode["seconds"]) == results["rounds"]
        assert mode["compile_seconds"] > 0
        assert mode["memory"]["peak_mib"] > mode["memory"]["before_mib"] > 20
        assert mode["target"]["median_seconds"] > 0
        assert all(n % results["target"]["every"] == 0 for n in mode["target"]["updates"])
    return results


def test_a_short_run_writes_what_there_is_to_know(run, monkeypatch):
    def small():
        data = functools.partial(labelled.patterns, (4,), 64, contrast=0.9)
        target = Target(loss=1e9, every=2, limit=2)
        return beside_torch.system(linear, data, None, None, updates=8, target=target)

    def alone_in_words(system, mode, updates):
        return {
            "compile_seconds": 1.0,
            "memory": {"of": "process", "peak_mib": 9e2, "before_mib": 2e2},
            "target": {"seconds": [1.0], "updates": [2], "median_seconds": 1.0},
        }

    monkeypatch.setitem(SYSTEMS, "mlp", small)
    monkeypatch.setattr(alone, "in_a_process", alone_in_words)
    status, stdout, stderr = run("mlp", "--updates", "4", "--rounds", "2", "--output", "here")
    assert status == 0, stderr
    results = in_the_file(json.loads(Path("here/mlp.json").read_text()))
    assert results["command"] == "python -m experiments.benchmarks mlp --updates 4 --rounds 2"
    assert results["system"] == "mlp" and results["threads"] >= 1 and results["rounds"] == 2
    assert results["environment"]["platform"] == "cpu"
    ours = f"{results['modes']['paradigms']['milliseconds_per_update']:.3g}"
    assert ours in stdout.splitlines()[-1]


@pytest.mark.slow
def test_a_system_is_measured_from_the_command_line(python, tmp_path):
    done = python("-m", "experiments.benchmarks.mlp", "--help")
    assert done.returncode == 0 and "--peers" in done.stdout
    options = ("--updates", 4, "--rounds", 2, "--output", tmp_path)
    done = python("-m", "experiments.benchmarks", "mlp", *options)
    assert done.returncode == 0, done.stderr
    in_the_file(json.loads((tmp_path / "mlp.json").read_text()))


def found(speedups, over=0.0, ours="paradigms"):
    """Results of modes with these ratios to the first."""
    modes = {
        name: {
            "milliseconds_per_update": ratio,
            "quartiles": [ratio, ratio],
            "speedup": ratio,
            "compile_seconds": 2.0,
            "memory": {"peak_mib": 500.0},
            "target": {"median_seconds": ratio},
        }
        for name, ratio in {ours: 1.0, **speedups}.items()
    }
    return {"modes": modes, "default_over_best": over}


def test_the_table_lists_losses_first():
    rows = command.table(
        {
            "mlp": found({"torch_eager": 2.5, "torch_compiled": 1.9}),
            "vae": found({"torch_eager": 2.5, "torch_compiled": 1.3}),
            "cnn": found({"paradigms_step": 0.8, "torch_eager": 0.9, "torch_compiled": 2}, 0.25),
            "gpt": found({}),
            "simclr": found(
                {"torch_eager": 2, "torch_compiled": 2, "torch_eager_channels_last": 0.5}
            ),
            "ppo": found({"hand": 1.1}),
        }
    )
    assert [(row[0], row[1]) for row in rows] == [
        ("loss", "vae"),  # below the aim of 1.4
        ("loss", "cnn"),  # above the aim, with a default that is slower than a way we have
        ("loss", "simclr"),  # slower than one of PyTorch's modes
        ("", "mlp"),
        ("", "gpt"),
        ("", "ppo"),
    ]
    vae_row, cnn_row, _, _, gpt_row, ppo_row = rows
    assert vae_row[4:8] == (
        *("torch_compiled", "1.3 [1.3, 1.3]", "1.30 of PyTorch's speed", "at least 1.4"),
    )
    assert vae_row[8:] == ("2.0 (2.0)", "500 (500)", "1.00 (1.30)")
    assert cnn_row[3:5] == ("+25.0%", "torch_eager")
    assert gpt_row[4:] == ("", "", "", "at least 1.22", "2.0", "500", "1.00")
    assert ppo_row[4] == "hand"
