"""Frozen weights held as autocast uses them: a network that is trained in part needs less memory, and computes the same."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def round_frozen(network: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """Bring the frozen weights of linear layers and convolutions to `dtype`; gives back the exact ones, which stay where they are.

    Autocast rounds these weights at every use, so under it nothing changes, to the bit; normalisations, which it runs in float32, keep theirs.
    `state_dict` goes on telling the exact ones. Call it before the network goes to its device, and the device never holds them.
    """
    exact: dict[str, Tensor] = {}
    for prefix, module in network.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            for name, parameter in list(module.named_parameters(recurse=False)):
                if not parameter.requires_grad and parameter.dtype != dtype:
                    exact[f"{prefix}.{name}".lstrip(".")] = parameter.data
                    setattr(module, name, nn.Parameter(parameter.data.to(dtype), requires_grad=False))

    def tell(_module: nn.Module, state: dict[str, Any], prefix: str, _metadata: Any) -> None:
        state.update({prefix + name: tensor for name, tensor in exact.items()})

    network.register_state_dict_post_hook(tell)
    return exact
