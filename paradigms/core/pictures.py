"""Pictures of a run for its directory: curves, confusion matrices, tables of images, points."""

import itertools
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from paradigms.core.errors import InputError
from paradigms.core.intervals import half_width
from paradigms.core.record import Curve, write_whole

# Blue for what is trained on, warm colours for what is held out; all told apart by colour-blind
# readers. A metric that belongs to no stage is drawn in grey.
_STAGE_COLOURS = {
    "train": "#4477aa",
    "validation": "#ee7733",
    "test": "#aa3377",
    "evaluation": "#ee7733",
    "": "#555555",
}
# Of run directories that are compared: Paul Tol's bright scheme, for colour-blind readers too.
_RUN_COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb")
_STRIP = 0.45  # inches above the panels
_LOG_SCALE = ("loss", "nll", "norm", "perplexity")
_MOST_POINTS = 200
_SHORTEST_SIDE = 56  # pixels of an image in a table
_GAP = 2


def draw_curves(metrics: Mapping[str, Curve], path: Path) -> None:
    """Draws all metrics into one picture: the mean over runs, in a band from lowest to highest.

    `train/accuracy` and `test/accuracy` share the panel "accuracy". `train/share[0]` and
    `train/share[1]` share the panel "share", as two thin lines without bands. Any other name has a
    panel of its own. Long curves are averaged over neighbouring steps. Without matplotlib nothing
    is drawn, and a line in the log says so.

    Args:
      metrics: by name, as `read_metrics` gives them.
      path: of the PNG file.

    Raises:
      InputError: the file cannot be written.
    """
    panels: dict[str, dict[str, list[Curve]]] = {}
    for name, curve in metrics.items():
        whole = re.sub(r"\[\d+\]$", "", name)
        stage, _, rest = whole.partition("/")
        title, stage = (rest, stage) if rest and stage in _STAGE_COLOURS else (whole, "")
        panels.setdefault(title, {}).setdefault(stage, []).append(curve)
    if not panels:
        return
    figure, grid = _panels(list(panels), "curves")
    if figure is None:
        return
    legend = {}
    for (title, curves), axes in zip(panels.items(), grid, strict=True):
        for stage, together in curves.items():
            colour, alone = _STAGE_COLOURS[stage], len(together) == 1
            for curve in together:
                steps, values = _binned(curve)
                band = (values.min(0), values.max(0)) if alone else None
                width = 1.6 if alone else 0.8
                line = _plot(axes, steps, values.mean(0), band, colour, width)
            if stage:
                legend[stage] = line
        last_stage, drawn = list(curves.items())[-1]
        if len(drawn) == 1:
            last = np.ma.masked_invalid(drawn[0].values).mean(0)[-1]
            colour = _STAGE_COLOURS[last_stage]
            axes.set_title(f"{last:.4g}", loc="right", fontsize=9, color=colour)
        if _wants_log_scale(title, itertools.chain.from_iterable(curves.values())):
            axes.set_yscale("log")
    runs = max(len(curve.values) for curve in metrics.values())
    _head(figure, f"mean and range of {runs} runs" if runs > 1 else "one run", legend)
    _save_figure(figure, path)


def draw_comparison(metrics: Mapping[str, Mapping[str, Curve]], path: Path) -> None:
    """Lays the curves of several run directories over each other, a panel for each metric.

    A line is the mean over the runs of a directory, in a band that is the 95 % interval of that
    mean (Student's). Metrics that only one directory has, and those of an array, are left out.
    Without matplotlib nothing is drawn, and a line in the log says so.

    Args:
      metrics: for each directory, by what the legend is to call it, what `read_metrics` gives.
      path: of the PNG file.

    Raises:
      InputError: they have no metric in common, or the file cannot be written.
    """
    found: dict[str, dict[str, Curve]] = {}
    for label, curves in metrics.items():
        for name, curve in curves.items():
            if not name.endswith("]"):
                found.setdefault(name, {})[label] = curve
    panels = {name: curves for name, curves in found.items() if len(curves) > 1}
    if not panels:
        raise InputError(f"{', '.join(metrics)}: no metric was measured in two of them")
    figure, grid = _panels(list(panels), "comparison")
    if figure is None:
        return
    colours = dict(zip(metrics, itertools.cycle(_RUN_COLOURS), strict=False))
    legend = {}
    for (name, by_label), axes in zip(panels.items(), grid, strict=True):
        for label, curve in by_label.items():
            steps, values = _binned(curve)
            middle, band = values.mean(0), None
            if len(values) > 1:
                half = half_width(values)
                band = middle - half, middle + half
            legend[label] = _plot(axes, steps, middle, band, colours[label])
        if _wants_log_scale(name, by_label.values()):
            axes.set_yscale("log")
    _head(figure, "mean and 95 % interval", {label: legend[label] for label in metrics})
    _save_figure(figure, path)


