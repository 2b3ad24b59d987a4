"""GroupNorm for training on CPUs: the same numbers and the same gradients as PyTorch's."""

import pytest
import torch
import torch.nn.functional as F

from latentsync.models.resnet import group_norm


@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("wanted", [True, False], ids=["all", "weights alone"])
def test_gradients_are_those_of_the_planar_norm(frames, wanted):
    torch.manual_seed(0)
    norm = torch.nn.GroupNorm(4, 16, eps=1e-5).double()
    torch.nn.init.normal_(norm.weight)
    x = (2 * torch.randn(6, 16, 5, 7, dtype=torch.float64) + 1).contiguous(memory_format=torch.channels_last).requires_grad_(wanted)
    slopes = torch.randn(6, 16, 5, 7, dtype=torch.float64)

    def stacked(t):  # the frames of a window as one axis more
        return t.unflatten(0, (-1, frames)).transpose(1, 2)

    weights = [norm.weight, norm.bias]
    planar = x.detach().contiguous().requires_grad_()  # PyTorch's own way crashes with channels last where no gradient of the input is wanted
    expected = F.group_norm(stacked(planar).contiguous(), 4, *weights, 1e-5)
    truth = torch.autograd.grad(expected, [*weights, planar], stacked(slopes))
    made = group_norm(norm, x, frames)
    torch.testing.assert_close(stacked(made), expected)
    for a, b in zip(torch.autograd.grad(made, [*weights, *[x] * wanted], slopes), truth, strict=False):
        torch.testing.assert_close(a, b)
