"""One episode to look at: recorded, and drawn as a strip of pictures and an animation."""

import colorsys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from paradigms.core.errors import InputError, MissingExtraError
from paradigms.core.record import write_whole
from paradigms.core.state import TrainState, fold_name
from paradigms.reinforcement.agent import Agent
from paradigms.reinforcement.environment import Environment
from paradigms.reinforcement.host import HostEnvironment, acted, on_host

_GAP = 4  # pixels between two pictures of a strip
_SMALLEST_SIDE = 160  # smaller images are enlarged, by whole numbers


class Episode(NamedTuple):
    """One episode of T steps, on the host.

    Attributes:
      obs: `[T + 1, ...]`, what was acted on, and what the last action led to.
      action: `[T, ...]`.
      score: float32 `[T]`, the rewards before any wrapper changed them.
      terminated: whether the episode ended.
      truncated: whether the environment cut it short. Where neither is, `max_steps` came first.
    """

    obs: np.ndarray
    action: np.ndarray
    score: np.ndarray
    terminated: bool
    truncated: bool


def record(
    agent: Agent,
    env: Environment | HostEnvironment,
    state: TrainState,
    key: jax.Array,
    max_steps: int = 1000,
    *,
    explore: bool = False,
) -> Episode:
    """Plays one episode, that of `play` or `play_on_host` with the same key, and keeps all of it.

    Args:
      agent: the player.
      env: where; as it is, so frozen if it has statistics.
      state: of the agent, of a single run.
      key: of the environment and the player.
      max_steps: when to give up.
      explore: whether to act as in training, in place of greedily.

    Raises:
      InputError: `max_steps` is below 1, or the environment has statistics that are not frozen.
    """
    if max_steps < 1:
        raise InputError(f"record(max_steps={max_steps}): expected at least 1")

    world_of = on_host(env) if isinstance(env, Environment) else env
    world, obs = world_of.reset(fold_name(key, "reset"), 1)
    carry = agent.carry(1)
    seen, actions, scores = [obs[0]], [], []
    for time in range(max_steps):
        action, _, carry, step_key = acted(
            agent.act, state, obs, carry, jax.random.fold_in(key, time), explore=explore
        )
        world, timestep = world_of.step(step_key, world, np.asarray(action))
        obs = timestep.obs
        seen.append(timestep.final_obs[0])
        actions.append(np.asarray(action[0]))
        scores.append(timestep.score[0])
        terminated, truncated = bool(timestep.terminated[0]), bool(timestep.truncated[0])
        if terminated or truncated:
            break
    return Episode(np.stack(seen), np.stack(actions), np.stack(scores), terminated, truncated)


def draw_rollout(
    episode: Episode,
    path: Path | str,
    draw: Callable[[np.ndarray], np.ndarray] | None = None,
    *,
    tiles: int = 8,
    frames_per_second: int = 20,
) -> list[Path]:
    """Draws an episode for the eye.

    Images become a strip of `tiles` pictures, `<path>.png`, and an animation, `<path>.gif`.
    Observations that are vectors, without a way to draw them, become curves over time of each
    observation, action and score, `<path>.png`.

    Args:
      episode: as recorded.
      path: of the files, without their suffix.
      draw: from one observation to its picture, uint8 `[H, W, 3]`, the same size for all. By
        default `image_of`, for observations that are images.
      tiles: pictures in the strip, evenly over the episode, the first and the last among them.
      frames_per_second: of the animation, whose frames are the observations. Equal ones in a row
        become one that stays as long.

    Returns:
      The files written.

    Raises:
      InputError: a picture is not of the form expected, a number is below 1, or a file cannot be
        written.
      MissingExtraError: Pillow, or matplotlib for the curves, is not installed.
    """
    path = Path(path)
    for name, number in (("tiles", tiles), ("frames_per_second", frames_per_second)):
        if number < 1:
            raise InputError(f"draw_rollout({name}={number}): expected at least 1")
    if draw is None and episode.obs.ndim <= 2:
        return [_draw_curves(episode, _with_suffix(path, ".png"))]
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError("pillow", "experiments", "drawing an episode") from error
    frames = [np.asarray((draw or image_of)(obs)) for obs in episode.obs]
    for i, frame in enumerate(frames):
        right = frame.dtype == np.uint8 and frame.ndim == 3 and frame.shape[2] == 3
        if not right or frame.shape != frames[0].shape:
            raise InputError(
                f"draw gave {frame.dtype}{list(frame.shape)} for observation {i}: expected uint8 "
                "[H, W, 3], the same size for all"
            )
    chosen = np.unique(np.linspace(0, len(frames) - 1, tiles).round().astype(int))
    gap = np.full((len(frames[0]), _GAP, 3), 255, np.uint8)
    strip = np.concatenate([part for i in chosen for part in (gap, frames[i])][1:], axis=1)
    still, animation = _with_suffix(path, ".png"), _with_suffix(path, ".gif")
    write_whole(still, lambda file: Image.fromarray(strip).save(file, "png"))
    first, *rest = map(Image.fromarray, frames)
    milliseconds = round(1000 / frames_per_second)
    write_whole(
        animation,
        lambda file: first.save(
            file, "gif", save_all=True, append_images=rest, duration=milliseconds, loop=0
        ),
    )
    return [still, animation]


