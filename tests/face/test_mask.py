"""The inpainting mask, drawn from its outline."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from latentsync.errors import LatentSyncError
from latentsync.face.mask import inpaint_mask, latent_mask, resized_mask


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of the inpainted parts."""
    return float(((a < 0.5) & (b < 0.5)).sum() / ((a < 0.5) | (b < 0.5)).sum())


def test_keeps_eyes_and_nose_and_inpaints_mouth_and_cheeks():
    mask = inpaint_mask(256)
    assert mask.shape == (256, 256)
    assert mask.dtype == np.float32
    assert set(np.unique(mask)) == {0.0, 1.0}
    assert mask[60, 128] == 1  # eyes
    assert mask[110, 128] == 1  # nose
    assert mask[180, 128] == 0  # mouth
    assert mask[120, 30] == 0  # cheeks
    assert mask[120, 220] == 0
    assert (mask == 0).mean() == pytest.approx(0.407, abs=0.002)


@pytest.mark.parametrize("resolution", [128, 512, 1024])
def test_has_one_shape_at_every_resolution(resolution):
    mask = inpaint_mask(resolution)
    assert (1 - mask).mean() == pytest.approx((1 - inpaint_mask(256)).mean(), abs=0.002)
    assert overlap(cv2.resize(mask, (256, 256), interpolation=cv2.INTER_AREA), inpaint_mask(256)) > 0.98


def test_the_edge_is_soft_at_512_and_hard_at_256():
    edge = (inpaint_mask(512) > 0.02) & (inpaint_mask(512) < 0.98)
    assert 0 < edge.mean() < 0.03
    assert set(np.unique(inpaint_mask(512, soft=False))) == {0.0, 1.0}
    assert overlap(inpaint_mask(512), inpaint_mask(512, soft=False)) > 0.999
    row = inpaint_mask(512)[260:330, 256]  # straight edge under the nose... from 0 to 1 without ringing
    assert ((row >= 0) & (row <= 1)).all()


def test_masks_are_shared_and_read_only():
    assert inpaint_mask(256) is inpaint_mask(256)
    with pytest.raises(ValueError):
        inpaint_mask(256)[0, 0] = 0


def test_latent_mask_takes_the_first_pixel_of_each_cell():
    assert latent_mask(256).shape == (32, 32)
    assert np.array_equal(latent_mask(256), inpaint_mask(256)[::8, ::8])
    assert np.array_equal(latent_mask(512), resized_mask(512)[::8, ::8])  # what the network was trained with, not the softened edge


def test_a_resolution_too_small_is_refused():
    with pytest.raises(LatentSyncError):
        inpaint_mask(0)


def test_golden_geometry(golden: Path):
    facts = json.loads((golden / "f_mask_geometry.json").read_text())["mask"]
    mask = inpaint_mask(256)
    polygon = np.array(facts["regions_below_128"][0]["poly_eps1"], np.int32)
    drawn = np.ones((256, 256), np.uint8)
    cv2.fillPoly(drawn, [polygon], 0)
    assert overlap(mask, drawn) >= 0.99  # whole-pixel corners: the drawing itself is only this close to the mask
    ys, xs = np.nonzero(mask < 0.5)
    assert np.abs(np.array([xs.min(), ys.min(), xs.max(), ys.max()]) - facts["black_bbox_xyxy"]).max() <= 1
    assert (mask < 0.5).mean() == pytest.approx(facts["black_fraction"], abs=1e-3)


@pytest.mark.parametrize("resolution", [256, 512])
def test_golden_pictures(golden: Path, resolution: int):
    path = golden / f"f_mask_{resolution}.png"
    if not path.exists():
        pytest.skip(f"no picture {path.name} among the golden files")
    expected = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) / 255
    assert overlap(inpaint_mask(resolution), expected) >= 0.995
    assert overlap(resized_mask(resolution), expected) >= 0.995


@pytest.mark.parametrize("size", [32, 64])
def test_golden_latent_masks(golden: Path, size: int):
    path = golden / f"f_mask_latent_{size}.npz"
    if not path.exists():
        pytest.skip(f"no {path.name} among the golden files")
    expected = np.load(path)["latent"]
    got = latent_mask(size * 8)
    if size == 32:
        assert np.array_equal(got, expected)
    else:
        assert ((got < 0.5) != (expected < 0.5)).mean() < 0.001
        assert (np.abs(got - expected) > 0.02).mean() < 0.003  # cells where the drawn outline and the published picture part by a pixel
