"""What a U-Net training can begin with, and what is said about it. Networks are tiny and real, and their outputs are compared."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from latentsync import config as configs
from latentsync import weights
from latentsync.config import ModelConfig, UNetConfig
from latentsync.errors import LatentSyncError, UsageError, WeightsError
from latentsync.models.unet import UNet
from latentsync.train import checkpoint
from latentsync.train.start import start_unet, take
from latentsync.weights import untrained

TINY = configs.preset("tiny")
Z = (1, 13, 3, 8, 8)


def described(motion: str, **more: object) -> ModelConfig:
    return replace(TINY, unet=replace(TINY.unet, motion=motion, **more))  # type: ignore[arg-type]


def published(folder: Path, config: ModelConfig, seed: int = 1) -> Path:
    """Random weights in the file that the published training writes."""
    path = folder / f"checkpoint-{config.unet.motion}.pt"
    torch.save({"global_step": 7, "state_dict": untrained.unet(config, seed)}, path)
    return path


def output(network: UNet) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    x, audio = torch.randn(Z, generator=generator), torch.randn(1, 3, 50, TINY.unet.audio_dim, generator=generator)
    with torch.no_grad():
        return network(x, torch.tensor([400]), audio)


def fresh(config: ModelConfig) -> UNet:
    torch.manual_seed(0)
    return UNet(config.unet)


def equal(network: UNet, state: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, state[key]) for key, tensor in network.state_dict().items())


def test_nothing_means_random_weights():
    network = fresh(TINY)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    (note,) = start_unet(network, "")
    assert "random weights" in note
    assert equal(network, before)


def test_the_same_network_is_taken_whole(tmp_path):
    network, file = fresh(TINY), published(tmp_path, TINY)
    total = sum(t.numel() for t in network.state_dict().values())
    assert start_unet(network, str(file)) == [f"the U-Net begins with {file}: {total:,} of {total:,} numbers are from there"]
    assert equal(network, untrained.unet(TINY, 1))
    assert all(p.dtype == torch.float32 and p.requires_grad for p in network.parameters())


def test_half_precision_files_become_float32(tmp_path):
    torch.save({k: v.half() for k, v in untrained.unet(TINY, 1).items()}, tmp_path / "half.pt")
    network = fresh(TINY)
    start_unet(network, str(tmp_path / "half.pt"))
    assert {t.dtype for t in network.state_dict().values()} == {torch.float32}


@pytest.mark.parametrize(("before", "after", "modules"), [("none", "all", 20), ("none", "decoder", 12), ("decoder", "all", 8)])
def test_the_next_stage_begins_by_doing_what_the_last_did(tmp_path, before, after, modules):
    first, second = described(before), described(after)
    old, new = fresh(first), fresh(second)
    file = published(tmp_path, first)
    start_unet(old, str(file))
    notes = start_unet(new, str(file))
    assert f"new: {modules} motion modules" in notes[-1]
    assert output(old).abs().mean() > 1e-3
    torch.testing.assert_close(output(new), output(old), atol=1e-6, rtol=1e-5)
    with torch.no_grad():  # and it is the zero that does it
        for name, parameter in new.named_parameters():
            if ".proj_out." in name and "motion_modules." in name:
                parameter.add_(0.1)
    assert not torch.allclose(output(new), output(old), atol=1e-3)


def test_motion_modules_without_a_place_are_left_out_and_said(tmp_path):
    network, file = fresh(described("none")), published(tmp_path, TINY)
    assert start_unet(network, str(file))[-1] == f"left out: 20 motion modules of {file}, which this network does not have"
    assert equal(network, untrained.unet(TINY, 1))


# Stable Diffusion


def diffusion(width: tuple[int, ...], heard: int, inputs: int):
    """Stable Diffusion 1.5's own U-Net, by the library that publishes it, in any width."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=64,
        in_channels=inputs,
        out_channels=4,
        block_out_channels=width,
        layers_per_block=2,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        cross_attention_dim=heard,
        attention_head_dim=8,
        norm_num_groups=32,
    )


