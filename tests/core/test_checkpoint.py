"""Checkpoints: what is restored is what was saved, and nothing ever destroys the last good one."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from paradigms.core import checkpoint
from paradigms.core.checkpoint import Checkpoints
from paradigms.core.errors import InputError
from paradigms.core.state import TrainState

OPTIMIZER = optax.adam(0.1)


def make_state(key):
    """A state with every kind of leaf that a learner may keep."""
    params = {
        "dense": {"kernel": jax.random.normal(key, (5, 3)), "bias": jnp.zeros(3, jnp.bfloat16)},
        # A Python number makes a weakly typed array.
        "heads": (jnp.ones(2), [jnp.full((), -0.0)]),
    }
    return TrainState.create(
        key,
        params,
        opt_state=OPTIMIZER.init(params),
        target={"teacher": {"params": jax.tree.map(jnp.copy, params), "model_state": {}}},
        memory={
            "images": jnp.arange(12, dtype=jnp.uint8).reshape(3, 4),
            "filled": jnp.array([True, False]),
            "empty": jnp.zeros((0, 2), jnp.int32),
            "odd": jnp.array([jnp.nan, jnp.inf, 1e-45]),
        },
        world={
            "raw": jax.random.PRNGKey(3),
            "stacked": jax.random.split(jax.random.fold_in(key, 7), 4),
            "other": jax.random.key(5, impl="rbg"),
        },
    )


def make_big_state(count, value=0):
    """Incompressible bytes, so that what is on disk is as large as what is in memory."""
    return {"bits": jax.random.bits(jax.random.key(value), (count,), jnp.uint8)}


def update(state):
    grads = jax.tree.map(jnp.sin, state.params)
    updates, opt_state = OPTIMIZER.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return state.replace(step=state.step + 1, params=params, opt_state=opt_state)


def data(leaf):
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if is_key else leaf)


def assert_same(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for ours, theirs in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert ours.dtype == theirs.dtype
        assert ours.shape == theirs.shape
        assert getattr(ours, "weak_type", None) == getattr(theirs, "weak_type", None)
        assert data(ours).tobytes() == data(theirs).tobytes()


@pytest.fixture
def state():
    return jax.jit(make_state)(jax.random.key(1))


@pytest.mark.parametrize("abstract", [False, True], ids=["state", "structs"])
def test_restores_every_kind_of_leaf_bit_for_bit(tmp_path, state, abstract):
    Checkpoints(tmp_path / "c").save(7, state)
    template = jax.eval_shape(make_state, jax.random.key(9)) if abstract else update(state)
    restored = Checkpoints(tmp_path / "c").restore(template)
    assert_same(restored, state)
    assert jax.random.key_impl(restored.world["other"]) == "rbg"
    # -0.0 and the payload of NaN would pass a comparison of values.
    assert np.signbit(restored.params["heads"][1][0])


def test_stacked_seeds_are_restored(tmp_path):
    state = jax.jit(jax.vmap(make_state))(jax.random.split(jax.random.key(0), 3))
    Checkpoints(tmp_path).save(0, state)
    assert_same(Checkpoints(tmp_path).restore(jax.eval_shape(lambda: state)), state)


def test_resuming_is_bit_equal_over_ten_resumes(tmp_path, state):
    step = jax.jit(update)
    checkpoints = Checkpoints(tmp_path)
    expected = resumed = state
    for count in range(10):
        expected = step(expected)
        checkpoints.save(count, step(resumed))
        resumed = checkpoints.restore(state)
    assert_same(resumed, expected)


@pytest.mark.parametrize("abstract", [False, True], ids=["state", "structs"])
def test_first_step_after_restoring_compiles_nothing_and_may_donate(tmp_path, state, abstract):
    traces = []

    def counted(state):
        traces.append(0)
        return update(state)

    step = jax.jit(counted, donate_argnums=0)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(0, state)
    template = jax.eval_shape(lambda: state) if abstract else jax.tree.map(jnp.copy, state)
    expected = step(state)
    compiled = step._cache_size()
    restored = checkpoints.restore(template)
    pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(restored.params)]
    assert len(set(pointers)) == len(pointers)
    assert_same(step(restored), expected)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(restored.params))
    # The cache tells committed from uncommitted arrays, which the number of traces does not.
    assert (len(traces), step._cache_size()) == (1, compiled)
    # The file on disk has not been written through donated memory.
    assert_same(step(checkpoints.restore(template)), expected)


@pytest.mark.parametrize("abstract", [False, True], ids=["state", "structs"])
def test_shardings_of_the_template_are_honoured(tmp_path, abstract):
    devices = np.array(jax.devices())
    mesh = jax.sharding.Mesh(devices, ("data",))
    split = jax.NamedSharding(mesh, jax.P("data"))
    whole = jax.NamedSharding(mesh, jax.P())
    count = 2 * len(devices)
    make = {
        "rows": jnp.arange(3.0 * count).reshape(count, 3),
        "scalar": jnp.float32(2),
        "keys": jax.random.split(jax.random.key(0), count),
        "none": jnp.zeros((0, 3)),
    }
    placed = {"rows": split, "scalar": whole, "keys": split, "none": whole}
    state = jax.device_put(make, placed)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(0, state)

    template = state
    if abstract:
        template = jax.tree.map(
            lambda leaf, at: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at),
            state,
            placed,
        )
    restored = checkpoints.restore(template)
    assert_same(restored, make)
    for name, leaf in restored.items():
        assert leaf.committed and leaf.sharding == state[name].sharding, name

    # A checkpoint of one mesh is read into another placement.
    assert_same(checkpoints.restore(jax.device_put(make, whole)), make)
    assert_same(checkpoints.restore(make), make)


def test_another_structure_is_one_line_that_names_the_leaves(tmp_path, state):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(3, state)
    other = state.replace(
        key=jax.random.PRNGKey(0),
        params={**state.params, "dense": {"kernel": jnp.ones((5, 4)), "scale": jnp.ones(3)}},
    )
    with pytest.raises(InputError) as error:
        checkpoints.restore(other)
    text = str(error.value)
    assert "\n" not in text
    assert "another configuration" in text
    assert ".key is key<fry>[], not uint32[2]" in text
    assert ".params['dense']['kernel'] is float32[5,3], not float32[5,4]" in text
    assert ".params['dense']['scale'] is missing" in text
    assert "and 1 more" in text
    with pytest.raises(InputError, match=r"\.opt_state\[0\]\.count is extra in it"):
        checkpoints.restore(state.replace(opt_state=()))


def test_the_newest_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c", keep=2)
    assert (checkpoints.latest(), checkpoints.steps()) == (None, [])
    # 100 after 20: names are compared as numbers.
    for step in (5, 20, 100):
        checkpoints.save(step, {"x": jnp.full(3, step)})
    assert checkpoints.steps() == [20, 100]
    assert sorted(entry.name for entry in (tmp_path / "c").iterdir()) == ["100", "20"]
    template = {"x": jnp.zeros(3, jnp.int32)}
    assert checkpoints.restore(template)["x"][0] == 100
    assert checkpoints.restore(template, 20)["x"][0] == 20
    with pytest.raises(InputError, match="no checkpoint of step 5 .*: give one of 20, 100"):
        checkpoints.restore(template, 5)
    with pytest.raises(InputError, match="there is no checkpoint in"):
        Checkpoints(tmp_path / "nowhere").restore(template)
    with pytest.raises(InputError, match="keep is 0"):
        Checkpoints(tmp_path, keep=0)


@pytest.mark.parametrize(
    ("policy", "left"),
    [
        ({}, [6]),
        ({"every": 4}, [0, 4, 6]),
        ({"best": "highest"}, [3, 6]),
        ({"best": "lowest"}, [2, 6]),
        ({"best": "highest", "every": 5}, [0, 3, 5, 6]),
    ],
)
def test_policies_keep_the_best_and_every_so_many(tmp_path, policy, left):
    scores = [0.5, 0.7, 0.1, 0.9, float("nan"), None, 0.3]
    for step, score in enumerate(scores):
        # Opened anew for each, as by a run that is stopped and resumed.
        checkpoints = Checkpoints(tmp_path, keep=1, **policy)
        checkpoints.save(step, {"x": jnp.full(3, step)}, score)
    assert checkpoints.steps() == left
    best = {"highest": 3, "lowest": 2}.get(policy.get("best"))
    assert checkpoints.best() == best
    with pytest.raises(InputError, match="every is -1"):
        Checkpoints(tmp_path, every=-1)


def test_the_newest_of_equally_good_ones_is_the_best(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1, best="lowest")
    for step in range(3):
        checkpoints.save(step, {"x": jnp.ones(3)}, 0.5)
    assert checkpoints.steps() == [2]


def test_what_is_written_in_the_background_is_the_state_at_the_save(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, background=True)
    go, write = threading.Event(), checkpoints._checkpointer.save

    def write_later(*arguments):
        assert go.wait(30)
        write(*arguments)

    monkeypatch.setattr(checkpoints._checkpointer, "save", write_later)
    state = make_state(jax.random.key(1))
    expected = jax.tree.map(jnp.copy, state)
    checkpoints.save(1, state)
    # Overwrites the very memory of the state while it waits to be written.
    jax.block_until_ready(jax.jit(update, donate_argnums=0)(state))
    assert not list(tmp_path.iterdir())
    go.set()
    assert checkpoints.steps() == [1]
    assert_same(checkpoints.restore(make_state(jax.random.key(2))), expected)


def test_a_failure_in_the_background_is_told_by_the_next_call(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, background=True)
    checkpoints.save(1, {"x": jnp.ones(3)})
    checkpoints.wait()

    def fail(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints._checkpointer, "save", fail)
        for told_by in (checkpoints.wait, lambda: checkpoints.save(3, {"x": jnp.ones(3)})):
            checkpoints.save(2, {"x": jnp.zeros(3)})
            with pytest.raises(InputError, match="of step 2 .*Input/output error.* is step 1"):
                told_by()
    assert checkpoints.steps() == [1]
    assert checkpoints.restore({"x": jnp.zeros(3)})["x"][0] == 1


def test_a_step_saved_again_is_replaced(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for value in (1, 2):
        checkpoints.save(4, {"x": jnp.full(3, value)})
    assert checkpoints.steps() == [4]
    assert checkpoints.restore({"x": jnp.zeros(3, jnp.int32)})["x"][0] == 2


def largest_file(folder):
    return max((f for f in folder.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)


def truncate(folder):
    os.truncate(largest_file(folder), 10)


def remove_array(folder):
    largest_file(folder).unlink()


def empty_metadata(folder):
    (folder / "arrays" / "_METADATA").write_text("")


def remove_manifest(folder):
    shutil.rmtree(folder / "manifest")


def cut_manifest(folder):
    os.truncate(folder / "manifest" / "metadata", 20)


def remove_digests(folder):
    (folder / "digests.json").unlink()


def forget_format(folder):
    """As if a bit of the word had flipped: it must not pass for the format without digests."""
    path = folder / "manifest" / "metadata"
    path.write_text(path.read_text().replace("format", "formau"))


HARMS = [
    *(truncate, remove_array, empty_metadata, remove_manifest, cut_manifest),
    *(remove_digests, forget_format),
]


@pytest.mark.parametrize("harm", HARMS)
def test_damage_is_one_line_and_the_older_checkpoint_is_taken(tmp_path, harm, capfd, caplog):
    told = []
    checkpoints = Checkpoints(tmp_path, tell=told.append)
    for step in (10, 20):
        checkpoints.save(step, make_big_state(5000, step))
    harm(tmp_path / "20")
    # Asked for by its step, it is refused, and nothing is moved.
    with pytest.raises(InputError) as error:
        checkpoints.restore(make_big_state(5000), 20)
    text = str(error.value)
    assert "\n" not in text
    assert f"checkpoint of step 20 in {tmp_path / '20'} is damaged" in text
    assert "that of step 10 is whole" in text
    assert checkpoints.steps() == [10, 20] and not told

    assert_same(checkpoints.restore(make_big_state(5000)), make_big_state(5000, 10))
    (line,) = told
    assert "\n" not in line
    assert "step 20" in line and "damaged" in line and "that of step 10 is taken" in line
    assert "Traceback" not in capfd.readouterr().err + caplog.text
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["10", "damaged-20"]
    # It counts no longer, and is not lost.
    checkpoints.save(20, make_big_state(5000, 21))
    assert checkpoints.steps() == [10, 20]
    assert (tmp_path / "damaged-20").is_dir()

    for step in (10, 20):
        harm(tmp_path / str(step))
    with pytest.raises(InputError, match="step 20 .* no older one is whole"):
        checkpoints.restore(make_big_state(5000))
    assert checkpoints.steps() == [10, 20]


def flip(path, offset):
    content = bytearray(path.read_bytes())
    content[offset] ^= 1 << offset % 8
    path.write_bytes(content)


def test_any_damage_to_any_file_is_found_in_time(tmp_path):
    """A bit flipped or the file cut off at five places, emptied, or removed."""
    directory, told = tmp_path / "c", []
    checkpoints = Checkpoints(directory, tell=told.append)
    template, expected = make_big_state(3000), make_big_state(3000, 10)
    for step in (10, 20):
        checkpoints.save(step, make_big_state(3000, step))
    shutil.copytree(directory / "20", tmp_path / "whole")
    names = [p.relative_to(tmp_path / "whole") for p in (tmp_path / "whole").rglob("*")]
    harms = {"removed": Path.unlink, "emptied": lambda path: path.write_bytes(b"")}
    for share in (0, 0.25, 0.5, 0.75, 1):

        def place(path, share=share):
            return int(share * (path.stat().st_size - 1))

        harms[f"flipped {share}"] = lambda path, place=place: flip(path, place(path))
        harms[f"cut {share}"] = lambda path, place=place: os.truncate(path, place(path))
    checked = 0
    for name in names:
        if not (tmp_path / "whole" / name).is_file():
            continue
        for what, harm in harms.items():
            shutil.rmtree(directory / "damaged-20", ignore_errors=True)
            shutil.copytree(tmp_path / "whole", directory / "20", dirs_exist_ok=True)
            harm(directory / "20" / name)
            told.clear()
            begin = time.perf_counter()
            restored = checkpoints.restore(template)
            assert time.perf_counter() - begin < 5, (name, what)
            if not told and name.name == "digests.json":  # a blank at its end, and all is whole
                assert_same(restored, make_big_state(3000, 20))
                continue
            assert_same(restored, expected)
            assert len(told) == 1, (name, what)
            checked += 1
    assert checked > 100


def test_a_damaged_checkpoint_is_passed_over_where_nothing_may_be_moved(tmp_path, monkeypatch):
    told = []
    checkpoints = Checkpoints(tmp_path, tell=told.append)
    for step in (10, 20):
        checkpoints.save(step, {"x": jnp.full(3, step)})
    remove_array(tmp_path / "20")

    def fail(*_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "rename", fail)
    for _ in range(2):
        assert checkpoints.restore({"x": jnp.zeros(3, jnp.int32)})["x"][0] == 10
    assert len(told) == 2
    assert checkpoints.steps() == [10, 20]


FORMATS = Path(__file__).parent / "checkpoints"


def test_checkpoints_of_every_older_format_are_read(tmp_path):
    """`format1` was written before there were digests."""
    shutil.copytree(FORMATS / "format1", tmp_path / "c")
    checkpoints = Checkpoints(tmp_path / "c")
    template = {"kernel": jnp.ones((2, 3)), "key": jax.random.key(0), "empty": jnp.ones((0, 2))}
    expected = {
        "kernel": jnp.arange(6.0).reshape(2, 3),
        "key": jax.random.key(3),
        "empty": jnp.zeros((0, 2)),
    }
    assert_same(checkpoints.restore(template), expected)
    assert checkpoints.verify() == [checkpoint.Verdict(5, None, verified=False)]
    # The next one is of the new format, beside it.
    checkpoints.save(6, template)
    assert checkpoints.verify()[1] == checkpoint.Verdict(6, None, verified=True)
    cut_manifest(tmp_path / "c" / "5")
    assert checkpoints.verify()[0].damage.startswith("its manifest")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MB that can really be filled."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or not shutil.which("mount"):
        pytest.skip("mounting a small file system needs root")
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


# Orbax closes its event loop at the first write that fails; others may end after that, and say so.
@pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("foreseen", [True, False], ids=["before", "while writing"])
def test_a_full_disk_is_told_at_this_save(small_disk, monkeypatch, capfd, caplog, foreseen):
    checkpoints = Checkpoints(small_disk / "c")
    checkpoints.save(1, make_big_state(1_000_000))
    if not foreseen:
        usage = shutil.disk_usage(small_disk)._replace(free=10**12)
        monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(InputError) as error:
        checkpoints.save(2, make_big_state(5_000_000))
    text = str(error.value)
    assert "\n" not in text
    assert str(small_disk / "c") in text
    assert f"{5_000_000 + 2**20:,} bytes needed" in text
    assert "the last good one is step 1" in text
    assert foreseen or "No space left on device" in text
    assert "Traceback" not in capfd.readouterr().err + caplog.text
    monkeypatch.undo()
    assert checkpoints.steps() == [1]
    assert_same(checkpoints.restore(make_big_state(1_000_000, 5)), make_big_state(1_000_000))
    # What was half written has been removed, so that a smaller save succeeds.
    checkpoints.save(3, make_big_state(500_000))
    assert checkpoints.steps() == [1, 3]


def test_what_a_killed_save_left_does_not_fill_the_disk(small_disk):
    leftover = small_disk / "unfinished" / "new.orbax-checkpoint-tmp"
    leftover.mkdir(parents=True)
    (leftover / "rubbish").write_bytes(bytes(3_500_000))
    Checkpoints(small_disk).save(1, make_big_state(1_000_000))
    assert [entry.name for entry in small_disk.iterdir()] == ["1"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EIO])
def test_an_error_of_the_disk_leaves_the_older_checkpoint(tmp_path, monkeypatch, code):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"x": jnp.ones(3)})

    def fail(folder, *_):
        (folder / "arrays").mkdir(parents=True)
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints._checkpointer, "save", fail)
        for step in (1, 2):
            with pytest.raises(InputError, match=os.strerror(code)):
                checkpoints.save(step, {"x": jnp.zeros(3)})
    assert [entry.name for entry in tmp_path.iterdir()] == ["1"]
    assert checkpoints.restore({"x": jnp.zeros(3)})["x"][0] == 1


def test_a_failed_rename_puts_the_replaced_checkpoint_back(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"x": jnp.ones(3)})
    rename = Path.rename

    def fail(path, target):
        if path.name == "new":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", fail)
        with pytest.raises(InputError, match="last good one is step 1"):
            checkpoints.save(1, {"x": jnp.zeros(3)})
    assert checkpoints.restore({"x": jnp.zeros(3)})["x"][0] == 1


def test_a_file_in_the_place_of_the_directory(tmp_path):
    (tmp_path / "c").write_text("")
    with pytest.raises(InputError, match="c: Not a directory"):
        Checkpoints(tmp_path / "c").save(1, {"x": jnp.ones(3)})


SAVE_FOR_EVER = """
import itertools, sys
from pathlib import Path
import jax, jax.numpy as jnp
from paradigms.core.checkpoint import Checkpoints
checkpoints = Checkpoints(Path(sys.argv[1]), background=True)
for step in itertools.count():
    bits = jax.random.bits(jax.random.key(step), (8_000_000,), jnp.uint8)
    checkpoints.save(step, {"bits": bits})
"""


def test_killed_while_saving_leaves_the_older_checkpoint(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", SAVE_FOR_EVER, str(tmp_path)])
    checkpoints = Checkpoints(tmp_path)
    try:
        for _ in range(3000):
            time.sleep(0.01)
            assert process.poll() is None
            if not checkpoints.steps() or not list(tmp_path.glob("unfinished/new*/*")):
                continue
            # Stopped, looked at again, and only then killed: so it dies in the middle of a save.
            process.send_signal(signal.SIGSTOP)
            if list(tmp_path.glob("unfinished/new*/*")):
                break
            process.send_signal(signal.SIGCONT)
    finally:
        process.kill()
        process.wait()
    assert list(tmp_path.glob("unfinished/new*/*"))
    for step in checkpoints.steps():
        assert_same(
            checkpoints.restore(make_big_state(8_000_000), step), make_big_state(8_000_000, step)
        )
    latest = checkpoints.latest()
    checkpoints.save(latest + 1, make_big_state(10))
    assert checkpoints.latest() == latest + 1
    assert not (tmp_path / "unfinished").exists()
