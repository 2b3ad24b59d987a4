"""Low-rank adapters (LoRA, Hu et al., arXiv 2106.09685) into the weights that they change, so that running a network needs nothing more."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from latentsync.errors import WeightsError

_PREFIX = "base_model.model."  # what peft puts before the names of the network
_DOWN, _UP = ".lora_A.weight", ".lora_B.weight"

# Ways of starting an adapter that change the network's own weights as well, which are then not those of the base any more.
_CHANGED_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


def merge_lora(
    state: Mapping[str, Tensor], adapter: Mapping[str, Tensor], config: Mapping[str, Any], where: str = "the adapter"
) -> dict[str, Tensor]:
    """The network's tensors by name with W + scale * B A (arXiv 2106.09685, section 4.1) where the adapter has A (r, in) and B (out, r).

    state: of the network. adapter, config: the tensors and the description of peft's adapter_model.safetensors and adapter_config.json, on linear
    layers and convolutions. The sum is taken in float32 and rounded to the dtype of W; tensors that nothing is added to are the given ones.
    Raises WeightsError, with `where` as the adapter's name, for kinds of adapters that are more than this sum, and for one of another network.
    """
    kind = str(config.get("peft_type", "")).upper()
    if kind != "LORA":
        raise WeightsError(f"{where} is of the kind '{kind}'; only LoRA can be merged")
    if config.get("fan_in_fan_out") or str(config.get("init_lora_weights", True)).lower().startswith(_CHANGED_BASE):
        raise WeightsError(f"{where} does not stand on the plain weights of its base (fan_in_fan_out, init_lora_weights); merge it with peft itself")
    downs = {_module(k, _DOWN): v for k, v in adapter.items() if k.endswith(_DOWN)}
    ups = {_module(k, _UP): v for k, v in adapter.items() if k.endswith(_UP)}
    other = next((k for k in adapter if not k.endswith((_DOWN, _UP))), None)
    if other is not None:
        raise WeightsError(f"{where} holds '{other}', which is more than a plain LoRA; merge it with peft itself")
    if not downs or downs.keys() != ups.keys():
        raise WeightsError(f"{where} holds no pairs of lora_A and lora_B; it is damaged, or no adapter of peft")
    out = dict(state)
    for module, down in downs.items():
        key, up = f"{module}.weight", ups[module]
        if key not in state:
            raise WeightsError(f"{where} changes '{module}', which its base does not have: it was trained on another model")
        weight = state[key]
        if up.shape[1] != down.shape[0] or (up.shape[0], *down.shape[1:]) != tuple(weight.shape):
            made = [up.shape[0], *down.shape[1:]]
            raise WeightsError(f"{where} has the shape {made} for '{key}', its base {list(weight.shape)}: it was trained on another model")
        added = (up.flatten(1).float() @ down.flatten(1).float()).view(weight.shape) * _scale(module, down.shape[0], config)
        out[key] = (weight.float() + added.to(weight.device)).to(weight.dtype)
    return out


def _module(key: str, ending: str) -> str:
    return key.removeprefix(_PREFIX).removesuffix(ending)


def _scale(module: str, rank: int, config: Mapping[str, Any]) -> float:
    """alpha / rank; alpha / sqrt(rank) for rank-stabilised LoRA (arXiv 2312.03732). Modules may have an alpha of their own."""
    alpha = float(config.get("lora_alpha") or rank)
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", module):
            alpha = float(value)
            break
    return alpha / (rank**0.5 if config.get("use_rslora") else rank)
