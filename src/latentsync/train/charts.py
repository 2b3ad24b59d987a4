"""The curves of a run as one picture: a panel for each term, training and validation together."""

from __future__ import annotations

import math
import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from latentsync.errors import OutputError, UsageError
from latentsync.train.log import Row, read
from latentsync.train.watch import CHANCE_LOSS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# What each panel shows, in this order; terms that are not named here come between "trepa" and "grad_norm", in the order of their appearance.
FIRST = ("loss", "recon", "sync", "lpips", "trepa", "accuracy")
LAST = ("grad_norm", "learning_rate")
# Of use while a run is going on, and to be seen in TensorBoard: no curves of learning.
LEFT_OUT = ("seconds_per_step", "data_seconds_per_step", "frames_per_second", "memory_gb", "bad_clips", "skipped_steps")
TITLES = {
    "loss": "loss",
    "recon": "reconstruction of the noise",
    "sync": "SyncNet",
    "lpips": "LPIPS, lower half",
    "trepa": "TREPA",
    "accuracy": "accuracy",
    "positive": "cosine of pairs in sync",
    "negative": "cosine of pairs out of sync",
    "grad_norm": "norm of the gradient",
    "learning_rate": "learning rate",
}
EXACT = ("learning_rate",)  # chosen, not measured: nothing to smooth
COLUMNS = 3
PANEL = (4.6, 3.1)  # inches
SMOOTHING = 0.05  # of the points of a curve: what the smooth line averages over
DECADES = 1.3  # a curve that spans more is drawn on a logarithmic axis

FEW_POINTS = 60  # fewer rows are also marked as points: a line through one point is nothing
MANY_POINTS = 200  # among more rows some outliers may leave the picture
OUTLIERS = 0.005
MARGIN = 0.05  # of what an axis spans, above and below the curves
MOST_POINTS = 4000  # of a drawn line

INK, PALE, BROKEN = "#222222", "#8a8a8a", "#c00000"
TRAIN, VALIDATION = "#2c6fbb", "#e07a1f"


class Curve(NamedTuple):
    """One term of one split, by step. Values that are not finite are NaN."""

    steps: np.ndarray
    values: np.ndarray


