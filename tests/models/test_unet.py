"""The U-Net against analytic truths, then against numbers of the published system with the same random weights."""

import json
import math
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn

from latentsync.config import UNetConfig
from latentsync.errors import UsageError
from latentsync.models.load import load_state
from latentsync.models.motion import MotionModule, PositionTable
from latentsync.models.resnet import ResnetBlock, group_norm
from latentsync.models.unet import FeatureCache, UNet

from .conftest import published_unet, randomise

SMALL = UNetConfig(channels=(8, 8, 16, 16), layers_per_block=1, heads=2, audio_dim=12, groups=4, motion_positions=24)


def small(seed: int = 0, **changes) -> UNet:
    torch.manual_seed(seed)
    return randomise(UNet(UNetConfig(**{**SMALL.__dict__, **changes})), seed)


def inputs(b: int = 1, f: int = 3, h: int = 8, w: int = 8, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(b, 13, f, h, w, generator=generator), torch.tensor(501), torch.randn(b, f, 5, 12, generator=generator)


def rms(x: torch.Tensor) -> float:
    return x.float().square().mean().sqrt().item()


# --- truths that need no stored number


def test_position_table_is_the_sinusoid_of_the_transformer_paper():
    table = PositionTable(10, 24).pe[0]
    for row, column in ((0, 0), (0, 1), (3, 4), (23, 9)):
        angle = row / 10000 ** ((column - column % 2) / 10)
        assert table[row, column] == pytest.approx(math.sin(angle) if column % 2 == 0 else math.cos(angle), abs=1e-6)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_group_norm_over_frames_equals_that_of_the_five_dimensional_tensor(layout):
    norm = nn.GroupNorm(4, 8)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(2, 8, 3, 5, 4) * torch.arange(1, 4)[None, None, :, None, None]
    as_batch = x.transpose(1, 2).flatten(0, 1).contiguous(memory_format=layout)
    out = group_norm(norm, as_batch, frames=3).unflatten(0, (2, 3)).transpose(1, 2)
    torch.testing.assert_close(out, norm(x))
    per_frame = group_norm(norm, as_batch).unflatten(0, (2, 3)).transpose(1, 2)
    torch.testing.assert_close(per_frame[:, :, 1], norm(x[:, :, 1]))
    assert not torch.allclose(out, per_frame, atol=1e-2)


def test_group_norm_of_what_wants_no_gradient_can_be_trained():
    """PyTorch's own crashes the process here: stage 2 trains the norms of attentions behind frozen layers."""
    norm = nn.GroupNorm(4, 8)
    x = torch.randn(6, 8, 3, 3)
    for given in (x.contiguous(memory_format=torch.channels_last), x):
        norm.zero_grad()
        group_norm(norm, given, frames=3).square().sum().backward()
        found = norm.weight.grad.clone()
        norm.zero_grad()
        norm(x.unflatten(0, (2, 3)).transpose(1, 2)).square().sum().backward()
        torch.testing.assert_close(found, norm.weight.grad)


def test_untrained_network_predicts_nothing():
    with torch.no_grad():
        assert UNet(SMALL)(*inputs()).abs().max() == 0


def test_untrained_motion_module_changes_nothing():
    x = torch.randn(6, 8, 4, 4)
    torch.testing.assert_close(MotionModule(8, 2, 4, 24)(x, 3), x)


@torch.no_grad()
def test_motion_module_sees_pixels_alone_and_frames_together():
    module = randomise(MotionModule(8, 2, 4, 24))
    x = torch.randn(4, 8, 2, 2, generator=torch.Generator().manual_seed(3))
    y = x.clone()
    y[1, :, 0, 1], y[1, :, 1, 0] = x[1, :, 1, 0], x[1, :, 0, 1]  # two pixels of frame 1 exchanged: the frame's statistics stay
    moved = (module(y, 4) - module(x, 4)).abs().amax(1) > 1e-4
    assert moved[:, 0, 1].all()
    assert moved[:, 1, 0].all()
    assert not moved[:, 0, 0].any()
    assert not moved[:, 1, 1].any()


@torch.no_grad()
def test_resnet_statistics_are_shared_by_the_window():
    block = randomise(ResnetBlock(8, 8, 16, 4))
    x, time = torch.randn(3, 8, 4, 4), torch.randn(1, 16)
    other = torch.cat([x[:1] * 5, x[1:]])
    assert (block(x, time, 3) - block(other, time, 3))[2].abs().max() > 1e-2
    # ... and not by the samples of a batch
    torch.testing.assert_close(block(x, time.expand(3, 16), 1)[2], block(other, time.expand(3, 16), 1)[2])


@torch.no_grad()
def test_no_audio_skips_the_cross_attention():
    unet, (sample, t, audio) = small(), inputs()
    without = unet(sample, t, None)
    assert (unet(sample, t, audio) - without).abs().max() > 1e-2
    for name, layer in unet.named_modules():
        if name.endswith("attn2.to_out.0"):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
    torch.testing.assert_close(unet(sample, t, audio), without)


@torch.no_grad()
def test_audio_reaches_its_own_frame_with_either_layout():
    unet, (sample, t, audio) = small(motion="none"), inputs(b=2)
    torch.testing.assert_close(unet(sample, t, audio), unet(sample, t, audio.flatten(0, 1)))
    swapped = unet(sample.flip(2), t, audio.flip(1)).flip(2)
    torch.testing.assert_close(swapped, unet(sample, t, audio), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_samples_of_a_batch_do_not_meet():
    unet, (sample, _, audio) = small(), inputs(b=2)
    both = unet(sample, torch.tensor([7, 900]), audio)
    for i, step in enumerate((7, 900)):
        torch.testing.assert_close(both[i : i + 1], unet(sample[i : i + 1], step, audio[i : i + 1]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("f", "h", "w"), [(1, 8, 8), (2, 5, 7), (24, 4, 4), (3, 1, 9), (16, 9, 6)])
@torch.no_grad()
def test_any_size_and_any_window_length(f, h, w):
    assert small()(*inputs(f=f, h=h, w=w)).shape == (1, 4, f, h, w)


@torch.no_grad()
def test_what_does_not_fit_is_refused_with_a_reason():
    unet, (sample, t, audio) = small(), inputs()
    with pytest.raises(UsageError, match="25 frames is longer than the 24 positions"):
        unet(*inputs(f=25))
    with pytest.raises(UsageError, match="13 channels, not 9"):
        unet(sample[:, :9], t, audio)
    with pytest.raises(UsageError, match="audio of shape"):
        unet(sample, t, audio[:, :2])
    with pytest.raises(UsageError, match="audio of shape"):
        unet(sample, t, torch.randn(1, 3, 5, 13))


@torch.no_grad()
def test_half_precision_stays_close_and_keeps_the_dtype_of_the_sample():
    unet, args = small(), inputs()
    exact = unet(*args)
    half = unet.to(torch.bfloat16)(*args)
    assert half.dtype == torch.float32
    assert rms(half - exact) < 0.05 * rms(exact)
    assert unet(args[0].bfloat16(), *args[1:]).dtype == torch.bfloat16


def test_checkpointed_gradients_are_the_same():
    unet, args = small().train(), inputs()
    unet(*args).square().mean().backward()
    plain = {name: p.grad.clone() for name, p in unet.named_parameters()}
    unet.zero_grad()
    unet.gradient_checkpointing = True
    unet(*args).square().mean().backward()
    for name, p in unet.named_parameters():
        torch.testing.assert_close(p.grad, plain[name], msg=name)


@torch.no_grad()
def test_both_ways_compile_in_one_graph_each():
    unet, args = small(channels=(8, 16)), inputs(f=2)
    runs = [FeatureCache(2), FeatureCache(2)]
    plain = [unet(*args, cache=runs[0]) for _ in range(2)]
    unet.compile(fullgraph=True, backend="eager")  # fullgraph makes any break an error
    for expected in plain:
        torch.testing.assert_close(unet(*args, cache=runs[1]), expected)


# --- feature cache


def steps(unet: UNet, cache: FeatureCache | None, count: int = 5) -> list[torch.Tensor]:
    with torch.no_grad():
        return [unet(inputs(seed=2)[0] * (1 + 0.1 * i), torch.tensor(900 - 50 * i), inputs()[2], cache=cache) for i in range(count)]


def test_cache_runs_the_whole_network_every_third_step_only():
    unet = small()
    calls: list[str] = []
    for name, module in unet.named_modules():
        if isinstance(module, ResnetBlock):
            module.register_forward_hook(lambda *_, name=name: calls.append(name))
    steps(unet, None, 1)
    whole, calls[:] = list(calls), []
    steps(unet, FeatureCache(3), 5)
    last = [whole[-1]]
    assert calls == whole + last + last + whole + last
    assert last == ["up_blocks.3.resnets.1"]


def test_cache_is_exact_on_every_third_step():
    unet = small()
    plain, cached = steps(unet, None), steps(unet, unet.make_cache(3))
    assert [torch.equal(a, b) for a, b in zip(plain, cached, strict=True)] == [True, False, False, True, False]
    assert all(map(torch.equal, steps(unet, FeatureCache(1)), plain))


@torch.no_grad()
def test_the_error_of_the_cache_vanishes_with_the_change_between_steps():
    unet, (sample, t, audio) = small(), inputs()
    error = []
    for change in (0.02, 0.01):
        cache = FeatureCache(2)
        unet(sample, t, audio, cache=cache)
        moved = sample * (1 + change)
        error.append(rms(unet(moved, t, audio, cache=cache) - unet(moved, t, audio)))
    assert error[1] > 1e-6
    assert error[0] / error[1] == pytest.approx(2, rel=0.1)


@torch.no_grad()
def test_cache_on_an_unchanged_input_is_exact():
    unet, args, cache = small(), inputs(b=2), FeatureCache(3)
    whole = unet(*args, cache=cache)
    assert torch.equal(unet(*args, cache=cache), whole)


def test_cache_serves_one_run():
    unet, cache = small(), FeatureCache(3)
    steps(unet, cache, 1)
    with torch.no_grad(), pytest.raises(UsageError, match="one sampling run"):
        unet(*inputs(b=2), cache=cache)
    with pytest.raises(UsageError, match="interval 0"):
        FeatureCache(0)


# --- names and numbers of the published system


def test_full_size_names_shapes_and_dtypes_are_the_published_ones(golden: Path):
    files = sorted(golden.glob("a_unet_full_*_keys.json"))
    assert files, f"no a_unet_full_*_keys.json in {golden}"
    for file in files:
        published = json.loads(file.read_text())
        keys = published["keys"]
        motion = "all" if any(k.startswith("down_blocks.0.motion") for k in keys) else "decoder" if any("motion" in k for k in keys) else "none"
        with torch.device("meta"):
            unet = UNet(UNetConfig(motion=motion, audio_dim=keys["mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"][0][1]))
        ours = {k: [list(v.shape), str(v.dtype).removeprefix("torch.")] for k, v in unet.state_dict().items()}
        assert ours == keys, file.name
        assert list(ours) == list(keys), f"{file.name}: another order"
        assert sum(p.numel() for p in unet.parameters()) == published["parameters"]
        assert sorted(k for k, _ in unet.named_buffers()) == sorted(published["buffers"])


def part_that_ends(unet: UNet, tap: str) -> nn.Module:
    """The module whose output is that of the named block."""
    part = unet.get_submodule(tap)
    if "_blocks." not in tap:
        return part.resnets[-1] if tap == "mid_block" else part
    for last in ("downsamplers", "upsamplers", "motion_modules", "attentions", "resnets"):
        if hasattr(part, last):
            return getattr(part, last)[-1]
    raise AssertionError(tap)


def test_numbers_of_the_published_unet(golden: Path, goldenlib: ModuleType):
    cases = json.loads((golden / "a_unet_index.json").read_text())
    assert cases
    for name, case in cases.items():
        unet = UNet(published_unet(case["config"]))
        state = unet.state_dict()
        assert {k: list(v.shape) for k, v in state.items()} == case["keys"], name
        random = goldenlib.fill(case["keys"], case["seed"])
        load_state(unet, state | {k: torch.from_numpy(v) for k, v in random.items()}, name)
        unet.to(memory_format=torch.channels_last).eval()
        b, f = case["b"], case["f"]
        tapped: dict[str, torch.Tensor] = {}
        for tap in case["taps"]:
            part_that_ends(unet, tap).register_forward_hook(lambda _m, _i, out, tap=tap, tapped=tapped: tapped.update({tap: out}))
        sample = goldenlib.u((b, 13, f, case["h"], case["w"]), case["seed"], "input:sample") * np.float32(1.7)
        audio = goldenlib.u(tuple(case["audio_shape"]), case["seed"], "input:audio") * np.float32(1.7)
        with torch.no_grad():
            out = unet(torch.from_numpy(sample), torch.tensor(case["timestep"]), torch.from_numpy(audio))
        expected = torch.from_numpy(np.load(golden / f"a_unet_{name}.npz")["out"])
        torch.testing.assert_close(out, expected, atol=1e-4, rtol=0, msg=lambda m, name=name: f"{name}: {m}")
        for tap, truth in case["taps"].items():
            x = tapped[tap]
            if x.dim() == 4:
                x = x.unflatten(0, (b, f)).transpose(1, 2)
            assert list(x.shape) == truth["shape"], f"{name} {tap}"
            assert x.mean().item() == pytest.approx(truth["mean"], abs=1e-4), f"{name} {tap}"
            assert x.std().item() == pytest.approx(truth["std"], abs=1e-4), f"{name} {tap}"
            assert x.flatten()[:8].tolist() == pytest.approx(truth["first8"], abs=1e-4), f"{name} {tap}"


def test_numbers_of_the_explicit_checkpoint(golden: Path):
    from safetensors import safe_open

    with safe_open(golden / "a_unet_explicit_tiny.safetensors", "pt") as file:
        tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
        config = json.loads(file.metadata()["config"])
    given = {k: tensors.pop(k) for k in [k for k in tensors if k.startswith("_")]}
    with torch.device("meta"):
        unet = UNet(published_unet(config))
    tables = {k: v for k, v in UNet(published_unet(config)).state_dict().items() if k.endswith(".pe")}
    for key in tables.keys() & tensors.keys():
        torch.testing.assert_close(tables[key], tensors[key])
    load_state(unet, tables | tensors, "explicit tiny")
    with torch.no_grad():
        out = unet(given["_input.sample"], given["_input.timestep"], given["_input.audio"])
    torch.testing.assert_close(out, given["_output.sample"], atol=1e-4, rtol=0)
