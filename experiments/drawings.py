"""What classic control looks like, drawn from one observation: uint8 `[H, W, 3]`."""

from collections.abc import Sequence
from typing import Any

import numpy as np

Point = tuple[float, float]

_WIDTH, _HEIGHT = 240, 160
_INK, _LIMB, _GROUND = (40, 40, 40), (31, 119, 180), (170, 170, 170)


def cart_pole(obs: np.ndarray) -> np.ndarray:
    """The cart on its track, which ends 2.4 from the middle, and the pole."""
    x, angle = float(obs[0]), float(obs[2])
    tip = (x + np.sin(angle), np.cos(angle))
    cart = [(x - 0.25, 0.0), (x + 0.25, 0.0)]
    return _drawn([[(-2.4, -0.1), (2.4, -0.1)]], [cart, [(x, 0.0), tip]], span=2.4)


def acrobot(obs: np.ndarray) -> np.ndarray:
    """Both links, hanging from the middle, and the height to be reached."""
    first = np.arctan2(obs[1], obs[0])
    second = first + np.arctan2(obs[3], obs[2])
    elbow = (np.sin(first), -np.cos(first))
    tip = (elbow[0] + np.sin(second), elbow[1] - np.cos(second))
    return _drawn([[(-3, 1), (3, 1)]], [[(0.0, 0.0), elbow, tip]], span=3.3)


def pendulum(obs: np.ndarray) -> np.ndarray:
    """The pendulum, which is to stand upright."""
    return _drawn([], [[(0.0, 0.0), (float(obs[1]), float(obs[0]))]], span=1.8)


def mountain_car(obs: np.ndarray) -> np.ndarray:
    """The car between its mountains, and the flag at 0.5."""

    def height(x: Any) -> Any:
        return 0.45 * np.sin(3 * x) - 0.1

    x = np.linspace(-1.2, 0.6, 60)
    ground = list(zip(x + 0.3, height(x), strict=True))
    flag = [(0.8, float(height(0.5))), (0.8, float(height(0.5)) + 0.2)]
    place = (float(obs[0]) + 0.3, float(height(obs[0])) + 0.03)
    return _drawn([ground, flag], [[place, place]], span=0.95)


def _drawn(
    ground: Sequence[Sequence[Point]], limbs: Sequence[Sequence[Point]], span: float
) -> np.ndarray:
    """Draws lines through points, with the origin in the middle and `span` to the left edge."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (_WIDTH, _HEIGHT), "white")
    canvas = ImageDraw.Draw(image)
    scale = _WIDTH / 2 / span

    def pixels(points: Sequence[Point]) -> list[Point]:
        return [(_WIDTH / 2 + scale * x, _HEIGHT / 2 - scale * y) for x, y in points]

    for points in ground:
        canvas.line(pixels(points), fill=_GROUND, width=2)
    for points in limbs:
        canvas.line(pixels(points), fill=_LIMB, width=6)
        for x, y in pixels(points):
            canvas.ellipse((x - 5, y - 5, x + 5, y + 5), fill=_INK)
    return np.asarray(image)
