"""Rounded frozen weights change nothing under autocast, and nothing that is written."""

import pytest
import torch

from latentsync.config import UNetConfig
from latentsync.models.unet import UNet
from latentsync.train.frozen import round_frozen
from latentsync.train.lora import add_lora, merged_state
from latentsync.train.unet import choose_trainable
from tests.models.conftest import randomise

CONFIG = UNetConfig(channels=(8, 16), layers_per_block=1, heads=2, audio_dim=12, groups=4)


def network():
    torch.manual_seed(0)
    return randomise(UNet(CONFIG))


def passed(unet):
    """The prediction and the gradients of a pass under autocast."""
    generator = torch.Generator().manual_seed(0)
    sample, audio = torch.randn(1, 13, 4, 8, 8, generator=generator), torch.randn(1, 4, 5, 12, generator=generator)
    unet.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = unet(sample, torch.tensor([500]), audio)
    out.float().square().mean().backward()
    return out.detach(), {name: p.grad.clone() for name, p in unet.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("recompute", [False, True])
def test_a_pass_under_autocast_is_the_same_to_the_bit(recompute):
    unet = network()
    choose_trainable(unet, ("motion_modules.", "attn2."))
    unet.gradient_checkpointing = recompute
    out, gradients = passed(unet)
    round_frozen(unet, torch.bfloat16)
    found, again = passed(unet)
    assert torch.equal(found, out)
    assert again.keys() == gradients.keys()
    assert all(torch.equal(again[name], g) for name, g in gradients.items())


def test_only_frozen_matrices_and_kernels_are_rounded_and_the_state_is_the_exact_one():
    unet = network()
    choose_trainable(unet, ("motion_modules.",))
    before = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    trained = {name: p for name, p in unet.named_parameters() if p.requires_grad}
    exact = round_frozen(unet, torch.bfloat16)
    for name, parameter in unet.named_parameters():
        if name in trained:
            assert parameter is trained[name]
        assert (parameter.dtype == torch.bfloat16) == (name in exact), name
    assert {"conv_in.weight", "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight"} <= exact.keys()
    assert not any("norm" in name for name in exact)
    assert before["conv_in.weight"].ne(unet.conv_in.weight.float()).any()
    after = unet.state_dict()
    assert list(after) == list(before)
    assert all(after[name].dtype == tensor.dtype and torch.equal(after[name], tensor) for name, tensor in before.items())


def test_adapters_are_merged_into_the_exact_weights():
    unet = network()
    add_lora(unet, 2, 2, ("attn1.",))
    for name, parameter in unet.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter.data)
    before = merged_state(unet)
    out, gradients = passed(unet)
    round_frozen(unet, torch.bfloat16)
    after = merged_state(unet)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    found, again = passed(unet)
    assert torch.equal(found, out)
    assert all(torch.equal(again[name], g) for name, g in gradients.items())


def test_in_the_same_precision_nothing_happens():
    unet = network().requires_grad_(False)
    assert round_frozen(unet, torch.float32) == {}
