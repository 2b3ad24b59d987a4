"""LPIPS against truths of distances, the published heads, and the published number of a training step with the same random weights."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

from latentsync.config import VAEConfig
from latentsync.errors import UsageError, WeightsError
from latentsync.models.load import load_state, read_state
from latentsync.models.lpips import LPIPS, Head, join_lpips
from latentsync.models.vae import VAE

from .conftest import randomise


def untrained() -> LPIPS:
    net = randomise(LPIPS()).requires_grad_(False)
    assert isinstance(net, LPIPS)
    for name, parameter in net.named_parameters():
        if name.startswith("lin"):
            parameter.abs_()
    return net


@pytest.fixture(scope="module")
def lpips() -> LPIPS:
    return untrained()


@pytest.fixture(autouse=True)
def _as_it_was(lpips: LPIPS) -> Iterator[None]:
    yield
    lpips.gradient_checkpointing = False


def pictures(n: int = 2, h: int = 24, w: int = 40, seed: int = 1) -> Tensor:
    return torch.rand(n, 3, h, w, generator=torch.Generator().manual_seed(seed)) * 2 - 1


# --- truths that need no stored number


@torch.no_grad()
def test_it_is_a_distance_of_each_pair(lpips):
    a, b = pictures(), pictures(seed=2)
    distance = lpips(a, b)
    assert distance.shape == (2,)
    assert (distance > 0.01).all()
    assert torch.equal(lpips(a, a), torch.zeros(2))
    torch.testing.assert_close(lpips(b, a), distance)
    torch.testing.assert_close(lpips(a[1:], b[1:]), distance[1:])
    assert (lpips(a, a + 0.1 * (b - a)) < 0.5 * distance).all()


@torch.no_grad()
def test_a_head_weighs_the_channels_of_unit_vectors():
    head = Head(2)
    head.model[1].weight.copy_(torch.tensor([3.0, 0.5]).view(1, 2, 1, 1))
    a, b = torch.zeros(1, 2, 1, 2), torch.zeros(1, 2, 1, 2)
    a[0, :, 0, 0], b[0, :, 0, 0] = torch.tensor([5.0, 0.0]), torch.tensor([0.0, 0.1])  # at right angles: (1, 0) and (0, 1)
    a[0, :, 0, 1] = b[0, :, 0, 1] = torch.tensor([1.0, 2.0])  # the same
    assert head(a, b).item() == pytest.approx((3.0 + 0.5) / 2)


@torch.no_grad()
def test_the_levels_are_those_of_vgg16(lpips):
    seen: list[tuple[int, ...]] = []
    hooks = [
        head.register_forward_hook(lambda _, args, __: seen.append(tuple(args[0].shape[1:]))) for head in lpips.modules() if isinstance(head, Head)
    ]
    lpips(pictures(h=40, w=70), pictures(h=40, w=70))
    for hook in hooks:
        hook.remove()
    assert seen == [(64, 40, 70), (128, 20, 35), (256, 10, 17), (512, 5, 8), (512, 2, 4)]


def test_equal_and_flat_pictures_have_finite_gradients(lpips):
    for b in (torch.zeros(1, 3, 16, 16), pictures(1, 16, 16)):
        a = torch.zeros(1, 3, 16, 16, requires_grad=True)
        lpips(a, b).sum().backward()
        assert a.grad is not None
        assert a.grad.isfinite().all()
    head, dark = Head(4), torch.zeros(1, 4, 2, 2, requires_grad=True)
    head(dark, torch.ones(1, 4, 2, 2)).sum().backward()  # after a ReLU a place can be all zero
    assert dark.grad is not None
    assert dark.grad.isfinite().all()


@pytest.mark.parametrize(
    ("a", "b"),
    [((2, 3, 24, 24), (1, 3, 24, 24)), ((2, 4, 24, 24), (2, 4, 24, 24)), ((3, 24, 24), (3, 24, 24)), ((2, 3, 15, 24), (2, 3, 15, 24))],
)
def test_pictures_of_another_shape_are_refused(lpips, a, b):
    with pytest.raises(UsageError, match="at least 16x16"):
        lpips(torch.zeros(a), torch.zeros(b))


@torch.no_grad()
def test_half_precision_stays_close_and_gives_full_precision_distances():
    net, a, b = untrained(), pictures(), pictures(seed=2)
    exact = net(a, b)
    half = net.to(torch.bfloat16)(a, b)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, exact, rtol=0.02, atol=0)


def test_checkpointed_gradients_are_the_same(lpips):
    b, grads = pictures(seed=2), []
    for recompute in (False, True):
        lpips.gradient_checkpointing = recompute
        a = pictures().requires_grad_()
        lpips(a, b).sum().backward()
        grads.append(a.grad)
    torch.testing.assert_close(grads[1], grads[0])
    assert (grads[0].abs().amax(dim=(1, 2, 3)) > 0).all()


def test_checkpointing_keeps_only_what_enters_each_level(lpips):
    kept = []
    for recompute in (False, True):
        lpips.gradient_checkpointing = recompute
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, sizes=sizes: sizes.append(0 if t.shape[:1] != (2,) else t.numel()) or t, lambda t: t):
            lpips(pictures(h=64, w=64).requires_grad_(), pictures(h=64, w=64, seed=2))
        kept.append(sum(sizes))
    entering = [3 * 64 * 64, 64 * 32 * 32, 128 * 16 * 16, 256 * 8 * 8, 512 * 4 * 4]
    assert kept[1] == 2 * 2 * sum(entering)  # two pictures on either side
    assert kept[0] > 8 * kept[1]


# --- published files


def vgg_file() -> dict[str, Tensor]:
    """The names and shapes of torchvision's vgg16-397923af.pth."""
    state: dict[str, Tensor] = {}
    inputs, index = 3, 0
    for outputs in (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512):
        if outputs:
            state[f"features.{index}.weight"] = torch.empty(outputs, inputs, 3, 3, device="meta")
            state[f"features.{index}.bias"] = torch.empty(outputs, device="meta")
            inputs = outputs
        index += 2 if outputs else 1  # a ReLU follows each convolution
    for index, (inputs, outputs) in {0: (512 * 49, 4096), 3: (4096, 4096), 6: (4096, 1000)}.items():
        state[f"classifier.{index}.weight"] = torch.empty(outputs, inputs, device="meta")
        state[f"classifier.{index}.bias"] = torch.empty(outputs, device="meta")
    return state


