"""A model's name or folder -> the loaded networks of a pipeline, on a device, in one precision."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import torch
from torch import nn

from latentsync import weights
from latentsync.device import Compute, choose, memory_guard
from latentsync.errors import WeightsError
from latentsync.face.detect import BACKENDS, make_backend
from latentsync.models.load import load_state
from latentsync.models.unet import UNet
from latentsync.models.vae import make_vae
from latentsync.speech.whisper import load_whisper

if TYPE_CHECKING:
    from latentsync.config import ModelConfig
    from latentsync.face.protocols import FaceBackend
    from latentsync.models.vae import Autoencoder
    from latentsync.speech.whisper import SpeechEncoder

N = TypeVar("N", bound=nn.Module)


class Model(NamedTuple):
    """Everything of a model that a pipeline runs, on its device."""

    config: ModelConfig
    unet: UNet
    vae: Autoencoder
    whisper: SpeechEncoder
    faces: Callable[[], FaceBackend]  # makes a face finder for one job: they keep buffers, so jobs do not share them
    compute: Compute
    untrained: bool = False  # random weights: said in every result


def load(
    model: str | Path,
    *,
    device: str,
    dtype: str,
    preview: bool,
    face_backend: str | None,
    faces: bool,
    compile: bool,
    home: str | Path | None,
) -> Model:
    """See `LipSync.load`, which has the defaults."""
    files = weights.resolve(model, home=home, need=weights.roles(preview=preview, face_backend=face_backend, faces=faces))
    compute = choose(device, dtype)
    config = files.config
    with memory_guard(compute):
        with torch.device("meta"):
            unet = UNet(config.unet)
        load_state(unet, files.state("unet"), f"U-Net of model {config.name}")
        unet = _placed(unet, compute)
        if compile:
            unet.compile()
        with torch.device("meta"):
            vae = make_vae(replace(config.vae, kind="tiny") if preview else config.vae)
        load_state(vae, files.state("taesd" if preview else "vae"), "tiny autoencoder" if preview else f"autoencoder of model {config.name}")
        vae = _placed(vae, compute)
        whisper = load_whisper(files.state("whisper"), config.whisper).to(compute.device).eval()
    return Model(config, unet, vae, whisper, _finder(face_backend or config.defaults.face_backend, files, faces), compute, files.untrained)


def _placed(network: N, compute: Compute) -> N:
    """On the device, in the dtype, for inference; channels last, in which convolutions on small grids are a quarter faster on CPUs."""
    network.eval().requires_grad_(False)
    network.to(compute.device, compute.dtype)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network


def _finder(name: str, files: weights.ModelFiles, wanted: bool) -> Callable[[], FaceBackend]:
    """What makes the named face backend; its files may lie in any folder that is searched for weights."""
    if not wanted:

        def absent() -> FaceBackend:
            raise WeightsError("this pipeline was loaded without a face finder (faces=False); give the faces' places by points")

        return absent
    found = _face_files(name, files.faces, weights.search_folders(files.home))
    return lambda: make_backend(name, found)


def face_finder(name: str, home: str | Path | None = None) -> FaceBackend:
    """A face finder by name, without any model; its files come with the package or lie in a folder that is searched for weights.

    Raises UsageError for an unknown name, WeightsError for missing or damaged files.
    """
    return make_backend(name, _face_files(name, {}, [*weights.search_folders(weights.home_folder(home)), weights.shipped.folder()]))


def _face_files(name: str, known: Mapping[str, Path], folders: Iterable[Path]) -> dict[str, Path]:
    found = dict(known)
    for wanted in BACKENDS.get(name, ()):
        if wanted not in found:
            for folder in folders:
                if (folder / wanted).is_file():
                    found[wanted] = folder / wanted
    return found
