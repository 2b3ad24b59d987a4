"""Likeness of pictures against formulas, another implementation and planted damage; what changed outside the mask; the regions themselves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from latentsync.errors import UsageError, WeightsError
from latentsync.face import align
from latentsync.face.mask import inpaint_mask
from latentsync.face.paste import paste
from latentsync.metrics import picture, regions
from tests.metrics import damage


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


# --- regions


@pytest.mark.parametrize("side", [64, 256, 512])
def test_the_generated_part_is_that_of_the_mask(side: int):
    inside = regions.generated(side)
    assert inside.mean() == pytest.approx(0.407, abs=0.005)
    rows, columns = regions.mouth_box(side)
    assert inside[rows, columns].mean() == 1
    assert regions.mouth_box(256) == (slice(154, 220), slice(72, 184))


@pytest.mark.parametrize("turn", [0.0, 0.4])
def test_what_a_paste_changes_lies_within_what_it_may_touch(turn: float):
    c, s = 0.55 * np.cos(turn), 0.55 * np.sin(turn)
    points = (align.template(256) - 100) @ np.array([[c, s], [-s, c]]) + [180.0, 130.0]
    patch = paste(noise(256, 256).astype(np.float32), align.alignment(points, 256), 360, 270, mask=inpaint_mask(256))
    changed = np.zeros((270, 360), bool)
    x0, y0, x1, y1 = patch.box
    changed[y0:y1, x0:x1] = patch.alpha > 0
    may = regions.touched(points, 360, 270)
    assert may.shape == (270, 360)
    assert changed.sum() > 2000
    assert not (changed & ~may).any()
    assert may.sum() < 1.5 * changed.sum()


# --- PSNR and SSIM


@pytest.mark.parametrize(("apart", "expected"), [(0, 100.0), (1, 48.1308), (5, 34.1514), (255, 0.0)])
def test_psnr_of_a_known_difference(apart: int, expected: float):
    a = np.zeros((12, 9, 3), np.uint8)
    assert picture.psnr(a, a + np.uint8(apart)) == pytest.approx(expected, abs=1e-3)


def test_only_chosen_pixels_count():
    a, b = noise(40, 40), noise(40, 40)
    b[:20] = 255 - b[:20]
    where = np.zeros((40, 40), bool)
    where[30:] = True
    assert picture.psnr(a, b, where) == 100
    assert picture.ssim(a, b, where) == pytest.approx(1, abs=1e-6)
    assert picture.psnr(a, b, ~where) < 15
    where[:] = False
    assert np.isnan(picture.psnr(a, b, where))
    assert np.isnan(picture.ssim(a, b, where))


def test_ssim_of_flat_pictures_is_that_of_their_light():
    a, b = np.full((20, 30, 3), 100, np.uint8), np.full((20, 30, 3), 120, np.uint8)
    c1 = (0.01 * 255) ** 2
    assert picture.ssim(a, b) == pytest.approx((2 * 100 * 120 + c1) / (100**2 + 120**2 + c1), abs=1e-5)


def test_psnr_and_ssim_of_another_implementation(faces: np.ndarray):
    metrics = pytest.importorskip("skimage.metrics")
    for a, b in ((faces[0], faces[7]), (faces[3], damage.blurred(faces, 2.0)[3]), (noise(50, 70), noise(50, 70, 1))):
        settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
        theirs = metrics.structural_similarity(a, b, channel_axis=2, data_range=255, **settings)
        assert picture.ssim(a, b) == pytest.approx(theirs, abs=2e-5)
        assert picture.psnr(a, b) == pytest.approx(metrics.peak_signal_noise_ratio(a, b, data_range=255), abs=1e-3)


@pytest.mark.parametrize("place", [(0, 0), (0, 30), (59, 79), (30, 40), (3, 77), (20, 0)])
def test_ssim_of_pictures_that_differ_in_places_is_that_of_the_whole(place: tuple[int, int]):
    """Only the surroundings of what differs are computed."""
    a = noise(60, 80)
    b = a.copy()
    b[place[0] : place[0] + 4, place[1] : place[1] + 3] ^= 255
    rim = 5
    full = picture._similarity(a, b)[rim:-rim, rim:-rim]
    assert full.min() < 0.999999
    assert picture.ssim(a, b) == pytest.approx(full.mean(), abs=1e-6)
    metrics = pytest.importorskip("skimage.metrics")
    theirs = metrics.structural_similarity(a, b, channel_axis=2, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False)
    assert picture.ssim(a, b) == pytest.approx(theirs, abs=2e-5)


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(UsageError, match="these are 20 x 30 and 30 x 20"):
        picture.psnr(noise(30, 20), noise(20, 30))
    with pytest.raises(UsageError, match="11 x 11 pixels at least, found 9 x 40"):
        picture.ssim(noise(40, 9), noise(40, 9))


DOSES: list[tuple[Callable[[np.ndarray, float], np.ndarray], tuple[float, ...]]] = [
    (damage.blurred, (0.0, 1.0, 2.0, 4.0)),
    (damage.off, (0.0, 0.5, 1.0, 2.0)),
    (damage.flickering, (0.0, 2.0, 6.0)),
    (damage.seamed, (0.0, 4.0, 12.0)),
    (damage.frozen, (0.0, 0.5, 1.0)),
]


@pytest.mark.parametrize(("harm", "doses"), DOSES)
def test_more_damage_is_less_like(faces: np.ndarray, harm: Callable[[np.ndarray, float], np.ndarray], doses: tuple[float, ...]):
    faces = faces[:6]
    inside = regions.generated(faces.shape[1])
    rows = []
    for dose in doses:
        like = picture.Likeness()
        for made, true in zip(harm(faces, dose), faces, strict=True):
            like.add("face", made, true)
            like.add("mouth", made, true, inside)
        rows.append(like.values())
    assert rows[0] == pytest.approx({"psnr_face": 100, "psnr_mouth": 100, "ssim_face": 1, "ssim_mouth": 1}, abs=1e-6)
    for key in rows[0]:
        values = [row[key] for row in rows]
        assert values == sorted(values, reverse=True), key
        if key != "ssim_face" and harm not in (damage.flickering, damage.seamed):  # light hardly counts there
            assert values[-1] < values[0] - 0.01, key
    assert all(row["psnr_mouth"] < row["psnr_face"] for row in rows[1:])  # all of the damage lies there


def test_frames_that_cannot_be_judged_do_not_count():
    mean = picture.Mean()
    assert np.isnan(mean.value)
    for value in (1.0, float("nan"), 3.0):
        mean.add(value)
    assert mean.value == 2
    assert picture.Likeness().values() == {}


# --- outside


def test_one_changed_pixel_outside_is_found():
    source = noise(50, 60)
    touched = np.zeros((50, 60), bool)
    touched[20:40, 20:40] = True
    result = source.copy()
    result[20:40, 20:40] = 0
    found = picture.Outside()
    found.add(source, result, touched)
    assert found.values() == {"outside_max": 0, "outside_share": 0}
    result[0, 0, 1] ^= 64
    result[49, 59, 2] ^= 1
    found.add(source, result, touched)
    assert found.values() == {"outside_max": 64, "outside_share": 2 / (2 * (50 * 60 - 400))}
    tolerant = picture.Outside(tolerance=2)
    tolerant.add(source, result, touched)
    assert tolerant.values() == {"outside_max": 64, "outside_share": 1 / (50 * 60 - 400)}
    assert picture.Outside().values() == {}


# --- LPIPS


class Squares(torch.nn.Module):
    """Half the mean squared difference, and how it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.nothing = torch.nn.Parameter(torch.zeros(1))
        self.asked: list[tuple[int, ...]] = []

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        assert -1 <= a.min() <= a.max() <= 1
        self.asked.append(tuple(a.shape))
        return (a - b).square().mean(dim=(1, 2, 3)) / 2


def test_faces_go_through_the_network_together_and_whole_and_half(faces: np.ndarray):
    net, (made, true) = Squares(), (damage.flickering(faces, 5.0), faces)
    found = picture.Perceptual(net)
    assert found.values() == {}
    for a, b in zip(made, true, strict=True):
        found.add(a, b)
    values = found.values()
    assert net.asked == [(8, 3, 128, 128), (8, 3, 64, 128)] * 2 + [(4, 3, 128, 128), (4, 3, 64, 128)]
    apart = (made.astype(np.float64) - true) / 127.5
    assert values["lpips_face"] == pytest.approx((apart**2).mean() / 2, rel=1e-5)
    assert values["lpips_mouth"] == pytest.approx((apart[:, 64:] ** 2).mean() / 2, rel=1e-5)
    equal = picture.Perceptual(net)
    equal.add(true[0], true[0])
    assert equal.values() == {"lpips_face": 0, "lpips_mouth": 0}


def test_missing_weights_of_lpips_say_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.delenv("LATENTSYNC_WEIGHTS_PATH", raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsError, match=r"judging footage needs VGG16.*latentsync models download evaluation \(0\.70 GB in all\)"):
        picture.load_lpips(tmp_path)
