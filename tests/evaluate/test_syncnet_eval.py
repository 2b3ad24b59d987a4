"""A SyncNet over a data set: perfect, blind and shifted ones get the figures that they must."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from latentsync.errors import InputError, WeightsError
from latentsync.evaluate import syncnet
from latentsync.evaluate.judge import Judge, banded, of_syncnet
from tests.evaluate.test_judge import CONFIG, Plain
from tests.train.conftest import talk

WINDOW = 5


def judge() -> Judge:
    def nothing(*_: object) -> torch.Tensor:
        raise NotImplementedError

    return Judge("test", WINDOW, 8, nothing, nothing, banded)


def vectors(n: int, seed: int) -> torch.Tensor:
    """(n, 32) of length 1, neighbours alike."""
    draw = np.random.default_rng(seed)
    x = torch.from_numpy(np.apply_along_axis(lambda v: np.convolve(v, [0.5, 1, 0.5], "same"), 0, draw.normal(size=(n, 32))))
    return torch.nn.functional.normalize(x)


def verdict(shift: int = 0, noise: float = 0.0, count: int = 6) -> syncnet.Verdict:
    clips = []
    for i in range(count):
        lips = vectors(120, i)
        sounds = torch.nn.functional.normalize(lips.roll(shift, 0) + noise * vectors(120, 100 + i))
        clips.append(syncnet.clip(lips, sounds, judge(), np.random.default_rng([1, i])))
    return syncnet.verdict(judge(), clips)


def test_a_perfect_one_is_never_wrong() -> None:
    found = verdict()
    assert found.accuracy == pytest.approx(1, abs=0.01)
    assert (found.best_accuracy, found.auc, found.two, found.offset, found.offset_exact) == (1, 1, 1, 1, 1)
    assert found.windows == 720
    assert found.stretches > 10
    assert found.roc[0] == (0, 1)
    assert any("120" not in line and "in sync" in line for line in found.lines())


def test_a_blind_one_guesses() -> None:
    found = verdict(noise=1e6)
    assert found.auc == pytest.approx(0.5, abs=0.05)
    assert found.two == pytest.approx(0.5, abs=0.05)
    assert found.offset < 0.35
    assert found.best_accuracy < 0.6
    assert 0.8 < verdict(noise=1.5).auc < 1


@pytest.mark.parametrize("shift", [-2, 1])
def test_sound_that_is_off_is_found_off(shift: int) -> None:
    found = verdict(shift=shift)
    assert found.offset_exact == 0
    assert found.offset == (1 if abs(shift) <= 1 else 0)


def test_the_area_is_that_of_ranks() -> None:
    draw = np.random.default_rng(0)
    a, b = draw.normal(1, 1, 200).round(1), draw.normal(0, 1, 300).round(1)  # with ties
    false, true, limits = syncnet.roc(a, b)
    ranks = (a[:, None] > b[None]).mean() + (a[:, None] == b[None]).mean() / 2
    assert syncnet.area(false, true) == pytest.approx(ranks)
    assert (np.diff(false) >= 0).all()
    assert (np.diff(true) >= 0).all()
    assert (false[0], true[0], false[-1], true[-1]) == (0, 0, 1, 1)
    at = 7
    assert true[at] == pytest.approx((a >= limits[at]).mean())


def test_clips_of_a_folder_are_judged_and_bad_ones_named(tmp_path: Path) -> None:
    for i in range(2):
        talk(tmp_path / f"clip {i}.mp4", seed=i, size=32)
    (tmp_path / "zz broken.mp4").write_bytes(b"nonsense")
    told: list[tuple[int, int]] = []
    found = syncnet.evaluate(tmp_path, of_syncnet(Plain(CONFIG), CONFIG, "plain"), progress=lambda *n: told.append(n))  # type: ignore[arg-type]
    assert (found.judge, found.clips) == ("plain", 2)
    assert [name for name, _ in found.failed] == ["zz broken.mp4"]
    assert told[-1] == (3, 3)
    assert found.plain()["accuracy"] == found.accuracy
    again = syncnet.evaluate(tmp_path, of_syncnet(Plain(CONFIG), CONFIG, "plain"))  # type: ignore[arg-type]
    assert again == found
    with pytest.raises(InputError, match="none of the 1 clips"):
        (tmp_path / "bad").mkdir()
        (tmp_path / "bad" / "x.mp4").write_bytes(b"nonsense")
        syncnet.evaluate(tmp_path / "bad", of_syncnet(Plain(CONFIG), CONFIG, "plain"))  # type: ignore[arg-type]


def test_syncnets_by_name(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="there is no SyncNet at"):
        syncnet.load(str(tmp_path / "nowhere"))
