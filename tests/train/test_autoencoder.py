"""Training of the small autoencoder: its loss on known pictures, and short runs from clips to a network that others load."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from latentsync import config as configs
from latentsync import train
from latentsync.config import VAEConfig
from latentsync.errors import UsageError, WeightsError
from latentsync.models.load import load_state, read_state
from latentsync.models.vae import make_vae
from latentsync.train import autoencoder, log
from latentsync.train.autoencoder import AutoencoderTask, autoencoder_files, losses, psnr
from latentsync.train.clips import ClipSet
from latentsync.train.config import AutoencoderLosses, AutoencoderTrain
from latentsync.train.store import FrameStore

TINY = (
    "run.device=cpu", "run.dtype=fp32", "data.workers=0", "run.log_every=1", "run.gradient_checkpointing=false", "run.batch=8", "run.ema=0.9",
    "run.validation_clips=2", "run.validate_every=0",
)  # fmt: skip
ALONE = AutoencoderLosses(l1=1.0, gradient=1.0, squared=1.0, latent=1.0, mouth=1.0)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def configured(*values: str) -> AutoencoderTrain:
    made, _ = train.load("autoencoder", "tiny", [*TINY, *values])
    assert isinstance(made, AutoencoderTrain)
    return made


def go(out: Path, clips: Path, *values: str) -> Path:
    """The run's last checkpoint."""
    outcome = train.run(configured(f"data.train={clips}", f"data.cache={clips.parent / 'frames'}", f"run.out={out}", *values))
    assert outcome.checkpoint is not None
    return outcome.checkpoint


class First(NamedTuple):
    out: Path
    last: Path


@pytest.fixture(scope="module")
def first(others: Path, tmp_path_factory: pytest.TempPathFactory) -> First:
    """A run of 100 steps with an average of the weights, validated at its end."""
    out = tmp_path_factory.mktemp("runs") / "first"
    return First(out, go(out, others, "run.steps=100"))


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def terms(made: Tensor, true: Tensor, weights: AutoencoderLosses = ALONE, mouth: Tensor | None = None) -> dict[str, float]:
    n, _, h, w = true.shape
    found = losses(made, true, torch.full((n, 4, 1, 1), 2.0), torch.zeros(n, 1, h, w) if mouth is None else mouth, torch.ones(n), weights)
    return {name: float(value) for name, value in found.items()}


# The loss.


def test_terms_of_known_pictures():
    true = torch.rand(2, 3, 8, 8)
    exact = {"l1": 0.0, "gradient": 0.0, "squared": 0.0, "latent": 4.0}
    assert terms(true, true) == pytest.approx({"loss": 4.0, **exact})
    assert terms(true + 0.5, true) == pytest.approx({"loss": 4.75, **exact, "l1": 0.5, "squared": 0.25}, abs=1e-5)
    ramp = 0.1 * torch.arange(8.0).expand(2, 3, 8, 8)  # 0.1 from pixel to pixel; 0.2 from pair to pair
    assert terms(true + ramp, true)["gradient"] == pytest.approx(0.3, abs=1e-5)
    chosen = AutoencoderLosses(l1=2.0, gradient=3.0, squared=5.0, latent=7.0, mouth=1.0)
    one = terms(true + ramp, true, chosen)
    assert one["loss"] == pytest.approx(2 * one["l1"] + 3 * one["gradient"] + 5 * one["squared"] + 7 * one["latent"], rel=1e-5)


def test_errors_at_the_mouth_count_more():
    true, mouth = torch.zeros(1, 3, 8, 8), torch.zeros(1, 1, 8, 8)
    mouth[..., 4:, :] = 1
    upper, lower = (torch.zeros(1, 3, 8, 8) for _ in range(2))
    upper[..., 1:3, :] = lower[..., 5:7, :] = 0.4
    weights = AutoencoderLosses(mouth=3.0)
    above, below = terms(upper, true, weights, mouth), terms(lower, true, weights, mouth)
    assert below["l1"] == pytest.approx(3 * above["l1"])
    assert below["squared"] == pytest.approx(3 * above["squared"])
    assert below["gradient"] > 1.5 * above["gradient"] > 0


def test_samples_that_count_nothing_do_not():
    true, made = torch.zeros(2, 3, 8, 8), torch.stack([torch.full((3, 8, 8), 0.5), torch.full((3, 8, 8), math.pi)])
    found = losses(made, true, torch.zeros(2, 4, 1, 1), torch.zeros(2, 1, 8, 8), torch.tensor([1.0, 0.0]), ALONE)
    assert float(found["l1"]) == pytest.approx(0.5)
    none = losses(made, true, torch.zeros(2, 4, 1, 1), torch.zeros(2, 1, 8, 8), torch.zeros(2), ALONE)
    assert float(none["loss"]) == 0


def test_psnr_in_levels():
    """An error of one level of 255 everywhere is 48.13 dB."""
    true = torch.zeros(1, 3, 4, 4)
    assert float(psnr(true + 2 / 255, true)) == pytest.approx(20 * math.log10(255), abs=1e-4)
    assert float(psnr(true, true)) == pytest.approx(100)


