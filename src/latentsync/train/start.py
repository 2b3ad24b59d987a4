"""What a training of the U-Net begins with: weights of an earlier stage, of a release, or of Stable Diffusion 1.5."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from latentsync import weights
from latentsync.errors import UsageError
from latentsync.models.load import load_state, read_state
from latentsync.train import checkpoint
from latentsync.weights.adapters import is_adapter

if TYPE_CHECKING:
    from latentsync.models.unet import UNet

MOTION = "motion_modules."
# Input channels of the text-to-image network and of the inpainting one -> where they go among ours: noisy latent 0-3, mask 4, masked latent 5-8,
# reference latent 9-12. Inpainting has the first nine in the same order, but its mask is 1 where ours is 0.
DIFFUSION_INPUTS = {4: (slice(0, 4),), 9: (slice(0, 4), slice(5, 9))}


def start_unet(unet: UNet, source: str, home: str | Path | None = None) -> list[str]:
    """Put the weights of `source` into the network, and say what was taken and what is new.

    source: a release (1.5, 1.6), a folder (a model's, a run's, a checkpoint's, Stable Diffusion's), a weights file, or '' for the random
    weights that the network has. Names and shapes must fit exactly, but for this: motion modules that the source lacks stay new, and
    since their output begins at zero, the network begins by doing what the source does; those that the network lacks are left out; of a
    Stable Diffusion 1.5 U-Net, what fits is taken. Raises WeightsError that names what does not fit, UsageError where there is no such source.
    """
    if not source:
        return [
            "the U-Net begins with random weights; start=1.5, a folder, or a file (Stable Diffusion 1.5's U-Net too) begins with what others learned"
        ]
    return take(unet, _state(source, home), source)


def take(unet: UNet, given: Mapping[str, Tensor], source: str) -> list[str]:
    """`start_unet` from tensors by published name; `source` names them."""
    expected = unet.state_dict()
    other = [key for key, tensor in given.items() if key in expected and tensor.shape != expected[key].shape]
    unknown = [key for key in given if key not in expected]
    missing = [key for key in expected if key not in given]
    diffusion = _is_diffusion(given)
    if not diffusion and "conv_in.weight" not in given and any(key.startswith("model.diffusion_model.") for key in given):
        raise UsageError(f"{source} is a whole Stable Diffusion checkpoint; give the U-Net of its form for diffusers, a folder `unet`")
    excused = {key for key in other if diffusion and _hears_or_sees(key)}
    if set(other) - excused or not all(MOTION in key for key in unknown + missing):
        load_state(unet, given, f"the U-Net of start={source}")  # says what does not fit, and raises
    with torch.no_grad():
        for key, tensor in expected.items():  # shares its memory with the network
            if key in given and key not in excused:
                tensor.copy_(given[key])
        if diffusion and "conv_in.weight" in excused:
            _take_inputs(expected["conv_in.weight"], given["conv_in.weight"])
    return _notes(source, given, expected, unknown, missing, excused)


def _state(source: str, home: str | Path | None) -> Mapping[str, Tensor]:
    path = Path(source).expanduser()
    released = [name for name, bundle in weights.PUBLISHED.bundles.items() if bundle.model]
    if source in released:
        return weights.resolve(source, home=home, need=("unet",)).state("unet")
    if path.is_file():
        return read_state(path)
    if not path.is_dir():
        raise UsageError(f"start={source} is neither a release ({', '.join(released)}), nor a folder or a file that is there")
    if (path / checkpoint.FOLDER).is_dir():  # of a run
        path = checkpoint.find(path)
    if is_adapter(path):
        return weights.resolve(path, home=home, need=("unet",)).state("unet")
    return read_state(weights.unet_in(path))


def _is_diffusion(state: Mapping[str, Tensor]) -> bool:
    """Whether this is a U-Net for pictures: the same names, but other inputs than ours."""
    conv = state.get("conv_in.weight")
    return conv is not None and conv.ndim == 4 and conv.shape[1] in DIFFUSION_INPUTS and not any(MOTION in key for key in state)


def _hears_or_sees(key: str) -> bool:
    return key == "conv_in.weight" or key.endswith((".attn2.to_k.weight", ".attn2.to_v.weight"))


def _take_inputs(ours: Tensor, theirs: Tensor) -> None:
    """First convolution (width, 13, 3, 3) from one with fewer inputs; the inputs that it does not know count nothing at first."""
    ours.zero_()
    places = DIFFUSION_INPUTS[theirs.shape[1]]
    for place in places:
        ours[:, place] = theirs[:, place].to(ours.dtype)


def _notes(
    source: str, given: Mapping[str, Tensor], expected: Mapping[str, Tensor], unknown: list[str], missing: list[str], excused: set[str]
) -> list[str]:
    total = sum(t.numel() for t in expected.values())
    taken = sum(expected[key].numel() for key in given if key in expected and key not in excused)
    notes = [f"the U-Net begins with {source}: {taken:,} of {total:,} numbers are from there"]
    if excused:
        keys, inputs = sorted(excused - {"conv_in.weight"}), given["conv_in.weight"].shape[1]
        if "conv_in.weight" in excused:
            known = "the noisy and the masked latent" if inputs == 9 else "the noisy latent"
            notes.append(f"of the first convolution only the inputs for {known} are from there; the others count nothing at first")
        if keys:
            here, there = expected[keys[0]].shape[1], given[keys[0]].shape[1]
            notes.append(f"new: {len(keys)} tensors attn2.to_k and to_v, since sound comes as {here} numbers and not as {there}, such as {keys[0]}")
    if missing:
        numbers = sum(expected[key].numel() for key in missing)
        notes.append(f"new: {_modules(missing)} motion modules ({numbers:,} numbers); their output begins at zero, so nothing else changes at first")
    if unknown:
        notes.append(f"left out: {_modules(unknown)} motion modules of {source}, which this network does not have")
    return notes


def _modules(keys: list[str]) -> int:
    """How many motion modules these tensors are of: down_blocks.0.motion_modules.1 is one."""
    return len({key.partition(MOTION)[0] + key.partition(MOTION)[2].partition(".")[0] for key in keys})
