"""A downloaded pickle becomes a safetensors file once: it then loads memory-mapped, without unpickling, and says what it is.

The notes in its header tie it to its model: name, resolution, whole description, and the digest of the file it came from.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from latentsync import config as configs
from latentsync.config import ModelConfig
from latentsync.errors import OutputError, WeightsError
from latentsync.hub import Progress, Report, locked
from latentsync.weights.places import CONVERTED, digest_once, hub_cache, is_converted

if TYPE_CHECKING:
    import torch


def notes(config: ModelConfig, role: str, **more: str) -> dict[str, str]:
    """The header notes of a file that belongs to a model. Only the U-Net is bound to the resolution; the other files serve several models."""
    out = {"format": "pt", "latentsync.role": role, **{f"latentsync.{k}": v for k, v in more.items()}}
    if role == "unet":
        out |= {"latentsync.model": config.name, "latentsync.resolution": str(config.resolution), "latentsync.config": configs.dump(config)}
    return out


def save(state: Mapping[str, torch.Tensor], target: Path, header: Mapping[str, str]) -> None:
    """Write tensors to a safetensors file, whole or not at all. Raises OutputError."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    scratch = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    seen: set[int] = set()
    tensors: dict[str, torch.Tensor] = {}
    for key, tensor in state.items():
        place = tensor.untyped_storage().data_ptr()
        # the format stores every tensor by itself, so views and shared memory become copies,
        # off the device, which in training has no room for them
        alone = tensor.is_contiguous() and place not in seen and tensor.untyped_storage().nbytes() >= tensor.nbytes
        tensors[key] = tensor if alone else tensor.cpu().clone(memory_format=_contiguous())
        seen.add(place)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch.touch()
        mode = scratch.stat().st_mode  # what the user's umask gives; the format's writer would make the file private
        save_file(tensors, str(scratch), metadata=dict(header))
        scratch.chmod(mode)
        scratch.replace(target)
    except (OSError, SafetensorError) as e:  # the format's writer reports a full disk as its own error
        raise OutputError(f"cannot write {target}: {e}; is there room for it?") from e
    finally:
        scratch.unlink(missing_ok=True)


def _contiguous() -> torch.memory_format:
    import torch

    return torch.contiguous_format


def place_for(path: Path, home: Path) -> Path | None:
    """Where the conversion of a file is written: beside it, or below home where its folder is not ours to write in (the Hugging Face cache) or
    cannot be written. None where neither has room for a second copy."""
    size = path.stat().st_size
    beside = path.with_suffix(".safetensors")
    stat = path.stat()
    away = home / CONVERTED / f"{path.stem}-{stat.st_size:x}-{stat.st_mtime_ns:x}.safetensors"
    foreign = hub_cache() in path.parents
    for target in (away,) if foreign else (beside, away):
        folder = target.parent
        while not folder.exists():
            folder = folder.parent
        if os.access(folder, os.W_OK) and shutil.disk_usage(folder).free > size * 1.02 + (64 << 20):
            return target
    return None


def converted(path: Path, config: ModelConfig, role: str, home: Path, *, expected: str | None = None, report: Report | None = None) -> Path:
    """The safetensors form of a weights file, made now if it does not exist yet. Safe among processes.

    `expected`: sha256 that the original must have. Where there is no room for a copy the original itself is returned: it loads as well.
    """
    if is_converted(path):
        return path
    target = place_for(path, home)
    made = path.with_suffix(".safetensors")
    if _fresh(made, path):
        return made
    if target is None:
        return path
    if _fresh(target, path):
        return target
    from latentsync.models.load import read_state

    target.parent.mkdir(parents=True, exist_ok=True)
    with locked(target):
        if _fresh(target, path):
            return target
        if report is not None:
            report(Progress(path.name, "converting", 0, path.stat().st_size))
        source = digest_once(path, home)
        if expected is not None and source != expected:
            raise WeightsError(
                f"{path} is damaged or another file: sha256 {source} instead of {expected}; delete it, then: latentsync models download {config.name}"
            )
        save(read_state(path), target, notes(config, role, source=path.name, source_sha256=source))
    return target


def _fresh(made: Path, original: Path) -> bool:
    """Whether a conversion is there and was made after its original was last written."""
    return made.is_file() and made.stat().st_mtime_ns >= original.stat().st_mtime_ns
