"""What is written for other programs is what is read back, and nothing else is taken for it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nets
from paradigms.core.errors import InputError
from paradigms.core.exchange import load_function, load_weights, save_function, save_weights

TREE = {
    "params": {"hidden_0": {"kernel": jnp.arange(6.0).reshape(2, 3), "bias": jnp.float32(-0.0)}},
    "model_state": [jnp.ones(3, jnp.bfloat16), jnp.arange(4, dtype=jnp.uint8)],
}


def test_weights_come_back_bit_for_bit(tmp_path):
    path = tmp_path / "net.safetensors"
    save_weights(TREE, path)
    for template in (TREE, jax.eval_shape(lambda: TREE)):
        found = load_weights(path, template)
        assert jax.tree.structure(found) == jax.tree.structure(TREE)
        for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(TREE), strict=True):
            assert one.dtype == other.dtype and one.shape == other.shape
            assert np.asarray(one).tobytes() == np.asarray(other).tobytes()
    assert [entry.name for entry in tmp_path.iterdir()] == ["net.safetensors"]


def test_the_names_are_those_that_other_programs_see(tmp_path):
    from safetensors.numpy import load_file

    tree = {"params": TREE["params"]}
    save_weights(tree, tmp_path / "net.safetensors")
    arrays = load_file(tmp_path / "net.safetensors")
    assert sorted(arrays) == ["params.hidden_0.bias", "params.hidden_0.kernel"]
    np.testing.assert_array_equal(arrays["params.hidden_0.kernel"], np.arange(6.0).reshape(2, 3))


def test_weights_of_another_net_are_one_line(tmp_path):
    path = tmp_path / "net.safetensors"
    save_weights({"a": jnp.ones(2), "b": jnp.ones(3)}, path)
    with pytest.raises(InputError, match=r"another net: b is float32\[3\], not int32\[3\]"):
        load_weights(path, {"a": jnp.ones(2), "b": jnp.ones(3, jnp.int32)})
    with pytest.raises(InputError, match="c is missing from it, b is extra in it"):
        load_weights(path, {"a": jnp.ones(2), "c": jnp.ones(3)})
    with pytest.raises(InputError, match="same name"):
        save_weights({"a": {"b": 1.0}, "a.b": 2.0}, path)


@pytest.mark.parametrize("size", [0, 4, 20, -1])
def test_weights_cut_short_are_one_line(tmp_path, size):
    path = tmp_path / "net.safetensors"
    save_weights(TREE, path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(InputError, match=r"net\.safetensors is damaged or not a safetensors"):
        load_weights(path, TREE)


@pytest.mark.parametrize("size", [0, 4, 20])
def test_a_program_cut_short_is_one_line(tmp_path, size):
    path = tmp_path / "net.jax"
    save_function(jnp.sin, jax.ShapeDtypeStruct((1, 2), jnp.float32), path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(InputError, match=r"net\.jax is damaged or not a program"):
        load_function(path)


def test_files_that_are_not_there_are_one_line(tmp_path):
    with pytest.raises(InputError, match="cannot read .*: No such file"):
        load_weights(tmp_path / "net.safetensors", TREE)
    with pytest.raises(InputError, match="cannot read .*: No such file"):
        load_function(tmp_path / "net.jax")


@pytest.mark.parametrize(
    ("net", "shape"),
    [
        (nets.mlp((8,), 3, norm="batch", dropout=0.5), (4,)),
        (nets.cnn(3, features=(4,), dense=(5,), norm="batch"), (8, 8, 1)),
    ],
)
def test_a_net_becomes_a_program_for_any_batch(tmp_path, net, shape):
    inputs = jax.random.normal(jax.random.key(1), (7, *shape))
    params, model_state = net.init(jax.random.key(0), inputs)
    path = tmp_path / "net.jax"

    def function(x):
        return net.apply(params, model_state, x)[0]

    save_function(function, jax.ShapeDtypeStruct((1, *shape), jnp.float32), path)
    loaded = load_function(path)
    for rows in (1, 7):
        np.testing.assert_allclose(
            loaded(inputs[:rows]), jax.jit(function)(inputs[:rows]), rtol=1e-5, atol=1e-6
        )
