"""Moving averages: the closed form, the swap to the bit, and the way through a checkpoint."""

import pytest
import torch
from torch import nn

from latentsync.errors import UsageError, WeightsError
from latentsync.train.checkpoint import load_tensors, save_tensors
from latentsync.train.ema import EMA


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last), nn.Linear(4, 2))


def step(net: nn.Module) -> None:
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn_like(p))


def test_the_average_is_the_weighted_sum_of_what_was_seen():
    net = network()
    seen = [[p.detach().clone().double() for p in net.parameters()]]
    ema = EMA(net.parameters(), 0.6)
    for _ in range(12):
        step(net)
        ema.update()
        seen.append([p.detach().clone().double() for p in net.parameters()])
    # by its definition: the n-th update keeps min(decay, (1 + n) / (10 + n)) of what was
    weights = [1.0]
    for n in range(12):
        keep = min(0.6, (1 + n) / (10 + n))
        weights = [w * keep for w in weights] + [1 - keep]
    assert sum(weights) == pytest.approx(1)
    with ema.swapped():
        for i, p in enumerate(net.parameters()):
            expected = sum(w * values[i] for w, values in zip(weights, seen, strict=True))
            torch.testing.assert_close(p.double(), expected, atol=1e-6, rtol=0)


def test_a_swap_and_back_changes_no_bit():
    net = network()
    ema = EMA(net.parameters(), 0.9)
    step(net)
    ema.update()
    before = [p.detach().clone() for p in net.parameters()]
    places = [p.data_ptr() for p in net.parameters()]
    with ema.swapped():
        inside = [p.detach().clone() for p in net.parameters()]
    with pytest.raises(ZeroDivisionError), ema.swapped():
        raise ZeroDivisionError
    assert not any(torch.equal(a, b) for a, b in zip(before, inside, strict=True))
    assert all(torch.equal(p, b) for p, b in zip(net.parameters(), before, strict=True))
    assert [p.data_ptr() for p in net.parameters()] == places, "optimizer and wrappers hold on to the same memory"
    with ema.swapped():
        assert all(torch.equal(p, b) for p, b in zip(net.parameters(), inside, strict=True))


def test_resumed_is_never_stopped(tmp_path):
    def run(stop: int | None) -> list[torch.Tensor]:
        net = network()
        ema = EMA(net.parameters(), 0.99)
        for i in range(8):
            if i == stop:
                save_tensors(tmp_path / "ema.pt", ema.state_dict())
                ema = EMA(net.parameters(), 0.99)
                ema.load_state_dict(load_tensors(tmp_path / "ema.pt"))
            torch.manual_seed(i)
            step(net)
            ema.update()
        with ema.swapped():
            return [p.detach().clone() for p in net.parameters()]

    assert all(torch.equal(a, b) for a, b in zip(run(None), run(5), strict=True))


def test_of_another_network_is_refused():
    ema = EMA(network().parameters(), 0.9)
    with pytest.raises(WeightsError, match="belongs to other parameters"):
        EMA(nn.Linear(4, 2).parameters(), 0.9).load_state_dict(ema.state_dict())


@pytest.mark.parametrize("decay", [1.0, -0.1, 2])
def test_a_decay_that_is_none(decay):
    with pytest.raises(UsageError, match=r"between 0 and 1.*0\.999"):
        EMA(network().parameters(), decay)
