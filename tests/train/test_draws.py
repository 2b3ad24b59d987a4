"""Draws: standard normal, and a function of seed and position alone."""

import pytest
import torch

from latentsync.train.draws import Draws, draws

SHAPE = {"frames": 3, "latent": (4, 5, 6), "train_steps": 1000}


def test_shapes_and_kinds():
    found = draws(7, [0, 1], **SHAPE)
    for posterior in found[:3]:
        assert posterior.shape == (6, 4, 5, 6)
    assert found.shared.shape == (2, 4, 1, 5, 6)
    assert found.independent.shape == (2, 4, 3, 5, 6)
    assert found.timesteps.shape == (2,)
    assert found.timesteps.dtype == torch.int64
    assert all(t.dtype == torch.float32 and t.is_cpu for t in found[:5])


def rows(found: Draws) -> list[list[torch.Tensor]]:
    """The draws of each sample."""
    b = len(found.timesteps)
    return [[t.unflatten(0, (b, -1))[i] for t in found[:3]] + [t[i] for t in found[3:]] for i in range(b)]


def test_a_sample_draws_the_same_however_the_batches_are_cut():
    torch.manual_seed(0)
    together = rows(draws(7, torch.tensor([4, 5, 6, 2**40]), **SHAPE))
    torch.manual_seed(1)  # the global generators play no part
    apart = [rows(draws(7, part, **SHAPE)) for part in ([2**40], [5, 4], [6])]
    for ours, theirs in zip(together, (apart[1][1], apart[1][0], apart[2][0], apart[0][0]), strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert torch.equal(a, b)


def test_global_generators_are_left_alone():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    draws(7, [0], **SHAPE)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize(
    ("one", "other"), [((7, 0), (7, 1)), ((7, 0), (8, 0)), ((0, 1), (1, 0)), ((7, 0), (7, 2**32)), ((0, 3), (2**32, 3)), ((1, 0), (-1, 0))]
)
def test_another_seed_or_position_draws_otherwise(one, other):
    a, b = (draws(seed, [position], **SHAPE) for seed, position in (one, other))
    for x, y in zip(a[:5], b[:5], strict=True):
        assert (x == y).float().mean() < 0.01


def test_parts_of_a_sample_are_independent_of_one_another():
    found = draws(7, range(200), frames=2, latent=(4, 5, 6), train_steps=1000)
    parts = torch.stack([found.target, found.masked, found.reference, found.independent.transpose(1, 2).flatten(0, 1)]).flatten(1)
    assert parts.mean(1).abs().max() < 0.02
    assert (torch.corrcoef(parts) - torch.eye(4)).abs().max() < 0.02
    assert (parts.std(1) - 1).abs().max() < 0.02
    assert abs(found.shared.std().item() - 1) < 0.03
    assert torch.corrcoef(torch.stack([found.shared.flatten(1)[:-1].flatten(), found.shared.flatten(1)[1:].flatten()]))[0, 1].abs() < 0.03


def test_timesteps_reach_every_step_and_none_beyond():
    steps = draws(7, range(400), frames=1, latent=(1, 1, 1), train_steps=5).timesteps
    assert steps.bincount(minlength=5).shape == (5,)
    assert steps.bincount().min() > 50
