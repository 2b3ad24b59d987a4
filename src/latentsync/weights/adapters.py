"""Folders that hold only what fine-tuning added to a model (LoRA, in peft's own files), and say which model that is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentsync.errors import WeightsError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

ADAPTER = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
BASE = "base_model_name_or_path"  # in adapter_config.json: a model's name, or a folder or U-Net file, relative to the adapter's folder


def is_adapter(folder: Path) -> bool:
    """Whether the folder holds an adapter."""
    return (folder / ADAPTER).is_file()


def adapter_config(folder: Path) -> dict[str, Any]:
    """peft's description of the folder's adapter. Raises WeightsError where it is missing or damaged."""
    path = folder / ADAPTER_CONFIG
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as e:
        raise WeightsError(f"{folder} holds {ADAPTER} but no {ADAPTER_CONFIG}; peft writes both") from e
    except (OSError, ValueError) as e:
        raise WeightsError(f"cannot read {path}: {e}") from e
    if not isinstance(values, dict):
        raise WeightsError(f"{path} is not the description of an adapter")
    return values


def base_of(folder: Path) -> str:
    """What the adapter's description calls its base. Raises WeightsError where it does not say."""
    base = adapter_config(folder).get(BASE)
    if not base or not isinstance(base, str):
        raise WeightsError(f'{folder / ADAPTER_CONFIG} does not say what the adapter belongs to; write "{BASE}": "1.5" (or 1.6, or a folder) into it')
    return base


def adapted(state: Mapping[str, torch.Tensor], folder: Path) -> dict[str, torch.Tensor]:
    """The base's tensors with the folder's adapter merged. Raises WeightsError where it is of another model."""
    from latentsync.models.load import read_state
    from latentsync.models.lora import merge_lora

    return merge_lora(state, read_state(folder / ADAPTER), adapter_config(folder), str(folder / ADAPTER))
