"""An episode recorded, and drawn."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import worlds

from paradigms.core.errors import InputError, MissingExtraError
from paradigms.core.learner import Learner
from paradigms.core.state import TrainState
from paradigms.reinforcement import (
    Agent,
    Box,
    Discrete,
    Episode,
    batched,
    draw_rollout,
    image_of,
    on_host,
    play,
    record,
)

STATE = TrainState.create(jax.random.key(0), {})


def counter():
    """Acts 0, 1, 2 and so on from the start of an episode; exploring, it adds 10."""

    def act(state, obs, carry, key, explore):
        return carry + 10 * explore, {}, carry + 1

    return Agent(Learner(None, None, None), act, Discrete, lambda n: jnp.zeros(n, jnp.int32))


def test_an_episode_is_what_happened():
    episode = record(counter(), worlds.clock(4), STATE, jax.random.key(0))
    # The last observation is what the last action led to, not the one of a new episode.
    np.testing.assert_array_equal(episode.obs, [[0], [1], [2], [3], [4]])
    np.testing.assert_array_equal(episode.action, [0, 1, 2, 3])
    np.testing.assert_array_equal(episode.score, [0, 1, 2, 3])
    assert episode.terminated is True and episode.truncated is False
    explored = record(counter(), worlds.clock(4), STATE, jax.random.key(0), explore=True)
    np.testing.assert_array_equal(explored.action, [10, 11, 12, 13])


def test_the_ends_of_an_episode_are_told_apart():
    env = worlds.truncation_probe(Discrete(2))
    episode = record(counter(), env, STATE, jax.random.key(0))
    assert episode.truncated and not episode.terminated
    np.testing.assert_array_equal(episode.obs, np.eye(2)[[0, 1, 1, 1, 1, 1]])
    np.testing.assert_array_equal(episode.score, [-10, 1, 1, 1, 1])
    given_up = record(counter(), env, STATE, jax.random.key(0), max_steps=3)
    assert not given_up.truncated and not given_up.terminated
    assert len(given_up.obs) == 4 and len(given_up.action) == len(given_up.score) == 3


def test_it_is_the_episode_that_play_plays():
    """In a world and with an agent that both draw lots."""

    def step(key, world, action):
        world = world + jax.random.normal(key) + action[0]
        return world, world[None], world, jnp.abs(world) > 4, jnp.zeros((), bool)

    def reset(key):
        world = jax.random.uniform(key)
        return world, world[None]

    env = batched(reset, step, Box(np.float32([-9]), np.float32([9])))
    key = jax.random.key(3)
    agent = Agent(
        Learner(None, None, None),
        lambda state, obs, carry, key, explore: (obs + jax.random.normal(key, obs.shape), {}, ()),
        Box,
    )
    returned, length, finished = jax.jit(lambda: play(agent, env, STATE, key, 1))()
    episode = record(agent, env, STATE, key)
    assert finished and episode.terminated and len(episode.score) == length > 1
    np.testing.assert_allclose(episode.score.sum(), returned[0], rtol=1e-5)
    hosted = record(agent, on_host(env), STATE, key)
    for on_device, stepped_from_host in zip(episode, hosted, strict=True):
        np.testing.assert_array_equal(on_device, stepped_from_host)


def frames(count=5):
    """A dot that moves down the first column, in the second plane of three."""
    planes = np.zeros((count, 10, 8, 3), bool)
    planes[np.arange(count), np.arange(count), 0, 1] = True
    return planes


def episode_of(obs):
    steps = len(obs) - 1
    return Episode(obs, np.zeros((steps, 2), np.float32), np.ones(steps, np.float32), True, False)


def test_planes_have_colours():
    obs = np.zeros((2, 2, 3), np.float32)
    obs[0, 0] = [1, 0, 0]
    obs[0, 1] = [1, 1, 0]  # the later of equals is on top
    obs[1, 0] = [0.5, 0, 0.25]  # and else the higher
    image = image_of(obs)
    assert image.dtype == np.uint8 and image.shape == (160, 160, 3)
    # Red, green and blue, of saturation 0.65: 255 and 255 * 0.35.
    np.testing.assert_array_equal(image[79, 79], [255, 89, 89])
    np.testing.assert_array_equal(image[79, 80], [89, 255, 89])
    np.testing.assert_array_equal(image[80, 79], [128, 45, 45])
    np.testing.assert_array_equal(image[80, 80], [0, 0, 0])
    np.testing.assert_array_equal(image_of(obs[:1] > 0)[0, 0], [255, 89, 89])


def test_bytes_are_pixels():
    pixels = np.arange(2 * 4 * 3, dtype=np.uint8).reshape(2, 4, 3)
    image = image_of(pixels)
    assert image.shape == (160, 320, 3)
    np.testing.assert_array_equal(image[::80, ::80], pixels)
    # A stack of frames shows the newest, in grey; a large one stays as it is.
    stack = np.zeros((210, 160, 4), np.uint8)
    stack[..., 3] = 7
    assert image_of(stack).shape == (210, 160, 3) and (image_of(stack) == 7).all()
    assert (image_of(stack[..., 3]) == 7).all()


@pytest.mark.parametrize("obs", [np.zeros(4), np.zeros((4, 4)), np.zeros((4, 4, 2), np.int32)])
def test_what_is_no_image(obs):
    with pytest.raises(InputError, match=r"is no image: expected uint8 \[H, W\].*`draw`"):
        image_of(obs)


def test_a_strip_and_an_animation(tmp_path):
    image = pytest.importorskip("PIL.Image")
    files = draw_rollout(episode_of(frames()), tmp_path / "a.b", tiles=3, frames_per_second=10)
    assert files == [tmp_path / "a.b.png", tmp_path / "a.b.gif"]
    assert sorted(tmp_path.iterdir()) == sorted(files)
    # Ten by eight pixels, enlarged twenty times; three pictures and two gaps of four pixels.
    with image.open(files[0]) as strip:
        assert strip.size == (3 * 160 + 2 * 4, 200) and strip.format == "PNG"
        pixels = np.asarray(strip)
    for tile, i in enumerate([0, 2, 4]):
        left = tile * 164
        np.testing.assert_array_equal(pixels[:, left : left + 160], image_of(frames()[i]))
    assert (pixels[:, 160:164] == 255).all()
    with image.open(files[1]) as animation:
        assert animation.n_frames == 5 and animation.size == (160, 200)
        assert animation.info["loop"] == 0 and animation.info["duration"] == 100
        for i in range(5):
            animation.seek(i)
            np.testing.assert_allclose(animation.convert("RGB"), image_of(frames()[i]), atol=8)


def test_a_short_episode_has_a_short_strip(tmp_path):
    image = pytest.importorskip("PIL.Image")
    still, _ = draw_rollout(episode_of(frames(2)), str(tmp_path / "short"))
    with image.open(still) as strip:
        assert strip.size == (2 * 160 + 4, 200)


def test_vectors_are_drawn_as_told_or_as_curves(tmp_path):
    image = pytest.importorskip("PIL.Image")
    pytest.importorskip("matplotlib")
    time = np.linspace(0, 6, 31)
    episode = episode_of(np.stack([np.sin(time), np.cos(time)], axis=1))
    files = draw_rollout(episode, tmp_path / "curves")
    assert files == [tmp_path / "curves.png"] == list(tmp_path.iterdir())
    with image.open(files[0]) as curves:
        assert curves.size == (700, 600)

    def dial(obs):
        picture = np.zeros((20, 20, 3), np.uint8)
        picture[tuple(np.round(9.5 + 9 * obs).astype(int))] = 255
        return picture

    files = draw_rollout(episode, tmp_path / "dial", dial)
    with image.open(files[1]) as animation:
        assert animation.n_frames == 31 and animation.size == (20, 20)


def test_pictures_of_the_wrong_form(tmp_path):
    episode = episode_of(np.zeros((3, 2)))
    path = tmp_path / "a"
    with pytest.raises(
        InputError, match=r"draw gave float64\[4, 4, 3\] for observation 0: .*uint8"
    ):
        draw_rollout(episode, path, lambda obs: np.zeros((4, 4, 3)))
    with pytest.raises(InputError, match=r"draw gave uint8\[4, 4\] for observation 0"):
        draw_rollout(episode, path, lambda obs: np.zeros((4, 4), np.uint8))
    sizes = iter([4, 4, 5])
    with pytest.raises(InputError, match=r"uint8\[5, 4, 3\] for observation 2: .*the same size"):
        draw_rollout(episode, path, lambda obs: np.zeros((next(sizes), 4, 3), np.uint8))
    assert list(tmp_path.iterdir()) == []


def test_mistakes(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"record\(max_steps=0\): expected at least 1"):
        record(counter(), worlds.clock(4), STATE, jax.random.key(0), max_steps=0)
    episode, curves = episode_of(frames()), episode_of(np.zeros((3, 2)))
    for name in ("tiles", "frames_per_second"):
        with pytest.raises(InputError, match=rf"draw_rollout\({name}=0\): expected at least 1"):
            draw_rollout(episode, tmp_path / "a", **{name: 0})
    for each in (episode, curves):
        with pytest.raises(InputError, match="cannot write .*a.png: No such file"):
            draw_rollout(each, tmp_path / "nowhere" / "a")
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingExtraError, match=r"needs .*'pillow'.*paradigms\[experiments\]"):
        draw_rollout(episode, tmp_path / "a")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"needs .*'matplotlib'.*\[experiments\]"):
        draw_rollout(curves, tmp_path / "a")
