"""A run that goes on under another configuration: what may change holds from then on, what cannot is said."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from latentsync.errors import UsageError
from latentsync.train.config import OptimizerConfig
from tests.train.test_loop import Line, go, settings, weights


def test_the_optimizer_obeys_the_configuration_of_now(tmp_path: Path) -> None:
    """Its state comes from the checkpoint, its settings do not: without them the third run would equal the second."""
    plain, decayed = OptimizerConfig(learning_rate=0.1, weight_decay=0.0), OptimizerConfig(learning_rate=0.1, weight_decay=0.5)
    for name in ("one", "two"):
        go(settings(tmp_path / name, steps=2), plain)
    before = {}
    for name, rates in (("one", plain), ("two", decayed)):
        task, _ = go(settings(tmp_path / name, steps=3), rates)
        before[name] = weights(task)
    torch.testing.assert_close(before["two"] - before["one"], -0.05 * _after_two(tmp_path), rtol=1e-3, atol=1e-6)


def _after_two(tmp_path: Path) -> torch.Tensor:
    task, _ = go(settings(tmp_path / "three", steps=2), OptimizerConfig(learning_rate=0.1, weight_decay=0.0))
    return weights(task)


def test_other_trained_parameters_are_refused(tmp_path: Path) -> None:
    run = settings(tmp_path, steps=2)
    go(run)
    task = Line(run)
    task.network.bias.requires_grad_(False)
    with pytest.raises(UsageError, match=r"step-00000002 is of a run that trained other parameters, such as bias.*start="):
        go(replace(run, steps=3), task=task)
