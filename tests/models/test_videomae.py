"""VideoMAE against truths of its parts, then against numbers and names of the published network with the same random weights."""

import copy
import json
import math
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentsync.config import VIDEOMAES, VideoMAEConfig
from latentsync.errors import UsageError, WeightsError
from latentsync.models.load import load_state, read_state
from latentsync.models.videomae import VideoMAE, positions, sinusoids

from .conftest import randomise

SMALL = VideoMAEConfig(size=28, patch=14, width=16, depth=3, heads=4, classes=5, frames=8)
CPU = torch.device("cpu")


def small() -> VideoMAE:
    torch.manual_seed(0)
    net = randomise(VideoMAE(SMALL))
    assert isinstance(net, VideoMAE)
    return net


def video(b: int = 2, f: int = 8, h: int = 28, w: int = 28) -> Tensor:
    return torch.rand(b, 3, f, h, w, generator=torch.Generator().manual_seed(1))


# --- truths that need no stored number


def test_positions_are_the_sinusoid_of_the_transformer_paper():
    table = sinusoids(300, 12)
    for row, column in ((0, 0), (0, 1), (7, 4), (299, 11), (299, 0)):
        angle = row / 10000 ** ((column - column % 2) / 12)
        assert table[row, column] == pytest.approx(math.sin(angle) if column % 2 == 0 else math.cos(angle), abs=1e-6)


def test_positions_of_more_frames_lie_between_those_of_the_trained_ones():
    trained = positions(SMALL, 4, CPU, torch.float32).unflatten(0, (4, 4))
    more = positions(SMALL, 8, CPU, torch.float32).unflatten(0, (8, 4))
    for step in range(1, 7):
        low, high = trained[(step - 1) // 2], trained[(step - 1) // 2 + 1]
        slack = 0.1 * (high - low).abs() + 1e-6  # the published stretch is a tenth of a step too long
        assert (more[step] >= torch.minimum(low, high) - slack).all()
        assert (more[step] <= torch.maximum(low, high) + slack).all()
    assert positions(SMALL, 2, CPU, torch.float32).shape == (8, 16)


@torch.no_grad()
def test_keys_have_no_bias_and_queries_and_values_do():
    attention = small().blocks[0].attn
    x = torch.randn(1, 6, 16)
    whole = nn.MultiheadAttention(16, 4, batch_first=True)
    nn.init.uniform_(attention.q_bias)
    nn.init.uniform_(attention.v_bias)
    whole.in_proj_weight.copy_(attention.qkv.weight)
    whole.in_proj_bias.copy_(torch.cat([attention.q_bias, torch.zeros(16), attention.v_bias]))
    whole.out_proj.weight.copy_(attention.proj.weight)
    whole.out_proj.bias.copy_(attention.proj.bias)
    torch.testing.assert_close(attention(x), whole(x, x, x)[0])


@torch.no_grad()
def test_order_in_time_shows_and_samples_do_not_meet():
    net, x = small(), video()
    features = net.features(x)
    assert features.shape == (2, 16)
    assert (features - net.features(x.flip(2))).abs().max() > 1e-2
    torch.testing.assert_close(net.features(x[1:]), features[1:], atol=1e-5, rtol=1e-5)
    assert net(x).shape == (2, 5)


@torch.no_grad()
def test_other_sizes_are_resized_then_clipped():
    net = small()
    small_frames = video(h=20, w=20) * 3 - 1
    resized = torch.stack([F.interpolate(frames.transpose(0, 1), size=(28, 28), mode="bicubic").transpose(0, 1) for frames in small_frames])
    torch.testing.assert_close(net.features(small_frames), net.features(resized.clamp(0, 1)))


@pytest.mark.parametrize("shape", [(1, 3, 7, 28, 28), (1, 4, 8, 28, 28), (3, 8, 28, 28), (1, 3, 0, 28, 28)])
def test_videos_of_another_shape_are_refused(shape):
    with pytest.raises(UsageError, match="frames a multiple of 2"):
        small().features(torch.zeros(shape))


@pytest.mark.parametrize("change", [{"patch": 15}, {"frames": 7}, {"heads": 3}])
def test_a_description_that_cannot_be_cut_evenly_is_refused(change):
    with pytest.raises(UsageError, match="cut evenly"):
        VideoMAE(replace(SMALL, **change))


@torch.no_grad()
def test_half_precision_stays_close_and_gives_full_precision_features():
    net, x = small(), video()
    exact = net.features(x)
    half = net.to(torch.bfloat16).features(x)
    assert half.dtype == torch.float32
    assert (half - exact).square().mean().sqrt() < 0.05 * exact.square().mean().sqrt()


def test_checkpointed_gradients_are_the_same():
    net = small().train()
    grads = []
    for recompute in (False, True):
        net.zero_grad()
        net.gradient_checkpointing = recompute
        x = video(h=20, w=20).requires_grad_()
        net.features(x).square().sum().backward()
        grads.append({"video": x.grad, **{name: p.grad for name, p in net.named_parameters() if p.grad is not None}})
        assert x.grad is not None
        assert (x.grad.abs().amax(dim=(1, 3, 4)) > 0).all()  # every frame of every sample
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, msg=name)