def image_of(obs: np.ndarray) -> np.ndarray:
    """A picture, uint8 `[H, W, 3]`, of an observation that is an image, enlarged if it is small.

    Args:
      obs: uint8 `[H, W, 3]` in colour, uint8 `[H, W]` in grey, or uint8 `[H, W, C]`, whose last
        channel is drawn in grey: the newest of a stack of frames. Bool or float `[H, W, C]` are C
        planes of values from 0 to 1, as in MinAtar: each has a colour, and where several overlap
        the highest value is seen, the last of them if they are equal.

    Raises:
      InputError: another shape or dtype.
    """
    obs = np.asarray(obs)
    if obs.dtype == np.uint8 and obs.ndim in (2, 3):
        in_colour = obs.ndim == 3 and obs.shape[2] == 3
        grey = obs if obs.ndim == 2 else obs[..., -1]
        image = obs if in_colour else np.repeat(grey[..., None], 3, axis=2)
    elif obs.ndim == 3 and obs.dtype.kind in "bf":
        channels = obs.shape[2]
        hues = [colorsys.hsv_to_rgb(i / channels, 0.65, 1) for i in range(channels)]
        planes = np.clip(obs.astype(np.float32), 0, 1)
        top = channels - 1 - planes[..., ::-1].argmax(-1)
        image = 255 * np.array(hues)[top] * planes.max(-1, keepdims=True)
        image = image.round().astype(np.uint8)
    else:
        raise InputError(
            f"an observation {obs.dtype}{list(obs.shape)} is no image: expected uint8 [H, W], "
            "or uint8, bool or float [H, W, C]; give draw_rollout a function `draw`"
        )
    scale = -(-_SMALLEST_SIDE // min(image.shape[:2]))
    return image.repeat(scale, axis=0).repeat(scale, axis=1)


def _draw_curves(episode: Episode, path: Path) -> Path:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "experiments", "drawing an episode") from error
    figure = Figure(figsize=(7, 6), dpi=100, layout="constrained", facecolor="white")
    panels = {"observation": episode.obs, "action": episode.action, "score": episode.score}
    for axes, (name, values) in zip(
        figure.subplots(len(panels), sharex=True), panels.items(), strict=True
    ):
        values, style = values.reshape(len(values), -1), "default"
        if name != "observation":  # an action and its score fill the time from step t to t + 1
            values, style = np.concatenate([values, values[-1:]]), "steps-post"
        lines = axes.plot(values, linewidth=1.4, drawstyle=style)
        if 1 < len(lines) <= 10:  # as many as there are colours
            labels = [str(i) for i in range(len(lines))]
            axes.legend(lines, labels, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
        axes.set_title(name, loc="left", fontsize=10, fontweight="bold")
        axes.grid(True, color="#e6e6e6", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("step")
    write_whole(path, lambda file: figure.savefig(file, format="png"))
    return path


def _with_suffix(path: Path, suffix: str) -> Path:
    # Not `Path.with_suffix`, which would cut "CartPole-v1.2" short.
    return path.with_name(path.name + suffix)
