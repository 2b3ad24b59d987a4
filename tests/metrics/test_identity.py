"""Identity: a cosine, with any recogniser; what InsightFace's is given, and what is said without it."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from latentsync.errors import InputError, LatentSyncError
from latentsync.metrics import identity
from tests.metrics import damage
from tests.metrics.conftest import rendered


class Thumbnail:
    """A poor recogniser: the portrait's own pixels, small, less their mean."""

    name = "thumbnail"

    def embed(self, face: np.ndarray) -> np.ndarray:
        small = identity.portrait(face).reshape(16, 7, 16, 7, 3).mean(axis=(1, 3, 4)).ravel()
        return small - small.mean()


def test_cosines_of_known_vectors():
    assert identity.cosine(np.array([1.0, 0]), np.array([3.0, 3.0])) == pytest.approx(0.5**0.5)
    assert identity.cosine(np.array([1.0, 0]), np.array([-2.0, 0])) == -1
    assert identity.cosine(np.zeros(2), np.ones(2)) == 0


def test_the_same_face_has_one_and_another_person_has_less(corpus: Path):
    mine, other = rendered(corpus, 2080, 4), rendered(corpus, 2081, 4)
    found = [identity.identity(Thumbnail(), made, mine) for made in (mine, damage.blurred(mine, 2.0), damage.blurred(mine, 8.0), other)]
    assert found[0] == pytest.approx(1)
    assert found == sorted(found, reverse=True)
    assert found[3] < 0.9
    with pytest.raises(InputError, match="no face"):
        identity.identity(Thumbnail(), [], [])


def test_the_portrait_is_not_squeezed_and_its_points_are_where_they_are_wanted():
    """A crop of 256 x 256 shows a field of 75 x 100: a disc, squeezed as crops are, is round again, and lies where ArcFace wants an eye."""
    x, y = identity._FOUND[0]
    across, down = (np.arange(256) + 0.5) / 256 * 210 - 0.5, (np.arange(256) + 0.5) / 256 * 280 - 0.5
    inside = (across[None] - x) ** 2 + (down[:, None] - y) ** 2 < 20**2
    found = identity.portrait(np.repeat(inside[..., None] * np.uint8(255), 3, axis=2))[..., 0] / 255.0
    rows, columns = np.nonzero(found > 0.5)
    assert np.mean(columns) == pytest.approx(identity._WANTED[0][0], abs=1.5)
    assert np.mean(rows) == pytest.approx(identity._WANTED[0][1], abs=1.5)
    assert np.ptp(columns) == pytest.approx(np.ptp(rows), abs=1.5)


def test_without_the_recogniser_that_is_said(tmp_path: Path):
    identity.load_identity.cache_clear()
    wanted = "pip install 'latentsync.insightface.'" if find_spec("insightface") is None else "take it from the buffalo_l pack"
    with pytest.raises(LatentSyncError, match=wanted):
        identity.load_identity(tmp_path)