@pytest.mark.parametrize(("inputs", "places"), [(4, [0, 1, 2, 3]), (9, [0, 1, 2, 3, 5, 6, 7, 8])])
def test_what_fits_of_stable_diffusion_is_taken(tmp_path, inputs, places):
    from safetensors.torch import save_file

    torch.manual_seed(1)
    theirs = diffusion(TINY.unet.channels, 48, inputs).state_dict()
    (tmp_path / "unet").mkdir()
    save_file({k: v.contiguous() for k, v in theirs.items()}, str(tmp_path / "unet" / "diffusion_pytorch_model.safetensors"))
    network = fresh(TINY)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    notes = start_unet(network, str(tmp_path))  # the whole pipeline's folder
    after = network.state_dict()
    other = {k for k in after if k.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))}
    assert len(other) == 32
    for key, tensor in after.items():
        if "motion_modules." in key or key in other:
            assert torch.equal(tensor, before[key]), key
        elif key != "conv_in.weight":
            assert torch.equal(tensor, theirs[key]), key
    assert torch.equal(after["conv_in.weight"][:, places], theirs["conv_in.weight"][:, places])
    assert not after["conv_in.weight"][:, [i for i in range(13) if i not in places]].any()
    said = "\n".join(notes)
    for part in ("of the first convolution", "32 tensors attn2.to_k and to_v", "sound comes as 32 numbers and not as 48", "new: 20 motion modules"):
        assert part in said
    assert ("masked latent" in said) == (inputs == 9)


def test_the_names_and_sizes_of_stable_diffusion_15():
    """At full size, without memory: all of its 686 tensors have a place, 33 of them in another shape."""
    with torch.device("meta"):
        network, theirs = UNet(UNetConfig()), diffusion((320, 640, 1280, 1280), 768, 4).state_dict()
    assert len(theirs) == 686
    notes = take(network, theirs, "sd15")
    fits = sum(t.numel() for k, t in theirs.items() if k != "conv_in.weight" and not k.endswith(("attn2.to_k.weight", "attn2.to_v.weight")))
    assert notes[0] == f"the U-Net begins with sd15: {fits:,} of {sum(t.numel() for t in network.state_dict().values()):,} numbers are from there"
    assert "sound comes as 384 numbers and not as 768" in notes[2]
    assert fits > 0.97 * sum(t.numel() for t in theirs.values())


def test_a_whole_stable_diffusion_checkpoint_is_explained(tmp_path):
    torch.save({"state_dict": {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(320, 4, 3, 3)}}, tmp_path / "v1-5.ckpt")
    with pytest.raises(UsageError, match="its form for diffusers, a folder `unet`"):
        start_unet(fresh(TINY), str(tmp_path / "v1-5.ckpt"))


# Where from


def test_folders_of_every_kind(tmp_path):
    model = weights.new("tiny", tmp_path / "model", seed=1)
    expected = untrained.unet(TINY, 1)
    network = fresh(TINY)
    start_unet(network, str(model))
    assert equal(network, expected)

    def write(folder: Path) -> None:
        weights.convert.save(untrained.unet(TINY, step), folder / "unet.safetensors", {})

    for step in (2, 3):
        checkpoint.save(tmp_path / "run" / "checkpoints", step, write, keep=3, keep_every=0)
    for source, seed in (("run", 3), ("run/checkpoints/step-00000002", 2)):
        start_unet(network, str(tmp_path / source))
        assert equal(network, untrained.unet(TINY, seed))


def test_a_release_that_is_not_here_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.delenv("LATENTSYNC_WEIGHTS_PATH", raising=False)
    with pytest.raises(WeightsError, match=r"latentsync models download 1\.5"):
        start_unet(fresh(TINY), "1.5", home=tmp_path)


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda f: f / "nothing", UsageError, r"neither a release \(1\.6, 1\.5\), nor a folder or a file"),
        (lambda f: f, WeightsError, "holds no file for a U-Net"),
        (lambda f: published(f, described("all", channels=(32, 32, 64, 96))), WeightsError, "has another shape"),
        (lambda f: published(f, described("all", motion_positions=16)), WeightsError, "has another shape"),
        (lambda f: published(f, described("all", audio_dim=64)), WeightsError, "audio features of width 64"),
        (lambda f: published(f, described("all", in_channels=12)), WeightsError, "12 input channels"),
        (lambda f: published(f, described("all", layers_per_block=1)), WeightsError, "does not fit the network"),
    ],
)
def test_anything_else_is_refused_and_nothing_is_changed(tmp_path, make, error, said):
    network = fresh(TINY)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    with pytest.raises(error, match=said):
        start_unet(network, str(make(tmp_path)))
    assert equal(network, before)
    assert issubclass(error, LatentSyncError)
