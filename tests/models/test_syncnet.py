"""SyncNet against truths of its layers, then against numbers and names of the published system with the same random weights."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from latentsync.config import SYNCNETS, SyncEncoderConfig, SyncNetConfig, VAEConfig, build, plain
from latentsync.errors import UsageError, WeightsError
from latentsync.models import syncnet
from latentsync.models.load import load_state
from latentsync.models.syncnet import DownBlock, Encoder, SyncNet, visual_input
from latentsync.models.vae import VAE

from .conftest import randomise

SMALL = SyncNetConfig(
    frames=2,
    resolution=32,
    audio=SyncEncoderConfig(
        in_channels=1,
        channels=(32, 32, 32, 64, 64, 256),
        strides=((2, 1), (2, 1), (2, 1), (2, 2), (2, 3), (2, 1)),
        attention=(3,),
    ),
    visual=SyncEncoderConfig(in_channels=6, channels=(32, 32, 64, 64, 256), strides=((1, 2), (2, 2), (2, 2), (2, 2), (2, 2)), attention=(1,)),
)


def small() -> SyncNet:
    torch.manual_seed(0)
    net = randomise(SyncNet(SMALL))
    assert isinstance(net, SyncNet)
    return net


def inputs(b: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(b, 6, 16, 32, generator=generator) * 2 - 1, torch.rand(b, 1, 80, 7, generator=generator) * 8 - 4


# --- truths that need no stored number


@torch.no_grad()
def test_both_vectors_have_length_one_and_samples_do_not_meet():
    net, (frames, mel) = small(), inputs()
    vision, audio = net(frames, mel)
    assert vision.shape == audio.shape == (2, 256)
    for vectors in (vision, audio):
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(2))
        assert vectors.min() >= 0  # so the cosine is a probability
        assert not torch.allclose(vectors[0], vectors[1], atol=1e-2)
    alone = net(frames[1:], mel[1:])
    torch.testing.assert_close(alone[0], vision[1:], atol=1e-5, rtol=0)
    torch.testing.assert_close(alone[1], audio[1:], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("stride", "size"), [((1, 1), (9, 7)), ((2, 1), (4, 7)), ((1, 2), (9, 3)), ((2, 2), (4, 3)), ((2, 3), (4, 2))])
@torch.no_grad()
def test_a_block_divides_the_size_by_its_stride_rounding_down(stride, size):
    assert DownBlock(32, 32, stride)(torch.zeros(1, 32, 9, 7)).shape[2:] == size


@torch.no_grad()
def test_attention_carries_what_convolutions_cannot_reach(monkeypatch):
    config = SyncEncoderConfig(in_channels=1, channels=(32,), strides=((1, 1),))
    far = []
    for attention in ((), (0,)):
        torch.manual_seed(0)
        encoder = randomise(Encoder(replace(config, attention=attention)))
        monkeypatch.setattr(syncnet, "group_norm", lambda norm, x: x)  # its statistics span the picture too
        x = torch.randn(1, 1, 16, 16, generator=torch.Generator().manual_seed(2))
        y = x.clone()
        y[0, 0, 15, 15] += 3
        far.append((encoder(x) - encoder(y))[0, :, 0, 0].abs().max().item())
    assert far[0] == 0
    assert far[1] > 1e-4


def test_the_lower_half_of_every_frame_is_seen_in_order():
    frames = torch.arange(2 * 3 * 32 * 32.0).view(1, 2, 3, 32, 32)
    seen = visual_input(frames, SMALL)
    assert seen.shape == (1, 6, 16, 32)
    for frame in range(2):
        for channel in range(3):
            assert torch.equal(seen[0, 3 * frame + channel], frames[0, frame, channel, 16:])
    assert visual_input(frames, replace(SMALL, lower_half=False)).shape == (1, 6, 32, 32)


def test_other_sizes_are_resized_with_gradients():
    frames = torch.rand(1, 2, 3, 48, 48, requires_grad=True)
    visual_input(frames, SMALL).square().sum().backward()
    assert frames.grad is not None
    assert (frames.grad[0, :, :, 26:].abs().amax(dim=(2, 3)) > 0).all()
    assert frames.grad[0, :, :, :20].abs().max() == 0  # the upper half is not seen


def test_latents_are_seen_whole_and_never_resized():
    config = SYNCNETS["syncnet_16_latent"]
    latents = torch.randn(1, 16, 4, 32, 32)
    assert torch.equal(visual_input(latents, config), latents.flatten(1, 2))
    with pytest.raises(UsageError, match="latents of 32x32, not 64x64"):
        visual_input(torch.zeros(1, 16, 4, 64, 64), config)


@pytest.mark.parametrize("shape", [(1, 3, 3, 32, 32), (1, 2, 4, 32, 32), (2, 3, 32, 32)])
def test_windows_of_another_shape_are_refused(shape):
    with pytest.raises(UsageError, match="windows of shape"):
        visual_input(torch.zeros(shape), SMALL)


def test_inputs_of_another_shape_are_refused():
    net, (frames, mel) = small(), inputs()
    with pytest.raises(UsageError, match=r"\(b, 6, 16, 32\), not \(2, 6, 32, 32\)"):
        net(torch.zeros(2, 6, 32, 32), mel)
    with pytest.raises(UsageError, match=r"\(b, 1, 80, 7\), not \(2, 1, 80, 8\)"):
        net(frames, torch.zeros(2, 1, 80, 8))
    with pytest.raises(UsageError, match="hears mel"):
        net(frames, mel[:, 0])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"visual": replace(SMALL.visual, strides=((2, 2),) * 5)}, "leave 0x1 of 16x32"),
        ({"visual": replace(SMALL.visual, strides=((2, 2),) * 4 + ((1, 1),))}, "leave 1x2 of 16x32"),
        ({"visual": replace(SMALL.visual, in_channels=48)}, "takes 48 channels, its inputs have 6"),
        ({"visual": replace(SMALL.visual, channels=(32, 32, 64, 64, 40))}, "width 40 is not a multiple of 32"),
        ({"visual": replace(SMALL.visual, channels=(32, 32, 64, 64, 96))}, "audio encoder ends with 256, its visual encoder with 96"),
    ],
)
def test_a_description_that_cannot_work_is_refused_with_a_reason(change: dict[str, Any], said: str):
    with pytest.raises(UsageError, match=said):
        SyncNet(replace(SMALL, **change))


def test_encoder_descriptions_are_checked_where_they_are_read():
    values = {"in_channels": 1, "channels": [32, 32], "strides": [[2, 1]]}
    with pytest.raises(UsageError, match="one stride"):
        build(SyncEncoderConfig, values)
    with pytest.raises(UsageError, match="no block 2 for attention"):
        build(SyncEncoderConfig, {**values, "strides": [[2, 1], [2, 2]], "attention": [2]})


@torch.no_grad()
def test_half_precision_stays_close_and_gives_full_precision_vectors():
    net, args = small(), inputs()
    exact = net(*args)
    half = net.to(torch.bfloat16)(*args)
    for ours, truth in zip(half, exact, strict=True):
        assert ours.dtype == torch.float32
        assert (F.cosine_similarity(ours, truth) > 0.995).all()


def test_checkpointed_gradients_are_the_same():
    net, (frames, mel) = small().train(), inputs()
    grads = []
    for recompute in (False, True):
        net.zero_grad()
        net.gradient_checkpointing = recompute
        pixels = frames.clone().requires_grad_()
        vision, audio = net(pixels, mel)
        (vision * audio).sum(1).sum().backward()
        grads.append({"frames": pixels.grad, **{name: p.grad.clone() for name, p in net.named_parameters()}})
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, msg=name)
    assert grads[0]["frames"].abs().max() > 0


def test_frozen_layers_below_trained_ones_do_not_crash():
    net, (frames, mel) = small().requires_grad_(False), inputs()
    net.visual_encoder.down_blocks[-1].requires_grad_(True)
    vision, _ = net(frames, mel)
    vision[:, 0].sum().backward()
    assert net.visual_encoder.down_blocks[-1].norm1.weight.grad is not None


def test_checkpointing_keeps_fewer_tensors():
    net, args = small().train(), inputs()
    kept = []
    for recompute in (False, True):
        net.gradient_checkpointing = recompute
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, sizes=sizes: sizes.append(x.numel()) or x, lambda x: x):
            net(*args)
        kept.append(sum(sizes))
    assert kept[1] < kept[0] / 4


def test_a_file_of_another_network_is_refused_by_the_first_name_that_differs():
    state = small().state_dict()
    del state["audio_encoder.down_blocks.4.attn.to_q.bias"]
    with pytest.raises(WeightsError, match=r"'audio_encoder\.down_blocks\.4\.attn\.to_q\.bias' is missing"):
        load_state(small(), state, "a file")


# --- the published system


def encoder(config: Mapping[str, Any]) -> SyncEncoderConfig:
    """The published description of an encoder as ours."""
    return SyncEncoderConfig(
        in_channels=config["in_channels"],
        channels=tuple(config["block_out_channels"]),
        strides=tuple((s, s) if isinstance(s, int) else tuple(s) for s in config["downsample_factors"]),
        attention=tuple(i for i, attends in enumerate(config["attn_blocks"]) if attends),
    )


def filled(net: SyncNet, keys: dict[str, list[int]], seed: int, goldenlib: ModuleType) -> SyncNet:
    assert {k: list(v.shape) for k, v in net.state_dict().items()} == keys
    return load_state(net, {k: torch.from_numpy(v) for k, v in goldenlib.fill(keys, seed).items()}, "golden").eval()


@pytest.mark.parametrize("name", ["pixel_attn", "latent"])
@torch.no_grad()
def test_numbers_of_the_published_network(golden: Path, goldenlib: ModuleType, name: str):
    case = json.loads((golden / "b_syncnet_index.json").read_text())[name]
    audio, visual = (encoder(case["config"][f"{which}_encoder"]) for which in ("audio", "visual"))
    net = filled(SyncNet(SyncNetConfig(audio=audio, visual=visual, latent=name == "latent")), case["keys"], case["seed"], goldenlib)
    frames = torch.from_numpy(goldenlib.u(case["image_shape"], case["seed"], "input:image"))
    mel = 4 * torch.from_numpy(goldenlib.u(case["mel_shape"], case["seed"], "input:mel"))
    truth = {k: torch.from_numpy(v) for k, v in np.load(golden / f"b_syncnet_{name}.npz").items()}
    near = {"atol": 1e-5, "rtol": 0}
    torch.testing.assert_close(net.visual_encoder(frames), truth["raw_vision"], **near)
    torch.testing.assert_close(net.audio_encoder(mel), truth["raw_audio"], **near)
    ours = net(frames, mel)
    torch.testing.assert_close(ours, (truth["vision"], truth["audio"]), **near)
    cosine = F.cosine_similarity(*ours)
    torch.testing.assert_close(cosine, torch.tensor(case["cos"]), **near)
    torch.testing.assert_close(-cosine.log(), torch.tensor(case["loss_y1"]), **near)
    torch.testing.assert_close(-(1 - cosine).log(), torch.tensor(case["loss_y0"]), **near)


@torch.no_grad()
def test_numbers_of_a_published_training_step(golden: Path, goldenlib: ModuleType):
    """Decoded frames of 64 px through the resizing and the cut to the lower half."""
    case = json.loads((golden / "h_train_stage2.json").read_text())
    truth = {k: torch.from_numpy(v) for k, v in np.load(golden / "h_train_stage2.npz").items()}
    described = case["vae_config"]
    vae = VAE(
        VAEConfig(
            channels=tuple(described["block_out_channels"]), layers_per_block=described["layers_per_block"], groups=described["norm_num_groups"]
        )
    )
    shapes = {k: list(v.shape) for k, v in vae.state_dict().items()}
    load_state(vae, {k: torch.from_numpy(v) for k, v in goldenlib.fill(shapes, case["seed"] + 1, 0.9).items()}, "golden")
    pixels = vae.decode(truth["pred_latents"].transpose(1, 2).flatten(0, 1)).unflatten(0, (1, 16))
    audio, visual = (encoder(case["syncnet_model"][f"{which}_encoder"]) for which in ("audio", "visual"))
    config = SyncNetConfig(audio=audio, visual=visual)
    whole = visual_input(pixels, replace(config, lower_half=False))
    torch.testing.assert_close(whole[0, :3, ::2, ::2], truth["pred_pixel_256_f0_stride2"], atol=1e-5, rtol=0)
    net = filled(SyncNet(config), case["syncnet_keys"], case["seed"] + 2, goldenlib)
    mel = 4 * torch.from_numpy(goldenlib.u((1, 1, 80, 52), case["seed"], "input:mel"))
    torch.testing.assert_close(net(visual_input(pixels, config), mel), (truth["syncnet_vision"], truth["syncnet_audio"]), atol=1e-5, rtol=0)


def full_size(name: str) -> SyncNet:
    with torch.device("meta"):
        return SyncNet(SYNCNETS[name])


@pytest.mark.parametrize("name", ["syncnet_16_pixel_attn", "syncnet_16_latent"])
def test_full_size_names_shapes_and_dtypes_are_the_published_ones(golden: Path, name: str):
    published = json.loads((golden / f"b_full_{name}_keys.json").read_text())
    net = full_size(name)
    assert {k: [list(v.shape), str(v.dtype).removeprefix("torch.")] for k, v in net.state_dict().items()} == published["keys"]
    assert sum(p.numel() for p in net.parameters()) == published["parameters"]


@pytest.mark.parametrize(
    ("name", "width"),
    [("syncnet_16_pixel_attn", 2048), ("syncnet_16_pixel", 2048), ("syncnet_16_latent", 1024), ("syncnet_25_pixel", 1024)],
)
def test_every_published_size_gives_a_pair_of_vectors_and_survives_its_description(name: str, width: int):
    config = SYNCNETS[name]
    assert build(SyncNetConfig, plain(config)) == config
    with torch.device("meta"):
        frames = torch.empty(1, config.frames, 4 if config.latent else 3, *([config.resolution // (8 if config.latent else 1)] * 2))
        vision, audio = full_size(name)(visual_input(frames, config), torch.empty(1, 1, 80, config.mel_columns))
    assert vision.shape == audio.shape == (1, width)


def test_attention_is_all_that_the_released_network_has_more_than_the_plain_one():
    with_attention = full_size("syncnet_16_pixel_attn").state_dict()
    attention = ("audio_encoder.down_blocks.4.", "audio_encoder.down_blocks.6.", "visual_encoder.down_blocks.5.", "visual_encoder.down_blocks.7.")
    rest = sorted(list(v.shape) for k, v in with_attention.items() if not k.startswith(attention))
    assert rest == sorted(list(v.shape) for v in full_size("syncnet_16_pixel").state_dict().values())