def draw_confusion(matrix: np.ndarray, class_names: Sequence[str], path: Path) -> None:
    """Draws a confusion matrix, each row divided by its sum, in per cent where it fits.

    The colour goes with the square root of the share, so that rare confusions can be seen. Without
    matplotlib nothing is drawn, and a line in the log says so.

    Args:
      matrix: `[K, K]` counts, true class by predicted class.
      class_names: `K` names.
      path: of the PNG file.

    Raises:
      InputError: the names do not fit the matrix, or the file cannot be written.
    """
    matrix = np.asarray(matrix, np.float64)
    classes = len(class_names)
    if matrix.shape != (classes, classes):
        raise InputError(
            f"a confusion matrix of {classes} classes has shape {(classes, classes)}, "
            f"not {matrix.shape}"
        )
    labelled = classes <= 20
    side = 2.2 + (0.42 * classes if labelled else 5.0)
    figure = _figure((side, side), "confusion matrix")
    if figure is None:
        return
    sums = matrix.sum(1, keepdims=True)
    shares = matrix / np.where(sums > 0, sums, 1)
    axes = figure.add_subplot()
    axes.imshow(np.sqrt(shares), cmap="Blues", vmin=0, vmax=1)
    accuracy = np.trace(matrix) / max(matrix.sum(), 1)
    axes.set_title(f"{accuracy:.2%} of {matrix.sum():,.0f} right", fontsize=10, fontweight="bold")
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.tick_params(length=0, labelsize=9)
    axes.spines[:].set_visible(False)
    if labelled:
        long = max(map(len, class_names)) > 2
        axes.set_xticks(range(classes), class_names, rotation=90 if long else 0)
        axes.set_yticks(range(classes), class_names)
        for true, predicted in zip(*np.nonzero(matrix), strict=True):
            share = shares[true, predicted]
            axes.text(
                predicted,
                true,
                _per_cent(share),
                ha="center",
                va="center",
                fontsize=8,
                color="white" if share > 0.3 else "#333333",
            )
        figure.text(0.99, 0.01, "per cent of each row", fontsize=7, color="#666666", ha="right")
    _save_figure(figure, path)


