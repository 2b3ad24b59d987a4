"""Pasting back: round trips and invariances first, then the published system's pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from latentsync.errors import LatentSyncError
from latentsync.face.align import crop, crop_size, invert
from latentsync.face.mask import inpaint_mask
from latentsync.face.paste import Patch, paste

from .test_align import Pixels, similarity, waves


def composed(frame: np.ndarray, patch: Patch) -> np.ndarray:
    """float32 frame with the patch blended in."""
    out = frame.astype(np.float32)
    x0, y0, x1, y1 = patch.box
    alpha = patch.alpha[..., None]
    out[y0:y1, x0:x1] = out[y0:y1, x0:x1] * (1 - alpha) + patch.rgb * alpha
    return out


def soft_mask_by_definition(matrix: np.ndarray, resolution: int, width: int, height: int) -> np.ndarray:
    """Warp ones over the whole frame, erode and blur: slow and plain."""
    field = crop_size(resolution)
    ones = cv2.warpAffine(np.ones(field[::-1], np.float32), matrix, (width, height), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    ones = cv2.erode(ones, np.ones((2, 2)), anchor=(1, 1))
    w = int(np.sqrt(ones.sum())) // 20
    ones = cv2.erode(ones, np.ones((2 * w, 2 * w)), anchor=(w, w))
    return cv2.GaussianBlur(ones, (2 * w + 1, 2 * w + 1), 0.3 * (w - 1) + 0.8)


def full(patch: Patch, width: int, height: int) -> np.ndarray:
    out = np.zeros((height, width), np.float32)
    x0, y0, x1, y1 = patch.box
    out[y0:y1, x0:x1] = patch.alpha
    return out


@pytest.mark.parametrize("seed", range(6))
def test_an_unchanged_crop_gives_the_frame_back(seed):
    rng = np.random.default_rng(seed)
    frame = waves(700, 900, period=60)
    matrix = invert(similarity(rng.uniform(0.6, 1.4), rng.uniform(-25, 25), *rng.uniform(200, 280, 2)))
    face = crop(Pixels(frame), matrix, 256).astype(np.float32)
    patch = paste(face, matrix, 900, 700)
    assert patch.box[2] - patch.box[0] > 50
    assert patch.alpha.min() >= 0
    assert patch.alpha.max() <= 1
    assert patch.rgb.dtype == patch.alpha.dtype == np.float32
    difference = np.abs(composed(frame, patch) - frame)
    assert difference.max() < 4
    assert difference.mean() < 0.5
    outside = np.ones(frame.shape[:2], bool)
    outside[patch.box[1] : patch.box[3], patch.box[0] : patch.box[2]] = False
    assert (difference[outside] == 0).all()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("mask", [None, inpaint_mask(256)])
def test_the_box_is_the_smallest(seed, mask):
    rng = np.random.default_rng(seed)
    matrix = invert(similarity(rng.uniform(0.2, 1.5), rng.uniform(-180, 180), *rng.uniform(-50, 500, 2)))
    patch = paste(np.zeros((256, 256, 3), np.float32), matrix, 640, 480, mask=mask)
    assert patch.alpha.shape == patch.rgb.shape[:2] == (patch.box[3] - patch.box[1], patch.box[2] - patch.box[0])
    if patch.alpha.size:
        for side in (patch.alpha[0], patch.alpha[-1], patch.alpha[:, 0], patch.alpha[:, -1]):
            assert side.max() > 0


@pytest.mark.parametrize(("scale", "degrees", "x", "y"), [(0.3, 12, 200, 100), (1.0, 0, 300, 200), (1.7, -40, 150, 420), (0.9, 170, 520, 500)])
def test_the_soft_mask_is_the_published_one(scale, degrees, x, y):
    matrix = invert(similarity(scale, degrees, x, y))
    patch = paste(np.zeros((256, 256, 3), np.float32), matrix, 1000, 800)
    difference = np.abs(full(patch, 1000, 800) - soft_mask_by_definition(matrix, 256, 1000, 800))
    assert (difference > 1 / 255).mean() < 1e-4
    assert difference.max() < 0.05


@pytest.mark.parametrize(("x", "y"), [(-100, 200), (650, 300), (300, -150), (300, 550)])
def test_the_soft_mask_reaches_the_edge_of_the_frame(x, y):
    matrix = invert(similarity(1.0, 20, x, y))
    patch = paste(np.zeros((256, 256, 3), np.float32), matrix, 800, 700)
    difference = np.abs(full(patch, 800, 700) - soft_mask_by_definition(matrix, 256, 800, 700))
    assert (difference > 1 / 255).mean() < 1e-4
    alpha = full(patch, 800, 700)
    assert max(alpha[0].max(), alpha[-1].max(), alpha[:, 0].max(), alpha[:, -1].max()) == pytest.approx(1, abs=1e-6)


def test_a_close_up_has_the_same_soft_mask_though_computed_coarsely():
    matrix = invert(similarity(4.5, 17, 900, 300))
    patch = paste(np.zeros((256, 256, 3), np.float32), matrix, 3000, 2100)
    difference = np.abs(full(patch, 3000, 2100) - soft_mask_by_definition(matrix, 256, 3000, 2100))
    assert difference.max() < 2 / 255


def test_the_frame_around_the_face_does_not_matter():
    face = waves(256, 256).astype(np.float32)
    matrix = invert(similarity(0.9, 10, 500, 300))
    shifted = matrix.copy()
    shifted[:, 2] -= matrix[:, :2] @ (1700, 900)
    for mask in (None, inpaint_mask(256)):
        small, large = paste(face, matrix, 1920, 1080, mask=mask), paste(face, shifted, 3840, 2160, mask=mask)
        assert np.array_equal(np.array(small.box) + np.array([1700, 900, 1700, 900]), large.box)
        assert np.abs(small.alpha - large.alpha).max() < 1e-3
        assert np.abs(small.rgb - large.rgb).max() < 0.1


def test_strength_scales_alpha():
    face = waves(256, 256).astype(np.float32)
    matrix = invert(similarity(0.9, 10, 300, 200))
    whole, half = paste(face, matrix, 900, 700), paste(face, matrix, 900, 700, 0.5)
    assert whole.box == half.box
    assert np.allclose(half.alpha, whole.alpha / 2)
    assert np.array_equal(half.rgb, whole.rgb)
    assert paste(face, matrix, 900, 700, 0.0).alpha.size == 0


def test_with_a_mask_only_the_generated_part_is_touched():
    frame = waves(700, 900, period=60)
    matrix = invert(similarity(1.1, 8, 300, 200))
    mask = inpaint_mask(256)
    face = np.where(mask[..., None] > 0.5, crop(Pixels(frame), matrix, 256), 0).astype(np.float32)
    patch = paste(face, matrix, 900, 700, mask=mask)
    alpha = full(patch, 900, 700)
    width, height = crop_size(256)

    def at(x: float, y: float) -> float:  # a point of the 256 x 256 face
        u, v = (x + 0.5) * width / 256 - 0.5, (y + 0.5) * height / 256 - 0.5
        px, py = np.rint(invert(matrix) @ (u, v, 1)).astype(int)
        return float(alpha[py, px])

    assert at(128, 60) == at(128, 110) == at(60, 85) == 0  # eyes, nose
    assert at(128, 170) == pytest.approx(1, abs=1e-5)  # mouth
    assert 0.02 < at(128, 132) < 0.98  # the rim
    assert full(paste(face, matrix, 900, 700), 900, 700)[alpha > 0].min() > 0
    rows = np.abs(np.diff(alpha, axis=0)).max(), np.abs(np.diff(alpha, axis=1)).max()
    assert max(rows) < 0.25  # no step


@pytest.mark.parametrize(("x", "y"), [(-5000, 0), (5000, 0), (0, -5000), (0, 1e9)])
def test_a_face_outside_the_frame_gives_an_empty_patch(x, y):
    patch = paste(np.zeros((64, 64, 3), np.float32), invert(similarity(1, 0, x, y)), 640, 480)
    assert patch.box == (0, 0, 0, 0)
    assert patch.rgb.shape == (0, 0, 3)
    assert patch.alpha.shape == (0, 0)


@pytest.mark.parametrize("scale", [1e-5, 0.003, 0.01, 0.05, 30.0, 1e4])
@pytest.mark.parametrize("published", [False, True])
def test_tiny_and_huge_faces(scale, published):
    patch = paste(waves(128, 128).astype(np.float32), invert(similarity(scale, 30, 60, 40)), 160, 120, published=published)
    assert np.isfinite(patch.rgb).all()
    assert np.isfinite(patch.alpha).all()
    assert ((patch.alpha >= 0) & (patch.alpha <= 1)).all()


def test_arguments_that_do_not_fit_are_refused():
    face = np.zeros((64, 64, 3), np.float32)
    with pytest.raises(LatentSyncError):
        paste(face, [[1, 2, 3], [2, 4, 6]], 640, 480)
    with pytest.raises(LatentSyncError):
        paste(face[:32], np.eye(3)[:2], 640, 480)
    with pytest.raises(LatentSyncError):
        paste(face, np.eye(3)[:2], 640, 480, mask=np.zeros((32, 32), np.float32))


def test_the_arguments_are_left_alone():
    matrix = invert(similarity(1.0, 20, 100, 100))
    face, before = waves(64, 64).astype(np.float32), matrix.copy()
    kept = face.copy()
    paste(face, matrix, 640, 480, mask=inpaint_mask(64))
    assert np.array_equal(matrix, before)
    assert np.array_equal(face, kept)


def test_a_small_face_does_not_skip_pixels():
    checks = (np.indices((256, 256)).sum(0) % 2 * 255).astype(np.float32)
    face = np.repeat(checks[..., None], 3, 2)
    patch = paste(face, invert(similarity(0.2, 5, 100, 100)), 400, 400)
    assert np.abs(patch.rgb[patch.alpha > 0.5] - 127.5).max() < 8


def test_golden_frames(golden: Path, goldenlib: Any):
    if not (golden / "e_frame.png").exists():
        pytest.skip("no picture e_frame.png among the golden files")
    frame = np.ascontiguousarray(cv2.imread(str(golden / "e_frame.png"))[..., ::-1])
    height, width = frame.shape[:2]
    geometry = json.loads((golden / "e_geometry.json").read_text())
    names = [n for n in geometry if n.endswith("_fp32") and isinstance(geometry[n], dict) and "M" in geometry[n]]
    assert names
    for name in names:
        resolution = int(name.split("_")[0])
        y0, x0, y1, x1 = geometry[name]["restored_png_roi_y0x0y1x1"]
        expected = frame.copy()
        expected[y0:y1, x0:x1] = cv2.imread(str(golden / f"e_restored_{name}.png"))[..., ::-1]
        face = (goldenlib.smooth_image(resolution, resolution, 411).transpose(1, 2, 0) / 2 + 0.5) * 255
        matrix = np.array(geometry[name]["M"]).reshape(2, 3)
        for published in (True, False):
            patch = paste(face, matrix, width, height, published=published)
            off = np.abs(np.rint(composed(frame, patch)) - expected).max(2)
            assert (off <= 1).mean() >= 0.999, (name, published)
            if published:
                assert (off[y0:y1, x0:x1] <= 1).mean() >= 0.999, name
            else:
                assert off.max() <= 4, name
        ys, xs = np.nonzero((expected != frame).any(2))
        box = paste(face, matrix, width, height).box
        assert np.abs(np.array(box) - [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]).max() <= 1


def test_golden_pipeline(golden: Path):
    cases = sorted(golden.glob("g_pipeline_*.npz"))
    if not cases:
        pytest.skip("no g_pipeline_*.npz among the golden files")
    for path in cases:
        case = np.load(path)
        if not {"affine", "in_frames", "faces", "out_frames"} <= set(case.files):
            continue
        affine, frames, faces, out = case["affine"], case["in_frames"], case["faces"], case["out_frames"]
        bounce = [*range(len(frames)), *reversed(range(len(frames)))]
        sources = [frames[bounce[i % len(bounce)]] for i in range(len(affine))]
        for source, matrix, face in zip(sources, affine, faces, strict=True):
            got = crop(Pixels(source), matrix, face.shape[-1])
            assert (np.abs(got.astype(int) - face.transpose(1, 2, 0)).max(2) <= 1).mean() >= 0.999
        first = 0
        while f"w{first // 16}.pasted_first_last" in case.files:
            last = min(first + 16, len(affine)) - 1
            for i, pasted in zip((first, last), case[f"w{first // 16}.pasted_first_last"], strict=True):
                face = (pasted.transpose(1, 2, 0) / 2 + 0.5) * 255
                patch = paste(face, affine[i], frames.shape[2], frames.shape[1], published=True)
                assert (np.abs(np.rint(composed(sources[i], patch)) - out[i]).max(2) <= 1).mean() >= 0.999
            first += 16