def empty() -> LPIPS:
    with torch.device("meta"):
        return LPIPS()


def test_the_published_heads_and_the_names_of_vgg_load_strictly(public_weights: Path):
    heads = read_state(public_weights / "lpips_v0.1_vgg.pth")
    assert len(heads) == 5
    joined = join_lpips(vgg_file(), heads)
    assert len(joined) == 26 + 5
    net = load_state(empty(), joined, "LPIPS")
    for i in range(5):
        weight = net.get_parameter(f"lin{i}.model.1.weight")
        assert torch.equal(weight, heads[f"lin{i}.model.1.weight"])
        assert weight.min() >= 0  # so that it is a distance


def test_what_does_not_fit_is_named(public_weights: Path):
    heads = read_state(public_weights / "lpips_v0.1_vgg.pth")
    vgg = vgg_file()
    with pytest.raises(WeightsError, match=r"'lin0\.model\.1\.weight' is missing"):
        load_state(empty(), join_lpips(vgg, {}), "LPIPS")
    with pytest.raises(WeightsError, match=r"'classifier\.1\.weight' is not known"):  # vgg16 with batch normalisation, or another VGG
        load_state(empty(), join_lpips(vgg | {"classifier.1.weight": torch.empty(1)}, heads), "LPIPS")
    del vgg["features.28.bias"]
    with pytest.raises(WeightsError, match=r"'features\.28\.bias' is missing"):
        load_state(empty(), join_lpips(vgg, heads), "LPIPS")


@torch.no_grad()
def test_the_published_heads_tell_a_shift_from_noise(public_weights: Path):
    """With the real heads, and VGG untrained, a picture stays nearer to its brighter self than to noise."""
    heads = read_state(public_weights / "lpips_v0.1_vgg.pth")
    state = untrained().state_dict() | heads
    net = load_state(LPIPS(), state, "LPIPS")
    a = pictures(1, 32, 32)
    assert net(a, a * 0.9) < 0.2 * net(a, pictures(1, 32, 32, seed=2))


@torch.no_grad()
def test_number_of_a_published_training_step(golden: Path, goldenlib: ModuleType):
    case = json.loads((golden / "h_train_stage2.json").read_text())
    seed, side = case["seed"], case["res"]
    drawn = {k: shape for k, shape in case["lpips_keys"].items() if not k.startswith(("scaling_layer.", "lins."))}
    state = {k: torch.from_numpy(np.abs(v) if k.startswith("lin") else v) for k, v in goldenlib.fill(drawn, seed + 4, 1.4).items()}
    # the whole network's file has every head twice and two constants
    state |= {k: state[k.replace("lins.", "lin")] for k in case["lpips_keys"] if k.startswith("lins.")}
    state |= {k: torch.empty(shape) for k, shape in case["lpips_keys"].items() if k.startswith("scaling_layer.")}
    assert state.keys() == case["lpips_keys"].keys()
    net = load_state(empty(), state, "golden")

    described = case["vae_config"]
    vae = VAE(
        VAEConfig(
            channels=tuple(described["block_out_channels"]), layers_per_block=described["layers_per_block"], groups=described["norm_num_groups"]
        )
    )
    shapes = {k: list(v.shape) for k, v in vae.state_dict().items()}
    load_state(vae, {k: torch.from_numpy(v) for k, v in goldenlib.fill(shapes, seed + 1, 0.9).items()}, "golden")
    latents = torch.from_numpy(np.load(golden / "h_train_stage2.npz")["pred_latents"])
    made = vae.decode(latents.transpose(1, 2).flatten(0, 1))
    still = goldenlib.smooth_image(side, side, seed * 100) * 0.8
    frames = np.stack([((still + 0.2 * goldenlib.smooth_image(side, side, seed * 100 + 7 + j) + 1) * 127.5).astype(np.uint8) for j in range(16)])
    real = torch.from_numpy(frames).float() / 127.5 - 1
    distance = net(made[:, :, side // 2 :], real[:, :, side // 2 :]).mean()
    assert distance.item() == pytest.approx(case["terms"]["lpips_loss"], rel=1e-5)