def draw_images(images: np.ndarray, path: Path) -> None:
    """Draws a table of small images, magnified by a whole number.

    Without matplotlib nothing is drawn, and a line in the log says so.

    Args:
      images: `[rows, columns, H, W, C]` with C 1 or 3, uint8 or floating point in [0, 1].
      path: of the PNG file.

    Raises:
      InputError: the images are not of that form, or the file cannot be written.
    """
    images = np.asarray(images)
    if images.ndim != 5 or images.shape[-1] not in (1, 3) or 0 in images.shape:
        raise InputError(
            f"draw_images: expected [rows, columns, H, W, 1 or 3], got shape {images.shape}"
        )
    if images.dtype != np.uint8:
        images = np.rint(255 * np.clip(images, 0, 1)).astype(np.uint8)
    factor = max(1, -(-_SHORTEST_SIDE // min(images.shape[2:4])))
    images = images.repeat(factor, 2).repeat(factor, 3).repeat(4 - images.shape[-1], 4)[..., :3]
    framed = np.pad(images, ((0, 0), (0, 0), (0, _GAP), (0, _GAP), (0, 0)), constant_values=255)
    rows, columns, height, width, _ = framed.shape
    table = framed.transpose(0, 2, 1, 3, 4).reshape(rows * height, columns * width, 3)
    _save_pixels(table[:-_GAP, :-_GAP], path)


def draw_points(points: Mapping[str, np.ndarray], path: Path) -> None:
    """Draws sets of points in the plane, the first lightly, as the ground of the others.

    Without matplotlib nothing is drawn, and a line in the log says so.

    Args:
      points: by name, `[N, 2]`.
      path: of the PNG file.

    Raises:
      InputError: the points are not in the plane, or the file cannot be written.
    """
    if wrong := {k: np.shape(v) for k, v in points.items() if np.shape(v)[1:] != (2,)}:
        raise InputError(f"draw_points: expected arrays [N, 2], got shapes {wrong}")
    figure = _figure((5.0, 5.0), "points")
    if figure is None:
        return
    axes = figure.add_subplot(aspect="equal")
    colours = ["#bbbbbb", "#4477aa", "#ee7733", "#aa3377"]
    for i, (name, places) in enumerate(points.items()):
        x, y = np.asarray(places).T
        axes.scatter(x, y, s=3, color=colours[i % 4], linewidths=0, label=f"{name}, {len(x):,}")
    figure.legend(loc="outside upper right", ncols=len(points), fontsize=8, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8, color="#999999")
    _save_figure(figure, path)


def draw_classes(places: Mapping[str, np.ndarray], label: np.ndarray, path: Path) -> None:
    """Draws the same points, coloured by their class, in one panel for each way to place them.

    Without matplotlib nothing is drawn, and a line in the log says so.

    Args:
      places: by name, `[N, 2]`.
      label: int `[N]`, classes from 0.
      path: of the PNG file.

    Raises:
      InputError: shapes do not fit, or the file cannot be written.
    """
    label = np.asarray(label)
    if wrong := {k: np.shape(v) for k, v in places.items() if np.shape(v) != (len(label), 2)}:
        raise InputError(f"draw_classes: expected arrays [{len(label)}, 2], got shapes {wrong}")
    figure = _figure((5.0 * len(places), 5.2), "embeddings")
    if figure is None:
        return
    for axes, (name, points) in zip(
        np.ravel(figure.subplots(1, len(places))), places.items(), strict=True
    ):
        drawn = axes.scatter(*np.asarray(points).T, s=8, c=label, cmap="tab10", linewidths=0)
        axes.set_title(name, loc="left", fontsize=10, fontweight="bold")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[["top", "right", "bottom", "left"]].set_visible(False)
    handles, names = drawn.legend_elements(num=None)
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False)
    _save_figure(figure, path)


def _figure(size: tuple[float, float], what: str) -> Any:
    """An empty figure outside pyplot, which would keep it alive and may want a screen."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        logging.getLogger(__name__).warning("the %s is not drawn: matplotlib is missing", what)
        return None
    return Figure(figsize=size, dpi=150, layout="constrained", facecolor="white")


def _save_figure(figure: Any, path: Path) -> None:
    write_whole(path, lambda writing: figure.savefig(writing, format="png"))


def _save_pixels(pixels: np.ndarray, path: Path) -> None:
    try:
        from matplotlib.image import imsave
    except ImportError:
        logging.getLogger(__name__).warning("the images are not drawn: matplotlib is missing")
        return
    write_whole(path, lambda writing: imsave(writing, pixels, format="png"))


def _panels(titles: Sequence[str], what: str) -> tuple[Any, list[Any]]:
    """A figure with a panel for each title and a strip on top, or None without matplotlib."""
    columns = min(3, len(titles))
    rows = -(-len(titles) // columns)
    # Inches: a strip of fixed height on top is for the legend.
    width, height = 3.6 * columns, 2.5 * rows
    figure = _figure((width, height + _STRIP), what)
    if figure is None:
        return None, []
    figure.get_layout_engine().set(rect=(0, 0, 1, height / (height + _STRIP)), hspace=0.06)
    grid: list[Any] = []
    for index, title in enumerate(titles):
        axes = figure.add_subplot(rows, columns, index + 1, sharex=grid[0] if grid else None)
        axes.set_title(title, loc="left", fontsize=10, fontweight="bold")
        axes.grid(True, color="#e6e6e6", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8, color="#999999")
        axes.xaxis.set_major_formatter(_thousands)
        if index + columns >= len(titles):
            axes.set_xlabel("update", fontsize=8)
        grid.append(axes)
    return figure, grid


def _plot(
    axes: Any,
    steps: np.ndarray,
    middle: np.ma.MaskedArray,
    band: tuple[np.ma.MaskedArray, np.ma.MaskedArray] | None,
    colour: str,
    width: float = 1.6,
) -> Any:
    """One line, in its band if it has one."""
    dot = "o" if len(steps) == 1 else None
    (line,) = axes.plot(steps, middle.filled(np.nan), color=colour, linewidth=width, marker=dot)
    if band is not None:
        low, high = (edge.filled(np.nan) for edge in band)
        axes.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0)
    return line


def _head(figure: Any, what: str, legend: Mapping[str, Any]) -> None:
    """Fills the strip above the panels: on the left what is drawn, on the right in which colour."""
    top = 1 - 0.4 * _STRIP / figure.get_figheight()
    figure.text(0.01, top, what, fontsize=8, color="#666666", va="center")
    if legend:
        figure.legend(
            list(legend.values()),
            list(legend),
            loc="upper right",
            ncols=len(legend),
            frameon=False,
            fontsize=9,
        )


def _binned(curve: Curve) -> tuple[np.ndarray, np.ma.MaskedArray]:
    """Steps `[P]` and values `[runs, P]` of a curve short enough to read."""
    bins = min(len(curve.steps), _MOST_POINTS)
    parts = np.array_split(np.arange(len(curve.steps)), bins)
    valid = np.ma.masked_invalid(curve.values)
    values = np.ma.stack([valid[:, part].mean(1) for part in parts], axis=1)
    return np.array([curve.steps[part].mean() for part in parts]), values


def _wants_log_scale(title: str, curves: Iterable[Curve]) -> bool:
    values = np.concatenate([curve.values.ravel() for curve in curves])
    values = values[np.isfinite(values)]
    positive = values.size > 0 and values.min() > 0
    return positive and values.max() > 30 * values.min() and any(w in title for w in _LOG_SCALE)


def _per_cent(share: float) -> str:
    """A share in whole per cent that says 0 or 100 only of none and all."""
    if 0 < share < 0.005:
        return "<1"
    return ">99" if 0.995 <= share < 1 else f"{100 * share:.0f}"


def _thousands(step: float, position: int | None = None) -> str:
    return f"{step / 1000:g}k" if abs(step) >= 1000 else f"{step:g}"
