"""Every metric has its words, and every number that the metrics give is in the catalogue."""

from __future__ import annotations

import numpy as np
import pytest

from latentsync.metrics import picture, temporal
from latentsync.metrics.catalogue import METRICS, Metric
from tests.metrics import damage
from tests.metrics.conftest import drawn


@pytest.mark.parametrize("metric", METRICS.values(), ids=lambda m: m.key)
def test_it_says_what_it_is_and_what_it_does_not_see(metric: Metric):
    assert METRICS[metric.key] is metric
    for text in (metric.title, metric.definition, metric.source, metric.blind_spot):
        assert text == text.strip() != ""
    assert metric.definition.endswith(".")
    assert metric.blind_spot.endswith(".")
    assert len(set(metric.needs)) == len(metric.needs)


def test_titles_are_told_apart():
    assert len({m.title for m in METRICS.values()}) == len(METRICS)


def test_what_the_metrics_give_is_in_it():
    faces = drawn(4)
    made = damage.trembling(faces, 0.5)
    touched = np.zeros(faces.shape[1:3], bool)
    like, outside, flicker, seam, jitter = picture.Likeness(), picture.Outside(), temporal.Flicker(), temporal.Seam(), temporal.Jitter()
    for a, b in zip(made, faces, strict=True):
        for region in ("mouth", "face", "frame"):
            like.add(region, a, b)
        outside.add(b, a, touched)
        for judge in (flicker, seam, jitter):
            judge.add(a, b)
    found = [key for judge in (like, outside, flicker, seam, jitter) for key in judge.values()]
    assert len(found) == 6 + 2 + 2 + 2 + 2
    assert set(found) <= set(METRICS)
    better = {key: METRICS[key].better for key in found}
    assert {key for key, way in better.items() if way == "higher"} == {k for k in found if k.startswith(("psnr", "ssim"))}
