"""Two views that differ, one pass over both, a queue that is a ring, and collapse that is seen."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.spatial

from nets.net import Net
from paradigms.core.errors import InputError
from paradigms.core.metrics import Mean, derive
from paradigms.core.state import fold_name
from paradigms.self_supervised import joint_embedding
from paradigms.self_supervised.joint_embedding import (
    COLLAPSED,
    effective_rank,
    embed,
    enqueue,
    new_queue,
    siamese,
    two_views,
    unit_length,
)

KEY = jax.random.key(0)
diagnostics = jax.jit(joint_embedding.diagnostics, static_argnames="full")
SAME = Net(lambda key, x: ({}, {}), lambda params, state, x, **_: (x, state))


def numbers(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def noise(key, x):
    return x + jax.random.normal(key, x.shape)


def values(*arguments, **options):
    return {
        name.removeprefix("embedding/"): value
        for name, value in derive(diagnostics(*arguments, **options)).items()
    }


def test_two_views_are_the_augmentation_under_two_keys():
    image = np.arange(24, dtype=np.uint8).reshape(4, 3, 2)

    def brighter(key, image):
        return image + jax.random.randint(key, (len(image), 1, 1), 1, 100).astype(image.dtype)

    views = two_views(brighter, KEY, image)
    assert views.shape == (4, 2, 3, 2) and views.dtype == jnp.uint8
    for view, key in enumerate(jax.random.split(KEY)):
        np.testing.assert_array_equal(views[:, view], brighter(key, image))
    assert (views[:, 0] != views[:, 1]).any((1, 2)).all()
    assert (two_views(brighter, jax.random.key(1), image) != views).any()


def test_embed_is_one_pass_over_all_views_in_their_places():
    def centred(params, model_state, x, key, train):
        seen = x.reshape(len(x), -1).astype(jnp.float32)
        return (seen - train * seen.mean(0)).astype(jnp.bfloat16), {"rows": len(x), "key": key}

    views = np.arange(12.0, dtype=np.float32).reshape(3, 2, 2, 1)
    z, state = embed(Net(None, centred), {}, {}, views, "key", True)
    assert z.dtype == jnp.float32 and state == {"rows": 6, "key": "key"}
    np.testing.assert_array_equal(z, views[..., 0] - views[..., 0].mean((0, 1)))
    z, _ = embed(Net(None, centred), {}, {}, views, "key", False)
    np.testing.assert_array_equal(z, views[..., 0])


def test_embeddings_of_another_shape_are_refused():
    for z in (jnp.zeros(6), jnp.zeros((6, 2, 1)), jnp.zeros((3, 4))):
        odd = Net(None, lambda params, model_state, x, z=z, **_: (z, {}))
        with pytest.raises(InputError, match=r"gives \(.*\) for 6 views: expected \[N, D\]"):
            embed(odd, {}, {}, numbers(0, 3, 2, 5), KEY, True)


def test_unit_length_by_hand():
    z = jnp.array([[3.0, -4.0], [0.0, 0.0], [1e-10, 0.0]])
    np.testing.assert_allclose(unit_length(z), [[0.6, -0.8], [0, 0], [1, 0]], rtol=1e-6)
    assert unit_length(z.astype(jnp.bfloat16)).dtype == jnp.float32
    slope = jax.jit(jax.grad(lambda z: (unit_length(z) * jnp.array([2.0, 1.0])).sum()))(z)
    # Of u = z / |z|: (g - u (u.g)) / |z|; none at zero.
    np.testing.assert_allclose(slope[0], (np.array([2, 1]) - [0.24, -0.32]) / 5, rtol=1e-5)
    np.testing.assert_array_equal(slope[1], 0)
    # What has gone wrong must not look like an embedding.
    assert np.isnan(unit_length(jnp.array([jnp.nan, 1.0]))).all()


def test_the_queue_starts_with_different_directions():
    queue = new_queue(KEY, 50, 8)
    assert queue["keys"].shape == (50, 8) and queue["keys"].dtype == jnp.float32
    assert queue["cursor"].dtype == jnp.int32 and queue["cursor"] == 0
    np.testing.assert_allclose(np.linalg.norm(queue["keys"], axis=1), 1, rtol=1e-6)
    assert np.abs(np.mean(queue["keys"], 0)).max() < 0.25
    assert np.abs(scipy.spatial.distance.pdist(queue["keys"])).min() > 0.1


def test_the_queue_is_a_ring_after_three_wraps():
    queue = new_queue(KEY, 6, 3)
    ring, place, push = np.array(queue["keys"]), 0, jax.jit(enqueue)
    for step in range(10):
        keys = numbers(step, 2, 3)
        queue = push(queue, keys)
        ring[place : place + 2] = keys
        place = (place + 2) % 6
        np.testing.assert_array_equal(queue["keys"], ring)
        assert queue["cursor"] == place and queue["cursor"].dtype == jnp.int32
    with pytest.raises(InputError, match="a queue of 6 is no multiple of the 4 keys"):
        enqueue(queue, numbers(0, 4, 3))


def test_diagnostics_are_those_of_numpy():
    first, second = 3 * numbers(0, 7, 4) + 1, numbers(0, 7, 4) + numbers(1, 7, 4)
    u, v = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (first, second))
    spread = [
        np.log(np.exp(-2 * scipy.spatial.distance.pdist(view, "sqeuclidean")).mean())
        for view in (u, v)
    ]
    singular = np.linalg.svd(first, compute_uv=False)
    share = singular / singular.sum()
    expected = {
        "std": np.concatenate([u, v]).std(0).mean() * 2,
        "collapsed": 0,
        "alignment": np.square(u - v).sum(1).mean(),
        "uniformity": np.mean(spread),
        "rank": np.exp(-(share * np.log(share)).sum()),
        "retrieval": np.mean((u @ v.T).argmax(1) == np.arange(len(u))),
    }
    assert 0 < expected["retrieval"] < 1
    found = values(first, second, full=True)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-5), name
    assert not {"rank", "retrieval"} & set(values(first, second))


def test_masked_examples_do_not_exist():
    first, second = numbers(0, 9, 4), numbers(1, 9, 4)
    keep = np.float32([1, 0, 1, 1, 1, 0, 1, 1, 1])
    expected = diagnostics(first[keep > 0], second[keep > 0], full=True)
    first[1], second[5] = np.nan, 1e9
    found = diagnostics(first, second, keep, full=True)
    for name, mean in found.items():
        assert float(mean.count) == 7, name
        assert float(mean.value()) == pytest.approx(float(expected[name].value()), rel=1e-5), name
    # Of one example nothing can be said of others, and of none nothing at all.
    for left in (1, 0):
        few = diagnostics(first, second, np.float32(np.arange(9) < left + 2) * keep * (left > 0))
        few = {name: mean for name, mean in few.items() if name != "embedding/alignment"}
        if left:
            few = diagnostics(first[2:4], second[2:4], np.float32([1, 0]), full=True)
            assert few.pop("embedding/alignment").count == 1
        for mean in few.values():
            assert float(mean.total) == float(mean.count) == 0


def test_the_signs_of_health_and_of_collapse():
    healthy = values(numbers(0, 2000, 16), numbers(1, 2000, 16), full=True)
    assert healthy["std"] == pytest.approx(1, abs=0.01) and healthy["collapsed"] == 0
    # Unrelated directions are at right angles on average; 16 equal singular values.
    assert healthy["alignment"] == pytest.approx(2, abs=0.05)
    assert healthy["rank"] == pytest.approx(16, rel=0.01)
    close = numbers(0, 200, 16)
    assert values(close, close + 0.1 * numbers(1, 200, 16), full=True)["retrieval"] > 0.99
    one = np.tile(numbers(2, 1, 16), (20, 1))
    lengths = np.linspace(1, 2, 20, dtype=np.float32)[:, None]
    dead = values(lengths * one, one, full=True)
    assert dead["collapsed"] == 1 and dead["rank"] == pytest.approx(1, abs=1e-3)
    assert dead["retrieval"] == 0
    for name in ("std", "alignment", "uniformity"):
        assert dead[name] == pytest.approx(0, abs=1e-6)
    nothing = values(0 * one, 0 * one, full=True)
    zero = dict.fromkeys(("std", "alignment", "uniformity", "retrieval"), 0)
    assert nothing == {**zero, "collapsed": 1, "rank": 1}


@pytest.mark.parametrize(("std", "flag"), [(0.9 * COLLAPSED, 1), (1.1 * COLLAPSED, 0)])
def test_collapse_is_a_mean_cosine_above_99_percent(std, flag):
    # On a cone about one axis, evenly: coordinates across it vary by sin^2 / 2, and it not at all.
    turn = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    radius = std * np.sqrt(3) / np.sqrt(2)
    z = np.stack([radius * np.cos(turn), radius * np.sin(turn), 0 * turn + np.sqrt(1 - radius**2)])
    found = values(np.float32(z.T), np.float32(z.T))
    assert found["std"] == pytest.approx(std, rel=1e-4) and found["collapsed"] == flag
    # What its description says: std^2 <= 1 - |m|^2, and |m|^2 is the mean cosine.
    assert found["std"] ** 2 <= 1 - (z.T @ z).mean()


@pytest.mark.parametrize("k", [1, 2, 5])
def test_effective_rank_of_k_equal_directions_is_k(k):
    z = np.zeros((12, 6), np.float32)
    z[:k, :k] = -3 * np.eye(k)
    assert float(effective_rank(z)) == pytest.approx(k, rel=1e-5)
    turned = (
        z @ scipy.spatial.transform.Rotation.random(3, rng=0).as_matrix()[0].repeat(2, 0)[:, :1]
    )
    assert float(effective_rank(turned)) == pytest.approx(1, rel=1e-3)


def test_nothing_is_trained_by_diagnostics():
    slope = jax.grad(
        lambda z: sum(mean.value() for mean in diagnostics(z, 2 * z, full=True).values())
    )(numbers(0, 4, 3))
    np.testing.assert_array_equal(slope, 0)


def test_a_batch_of_one_is_refused():
    one = numbers(0, 1, 3)
    with pytest.raises(InputError, match=r"\(1, 3\) and \(1, 3\): .* N at least 2") as caught:
        diagnostics(one, one)
    assert "\n" not in str(caught.value)
    for first, second in ((numbers(0, 3, 2), numbers(0, 2, 2)), (numbers(0, 3), numbers(0, 3))):
        with pytest.raises(InputError, match="two of one shape"):
            diagnostics(first, second)


def net_of(scale):
    """Numbers times one parameter, with a count of the passes in training."""

    def apply(params, model_state, x, key=None, train=False):
        return params["scale"] * x, {"passes": model_state["passes"] + train}

    return Net(lambda key, x: ({"scale": jnp.float32(scale)}, {"passes": jnp.int32(0)}), apply)


def test_siamese_trains_both_nets_in_one_pass_on_new_views_and_without_a_mask():
    seen = []

    def loss(first, second, mask):
        seen.append(mask)
        each = (first * second).sum(1) / 100
        return {"loss": Mean.of(each, mask), "embedding/std": Mean.of(jnp.full((), 7.0))}

    learner = siamese(net_of(2.0), net_of(3.0), optax.sgd(1.0), noise, loss)
    batch = {"image": numbers(0, 4, 3), "mask": np.float32([1, 1, 1, 0])}
    state = learner.init(KEY, batch)
    after, metrics = jax.jit(learner.update)(state, batch)
    views = two_views(noise, fold_name(state.rng("views"), "augment"), batch["image"])
    expected = 0.36 * float((views[:, 0] * views[:, 1]).sum(1).mean())
    assert seen[-1] is None and float(metrics["loss"].count) == 4
    assert float(metrics["loss"].value()) == pytest.approx(expected, rel=1e-4)
    assert float(metrics["embedding/std"].value()) == 7
    assert "embedding/rank" not in metrics
    # The loss is (2 * 3)^2 times what the views are: its slopes are 2 / 2 and 2 / 3 of it.
    moved = jax.tree.map(jnp.subtract, state.params, after.params)
    value = float(metrics["loss"].value())
    assert float(moved["backbone"]["scale"]) == pytest.approx(2 * value / 2, rel=1e-5)
    assert float(moved["projector"]["scale"]) == pytest.approx(2 * value / 3, rel=1e-5)
    assert jax.tree.leaves(after.model_state) == [1, 1]
    # The next step has other views.
    again, _ = jax.jit(learner.update)(state.replace(step=state.step + 1), batch)
    assert float(again.params["backbone"]["scale"]) != float(after.params["backbone"]["scale"])

    held_out = jax.jit(learner.evaluate)(state, batch, jax.random.key(3))
    np.testing.assert_array_equal(seen[-1].shape, (4,))
    assert float(held_out["loss"].count) == 3 and "embedding/rank" in held_out
    other = jax.jit(learner.evaluate)(state, batch, jax.random.key(4))
    assert float(other["loss"].value()) != float(held_out["loss"].value())


def test_siamese_refuses_a_batch_of_one():
    learner = siamese(SAME, SAME, optax.sgd(1.0), noise, lambda *_: {"loss": Mean.of(0.0)})
    batch = {"image": numbers(0, 1, 3)}
    state = learner.init(KEY, batch)
    for use in (learner.update, lambda *pair: learner.evaluate(*pair, KEY)):
        with pytest.raises(InputError, match="N at least 2"):
            jax.eval_shape(use, state, batch)
