"""The grades of pictures: which pixels count, and that worse pictures have worse ones."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from latentsync.errors import InputError, WeightsError
from latentsync.metrics import quality
from latentsync.models.hyperiqa import MEAN, SPREAD


def texture(height: int = 256, width: int = 256, seed: int = 0) -> np.ndarray:
    """Soft shapes of all sizes, with edges."""
    rng = np.random.default_rng(seed)
    out = np.full((height, width, 3), 127.0)
    for _ in range(400):
        centre, size = rng.uniform(0, (width, height)), int(rng.uniform(1, 24))
        cv2.circle(out, centre.astype(int).tolist(), size, rng.uniform(40, 215, 3).tolist(), -1, cv2.LINE_AA)
    return cv2.GaussianBlur(out, (0, 0), 0.6).round().astype(np.uint8)


def test_the_middle_counts():
    picture = np.arange(300 * 400 * 3, dtype=np.uint32).reshape(300, 400, 3).astype(np.uint8)
    np.testing.assert_array_equal(quality.centre(picture), picture[38:262, 88:312])
    assert quality.centre(picture[:224, :224]) is not None
    assert quality.centre(picture[:100, :150]).shape == (224, 224, 3)
    np.testing.assert_allclose(quality.centre(np.full((100, 90, 3), 77, np.uint8)), 77)


def test_softer_pictures_are_less_sharp_and_light_does_not_count():
    sharp = texture()
    grades = [quality.sharpness(p) for p in (sharp, *(cv2.GaussianBlur(sharp, (0, 0), sigma) for sigma in (1, 2, 4)))]
    assert grades == sorted(grades, reverse=True)
    assert grades[0] > 1.3 * grades[1] > 1.5 * grades[2]
    sideways = cv2.GaussianBlur(sharp, (31, 1), 4)  # moved while it was taken: blurred in one direction only
    assert quality.sharpness(sideways) < 0.6 * grades[0]
    darker = (sharp.astype(np.float64) * 0.5 + 20).round().astype(np.uint8)
    assert quality.sharpness(darker) == pytest.approx(grades[0], abs=1.5)
    assert quality.sharpness(np.full((224, 224, 3), 90, np.uint8)) == 0
    assert quality.sharpness(np.random.default_rng(0).integers(0, 255, (224, 224, 3)).astype(np.uint8)) > 80


class Mean(torch.nn.Module):
    """A network that says what it is given: the mean of the picture."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.Tensor] = []
        self.nothing = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(x)
        return x.mean(dim=(1, 2, 3))


def test_pictures_reach_the_network_as_it_was_trained():
    net = Mean()
    picture = np.zeros((256, 256, 3), np.uint8)
    picture[..., 0] = 255  # red
    scores = quality.hyperiqa(net, [picture, np.zeros((230, 300, 3), np.uint8)])
    assert len(scores) == 2
    (x,) = net.seen
    assert x.shape == (2, 3, 224, 224)
    assert x[0, 0, 0, 0].item() == pytest.approx((1 - MEAN[0]) / SPREAD[0])
    assert x[0, 2, 5, 5].item() == pytest.approx(-MEAN[2] / SPREAD[2])
    with pytest.raises(InputError, match="no picture"):
        quality.hyperiqa(net, [])


def test_the_missing_weights_say_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.delenv("LATENTSYNC_WEIGHTS_PATH", raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsError, match=r"latentsync models download judges .*--quality-model sharpness"):
        quality.load_hyperiqa(tmp_path)
