"""Charts: the panels, the numbers behind the curves, and histories that are short, broken or long."""

import json
import math
import random
import subprocess
import sys
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest

from latentsync.train.charts import COLUMNS, PANEL, draw, gather, logarithmic, smooth
from latentsync.train.log import Row, read


@pytest.fixture(autouse=True)
def no_warnings():
    """matplotlib warns of axes without extent, of logarithms of zero, of missing glyphs: none of it may happen."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def history(folder: Path, rows) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "events.jsonl"
    path.write_text("".join(json.dumps({"step": step, "split": split, "time": 0.0, **values}) + "\n" for step, split, values in rows))
    return path


def picture(rows, folder: Path) -> np.ndarray:
    path = history(folder, rows)
    draw(path, folder / "charts.png")
    return cv2.imread(str(folder / "charts.png"))


def near(image: np.ndarray, colour: str) -> np.ndarray:
    """Pixels of that colour (as drawn, without transparency)."""
    rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return (np.abs(image[..., ::-1].astype(int) - rgb) < 12).all(2)


def stage2(step: int) -> dict[str, float]:
    noise = random.Random(step)
    terms = {t: math.exp(-step / 20000) * noise.uniform(0.8, 1.2) for t in ("recon", "sync", "lpips", "trepa")}
    return {"loss": sum(terms.values()), **terms, "grad_norm": noise.lognormvariate(0, 1), "learning_rate": 1e-5, "seconds_per_step": 1.0}


def test_panels_are_the_terms_in_order():
    rows = [
        Row(1, "train", {"learning_rate": 1e-5, "odd": 1.0, "sync": 0.6, "memory_gb": 3.0, "loss": 2.0}),
        Row(2, "validation", {"loss": 1.0, "score": 5.0}),
    ]
    curves = gather(rows)
    assert list(curves) == ["loss", "sync", "odd", "score", "learning_rate"]
    assert list(curves["loss"]) == ["train", "validation"]
    assert curves["loss"]["validation"].steps.tolist() == [2]
    assert curves["loss"]["validation"].values.tolist() == [1.0]


def test_smoothing_is_a_mean_over_a_window():
    assert np.array_equal(smooth(np.full(500, 3.0)), np.full(500, 3.0))
    ramp = np.arange(1000.0)
    assert np.allclose(smooth(ramp)[100:-100], ramp[100:-100])
    noise = np.random.default_rng(0).standard_normal(1000)
    assert smooth(noise).std() < 0.3
    holes = np.array([1.0, math.nan, 3.0])
    assert np.allclose(smooth(holes), [1.0, 2.0, 3.0])
    assert np.isnan(smooth(np.array([math.nan, math.nan, math.nan]))).all()
    assert smooth(np.array([5.0])).tolist() == [5.0]


@pytest.mark.parametrize(
    ("values", "expected"),
    [([1, 100], True), ([1, 5], False), ([-1, 100], False), ([0, 100], False), ([7], False), ([], False), ([1, math.nan, 100], True)],
)
def test_axes_are_logarithmic_over_decades(values, expected):
    assert logarithmic(np.array(values, float)) is expected


def test_a_long_run(tmp_path):
    rows = [(s, "train", stage2(s)) for s in range(10, 60010, 10)] + [
        (s, "validation", {k: 1.5 * v for k, v in stage2(s).items()}) for s in range(1000, 61000, 1000)
    ]
    image = picture(sorted(rows, key=lambda r: r[0]), tmp_path / "run")
    assert abs(image.shape[1] - PANEL[0] * COLUMNS * 110) < 3
    third = image.shape[1] // 3
    for column in range(3):
        part = image[: image.shape[0] // 3, column * third : (column + 1) * third]
        assert near(part, "#2c6fbb").sum() > 200, "the training curve"
        assert near(part, "#e07a1f").sum() > 100, "the validation points"
    assert [p.name for p in sorted((tmp_path / "run").iterdir())] == ["charts.png", "events.jsonl"]


@pytest.mark.parametrize(
    "rows",
    [
        [(10, "train", {"loss": 0.7})],
        [(10, "validation", {"loss": 0.7, "accuracy": 0.5})],
        [(0, "train", {"loss": 0.0})],
        [(10, "train", {"loss": None})],
        [(s, "train", {"loss": None}) for s in range(1, 300)],
        [(s, "train", {"loss": 1.0, "learning_rate": 1e-5}) for s in range(1, 300)],
        [(s, "train", {"loss": 10.0**-s}) for s in range(1, 40)],
        [(s, "train", {"loss": -1.0 * s, "grad_norm": 1e30}) for s in range(1, 40)],
        [(1, "train", {"loss": 1.0}), (2, "train", {"loss": None}), (3, "train", {"loss": 2.0}), (3, "validation", {"loss": None})],
    ],
)
def test_short_flat_and_broken_runs(tmp_path, rows):
    image = picture(rows, tmp_path)
    assert image.shape[0] > 300
    assert (image < 200).any(), "something is drawn"


def test_what_is_not_finite_is_marked_and_the_rest_drawn(tmp_path):
    good = [(s, "train", {"loss": 1.0 + s % 3}) for s in range(1, 100)]
    whole = picture(good, tmp_path / "a")
    holes = picture([(s, k, {"loss": None} if 40 < s < 60 else v) for s, k, v in good], tmp_path / "b")
    assert near(whole, "#c00000").sum() == 0
    assert near(holes, "#c00000").sum() > 50
    assert near(holes, "#2c6fbb").sum() > 100


def test_outliers_do_not_squash_the_curves(tmp_path):
    def height(spike: float) -> int:
        rows = [(s, "train", {"loss": 1.0 + math.sin(s / 60) / 2 if s != 300 else spike}) for s in range(1, 700)]
        ys = np.nonzero(near(picture(rows, tmp_path / str(spike)), "#2c6fbb"))[0]
        return int(ys.max() - ys.min())

    assert height(-500.0) > 0.4 * height(1.0)


def test_no_rows_no_picture(tmp_path):
    draw(history(tmp_path, []), tmp_path / "charts.png")
    draw(tmp_path / "absent.jsonl", tmp_path / "charts.png")
    assert not (tmp_path / "charts.png").exists()
    assert read(tmp_path / "events.jsonl") == []


def test_drawing_leaves_no_global_state(tmp_path):
    code = f"""
import sys
from pathlib import Path
from latentsync.train.charts import draw
assert "matplotlib" not in sys.modules
draw(Path({str(history(tmp_path, [(1, "train", {"loss": 1.0})]))!r}), Path({str(tmp_path / "c.png")!r}))
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert (tmp_path / "c.png").stat().st_size > 5000
