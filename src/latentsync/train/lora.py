"""Fine-tuning by low-rank adapters (LoRA) with peft: put around layers of the U-Net, trained alone, written in peft's own files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from latentsync.config import ModelConfig
from latentsync.errors import OutputError, UsageError, WeightsError
from latentsync.models.load import read_state
from latentsync.models.lora import merge_lora
from latentsync.train import checkpoint
from latentsync.weights import resolve
from latentsync.weights.adapters import ADAPTER, ADAPTER_CONFIG, BASE, adapter_config
from latentsync.weights.convert import notes, save
from latentsync.weights.releases import PUBLISHED

_NAME = "default"  # peft's name for the one adapter that a network has
_PREFIX = "base_model.model."  # what peft's files put before the names of the network
_INNER = ".base_layer."  # where peft puts the layer that it stands around


def add_lora(unet: nn.Module, rank: int, alpha: int, patterns: Sequence[str]) -> list[str]:
    """Put adapters around the layers whose dotted name contains one of the patterns; returns these names.

    Linear layers and 1x1 convolutions take adapters; other layers with such names stay as they are. Afterwards only the adapters' parameters
    require gradients. They start so that nothing is changed (B = 0); A is drawn from torch's generator. Raises UsageError.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as e:
        raise UsageError('LoRA needs the packages of the extra "train": pip install "latentsync[train]"') from e
    if rank < 1 or alpha <= 0:
        raise UsageError(f"lora.rank {rank} and lora.alpha {alpha} must be positive; usual are rank 16 and the same alpha")
    able = [name for name, module in unet.named_modules() if _takes_adapter(module)]
    for pattern in patterns:
        if not any(pattern in f"{name}." for name in able):
            parts = ", ".join(sorted({name.rsplit(".", 1)[-1] for name in able}))
            raise UsageError(
                f"lora.patterns: no linear layer or 1x1 convolution of the U-Net has '{pattern}' in its name; their names end in {parts}"
            )
    names = [name for name in able if any(pattern in f"{name}." for pattern in patterns)]
    if not names:
        raise UsageError("lora.patterns is empty; to adapt the attention to sound write [attn2.]")
    unet.requires_grad_(False)
    # peft takes the target names as endings too; whole names are endings of themselves only
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha, target_modules=names, lora_dropout=0.0), unet, _NAME)
    return names


def base_for(unet: nn.Module, start: str, home: str | Path | None = None) -> str:
    """What the files of adapters call the base when a training begins with `start`: a release's name, or an absolute path.

    A run's folder means the checkpoint that is its last one now. Adapters are a change of the base's weights, so the base must have every tensor of
    the network: raises UsageError where a part of it would begin at random, WeightsError where `start` cannot be read.
    """
    if not start:
        raise UsageError("LoRA changes a network that exists: set start to a release (1.5, 1.6), a model's folder, a checkpoint or a U-Net file")
    base = start
    if start not in PUBLISHED.bundles:
        path = Path(start).expanduser()
        base = str((checkpoint.find(path) if (path / checkpoint.FOLDER).is_dir() else path).resolve())
    state = read_state(base) if Path(base).is_file() else resolve(base, home=home, need=("unet",)).state("unet")
    expected = unet.state_dict()
    wrong = next((k for k in (*expected, *state) if k not in state or k not in expected or state[k].shape != expected[k].shape), None)
    if wrong is not None:
        raise UsageError(
            f"LoRA changes a network that exists, and start={start} is another one than this configuration's, first at '{wrong}': train that stage "
            "without lora first, or choose the model that start belongs to"
        )
    return base


def _takes_adapter(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1))


def adapter_state(unet: nn.Module) -> dict[str, Tensor]:
    """The adapters' tensors by the names of peft's files."""
    found = {k: v for k, v in unet.state_dict().items() if f".{_NAME}." in k and ".lora_" in k}
    return {_PREFIX + k.replace(f".{_NAME}.", "."): v for k, v in found.items()}


def merged_state(unet: nn.Module) -> dict[str, Tensor]:
    """The network's tensors by their published names, adapters merged; those without an adapter are the network's own."""
    plain = {k.replace(_INNER, "."): v for k, v in unet.state_dict().items() if ".lora_" not in k}
    return merge_lora(plain, adapter_state(unet), _described(unet, ""))


def adapter_files(unet: nn.Module, folder: Path, description: ModelConfig, *, base: str, merged: bool) -> None:
    """Write adapter_model.safetensors and adapter_config.json as peft does; with `merged` also unet.safetensors, adapters merged.

    A folder with a U-Net is a model by itself and its adapter is there to go on training with; without one, the adapter is merged into `base`
    (see `base_for`) whenever the folder is loaded. Raises OutputError.
    """
    save(adapter_state(unet), folder / ADAPTER, {"format": "pt"})
    try:
        (folder / ADAPTER_CONFIG).write_text(json.dumps(_described(unet, base), indent=2, sort_keys=True) + "\n", encoding="utf-8")
    except OSError as e:
        raise OutputError(f"cannot write {folder / ADAPTER_CONFIG}: {e.strerror or e}") from e
    if merged:
        save(merged_state(unet), folder / "unet.safetensors", notes(description, "unet", adapter="merged"))


def _described(unet: nn.Module, base: str) -> dict[str, Any]:
    """The content of adapter_config.json."""
    values = unet.peft_config[_NAME].to_dict()  # type: ignore[union-attr, operator, index]
    return json.loads(json.dumps(values | {BASE: base or None, "inference_mode": True}, default=sorted))  # peft has names and patterns in sets


@torch.no_grad()
def read_adapter(unet: nn.Module, folder: Path, *, base: str) -> None:
    """Put the adapter of a folder into a network that `add_lora` prepared, to go on training. Raises WeightsError where it or its base is another."""
    path = folder / ADAPTER
    own, given = adapter_state(unet), read_state(path)
    now, then = _described(unet, base), adapter_config(folder)
    for key, cause in (("r", "lora"), ("lora_alpha", "lora"), (BASE, "start")):
        if now[key] != then.get(key):
            raise WeightsError(f"{folder / ADAPTER_CONFIG} has {key} {then.get(key)}, the configuration {now[key]}: {cause} was another one")
    wrong = next((k for k in (*own, *given) if k not in own or k not in given or own[k].shape != given[k].shape), None)
    if wrong is not None:
        raise WeightsError(f"{path} does not fit the adapters of this configuration, first at '{wrong}': lora or the network was another one")
    for key, tensor in own.items():
        tensor.copy_(given[key])