def test_checkpointing_keeps_little_for_a_further_block():
    kept = {}
    for depth in (1, 2):
        for recompute in (False, True):
            net = VideoMAE(replace(SMALL, depth=depth)).requires_grad_(False)
            net.gradient_checkpointing = recompute
            sizes: list[int] = []
            with torch.autograd.graph.saved_tensors_hooks(lambda t, sizes=sizes: sizes.append(t.numel()) or t, lambda t: t):
                net.features(video().requires_grad_())
            kept[depth, recompute] = sum(sizes)
    assert kept[2, True] - kept[1, True] == 2 * 16 * 16  # what enters the block: 2 samples of 16 tokens of 16 numbers
    assert kept[2, False] - kept[1, False] > 10 * 2 * 16 * 16


def test_a_file_of_another_network_is_refused_by_the_first_name_that_differs():
    state = small().state_dict()
    state["pos_embed"] = torch.zeros(1)
    del state["blocks.1.attn.v_bias"]
    with pytest.raises(WeightsError, match=r"'pos_embed' is not known to the network; 'blocks\.1\.attn\.v_bias' is missing"):
        load_state(small(), state, "a file")


@pytest.mark.parametrize("wrapper", ["model", "module"])
def test_the_wrapping_of_published_files_is_opened(tmp_path: Path, wrapper: str):
    torch.save({wrapper: small().state_dict(), "epoch": 3}, tmp_path / "vit.pth")
    with torch.device("meta"):
        empty = VideoMAE(SMALL)
    net = load_state(empty, read_state(tmp_path / "vit.pth"), "vit.pth")
    with torch.no_grad():
        torch.testing.assert_close(net.features(video()), small().features(video()))


# --- the published network


def filled(config: dict, keys: dict[str, list[int]], seed: int, goldenlib: ModuleType) -> VideoMAE:
    net = VideoMAE(
        VideoMAEConfig(
            size=config["img_size"],
            patch=config["patch_size"],
            width=config["embed_dim"],
            depth=config["depth"],
            heads=config["num_heads"],
            mlp_ratio=config["mlp_ratio"],
            classes=config["num_classes"],
            frames=config["all_frames"],
            tubelet=config["tubelet_size"],
        )
    )
    assert {k: list(v.shape) for k, v in net.state_dict().items()} == keys
    return load_state(net, {k: torch.from_numpy(v) for k, v in goldenlib.fill(keys, seed).items()}, "golden")


@pytest.mark.parametrize("name", ["mean_pool", "t32_interp"])
@torch.no_grad()
def test_numbers_of_the_published_network(golden: Path, goldenlib: ModuleType, name: str):
    case = json.loads((golden / "j_videomae_index.json").read_text())[name]
    net = filled(case["config"], case["keys"], case["seed"], goldenlib)
    x = torch.from_numpy(0.5 * goldenlib.u((case["b"], 3, case["T"], 224, 224), case["seed"], "input:video") + 0.5)
    truth = np.load(golden / f"j_videomae_{name}.npz")
    features = net.features(x)
    torch.testing.assert_close(features, torch.from_numpy(truth["feats"]), atol=1e-5, rtol=0)
    torch.testing.assert_close(net.head(features), torch.from_numpy(truth["logits"]), atol=1e-5, rtol=0)


