"""What the tests of the networks share."""

from collections.abc import Mapping
from typing import Any

import torch

from latentsync.config import UNetConfig


def published_unet(config: Mapping[str, Any]) -> UNetConfig:
    """The published description of a U-Net as ours."""
    motion = "none" if not config["use_motion_module"] else "decoder" if config["motion_module_decoder_only"] else "all"
    return UNetConfig(
        in_channels=config["in_channels"],
        out_channels=config["out_channels"],
        channels=tuple(config["block_out_channels"]),
        layers_per_block=config["layers_per_block"],
        heads=config["attention_head_dim"],
        audio_dim=config["cross_attention_dim"],
        groups=config["norm_num_groups"],
        motion=motion,
        motion_positions=config["motion_module_kwargs"]["temporal_position_encoding_max_len"],
    )


def randomise(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Every matrix uniform with a gain of one, the zero layers too, so that every part of the network shows in the output."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() > 1:
                fan_in = parameter[0].numel()
                parameter.copy_((torch.rand(parameter.shape, generator=generator) * 2 - 1) * (3 / fan_in) ** 0.5)
    return module.eval()
