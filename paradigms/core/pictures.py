"""Pictures of a run for its directory: curves and confusion matrices."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from paradigms.core.errors import InputError
from paradigms.core.record import WRITING, Curve, explained

# Blue for what is trained on, warm colours for what is held out; all told apart by colour-blind
# readers. A metric that belongs to no stage is drawn in grey.
_STAGE_COLOURS = {
    "train": "#4477aa",
    "validation": "#ee7733",
    "test": "#aa3377",
    "evaluation": "#ee7733",
    "": "#555555",
}
_LOG_SCALE = ("loss", "nll", "norm", "perplexity")
_MOST_POINTS = 200


def draw_curves(metrics: Mapping[str, Curve], path: Path) -> None:
    """Draws all metrics into one picture: the mean over runs, in a band from lowest to highest.

    `train/accuracy` and `test/accuracy` share the panel "accuracy"; any other name has a panel of
    its own. Long curves are averaged over neighbouring steps. Without matplotlib nothing is drawn,
    and a line in the log says so.

    Args:
      metrics: by name, as `read_metrics` gives them.
      path: of the PNG file.

    Raises:
      InputError: the file cannot be written.
    """
    panels: dict[str, dict[str, Curve]] = {}
    for name, curve in metrics.items():
        stage, _, rest = name.partition("/")
        title, stage = (rest, stage) if rest and stage in _STAGE_COLOURS else (name, "")
        panels.setdefault(title, {})[stage] = curve
    if not panels:
        return
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    # Inches: a strip of fixed height on top is for the legend.
    width, height, strip = 3.6 * columns, 2.5 * rows, 0.45
    figure = _figure((width, height + strip), "curves")
    if figure is None:
        return
    runs = max(len(curve.values) for curve in metrics.values())
    figure.get_layout_engine().set(rect=(0, 0, 1, height / (height + strip)), hspace=0.06)
    legend = {}
    axes = None
    for index, (title, curves) in enumerate(panels.items()):
        axes = figure.add_subplot(rows, columns, index + 1, sharex=axes)
        for stage, curve in curves.items():
            steps, mean, low, high = _band(curve)
            colour = _STAGE_COLOURS[stage]
            dot = "o" if len(steps) == 1 else None
            (line,) = axes.plot(steps, mean, color=colour, linewidth=1.6, marker=dot)
            axes.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0)
            if stage:
                legend[stage] = line
        last_stage = list(curves)[-1]
        last = np.ma.masked_invalid(curves[last_stage].values).mean(0)[-1]
        colour = _STAGE_COLOURS[last_stage]
        axes.set_title(title, loc="left", fontsize=10, fontweight="bold")
        axes.set_title(f"{last:.4g}", loc="right", fontsize=9, color=colour)
        if _wants_log_scale(title, curves.values()):
            axes.set_yscale("log")
        axes.grid(True, color="#e6e6e6", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8, color="#999999")
        axes.xaxis.set_major_formatter(_thousands)
        if index + columns >= len(panels):
            axes.set_xlabel("update", fontsize=8)
    what = f"mean and range of {runs} runs" if runs > 1 else "one run"
    top = 1 - 0.4 * strip / (height + strip)
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


def _figure(size: tuple[float, float], what: str) -> Any:
    """An empty figure outside pyplot, which would keep it alive and may want a screen."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        logging.getLogger(__name__).warning("the %s is not drawn: matplotlib is missing", what)
        return None
    return Figure(figsize=size, dpi=150, layout="constrained", facecolor="white")


def _save_figure(figure: Any, path: Path) -> None:
    writing = path.with_name(path.name + WRITING)
    with explained(f"cannot write {path}"):
        figure.savefig(writing, format="png")
        writing.replace(path)


def _band(curve: Curve) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Steps, and mean, lowest and highest value over runs, of a curve short enough to read."""
    bins = min(len(curve.steps), _MOST_POINTS)
    parts = np.array_split(np.arange(len(curve.steps)), bins)
    valid = np.ma.masked_invalid(curve.values)
    values = np.ma.stack([valid[:, part].mean(1) for part in parts], axis=1)
    steps = np.array([curve.steps[part].mean() for part in parts])
    return (
        steps,
        values.mean(0).filled(np.nan),
        values.min(0).filled(np.nan),
        values.max(0).filled(np.nan),
    )


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
