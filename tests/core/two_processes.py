"""One of the two processes of `test_mesh.py`: the address and its index are the arguments."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paradigms.core import mesh
from paradigms.core.errors import InputError


def main(address, index):
    mesh.initialize_distributed(address, 2, index)
    mesh.initialize_distributed(address, 2, index)  # a second call is harmless
    four = mesh.make_mesh("data=2,fsdp=2")
    assert jax.process_count() == 2 and four.size == 4

    # Each process passes its own four rows of eight.
    own = np.arange(4 * index, 4 * index + 4, dtype=np.float32).reshape(4, 1)
    assert mesh.batch_share(four) == (index, 2)
    batch = mesh.shard_batch({"x": own, "weight": np.float32(2)}, four, own_share=True)
    assert batch["x"].shape == (8, 1)
    here = np.concatenate([np.asarray(shard.data) for shard in batch["x"].addressable_shards])
    np.testing.assert_array_equal(np.sort(here, axis=0), own)

    # Or all eight, which say the same.
    whole = mesh.shard_batch({"x": np.arange(8, dtype=np.float32).reshape(8, 1)}, four)
    assert whole["x"].sharding == batch["x"].sharding
    for first, second in zip(
        whole["x"].addressable_shards, batch["x"].addressable_shards, strict=True
    ):
        np.testing.assert_array_equal(first.data, second.data)

    # Four devices that divide the layers work on one batch, which both processes read whole.
    layers = mesh.make_mesh("data=1,model=4")
    assert mesh.batch_share(layers) == (0, 1)
    assert mesh.shard_batch({"x": own}, layers, own_share=False)["x"].shape == (4, 1)

    state = {"w": jnp.ones((256, 128)), "key": jax.random.key(7), "step": jnp.int32(3)}
    placed = mesh.shard_state(state, four)
    assert placed["w"].addressable_shards[0].data.shape == (128, 128)
    assert placed["key"].sharding.is_fully_replicated
    assert int(placed["step"].addressable_data(0)) == 3
    key = placed["key"].addressable_data(0)
    assert (jax.random.key_data(key) == jax.random.key_data(state["key"])).all()

    def total(state, batch):
        rows = mesh.constrain_batch(batch["x"]) * batch["weight"]
        return (rows * state["w"][:1]).sum()

    with jax.set_mesh(four):
        assert float(jax.jit(total)(placed, batch)) == 28 * 2 * 128

    with pytest.raises(InputError, match="a batch of 6 does not divide over the 4 devices"):
        mesh.shard_batch({"x": np.ones((3, 1))}, four, own_share=True)
    with pytest.raises(InputError, match="takes 2 of 4 devices; with 2 processes it must take all"):
        mesh.make_mesh("data=2")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
