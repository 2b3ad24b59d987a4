"""Merging adapters: the written formula, and what peft itself makes of the same adapter."""

import json

import pytest
import torch
from torch import nn

from latentsync.errors import WeightsError
from latentsync.models.lora import merge_lora

CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 6}


def pair(shape_a, shape_b, name="a", seed=0):
    generator = torch.Generator().manual_seed(seed)
    prefix = f"base_model.model.{name}"
    return {
        f"{prefix}.lora_A.weight": torch.randn(shape_a, generator=generator),
        f"{prefix}.lora_B.weight": torch.randn(shape_b, generator=generator),
    }


@pytest.mark.parametrize(
    ("change", "scale"),
    [
        ({}, 3.0),
        ({"use_rslora": True}, 6 / 2**0.5),
        ({"alpha_pattern": {"a": 1}}, 0.5),
        ({"alpha_pattern": {"block.a": 4}}, 2.0),
        ({"alpha_pattern": {"b": 4}}, 3.0),
    ],
)
def test_the_formula(change, scale):
    adapter = pair((2, 5), (3, 2), "block.a")
    state = {"block.a.weight": torch.ones(3, 5), "block.a.bias": torch.ones(3), "b.weight": torch.ones(4)}
    merged = merge_lora(state, adapter, CONFIG | change)
    a, b = adapter.values()
    torch.testing.assert_close(merged["block.a.weight"], 1 + scale * b @ a)
    assert list(merged) == list(state)
    assert merged["b.weight"] is state["b.weight"]
    assert torch.equal(state["block.a.weight"], torch.ones(3, 5)), "the given tensors stay as they are"


def test_half_precision_weights_are_rounded_once():
    adapter = pair((2, 5), (3, 2))
    weight = torch.randn(3, 5).half()
    merged = merge_lora({"a.weight": weight}, {k: v.half() for k, v in adapter.items()}, CONFIG)["a.weight"]
    a, b = (v.half().float() for v in adapter.values())
    assert merged.dtype == torch.float16
    assert torch.equal(merged, (weight.float() + 3 * (b @ a)).half())


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(3, 6, 3, padding=1)
        self.point = nn.Conv2d(6, 8, 1)
        self.line = nn.Linear(8, 4)
        self.rest = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.point(torch.tanh(self.wide(x)))
        return self.rest(torch.tanh(self.line(x.mean((2, 3)))))


@pytest.mark.parametrize("stabilised", [False, True])
def test_peft_makes_the_same_of_it(tmp_path, stabilised):
    from peft import LoraConfig, get_peft_model

    from latentsync.models.load import read_state

    torch.manual_seed(0)
    base = Net().state_dict()
    net = Net()
    net.load_state_dict(base)
    config = LoraConfig(
        r=3, lora_alpha=5, target_modules=["wide", "point", "line"], use_rslora=stabilised, rank_pattern={"point": 2}, alpha_pattern={"line": 7}
    )
    adapted = get_peft_model(net, config)
    with torch.no_grad():
        for name, p in adapted.named_parameters():
            if "lora_" in name:
                p.normal_(0, 0.3)
    x = torch.randn(2, 3, 5, 5)
    with torch.no_grad():
        expected = adapted(x)
    adapted.save_pretrained(tmp_path)
    merged = merge_lora(base, read_state(tmp_path / "adapter_model.safetensors"), json.loads((tmp_path / "adapter_config.json").read_text()))
    ours = Net()
    ours.load_state_dict(merged, strict=True)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), expected, atol=1e-5, rtol=0)
    whole = adapted.merge_and_unload().state_dict()
    for key, tensor in whole.items():
        torch.testing.assert_close(merged[key], tensor, atol=1e-6, rtol=0)
    assert sum(not torch.equal(merged[k], base[k]) for k in base) == 3


GOOD = pair((2, 5), (3, 2))
STATE = {"a.weight": torch.zeros(3, 5)}


@pytest.mark.parametrize(
    ("state", "adapter", "config", "says"),
    [
        ({"a.weight": torch.zeros(3, 6)}, GOOD, CONFIG, r"the shape \[3, 5\] for 'a.weight', its base \[3, 6\]: it was trained on another model"),
        ({"a.weight": torch.zeros(3, 5, 1, 1)}, GOOD, CONFIG, "trained on another model"),
        ({"b.weight": torch.zeros(3, 5)}, GOOD, CONFIG, "changes 'a', which its base does not have"),
        (STATE, pair((2, 5), (3, 4)), CONFIG, "another model"),
        (STATE, {}, CONFIG, "no pairs"),
        (STATE, dict([next(iter(GOOD.items()))]), CONFIG, "no pairs"),
        (
            STATE,
            GOOD | {"base_model.model.a.lora_magnitude_vector": torch.ones(3)},
            CONFIG,
            "lora_magnitude_vector', which is more than",
        ),
        (STATE, GOOD, {"peft_type": "IA3"}, "of the kind 'IA3'"),
        (STATE, GOOD, {}, "of the kind ''"),
        (STATE, GOOD, CONFIG | {"fan_in_fan_out": True}, "plain weights"),
        (STATE, GOOD, CONFIG | {"init_lora_weights": "pissa_niter_4"}, "plain weights"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(state, adapter, config, says):
    with pytest.raises(WeightsError, match=says) as e:
        merge_lora(state, adapter, config, "my adapter")
    assert str(e.value).startswith("my adapter ")
