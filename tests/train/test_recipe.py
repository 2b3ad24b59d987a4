"""What a recipe adds to the training of the U-Net: draws, mirrored windows, one reference, weighed errors, latents encoded once."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from latentsync.config import VAEConfig
from latentsync.errors import InputError
from latentsync.face.mask import latent_mask, resized_mask
from latentsync.models.vae import VAE
from latentsync.train.cache import Cache
from latentsync.train.clips import ClipSet
from latentsync.train.config import RecipeConfig
from latentsync.train.draws import draws
from latentsync.train.latents import CLEAN, MASKED, Latents
from latentsync.train.losses import emphasis, mouth_cells, reconstruction
from latentsync.train.unet_step import UNetStep
from latentsync.train.windows import Pick, UNetWindows, collate
from tests.models.conftest import randomise
from tests.train.clipmaker import SIDE, make_clip, number, small_whisper
from tests.train.test_unet_step import DiffusionConfig, Weights

FRAMES = 8
SHAPE = {"frames": 2, "latent": (2, 3, 3), "train_steps": 1000}


# --- draws


def test_a_recipe_moves_timesteps_and_nothing_else():
    plain, drawn = (draws(7, range(400), **SHAPE, recipe=r) for r in (None, RecipeConfig(late=0.5, shared_noise=0.3, audio_dropout=0.1)))
    for a, b in zip(plain[:5], drawn[:5], strict=True):
        assert torch.equal(a, b)
    moved = plain.timesteps != drawn.timesteps
    assert drawn.timesteps[moved].min() >= 500
    assert (drawn.timesteps >= 500).float().mean().item() == pytest.approx(0.75, abs=0.07)
    assert drawn.alike.float().mean().item() == pytest.approx(0.3, abs=0.07)
    assert drawn.silent.float().mean().item() == pytest.approx(0.1, abs=0.05)
    assert not plain.alike.any()
    assert not plain.silent.any()
    again = draws(7, [399], **SHAPE, recipe=RecipeConfig(late=0.5))
    assert again.timesteps[0] == drawn.timesteps[399]


# --- weights of errors


def test_the_mouth_lies_below_the_nose_inside_of_what_is_made_anew():
    cells = mouth_cells(16, 16)
    rows, columns = (np.flatnonzero(cells.any(axis).numpy()) for axis in (1, 0))
    assert (rows[0], rows[-1], columns[0], columns[-1]) == (8, 12, 4, 11)
    assert not (cells & (torch.from_numpy(latent_mask(128)) > 0.5)).any()


def test_errors_count_by_where_they_are():
    mask = torch.from_numpy(latent_mask(128))
    assert emphasis(mask, 1.0, 1.0) is None
    weights = emphasis(mask, 0.1, 2.0)
    assert sorted(weights.unique().tolist()) == pytest.approx([0.1, 1, 2])
    assert (weights[mask > 0.5] == weights.min()).all()
    assert (weights[mouth_cells(16, 16)] == 2).all()
    error = torch.zeros(1, 4, 2, 16, 16)
    error[..., 10, 8] = 1  # at the mouth
    assert reconstruction(error, torch.zeros_like(error), weights).item() == pytest.approx(2 / weights.sum().item())


# --- windows and latents


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> ClipSet:
    folder = tmp_path_factory.mktemp("set")
    for i in range(2):
        make_clip(folder / f"{i}.mp4", 30, seed=i)
    return ClipSet.open(folder, frames=FRAMES, resolution=SIDE)


@pytest.fixture(scope="module")
def vae() -> VAE:
    return randomise(VAE(VAEConfig(channels=(8, 8, 16, 16), layers_per_block=1, groups=4)), 1).eval()


@pytest.fixture(scope="module")
def store(clips: ClipSet, vae: VAE, tmp_path_factory: pytest.TempPathFactory) -> Latents:
    latents = Latents(tmp_path_factory.mktemp("cache"), weights="0", resolution=SIDE, fps=Fraction(25), mirrored=True)
    said: list[str] = []
    latents.encode(clips, vae, torch.from_numpy(resized_mask(SIDE)), torch.device("cpu"), said.append)
    assert said == ["encoded the pictures of 2 of 2 clips"]
    return latents


def windows(clips: ClipSet, folder: Path, **changes: object) -> UNetWindows:
    settings = {"frames": FRAMES, "resolution": SIDE, "seed": 3, "cache": Cache(folder), "whisper": small_whisper, "mels": False}
    return UNetWindows(clips, **(settings | changes))  # type: ignore[arg-type]


def test_a_fixed_reference_is_one_frame_of_the_clip(clips: ClipSet, tmp_path: Path) -> None:
    plain, fixed = windows(clips, tmp_path), windows(clips, tmp_path, fixed_reference=1.0)
    seen = set()
    for epoch in range(6):
        sample, other = fixed[Pick(epoch, 0, 0)], plain[Pick(epoch, 0, 0)]
        assert torch.equal(sample["frames"], other["frames"])
        assert (sample["reference"] == sample["reference"][:1]).all()
        seen.add(number(sample["reference"][0]))
    assert len(seen) > 2


def test_half_of_the_windows_are_mirrored_whole(clips: ClipSet, tmp_path: Path) -> None:
    plain, mirrored = windows(clips, tmp_path), windows(clips, tmp_path, flip=True)
    count = 0
    for epoch in range(12):
        a, b = plain[Pick(epoch, 0, 0)], mirrored[Pick(epoch, 0, 0)]
        turned = torch.equal(a["frames"].flip(-1), b["frames"])
        assert turned or torch.equal(a["frames"], b["frames"])
        assert torch.equal(a["reference"].flip(-1) if turned else a["reference"], b["reference"])
        count += turned
    assert 2 <= count <= 10


def test_latents_encoded_once_are_those_of_the_pictures(clips: ClipSet, vae: VAE, store: Latents, tmp_path: Path) -> None:
    once = windows(clips, tmp_path, flip=True, latents=store, latent=(4, SIDE // 8, SIDE // 8), pictures=False)
    each = windows(clips, tmp_path, flip=True)
    mask = torch.from_numpy(resized_mask(SIDE))
    for epoch in range(3):
        a, b = once[Pick(epoch, 1, 0)], each[Pick(epoch, 1, 0)]
        assert "frames" not in a
        pixels, reference = b["frames"] / 127.5 - 1, b["reference"] / 127.5 - 1
        with torch.no_grad():
            for name, shown in (("clean", pixels), ("masked", pixels * mask), ("seen", reference)):
                torch.testing.assert_close(a[name].float(), vae.encode(shown).transpose(0, 1), rtol=2e-3, atol=2e-3)


def test_what_is_encoded_is_not_encoded_again_and_another_autoencoder_finds_nothing(clips: ClipSet, store: Latents) -> None:
    def fails(_: object) -> None:
        raise AssertionError

    store.encode(clips, None, None, torch.device("cpu"), fails)  # type: ignore[arg-type]
    assert store.open(clips[0]).shape == (2, 2, clips[0].frames, 4, SIDE // 8, SIDE // 8)
    assert not np.array_equal(store.open(clips[0])[0, CLEAN], store.open(clips[0])[0, MASKED])
    other = Latents(store.folder.parent.parent, weights="1", resolution=SIDE, fps=Fraction(25), mirrored=True)
    with pytest.raises(InputError, match="its latents are not in"):
        other.open(clips[0])


def test_a_step_on_latents_is_silent_where_drawn_and_estimates_when_held_out(clips: ClipSet, vae: VAE, store: Latents, tmp_path: Path) -> None:
    data = windows(clips, tmp_path, latents=store, latent=(4, SIDE // 8, SIDE // 8), pictures=False)
    batch = collate([data[Pick(0, i, i)] for i in range(2)])
    latent = (4, SIDE // 8, SIDE // 8)
    recipe = RecipeConfig(shared_noise=1.0, audio_dropout=1.0)
    drawn = draws(1, batch["position"], frames=FRAMES, latent=latent, train_steps=1000, recipe=recipe)
    diffusion = DiffusionConfig(prediction_type="v_prediction")
    step = UNetStep(diffusion=diffusion, weights=Weights(), vae=vae, resolution=SIDE, kept=0.1, mouth=2.0)
    heard, noises = [], []

    def net(sample: torch.Tensor, timestep: torch.Tensor, audio: torch.Tensor) -> torch.Tensor:
        """Right, from what it is given."""
        heard.append(audio)
        share = step.shares[timestep].reshape(-1, 1, 1, 1, 1)
        noise = (sample[:, :4] - share.sqrt() * batch["clean"].float()) / (1 - share).sqrt()
        noises.append(noise)
        return share.sqrt() * noise - (1 - share).sqrt() * batch["clean"].float()

    assert batch["audio"].abs().max() > 0
    terms = step(net, batch | {"held_out": True}, drawn)
    assert terms["recon"] < 1e-6
    assert terms["estimate"] < 1e-6
    assert len(heard) == 2
    assert not any(a.any() for a in heard)
    torch.testing.assert_close(noises[0], drawn.shared.expand_as(noises[0]), rtol=0, atol=1e-3)
    assert "estimate" not in step(net, batch, drawn)
