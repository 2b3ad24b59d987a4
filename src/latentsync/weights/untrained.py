"""Models with random weights: everything works with them except that their pictures are noise. For tests and for trying out the plumbing."""

from __future__ import annotations

import math
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from latentsync import config as configs
from latentsync.config import ModelConfig
from latentsync.errors import OutputError

if TYPE_CHECKING:
    import torch
    from torch import nn

DESCRIPTION = "model.yaml"


def new(preset: str, folder: str | Path, seed: int = 0) -> Path:
    """Write an untrained model of a named preset to a new or empty folder, and return the folder.

    The same seed gives the same weights. The layers that training starts from zero are small random numbers instead, so that every part of
    the network takes part in the output. Face files are not included: they are found by the search path. Appears whole or not at all.
    """
    config = configs.preset(preset)
    target = Path(folder).expanduser()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise OutputError(f"{target} exists and is not an empty folder; name another one")
    scratch = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        scratch.mkdir(parents=True)
        write(config, scratch, seed)
        if target.exists():
            target.rmdir()
        scratch.replace(target)
    except OSError as e:
        raise OutputError(f"cannot write {target}: {e.strerror or e}") from e
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def write(config: ModelConfig, folder: Path, seed: int) -> None:
    """Write description and random weights of one model into a folder."""
    from latentsync.weights.convert import notes, save

    (folder / DESCRIPTION).write_text(configs.dump(config), encoding="utf-8")
    # one network at a time: a full U-Net alone is 5 GB
    for role, make in (("unet", unet), ("whisper", whisper), ("vae", vae)):
        save(make(config, seed), folder / f"{role}.safetensors", notes(config, role, untrained=f"seed {seed}"))


def unet(config: ModelConfig, seed: int) -> dict[str, torch.Tensor]:
    """Random state dict of the U-Net."""
    from latentsync.models.unet import UNet

    return _random(lambda: UNet(config.unet), seed, 1)


def vae(config: ModelConfig, seed: int) -> dict[str, torch.Tensor]:
    """Random state dict of the autoencoder."""
    from latentsync.models.vae import make_vae

    return _random(lambda: make_vae(config.vae), seed, 3)


def whisper(config: ModelConfig, seed: int) -> dict[str, torch.Tensor]:
    """Random state dict of the speech encoder, in OpenAI's names."""
    from latentsync.speech.whisper import SpeechEncoder, openai_checkpoint

    made: list[SpeechEncoder] = []

    def make() -> nn.Module:
        made.append(SpeechEncoder(config.whisper))
        return made[0].encoder

    _random(make, seed, 2)
    state: dict[str, torch.Tensor] = openai_checkpoint(made[0])["model_state_dict"]
    return state


def _random(make: Callable[[], nn.Module], seed: int, stream: int) -> dict[str, torch.Tensor]:
    """State dict of the network that `make` builds: its usual random start, and small random numbers in layers that start from zero.

    `stream` keeps the networks of one model from sharing numbers. The caller's random state is left as it was.
    """
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(10 * seed + stream)
        module = make()
        with torch.no_grad():
            for parameter in module.parameters():
                if parameter.ndim >= 2 and not parameter.any():
                    # a gain of one half per layer: the output stays within the range of its input, noise of variance one
                    parameter.normal_(0.0, 0.5 / math.sqrt(parameter[0].numel()))
    return module.state_dict()
