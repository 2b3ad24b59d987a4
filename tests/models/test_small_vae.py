"""The small autoencoder: identities, standardised latents, and the ways it is cut and placed."""

import pytest
import torch

from latentsync.config import VAEConfig
from latentsync.errors import UsageError, WeightsError
from latentsync.models.load import load_state
from latentsync.models.small_vae import COMPONENTS, SmallVAE, cosines
from latentsync.models.vae import make_vae

from .conftest import randomise

EIGHT = VAEConfig(kind="small", channels=(8, 8, 16), layers_per_block=1, latent_channels=8)


@pytest.fixture
def vae() -> SmallVAE:
    torch.manual_seed(0)
    made = randomise(make_vae(EIGHT))
    assert isinstance(made, SmallVAE)
    made.latent_mean.copy_(torch.linspace(-1, 1, 8))
    made.latent_std.copy_(torch.linspace(0.5, 2, 8))
    return made


def pictures(count: int = 3) -> torch.Tensor:
    return torch.rand(count, 3, 32, 24, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("channels", [4, 8])
@torch.no_grad()
def test_an_eighth_each_way_and_so_many_channels(channels):
    made = make_vae(VAEConfig(kind="small", channels=(8, 8, 8), layers_per_block=1, latent_channels=channels))
    latents = made.encode(pictures())
    assert latents.shape == (3, channels, 4, 3)
    assert made.decode(latents).shape == (3, 3, 32, 24)


@torch.no_grad()
def test_noise_draws_nothing(vae):
    mean, std = vae.posterior(pictures())
    assert std.abs().max() == 0
    torch.testing.assert_close(vae.encode(pictures(), torch.randn_like(mean)), vae.encode(pictures()), rtol=0, atol=0)


@torch.no_grad()
def test_latents_are_standardised_by_what_was_measured(vae):
    mean, _ = vae.posterior(pictures())
    expected = (mean - vae.latent_mean[None, :, None, None]) / vae.latent_std[None, :, None, None]
    torch.testing.assert_close(vae.encode(pictures()), expected)
    torch.testing.assert_close(vae.unscale(vae.scale(mean)), mean)
    torch.testing.assert_close(vae.decode(vae.encode(pictures())), vae._pixels(mean), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_before_it_is_measured_the_standardisation_changes_nothing():
    made = make_vae(EIGHT)
    latents = torch.randn(2, 8, 3, 3)
    assert torch.equal(made.scale(latents), latents)
    assert torch.equal(made.unscale(latents), latents)


def test_what_was_measured_travels_with_the_weights(vae):
    with torch.device("meta"):
        other = make_vae(EIGHT)
    load_state(other, vae.state_dict(), "small")
    with torch.no_grad():
        assert torch.equal(other.encode(pictures()), vae.encode(pictures()))
    state = {k: v for k, v in vae.state_dict().items() if k != "latent_std"}
    with pytest.raises(WeightsError, match="latent_std"):
        load_state(other, state, "small")


@torch.no_grad()
def test_training_sees_the_same_networks(vae, monkeypatch):
    """Without noise `forward` is there and back; with noise it adds that many standard deviations of each channel's own."""
    x = pictures()
    made, latents = vae(x, torch.zeros(3, 8, 4, 3))
    torch.testing.assert_close(made, vae.decode(vae.encode(x)), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(latents, vae.posterior(x)[0])
    monkeypatch.setattr(vae, "_pixels", lambda latents: latents)
    noise = torch.randn(3, 8, 4, 3)
    noisy, latents = vae(x, noise)
    spread = latents.transpose(0, 1).flatten(1).std(dim=1, correction=0)
    torch.testing.assert_close(noisy - latents, noise * spread[None, :, None, None], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("at_once", [1, 2, None])
@torch.no_grad()
def test_the_cut_over_frames_does_not_show(vae, at_once):
    x, latents = pictures(5), torch.randn(5, 8, 2, 2)
    torch.testing.assert_close(vae.encode(x, frames_at_once=at_once), vae.encode(x, frames_at_once=5), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(vae.decode(latents, frames_at_once=at_once), vae.decode(latents, frames_at_once=5), atol=1e-5, rtol=1e-4)


def test_checkpointed_gradients_are_the_same(vae):
    x = torch.randn(3, 8, 2, 2, requires_grad=True)
    found = []
    for recompute in (False, True):
        vae.gradient_checkpointing = recompute
        (grad,) = torch.autograd.grad(vae.decode(x, frames_at_once=2).square().sum(), x)
        found.append(grad)
    assert found[0].abs().max() > 0
    torch.testing.assert_close(found[0], found[1])


def test_every_weight_is_reached(vae):
    made, latents = vae(pictures(), torch.randn(3, 8, 4, 3))
    (made.square().mean() + latents.square().mean()).backward()
    assert [name for name, p in vae.named_parameters() if p.grad is None or not p.grad.abs().any()] == []


@pytest.mark.parametrize("channels", [1, 4, 8, len(COMPONENTS)])
def test_the_cosines_of_the_fixed_way_are_undone_by_their_inverse(channels):
    there, back = cosines(channels, torch.device("cpu"), torch.float64)
    torch.testing.assert_close(there[:, :, 0, 0] @ back[:, :, 0, 0], torch.eye(channels, dtype=torch.float64))


@torch.no_grad()
def test_untrained_it_is_a_coarse_codec():
    """Flat colours and slopes across a cell come back; the first channel is the mean of luma, and mirrored pictures turn the slopes around."""
    made = make_vae(EIGHT)
    flat = torch.tensor([0.5, -0.25, 0.75])[None, :, None, None].expand(1, 3, 16, 16)
    torch.testing.assert_close(made.decode(made.encode(flat)), flat, atol=1e-5, rtol=0)
    torch.testing.assert_close(made.encode(torch.full((1, 3, 8, 8), 0.5))[0, 0], torch.full((1, 1), 0.5 * 3**0.5))
    slope = torch.linspace(-1, 1, 16).expand(1, 3, 16, 16)
    assert (made.decode(made.encode(slope)) - slope).abs().mean() < 0.04  # a flat cell would give 0.13
    turned = torch.tensor([1.0, 1, 1, -1, 1, -1, 1, 1])[None, :, None, None]
    torch.testing.assert_close(made.encode(slope.flip(-1)), made.encode(slope).flip(-1) * turned, atol=1e-5, rtol=0)


@pytest.mark.parametrize("channels", [(8, 8), (8, 8, 8, 8)])
def test_other_numbers_of_widths_are_refused(channels):
    with pytest.raises(UsageError, match="has 3 widths"):
        make_vae(VAEConfig(kind="small", channels=channels))
