"""The autoencoders: identities, the published numbers and names, and the tiny one on a real frame."""

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from latentsync.config import VAEConfig
from latentsync.errors import UsageError, WeightsError
from latentsync.models.load import load_state, read_state
from latentsync.models.vae import VAE, TinyVAE, join_taesd, make_vae

from .conftest import randomise

SMALL = VAEConfig(channels=(8, 8, 16, 16), layers_per_block=1, groups=4, scaling_factor=0.5, shift_factor=0.25)


@pytest.fixture(scope="module")
def vae() -> VAE:
    torch.manual_seed(0)
    return randomise(VAE(SMALL))


@torch.no_grad()
def test_latents_are_the_scaled_posterior(vae):
    pixels, noise = torch.rand(2, 3, 32, 24) * 2 - 1, torch.randn(2, 4, 4, 3)
    mean, std = vae.posterior(pixels)
    assert std.min() > 0
    torch.testing.assert_close(vae.encode(pixels), (mean - 0.25) * 0.5)
    torch.testing.assert_close(vae.encode(pixels, noise), (mean + std * noise - 0.25) * 0.5)
    torch.testing.assert_close(vae.unscale(vae.scale(mean)), mean)
    assert vae.decode(noise).shape == pixels.shape


@pytest.mark.parametrize("at_once", [1, 2, 5, None])
@torch.no_grad()
def test_the_cut_over_frames_does_not_show(vae, at_once):
    pixels, noise = torch.rand(5, 3, 16, 16) * 2 - 1, torch.randn(5, 4, 2, 2)
    torch.testing.assert_close(vae.encode(pixels, noise, frames_at_once=at_once), vae.encode(pixels, noise, frames_at_once=3), atol=1e-5, rtol=0)
    torch.testing.assert_close(vae.decode(noise, frames_at_once=at_once), vae.decode(noise, frames_at_once=3), atol=1e-5, rtol=0)


def test_sizes_that_do_not_fit_are_refused(vae):
    with pytest.raises(UsageError, match="36x32"):
        vae.encode(torch.zeros(1, 3, 32, 36))


@torch.no_grad()
def test_half_precision_gives_and_takes_the_callers_dtype():
    torch.manual_seed(0)
    pixels = torch.rand(1, 3, 32, 32) * 2 - 1
    whole = randomise(VAE(SMALL))
    exact = whole.decode(whole.encode(pixels))
    half = whole.to(torch.bfloat16)
    latents = half.encode(pixels)
    assert latents.dtype == torch.float32
    assert (half.decode(latents) - exact).square().mean() < 0.003 * exact.square().mean()


def test_gradients_pass_through_the_decoder(vae):
    latents = torch.randn(3, 4, 2, 2, requires_grad=True)
    vae.decode(latents, frames_at_once=2).sum().backward()
    assert latents.grad is not None
    assert latents.grad.abs().amin(dim=(1, 2, 3)).shape == (3,)
    assert (latents.grad.abs().amax(dim=(1, 2, 3)) > 0).all()