def draw(history: Path, target: Path) -> None:
    """Draw the rows of events.jsonl (see `log.History`) as a PNG, whole or not at all. Raises OutputError; without any row nothing is written."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as e:
        raise UsageError('charts need the packages of the extra "train": pip install "latentsync[train]"') from e
    curves = gather(read(history))
    if not curves:
        return
    last = max(int(curve.steps.max()) for splits in curves.values() for curve in splits.values())
    rows = math.ceil(len(curves) / COLUMNS)
    columns = min(COLUMNS, len(curves))
    figure = Figure(figsize=(PANEL[0] * columns, PANEL[1] * rows + 0.8), dpi=110, layout="constrained", facecolor="white")
    canvas = FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False)
    guess = {"loss": CHANCE_LOSS, "accuracy": 0.5} if "accuracy" in curves else {}  # only SyncNet has an accuracy
    for place, axes in enumerate(grid.flat):
        if place >= len(curves):
            axes.set_axis_off()
            continue
        term = list(curves)[place]
        _panel(axes, term, curves[term], last, guess.get(term))
    handles = {label: handle for axes in grid.flat for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.suptitle(f"{history.resolve().parent.name}, step {last:,}", x=0.008, ha="left", fontsize=12.5, fontweight="bold", color=INK)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9, labelcolor=INK)
    scratch = target.with_name(f".{target.name}.{uuid.uuid4().hex}.png")
    try:
        canvas.print_png(str(scratch))
        os.replace(scratch, target)
    except OSError as e:
        raise OutputError(f"cannot write {target}: {e.strerror or e}") from e
    finally:
        scratch.unlink(missing_ok=True)


def gather(rows: list[Row]) -> dict[str, dict[str, Curve]]:
    """Term -> split -> curve, in the order of the panels."""
    points: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for row in rows:
        for term, value in row.values.items():
            if term not in LEFT_OUT:
                points.setdefault(term, {}).setdefault(row.split, []).append((row.step, value))
    order = [*FIRST, *(t for t in points if t not in FIRST + LAST), *LAST]
    return {
        term: {split: Curve(np.array([s for s, _ in found]), np.array([v for _, v in found])) for split, found in points[term].items()}
        for term in order
        if term in points
    }


def smooth(values: np.ndarray) -> np.ndarray:
    """(n,) -> (n,): the mean over a window of SMOOTHING of the curve around each point, NaN where it has none; points that are NaN do not count.

    The window is cut off at the ends, so that the newest values are not drawn towards anything.
    """
    half = max(1, round(SMOOTHING * len(values) / 2))
    good = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(good, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(good)])
    first = np.maximum(np.arange(len(values)) - half, 0)
    last = np.minimum(np.arange(len(values)) + half + 1, len(values))
    number = counts[last] - counts[first]
    return np.where(number > 0, (sums[last] - sums[first]) / np.maximum(number, 1), math.nan)


def logarithmic(values: np.ndarray) -> bool:
    """Whether a curve is easier to read on a logarithmic axis: all positive, and of several orders of magnitude."""
    good = values[np.isfinite(values)]
    return bool(good.size > 1 and good.min() > 0 and math.log10(good.max() / good.min()) > DECADES)


def _panel(axes: Axes, term: str, curves: dict[str, Curve], last: int, guess: float | None) -> None:
    """One term; `last` is the step at which every panel ends, `guess` the value that a network without knowledge gets."""
    if guess is not None:
        axes.axhline(guess, color=PALE, linestyle=(0, (4, 3)), linewidth=1, label="a guess", zorder=1)
    smoothed = [np.array([guess])] if guess is not None else []
    for split, curve in curves.items():
        if split == "train":
            smoothed.append(_training(axes, term, curve))
        else:
            axes.plot(curve.steps, curve.values, "-o", color=VALIDATION, linewidth=1.2, markersize=4.5, label=split, zorder=4)
            smoothed.append(curve.values)
        broken = curve.steps[~np.isfinite(curve.values)]
        if broken.size:
            axes.plot(broken, np.full(broken.size, 0.02), "x", color=BROKEN, markersize=5, transform=axes.get_xaxis_transform(), label="not finite")
    _values(axes, term, curves, np.concatenate(smoothed))
    _steps(axes, last)
    axes.set_title(TITLES.get(term, term.replace("_", " ")), fontsize=11, color=INK, loc="left")
    axes.tick_params(labelsize=8.5, colors=INK, length=3)
    axes.grid(alpha=0.25, linewidth=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _training(axes: Axes, term: str, curve: Curve) -> np.ndarray:
    """Every row thin and pale, their running mean over it; returns the mean."""
    mean = smooth(curve.values) if term not in EXACT else curve.values
    thin = slice(None, None, -(-len(mean) // MOST_POINTS))
    steps = curve.steps[thin]
    marker = "." if np.isfinite(curve.values).sum() < FEW_POINTS else ""
    axes.plot(steps, curve.values[thin], "-", marker=marker, color=TRAIN, alpha=0.35, linewidth=0.8, label="training, each row", zorder=2)
    axes.plot(steps, mean[thin], "-", color=TRAIN, linewidth=1.8, label="training, running mean", zorder=3)
    return mean


def _values(axes: Axes, term: str, curves: dict[str, Curve], smoothed: np.ndarray) -> None:
    """The vertical axis: logarithmic where a curve spans decades, and not stretched by a few outliers among many rows."""
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    values = np.concatenate([c.values for c in curves.values()])
    raw = values[np.isfinite(values)]
    shown = raw
    if raw.size > MANY_POINTS:
        shown = np.concatenate([np.quantile(raw, [OUTLIERS, 1 - OUTLIERS]), smoothed[np.isfinite(smoothed)]])
    if not shown.size:
        return
    low, high = float(shown.min()), float(shown.max())
    if term not in EXACT and logarithmic(shown):
        decades = math.log10(high / low)
        axes.set_yscale("log")
        axes.set_ylim(low / 10 ** (MARGIN * decades), high * 10 ** (MARGIN * decades))
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 3 else (1,)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
        return
    if high > low:
        axes.set_ylim(low - MARGIN * (high - low), high + MARGIN * (high - low))
    axes.ticklabel_format(axis="y", scilimits=(-3, 4), useMathText=True)
    axes.yaxis.get_offset_text().set_fontsize(8.5)


def _steps(axes: Axes, last: int) -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axes.set_xlim(-0.02 * last, 1.02 * max(1, last))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