def test_positions_are_the_published_ones(golden: Path):
    rows = torch.from_numpy(np.load(golden / "j_videomae_posenc.npz")["rows"])
    torch.testing.assert_close(sinusoids(2048, 48)[[0, 1, 2, 100, 2047]], rows, atol=1e-6, rtol=0)


@torch.no_grad()
def test_numbers_of_a_published_training_step(golden: Path, goldenlib: ModuleType):
    """Frames of 64 px through the resizing."""
    case = json.loads((golden / "h_train_stage2.json").read_text())
    seed, side = case["seed"], case["res"]
    still = goldenlib.smooth_image(side, side, seed * 100) * 0.8
    frames = np.stack([((still + 0.2 * goldenlib.smooth_image(side, side, seed * 100 + 7 + j) + 1) * 127.5).astype(np.uint8) for j in range(16)])
    real = torch.from_numpy(frames).float()[None].transpose(1, 2) / 255
    truth = np.load(golden / "h_train_stage2.npz")
    torch.testing.assert_close(real[:, :, 0] * 2 - 1, torch.from_numpy(truth["gt_pixel_f0"]), atol=1e-6, rtol=0)
    net = filled(case["vit"], case["vit_keys"], seed + 3, goldenlib)
    torch.testing.assert_close(net.features(real), torch.from_numpy(truth["trepa_feat_real"]), atol=1e-5, rtol=0)


def full_size(name: str) -> VideoMAE:
    with torch.device("meta"):
        return VideoMAE(VIDEOMAES[name])


def test_full_size_names_shapes_and_dtypes_are_the_published_ones(golden: Path):
    published = json.loads((golden / "j_videomae_giant_keys.json").read_text())
    net = full_size("giant")
    assert {k: [list(v.shape), str(v.dtype).removeprefix("torch.")] for k, v in net.state_dict().items()} == published["keys"]
    assert sum(p.numel() for p in net.parameters()) == published["parameters"] == 1_011_855_918


# Transformer weights of the papers' sizes: 12 w^2 a layer, and a few thousand more.
@pytest.mark.parametrize(("name", "millions"), [("small", 21.9), ("base", 86.4), ("large", 304.0), ("huge", 632.2), ("giant", 1011.9)])
def test_every_published_size_has_its_weight_and_runs(name: str, millions: float):
    net = full_size(name)
    assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(millions, rel=5e-3)
    assert net.features(torch.empty(1, 3, 16, 224, 224, device="meta")).shape == (1, VIDEOMAES[name].width)


def test_in_bf16_similar_videos_stay_apart_as_in_float32() -> None:
    """What TREPA lives on: 40 blocks in bf16 keep the distance of two nearly equal videos, and the way that leads from one to the other."""
    torch.manual_seed(0)
    exact = VideoMAE(VideoMAEConfig(size=28, width=64, depth=40, heads=4, classes=2)).requires_grad_(False)
    rough = copy.deepcopy(exact).bfloat16()
    a = torch.rand(1, 3, 16, 28, 28)
    b = (a + 0.03 * torch.randn_like(a)).clamp(0, 1).requires_grad_()
    found = []
    for net in (exact, rough):
        loss = (F.normalize(net.features(a)) - F.normalize(net.features(b))).square().sum()
        found.append((loss.item(), torch.autograd.grad(loss, b)[0].flatten()))
    (wanted, way), (loss, rough_way) = found
    assert loss == pytest.approx(wanted, rel=0.7)  # 1.4 times; with tokens in bf16 2.4 times
    assert F.cosine_similarity(way, rough_way, dim=0) > 0.6  # 0.84; with tokens in bf16 0.32
