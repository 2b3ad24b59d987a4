"""Frechet distances against formulas, published numbers, another implementation and planted damage; where the networks behind them come from."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import scipy.linalg
import torch

from latentsync.errors import UsageError, WeightsError
from latentsync.metrics import frechet
from latentsync.metrics.frechet import Gaussian, frechet_distance
from latentsync.weights import releases
from tests.metrics import damage


def seen(*batches: np.ndarray) -> Gaussian:
    out = Gaussian()
    for batch in batches:
        out.add(batch)
    return out


def drawn(n: int, d: int, seed: int, spread: float = 1.0, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(shift, spread, (n, d))


# --- formulas


def test_batches_give_the_mean_and_covariance_of_the_whole():
    x = drawn(57, 7, 0, 3.0, 100.0)
    one, other = seen(x[:1], x[1:20]), seen(torch.from_numpy(x[20:]))
    one.merge(other)
    one.merge(Gaussian())
    assert one.n == 57
    np.testing.assert_allclose(one.mean, x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(one.covariance, np.cov(x.T), rtol=1e-9)
    np.testing.assert_allclose(other.covariance, np.cov(x[20:].T), rtol=1e-9)  # as it was


def test_distance_of_gaussians_without_correlation():
    """Then it is the sum over the numbers of (difference of means)^2 + (difference of standard deviations)^2."""
    corners = np.array([[1.0, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]])  # covariance 0.4 I
    a, b = corners * [1.0, 2.0, 3.0], corners * [2.0, 2.0, 0.5] + [1.0, 0.0, -2.0]
    expected = 1 + 4 + 0.4 * (1 + 0 + 2.5**2)
    assert frechet_distance(seen(a), seen(b)) == pytest.approx(expected, rel=1e-12)
    assert frechet_distance(seen(b), seen(a)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("n", [3, 10, 200])
def test_equal_sets_have_no_distance(n: int):
    x = drawn(n, 40, 1, 5.0)
    assert frechet_distance(seen(x), seen(x[::-1])) == pytest.approx(0, abs=1e-9)


def test_published_numbers(golden: Path, goldenlib: ModuleType):
    truth = json.loads((golden / "i_fvd.json").read_text())
    made = goldenlib.u((64, 20), truth["seed"], "fvd:fake").astype(np.float64)
    real = 1.3 * goldenlib.u((48, 20), truth["seed"], "fvd:real").astype(np.float64) + 0.2
    assert frechet_distance(seen(made[:30], made[30:]), seen(real)) == pytest.approx(truth["fvd"], rel=1e-9)
    # ten of each, fewer than the 20 numbers: singular, where the square root of the product loses digits; hence not 1e-9
    assert frechet_distance(seen(made[:10]), seen(real[:10])) == pytest.approx(truth["fvd_few"], rel=1e-5)


@pytest.mark.parametrize(("n", "m"), [(300, 200), (60, 90)])
def test_the_square_root_of_the_product_says_the_same(n: int, m: int):
    mix = np.random.default_rng(9).normal(0, 1, (30, 30))
    a, b = drawn(n, 30, 2) @ mix, drawn(m, 30, 3, 1.4, 0.3) @ mix.T
    root = scipy.linalg.sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
    assert frechet_distance(seen(a), seen(b)) == pytest.approx(expected, rel=1e-8)


def test_few_samples_of_one_kind_lie_apart_and_that_is_said():
    """Between two halves of one distribution the true distance is 0; what is found falls with their size."""
    found = [frechet_distance(seen(drawn(n, 50, 4)), seen(drawn(n, 50, 5))) for n in (5, 20, 100, 1000)]
    assert found == sorted(found, reverse=True)
    assert found[0] > 50
    assert found[1] > 10 * found[3]
    assert frechet.too_few(2048, "fid") == frechet.too_few(400, "fvd") == ""
    assert "FVD from 12 clips of 16 frames: fewer than 400" in frechet.too_few(12, "fvd")
    assert "FID from 2047 faces" in frechet.too_few(2047, "fid")


def test_what_does_not_fit_is_refused():
    with pytest.raises(UsageError, match="two samples at least, there are 1"):
        frechet_distance(seen(drawn(1, 3, 0)), seen(drawn(4, 3, 0)))
    with pytest.raises(UsageError, match="have 3 and 4 numbers"):
        frechet_distance(seen(drawn(9, 3, 0)), seen(drawn(9, 4, 0)))
    with pytest.raises(UsageError, match="have 3 and 4 numbers"):
        seen(drawn(9, 3, 0), drawn(9, 4, 0))
    with pytest.raises(UsageError, match=r"come as \(n, d\)"):
        Gaussian().add(np.zeros(3))


# --- pictures


class Details(torch.nn.Module):
    """Means of what random small filters find: a stand-in for Inception that needs no weights."""

    def __init__(self) -> None:
        super().__init__()
        self.filters = torch.nn.Conv2d(3, 12, 5, stride=2)
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            self.filters.weight.copy_(torch.randn(self.filters.weight.shape, generator=generator))
            self.filters.bias.zero_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert 0 <= x.min() <= x.max() <= 1
        return self.filters(x).relu().mean(dim=(2, 3))


def test_more_damage_is_farther_away(faces: np.ndarray):
    net = Details()
    true = seen(frechet.inception_features(net, faces, at_once=7))
    assert true.n == len(faces)
    for harm, doses in ((damage.blurred, (0.0, 1.0, 2.0, 4.0)), (damage.seamed, (0.0, 4.0, 12.0))):
        found = [frechet_distance(seen(frechet.inception_features(net, harm(faces, dose))), true) for dose in doses]
        assert found[0] == pytest.approx(0, abs=1e-6)
        assert found == sorted(found)
        assert found[-1] > 3 * found[1]


def test_no_picture_has_no_features():
    assert frechet.inception_features(Details(), []).shape == (0, 2048)
    assert frechet.i3d_features(Details(), []).shape == (0, 400)


def test_frames_become_clips_of_16():
    frames = [np.full((8, 8, 3), i, np.uint8) for i in range(37)]
    clips = list(frechet.windows16(frames))
    assert [c.shape for c in clips] == [(16, 8, 8, 3)] * 2
    assert clips[1][:, 0, 0, 0].tolist() == list(range(16, 32))
    assert next(frechet.windows16(frames, side=5)).shape == (16, 5, 5, 3)


# --- the published archive of I3D


class Archive(torch.nn.Module):
    """What the published I3D is asked, answered by the mean of each frame and channel."""

    def __init__(self) -> None:
        super().__init__()
        self.nothing = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False) -> torch.Tensor:
        assert rescale
        assert resize
        assert return_features
        return x.mean(dim=[3, 4]).flatten(1)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    file = tmp_path / "i3d_torchscript.pt"
    torch.jit.script(Archive()).save(str(file))
    return file


def test_only_the_known_archive_is_opened(archive: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("LATENTSYNC_HOME", str(tmp_path / "home"))
    frechet.load_i3d.cache_clear()
    with pytest.raises(WeightsError, match=r"is not the published i3d_torchscript\.pt.*could run a program of its own"):
        frechet.load_i3d(path=archive)
    from latentsync.weights.places import digest

    known = replace(releases.FILES["i3d"], sha256=digest(archive), size=archive.stat().st_size)
    monkeypatch.setitem(releases.FILES, "i3d", known)
    net = frechet.load_i3d(path=tmp_path)
    clips = np.random.default_rng(0).integers(0, 256, (2, 16, 20, 24, 3)).astype(np.uint8)
    found = frechet.i3d_features(net, clips)
    np.testing.assert_allclose(found.reshape(2, 3, 16), clips.mean(axis=(2, 3)).transpose(0, 2, 1), rtol=1e-5)
    with pytest.raises(UsageError, match="clips of 16 frames, this has 15"):
        frechet.i3d_features(net, [clips[0, :15]])
    frechet.load_i3d.cache_clear()


@pytest.mark.parametrize(("load", "what"), [(frechet.load_inception, "Inception-v3 .FID."), (frechet.load_i3d, "I3D .FVD.")])
def test_missing_weights_say_what_to_do(load, what: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.delenv("LATENTSYNC_WEIGHTS_PATH", raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsError, match=rf"judging footage needs {what}.*latentsync models download evaluation"):
        load(tmp_path)
