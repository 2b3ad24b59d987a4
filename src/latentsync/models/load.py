"""Weights from files into networks: memory-mapped, without running code, and strictly."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from latentsync.errors import WeightsError

M = TypeVar("M", bound=nn.Module)

_WRAPPERS = ("state_dict", "model_state_dict", "model", "module")  # what the files of LatentSync, Whisper and VideoMAE call their tensors
_PARALLEL = "module."  # what torch's DataParallel puts before every name


@runtime_checkable
class HasPublishedNames(Protocol):
    """A network whose published files use other names than its own."""

    def published_names(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]: ...


def read_state(path: Path | str) -> dict[str, Tensor]:
    """The tensors of a .safetensors file or of a PyTorch file (.pt, .pth, .bin, .ckpt), by name, in file order, on the CPU.

    Both are memory-mapped where the format allows: nothing is read until it is used. PyTorch files are read without running code;
    a wrapping dictionary such as `state_dict` is opened, entries that are not tensors are left out, and a common `module.` prefix is
    removed. Raises WeightsError where the file is missing, damaged, holds code, or holds no tensors.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as e:
        raise WeightsError(f"cannot read weights {path}: {e.strerror or e}") from e
    if not head:
        raise WeightsError(f"{path} is empty (0 bytes); delete it and download it again")
    if head.startswith(b"version https://git-lfs"):
        raise WeightsError(f"{path} is only a Git LFS pointer; fetch the file itself with: git lfs pull")
    if head.lstrip()[:1] == b"<":
        raise WeightsError(f"{path} is a web page, not weights; the download was answered by an error page: delete it and download it again")
    found: Any = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    state = _tensors(found)
    if not state:
        raise WeightsError(f"{path} holds no tensors; it is not a weights file")
    if all(key.startswith(_PARALLEL) for key in state):
        state = {key.removeprefix(_PARALLEL): tensor for key, tensor in state.items()}
    return state


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as e:
        raise WeightsError(f"{path} is damaged or not a safetensors file ({e}); delete it and download it again") from e


def _read_torch(path: Path) -> Any:
    archive = zipfile.is_zipfile(path)  # PyTorch before 1.6 wrote another format, which cannot be mapped
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=archive)
    except pickle.UnpicklingError as e:
        if archive or b"GLOBAL" in str(e).encode():
            raise WeightsError(
                f"{path} was refused: it holds more than tensors and could run code when opened ({_first_line(e)}); "
                "use a copy that holds tensors only, or a .safetensors file"
            ) from e
        raise WeightsError(f"{path} is damaged or not a PyTorch weights file; delete it and download it again") from e
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, AttributeError, TypeError, zipfile.BadZipFile) as e:
        raise WeightsError(f"{path} is damaged or not a PyTorch weights file ({_first_line(e)}); delete it and download it again") from e


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return text[0][:200] if text else type(error).__name__


def _tensors(found: Any) -> dict[str, Tensor]:
    if not isinstance(found, Mapping):
        return {}
    for name in _WRAPPERS:
        if isinstance(found.get(name), Mapping):
            return _tensors(found[name])
    return {key: value for key, value in found.items() if isinstance(key, str) and isinstance(value, Tensor)}


def load_state(module: M, state: Mapping[str, Tensor], what: str) -> M:
    """Put `state` into the network, every name and shape exactly; returns the network.

    The tensors become the network's own, without a copy and in their own dtype, so a network built on the meta device costs
    no second memory: `with torch.device("meta"): unet = UNet(config)`, then this, then `.to(device, dtype)`.
    `what` names the weights in errors. Raises WeightsError that names the first key that does not fit and the likely cause.
    """
    module.load_state_dict(_fitting(module, state, what), strict=True, assign=True)
    return module


@torch.no_grad()
def copy_state(module: M, state: Mapping[str, Tensor], what: str) -> M:
    """`load_state` into the tensors that the network has, which keep their place and dtype: for a network that is being trained."""
    given = _fitting(module, state, what)
    for key, tensor in module.state_dict().items():  # shares its memory with the network
        tensor.copy_(given[key])
    return module


def _fitting(module: nn.Module, state: Mapping[str, Tensor], what: str) -> dict[str, Tensor]:
    """The state under the network's own names; WeightsError where it does not fit in every name and shape."""
    given = module.published_names(state) if isinstance(module, HasPublishedNames) else dict(state)
    expected = module.state_dict()
    missing = [key for key in expected if key not in given]
    unknown = [key for key in given if key not in expected]
    other_shape = [key for key, tensor in given.items() if key in expected and tensor.shape != expected[key].shape]
    if missing or unknown or other_shape:
        said = []
        if other_shape:
            key = other_shape[0]
            shapes = f"{list(given[key].shape)} in the file, {list(expected[key].shape)} in the network"
            said.append(f"'{key}' has another shape ({shapes}){_more(other_shape)}")
        if unknown:
            said.append(f"'{unknown[0]}' is not known to the network{_more(unknown)}")
        if missing:
            said.append(f"'{missing[0]}' is missing{_more(missing)}")
        cause = _likely_cause(given, expected, missing, unknown, other_shape)
        raise WeightsError(f"{what} does not fit the network: {'; '.join(said)}{'. ' + cause if cause else ''}")
    return given


def _more(keys: list[str]) -> str:
    return f" (and {len(keys) - 1} more)" if len(keys) > 1 else ""


def _likely_cause(given: Mapping[str, Tensor], expected: Mapping[str, Tensor], missing: list[str], unknown: list[str], other_shape: list[str]) -> str:
    """What most often leads to such a mismatch, in words; empty where nothing fits."""
    if not any(key in expected for key in given):
        return f"This is another network altogether: its first key is '{next(iter(given))}'"
    if other_shape and all(".attn2.to_" in key for key in other_shape) and not missing and not unknown:
        key = other_shape[0]
        return f"The file hears audio features of width {given[key].shape[1]}, the network {expected[key].shape[1]}: set unet.audio_dim"
    if "conv_in.weight" in other_shape and given["conv_in.weight"].shape[1] != expected["conv_in.weight"].shape[1]:
        inputs = given["conv_in.weight"].shape[1]
        return f"The file's network takes {inputs} input channels" + (
            ": it is a Stable Diffusion U-Net, not LatentSync" if inputs in (4, 8, 9) else ""
        )
    if not other_shape and all("motion_modules." in key for key in missing + unknown):
        here = any("motion_modules." in key for key in given)
        if missing and not here:
            return "The file has no motion modules: it is release 1.0 or a stage-1 training; choose a preset with motion none"
        if missing:
            return "The file has motion modules in the decoder only: choose a preset with motion decoder"
        if any("motion_modules." in key for key in expected):
            return "The file has motion modules in the encoder too: choose a preset with motion all, such as 1.5"
        return "The file has motion modules: it is release 1.5 or later; choose a preset with motion"
    if other_shape and not missing and not unknown:
        return "The names fit and the sizes do not: the file belongs to a wider or narrower preset"
    return ""