def test_the_noise_on_latents_is_the_configured_share_of_their_spread(others, tmp_path):
    task = AutoencoderTask(configured(f"data.train={others}", f"run.out={tmp_path}", "noise=0.25"), say=lambda _: None)
    heard = []

    def network(pixels: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        heard.append(noise)
        return pixels, noise

    task.terms(
        network, {"pixels": torch.zeros(1, 3, 8, 8), "mouth": torch.zeros(1, 1, 8, 8), "weight": torch.ones(1), "noise": torch.ones(1, 4, 1, 1)}
    )
    assert heard[0].unique().tolist() == [0.25]


# Runs.


def before(clips: Path, out: Path) -> dict[str, float]:
    """Means of the held-out terms of the untrained network, which is a coarse codec already."""
    task = AutoencoderTask(configured(f"data.train={clips}", f"data.cache={clips.parent / 'frames'}", f"run.out={out}"), say=lambda _: None)
    with torch.no_grad():
        each = [task.terms(task.network, batch) for batch in task.held_out(rank=0, world=1)]
    return {name: float(torch.stack([t[name] for t in each]).mean()) for name in each[0]}


def test_it_learns(first, others, tmp_path):
    (held_out,) = [r.values for r in log.read(first.out / log.EVENTS) if r.split == "validation"]
    untrained = before(others, tmp_path)
    assert held_out["psnr"] > untrained["psnr"] + 1
    assert held_out["loss"] < 0.9 * untrained["loss"]
    assert {"psnr_mouth", "gradient_mouth"} <= held_out.keys()
    sheet = first.out / "validation" / "step-00000100" / "sheet.png"
    picture = cv2.imread(str(sheet))
    assert picture is not None
    assert picture.std() > 10


def test_what_is_written_is_an_autoencoder_whose_latents_are_standardised(first, others):
    """Both the network and its average, each by its own latents, over faces of the training set."""
    clips = ClipSet.open(others, frames=1, resolution=64)
    training, _ = clips.held_out()
    store = FrameStore(others.parent / "frames", fps=clips.fps, side=64)
    faces = np.concatenate([store.frames(clip)[::3] for clip in training]).transpose(0, 3, 1, 2)
    pixels = torch.from_numpy(faces).float() / 127.5 - 1
    found = []
    for folder in (first.last, first.last / "ema"):
        config = configs.parse_as(VAEConfig, (folder / "vae.yaml").read_text(), "vae.yaml")
        assert config.kind == "small"
        vae = load_state(make_vae(config), read_state(folder / "vae.safetensors"), "written")
        with torch.no_grad():
            latents = vae.encode(pixels)
        assert latents.mean(dim=(0, 2, 3)).abs().max() < 0.1
        assert (latents.std(dim=(0, 2, 3)) - 1).abs().max() < 0.1
        found.append(vae.state_dict()["latent_std"])
    assert not torch.equal(*found)


def test_an_interrupted_run_ends_where_a_whole_one_does(others, tmp_path, monkeypatch):
    monkeypatch.setattr(autoencoder, "MEASURED", 11)
    whole = go(tmp_path / "whole", others, "run.steps=4")
    go(tmp_path / "cut", others, "run.steps=2")
    cut = go(tmp_path / "cut", others, "run.steps=4")
    for part in (".", "ema"):
        assert equal(read_state(whole / part / "vae.safetensors"), read_state(cut / part / "vae.safetensors"))


def test_a_run_starts_from_another(first, others, tmp_path):
    """At a rate of nothing the weights stay."""
    still = ("run.steps=1", "optimizer.learning_rate=1e-30", "optimizer.weight_decay=0")
    before = read_state(first.last / "vae.safetensors")
    after = read_state(go(tmp_path / "after", others, f"start={first.out}", *still) / "vae.safetensors")
    for name in before:
        torch.testing.assert_close(after[name], before[name], atol=1e-5, rtol=1e-5)


def test_what_can_be_started_from(first):
    """A run's folder, a checkpoint's, a file, which says nothing of the network."""
    state, described = autoencoder_files(str(first.out))
    assert described == configured().net
    assert equal(state, autoencoder_files(str(first.last))[0])
    averaged, _ = autoencoder_files(str(first.last / "ema"))
    assert not equal(state, averaged)
    assert equal(state, autoencoder_files(str(first.last / "vae.safetensors"))[0])
    assert autoencoder_files(str(first.last / "vae.safetensors"))[1] is None


@pytest.mark.parametrize("made", ["nothing", "a folder"])
def test_a_start_that_is_none_is_named(others, tmp_path, made):
    start = tmp_path / "start"
    if made == "a folder":
        start.mkdir()
    with pytest.raises(WeightsError, match="start"):
        AutoencoderTask(configured(f"data.train={others}", f"run.out={tmp_path}", f"start={start}"), say=lambda _: None)


@pytest.mark.parametrize(
    ("value", "words"),
    [("crop=36", "crop 36"), ("crop=128", "crop 128"), ("resolution=96", "resolution 96"), ("net.kind=kl", "only autoencoders of kind small")],
)
def test_what_does_not_fit_is_refused(value, words):
    with pytest.raises(UsageError, match=words):
        configured(value)
