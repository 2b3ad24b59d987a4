"""Flicker, seam and jitter: planted in doses, found in order, and nothing where nothing is wrong."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from latentsync.metrics import temporal
from tests.metrics import damage
from tests.metrics.conftest import texture

Harm = Callable[[np.ndarray, float], np.ndarray]


def flicker(made: np.ndarray, true: np.ndarray | None = None) -> temporal.Flicker:
    out = temporal.Flicker()
    for i, face in enumerate(made):
        out.add(face, None if true is None else true[i])
    return out


def seam(made: np.ndarray, source: np.ndarray) -> dict[str, float]:
    out = temporal.Seam()
    for a, b in zip(made, source, strict=True):
        out.add(a, b)
    return out.values()


def jitter(made: np.ndarray, source: np.ndarray) -> dict[str, float]:
    out = temporal.Jitter()
    for a, b in zip(made, source, strict=True):
        out.add(a, b)
    return out.values()


# --- flicker


def test_noise_from_frame_to_frame_is_measured_in_its_own_levels():
    rng = np.random.default_rng(0)
    for level in (1.0, 2.5):
        faces = np.clip(128 + rng.normal(0, level, (12, 1, 1, 1)) + np.zeros((12, 64, 64, 3)), 0, 255)  # the whole picture at once: blur keeps it
        faces += rng.uniform(-0.5, 0.5, faces.shape)  # so that rounding does not bias
        spread = np.diff(faces.mean(axis=(1, 2, 3)), 2) / 6**0.5
        found = flicker(np.round(faces).astype(np.uint8)).values()["flicker"]
        assert found == pytest.approx(1.4826 * np.sqrt((spread**2).mean()), abs=0.15)


def test_what_moves_or_brightens_steadily_does_not_flicker():
    fade = np.stack([np.full((64, 64, 3), 60 + 5 * i, np.uint8) for i in range(12)])
    assert flicker(fade).values() == pytest.approx({"flicker": 0.0}, abs=1e-4)


@pytest.mark.parametrize("with_truth", [False, True])
def test_more_flicker_is_more(faces: np.ndarray, with_truth: bool):
    key = "flicker_excess" if with_truth else "flicker"
    found = [flicker(damage.flickering(faces, dose), faces if with_truth else None).values() for dose in (0.0, 0.5, 1.0, 3.0)]
    values = [row[key] for row in found]
    assert values == sorted(values)
    assert values[3] > values[1] + 2
    if with_truth:
        assert values[0] == 0
    else:
        assert "flicker_excess" not in found[0]
        assert values[0] < 2


def test_a_mouth_that_stands_still_has_less_than_the_true_one(faces: np.ndarray):
    moving = damage.flickering(faces, 0.5)  # the drawn face is too smooth to have any
    found = flicker(damage.frozen(moving), moving).values()
    assert found["flicker"] < 0.3 * flicker(moving).values()["flicker"]
    assert found["flicker_excess"] < -0.3


def test_each_second_has_its_own(faces: np.ndarray):
    bad = np.concatenate([faces[:10], damage.flickering(faces[10:], 5.0)])
    curve = flicker(bad).curve(fps=10)
    assert len(curve) == 2
    assert curve[1] > 2 * curve[0]


def test_frames_are_not_compared_across_a_gap():
    torn, whole = temporal.Flicker(), temporal.Flicker()
    for level in (50, 50, 50, None, 200, 200, 200):
        if level is None:
            whole.gap()
        else:
            torn.add(np.full((64, 64, 3), level, np.uint8))
            whole.add(np.full((64, 64, 3), level, np.uint8))
    assert torn.values()["flicker"] > 10
    assert whole.values() == pytest.approx({"flicker": 0.0}, abs=1e-4)
    assert temporal.Flicker().values() == {}
    assert temporal.Flicker().curve() == ()


# --- seam


@pytest.mark.parametrize("step", [-6.0, 3.0, 12.0])
def test_a_step_across_the_edge_is_measured_in_levels(step: float):
    """On a face without any texture, and with a slope of light across it."""
    slope = np.linspace(90, 150, 128)[None, None, :, None] + np.zeros((3, 128, 128, 3))
    plain = np.round(slope).astype(np.uint8)
    found = seam(damage.seamed(plain, step), plain)
    assert found["seam"] == pytest.approx(abs(step), abs=0.6)
    assert found["seam_step"] == pytest.approx(abs(step), abs=0.2)
    assert seam(plain, plain) == pytest.approx({"seam": 0, "seam_step": 0}, abs=0.5)


def test_a_mask_that_shows_more_has_more(faces: np.ndarray):
    faces = faces[:8]
    found = [seam(damage.seamed(faces, dose), faces) for dose in (0.0, 3.0, 8.0, 16.0)]
    assert found[0]["seam_step"] == 0
    for key in ("seam", "seam_step"):
        values = [row[key] for row in found]
        assert values[1:] == sorted(values[1:])
        assert values[3] > values[0] + 6
    assert found[0]["seam"] < 7
    soft = seam(damage.pasted(faces, faces + 8.0), faces)  # the ramp that the paste makes of it shows less
    assert soft["seam_step"] < found[2]["seam_step"]


def test_a_seam_of_opposite_signs_on_both_sides_does_not_cancel():
    plain = np.full((2, 256, 256, 3), 120, np.uint8)
    uneven = damage.pasted(plain, plain + np.linspace(-10, 10, 256)[None, None, :, None], hard=True)
    assert seam(uneven, plain)["seam"] > 4


def test_where_the_crop_leaves_the_frame_there_is_no_seam():
    face = np.full((2, 256, 256, 3), 60, np.uint8)
    face[:, :, :10] = 127  # as alignment fills it: the mask begins at column 9
    assert seam(face, face)["seam"] == pytest.approx(0, abs=0.5)
    nowhere = np.full((1, 64, 64, 3), 127, np.uint8)
    assert seam(nowhere, nowhere) == {"seam_step": 0.0}


def test_the_same_seam_is_found_at_every_size():
    for side in (96, 256, 512):
        plain = np.full((1, side, side, 3), 120, np.uint8)
        assert seam(damage.seamed(plain, 8.0), plain)["seam"] == pytest.approx(8, abs=0.8)


# --- jitter


@pytest.mark.parametrize("by", [(0.25, 0.0), (1.0, 0.0), (-0.6, 0.8), (2.0, -1.0)])
def test_where_the_cheeks_lie_is_found_to_a_fraction_of_a_pixel(by: tuple[float, float]):
    still = texture(256, 2)
    found = temporal.displacement(np.round(damage.moved(still, *by)).astype(np.uint8), np.round(still).astype(np.uint8))
    np.testing.assert_allclose(found, by, atol=0.06)


def test_brightness_is_no_movement_and_without_texture_nothing_is_said():
    still = np.round(texture(128, 2)).astype(np.uint8)
    np.testing.assert_allclose(temporal.displacement(np.minimum(still, 245) + np.uint8(10), np.minimum(still, 245)), 0, atol=1e-3)
    plain = np.full((128, 128, 3), 90, np.uint8)
    assert temporal.displacement(plain, plain) is None
    assert jitter(plain[None], plain[None]) == {}


def test_a_face_pasted_one_pixel_off_has_an_offset_and_no_jitter(faces: np.ndarray):
    scale = 256 / faces.shape[1]
    found = [jitter(damage.off(faces, dose / scale), faces) for dose in (0.0, 0.5, 1.0, 2.0)]
    assert found[0] == pytest.approx({"jitter": 0, "paste_offset": 0}, abs=1e-6)
    values = [row["paste_offset"] for row in found]
    assert values[1:] == pytest.approx([0.5, 1.0, 2.0], rel=0.25)
    assert all(row["jitter"] < 0.15 for row in found)


def test_a_face_that_trembles_more_has_more_jitter(faces: np.ndarray):
    scale = 256 / faces.shape[1]
    values = [jitter(damage.trembling(faces, dose / scale), faces)["jitter"] for dose in (0.0, 0.25, 0.5, 1.0)]
    assert values[0] == pytest.approx(0, abs=1e-6)
    assert values == sorted(values)
    assert values[2] == pytest.approx(0.5 * 2**0.5, rel=0.35)  # two directions


def shaded(faces: np.ndarray, dose: float) -> np.ndarray:
    """Other light: darker on one side, brighter on the other."""
    return damage.pasted(faces, faces + np.linspace(-3, 3, faces.shape[2])[None, None, :, None] * dose)


@pytest.mark.parametrize("harm", [damage.flickering, damage.seamed, shaded])
def test_other_damage_is_no_jitter(faces: np.ndarray, harm: Harm):
    found = jitter(harm(faces, 3.0), faces)
    assert found["jitter"] < 0.2
    assert found["paste_offset"] < 0.2


def test_jitter_forgets_across_a_gap():
    still = np.round(texture(128, 2)).astype(np.uint8)
    aside = np.round(damage.moved(texture(128, 2), 1.0, 0)).astype(np.uint8)
    out = temporal.Jitter()
    out.add(still, still)
    out.gap()
    out.add(aside, still)
    assert "jitter" not in out.values()
    assert out.values()["paste_offset"] == pytest.approx(1.0, abs=0.1)  # half of the frames, 2 px at 256
