"""The mean of several trainings' weights, as `python -m tools.ship OUT unet=RUN,RUN` writes it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from latentsync.errors import UsageError
from tools import ship


def written(path: Path, weight: torch.Tensor, steps: int) -> Path:
    save_file({"weight": weight, "steps": torch.tensor([steps])}, path)
    return path


def test_several_runs_count_alike_and_whole_numbers_are_the_last_ones(tmp_path: Path) -> None:
    ones = written(tmp_path / "a.safetensors", torch.full((2, 3), 1.0), 7)
    fours = written(tmp_path / "b.safetensors", torch.full((2, 3), 4.0).half(), 9)
    both = ship.mean([ones, ones, fours])
    assert torch.equal(both["weight"], torch.full((2, 3), 2.0))
    assert both["steps"].tolist() == [9]
    assert torch.equal(ship.mean([ones])["weight"], torch.full((2, 3), 1.0))


def test_other_shapes_have_no_mean(tmp_path: Path) -> None:
    small, large = written(tmp_path / "a.safetensors", torch.zeros(2), 1), written(tmp_path / "b.safetensors", torch.zeros(3), 1)
    with pytest.raises(UsageError, match=r"a\.safetensors.*not of one shape"):
        ship.mean([small, large])