@pytest.mark.parametrize("config", [SMALL, VAEConfig(kind="tiny")])
def test_checkpointed_gradients_are_the_same(config):
    torch.manual_seed(0)
    vae = randomise(make_vae(config))
    inputs = {"decode": torch.randn(3, 4, 2, 2), "encode": torch.rand(3, 3, 16, 16) * 2 - 1}
    grads = []
    for recompute in (False, True):
        vae.zero_grad()
        vae.gradient_checkpointing = recompute
        found = {}
        for name, x in inputs.items():
            leaf = x.clone().requires_grad_()
            getattr(vae, name)(leaf, frames_at_once=2).square().sum().backward()
            found[name] = leaf.grad
        grads.append(found | {name: p.grad.clone() for name, p in vae.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, msg=name)
    assert (grads[0]["decode"].abs().amax(dim=(1, 2, 3)) > 0).all()


def test_checkpointing_keeps_only_what_is_decoded():
    vae = VAE(SMALL).requires_grad_(False)
    vae.gradient_checkpointing = True
    kept: list[int] = []
    latents = torch.randn(4, 4, 2, 2, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        vae.decode(latents, frames_at_once=1)
    assert sum(kept) == latents.numel()


def test_numbers_of_the_published_autoencoder(golden: Path, goldenlib: ModuleType):
    case = json.loads((golden / "g_vae_index.json").read_text())
    config = case["config"]
    vae = VAE(
        VAEConfig(
            channels=tuple(config["block_out_channels"]),
            layers_per_block=config["layers_per_block"],
            groups=config["norm_num_groups"],
            latent_channels=config["latent_channels"],
        )
    )
    assert {k: list(v.shape) for k, v in vae.state_dict().items()} == case["keys"]
    random = goldenlib.fill(case["keys"], case["seed"], case["gain"])
    load_state(vae, {k: torch.from_numpy(v) for k, v in random.items()}, "golden")
    truth = np.load(golden / "g_vae.npz")
    b, _, h, w = truth["decoded"].shape
    image = torch.from_numpy(goldenlib.u((b, 3, h, w), case["seed"], "input:image"))
    latent = torch.from_numpy(goldenlib.u(truth["mean"].shape, case["seed"], "input:latent"))
    with torch.no_grad():
        mean, std = vae.posterior(image)
        decoded = vae.decode(vae.scale(latent))
    for ours, name in ((mean, "mean"), (std, "std"), (decoded, "decoded")):
        torch.testing.assert_close(ours, torch.from_numpy(truth[name]), atol=1e-4, rtol=0, msg=lambda m, name=name: f"{name}: {m}")


def published_keys(golden: Path) -> dict[str, list]:
    return json.loads((golden / "g_vae_full_keys.json").read_text())["keys"]


def full_size() -> VAE:
    with torch.device("meta"):
        return VAE(VAEConfig())


def test_full_size_names_shapes_and_dtypes_are_the_published_ones(golden: Path):
    ours = {k: [list(v.shape), str(v.dtype).removeprefix("torch.")] for k, v in full_size().state_dict().items()}
    assert ours == published_keys(golden)


@pytest.mark.parametrize("as_convolution", [False, True])
def test_the_old_attention_names_of_published_files_load_too(golden: Path, as_convolution: bool):
    old_names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    old: dict[str, torch.Tensor] = {}
    renamed = 0
    for key, (shape, _) in published_keys(golden).items():
        name, tensor = key, torch.empty(shape, device="meta")
        for new, was in old_names.items():
            if f".attentions.0.{new}." in key:
                name, renamed = key.replace(new, was), renamed + 1
                if as_convolution and tensor.dim() == 2:
                    tensor = tensor[:, :, None, None]
        old[name] = tensor
    assert renamed == 16  # four layers of weight and bias, in encoder and decoder
    load_state(full_size(), old, "old names")
    del old["decoder.mid_block.attentions.0.query.bias"]
    with pytest.raises(WeightsError, match=r"decoder\.mid_block\.attentions\.0\.to_q\.bias' is missing"):
        load_state(full_size(), old, "old names")


@pytest.fixture(scope="module")
def tiny(public_weights: Path) -> TinyVAE:
    with torch.device("meta"):
        empty = TinyVAE()
    parts = (read_state(public_weights / f"taesd_{part}_bf16.safetensors") for part in ("encoder", "decoder"))
    return load_state(empty, join_taesd(*parts), "TAESD").float()


@torch.no_grad()
def test_the_tiny_autoencoder_returns_a_real_frame(tiny: TinyVAE, clips: Path):
    import av

    with av.open(str(clips / "talking" / "LatentSync__demo1_video.mp4")) as container:
        frame = next(container.decode(video=0)).to_ndarray(format="rgb24")
    pixels = torch.from_numpy(frame[200:712, 200:712].copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    latents = tiny.encode(pixels, torch.randn(1, 4, 64, 64))
    psnr = -10 * torch.log10(((tiny.decode(latents).clamp(-1, 1) - pixels) / 2).square().mean())
    assert psnr > 30
    assert 0.5 < latents.std() < 2  # the scale of Stable Diffusion's latents, ready for the U-Net
    assert torch.equal(latents, tiny.encode(pixels))  # it has no posterior to draw from


def test_the_tiny_autoencoder_takes_its_diffusers_names_too(tiny: TinyVAE):
    state = tiny.state_dict()
    assert next(iter(state)).startswith("encoder.layers.0.")
    with torch.device("meta"):
        other = make_vae(VAEConfig(kind="tiny"))
    load_state(other, state, "diffusers")
    with pytest.raises(WeightsError):
        load_state(other, {k: v for k, v in state.items() if k != "decoder.layers.0.bias"}, "diffusers")
