"""Weights that only training, data preparation and evaluation need: frozen networks that judge, and what a training begins with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from latentsync.errors import UsageError, WeightsError
from latentsync.weights import places
from latentsync.weights.collection import IN_FOLDER, _bundle_with, _first, _locate_equal, gigabytes
from latentsync.weights.releases import EVALUATION, JUDGES, PUBLISHED, TRAINING, Registry, RemoteFile

if TYPE_CHECKING:
    import torch

WHAT = {
    "syncnet": "SyncNet (losses.sync)",
    "vgg16": "VGG16, on whose features LPIPS works (losses.lpips)",
    "lpips": "the linear heads of LPIPS (losses.lpips)",
    "videomae": "VideoMAE V2 giant (losses.trepa)",
    "syncnet_v2": "SyncNet v2",
    "hyperiqa": "HyperIQA",
    "inception": "Inception-v3 (FID)",
    "i3d": "I3D (FVD)",
    "silero_vad": "Silero VAD (speech and silence)",
}
FOR_JUDGING = (*JUDGES, *EVALUATION, "vgg16", "lpips")
OWN = {"syncnet": ("syncnet.safetensors",)}  # what `train syncnet` writes
# How Stable Diffusion's folders in the form of diffusers call their U-Net: of the whole pipeline, and of its `unet` alone.
DIFFUSERS = (
    "unet/diffusion_pytorch_model.safetensors",
    "unet/diffusion_pytorch_model.bin",
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.bin",
)


def training_file(role: str, home: str | Path | None = None, path: str | Path = "", *, registry: Registry = PUBLISHED) -> Path:
    """Where a network that training needs lies: role syncnet, vgg16, lpips or videomae.

    path: a file, or a folder that holds one under its usual names, instead of the published one. Without it the search path is looked
    through. Raises WeightsError that names the file, its size and the command that fetches it.
    """
    if role not in TRAINING:
        raise UsageError(f"'{role}' is no network that training needs; they are {', '.join(TRAINING)}")
    return _frozen(role, "training", home, path, registry, "training")


def _frozen(role: str, who: str, home: str | Path | None, path: str | Path, registry: Registry, bundle: str, otherwise: str = "") -> Path:
    """The file of a network that `who` needs, which `bundle` brings; `otherwise`: what else can be done without it."""
    remote = registry.by_role(role)[0]
    if str(path):
        return _given(Path(path).expanduser(), WHAT[role], (*OWN.get(role, ()), Path(remote.path).name, *remote.names))
    root = places.home_folder(home)
    found = _locate_equal(remote, root, registry)
    if found is None:
        total = gigabytes(sum(f.size or 0 for f in registry.of(bundle)))
        looked = ", ".join(map(str, [*places.search_folders(root), places.hub_cache()]))
        raise WeightsError(
            f"{who} needs {WHAT[role]}, and {Path(remote.path).name} ({gigabytes(remote.size)}) is not here. "
            f"Run: latentsync models download {bundle} ({total} in all){otherwise}\nlooked in: {looked}"
        )
    return found


def training_state(role: str, home: str | Path | None = None, path: str | Path = "", *, registry: Registry = PUBLISHED) -> dict[str, torch.Tensor]:
    """State dict of a network that training needs, by the names in its file; see `training_file`."""
    from latentsync.models.load import read_state

    return read_state(training_file(role, home, path, registry=registry))


def judge_file(
    role: str,
    home: str | Path | None = None,
    path: str | Path = "",
    *,
    otherwise: str = "",
    checked: bool = False,
    registry: Registry = PUBLISHED,
) -> Path:
    """Where a network that judges footage lies: role syncnet_v2, hyperiqa, inception, i3d, silero_vad, vgg16 or lpips.

    path: a file, or a folder that holds one, instead of the published one, which is looked for in the search path. `checked`: only the published
    content will do, for files that bring a program or a graph; the file is read once to know. Raises WeightsError that names the file, its size, the
    command that fetches it and what `otherwise` says.
    """
    if role not in FOR_JUDGING:
        raise UsageError(f"'{role}' is no network that judges footage; they are {', '.join(FOR_JUDGING)}")
    bundle = "evaluation" if role not in JUDGES else _bundle_with(role, registry)
    found = _frozen(role, "judging footage", home, path, registry, bundle, otherwise)
    if checked:
        _check(found, registry.by_role(role)[0], home)
    return found


def _check(path: Path, remote: RemoteFile, home: str | Path | None) -> None:
    known = places.digest_once(path, places.home_folder(home))
    if known != remote.sha256:
        raise WeightsError(
            f"{path} is not the published {Path(remote.path).name}: its sha256 is {known[:16]}..., not {str(remote.sha256)[:16]}.... "
            "Only that one is opened: another could run a program of its own, or judge otherwise. Run: latentsync models download evaluation"
        )


def judge_state(
    role: str, home: str | Path | None = None, path: str | Path = "", *, otherwise: str = "", registry: Registry = PUBLISHED
) -> dict[str, torch.Tensor]:
    """State dict of a network that judges footage, by the names in its file; see `judge_file`."""
    from latentsync.models.load import read_state

    return read_state(judge_file(role, home, path, otherwise=otherwise, registry=registry))


def unet_in(folder: Path) -> Path:
    """The file of the U-Net in a model's folder, the published project's, or one of Stable Diffusion in the form of diffusers."""
    return _given(folder, "a U-Net", (*IN_FOLDER["unet"], *DIFFUSERS))


def _given(path: Path, what: str, names: tuple[str, ...]) -> Path:
    if path.is_file():
        return path
    if not path.is_dir():
        raise WeightsError(f"there is no file or folder {path}; it was given for {what}")
    found = _first(path, names)
    if found is None:
        raise WeightsError(f"{path} holds no file for {what}; one of these is expected: {', '.join(dict.fromkeys(names))}")
    return found
